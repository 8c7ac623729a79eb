/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One run of one hook: the slot is filled in from our own copy, the program runs, and exactly one verdict record must lie
 * in the ring of the thread that ran it. The record is checked for whom it is; what it says is verdict.c's.
 */
#include "core.h"

#include <linux/bpf.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#define RING_SIZE_MIN 4096UL

static int ring_map(struct worker *w)
{
	struct shared_maps *s = &w->mount->shared;
	size_t page = (size_t)sysconf(_SC_PAGESIZE);
	struct bpf_map_info info = { 0 };
	union bpf_attr attr = { .info = { .bpf_fd = (uint32_t)s->ring_fds[w->index],
					  .info_len = sizeof(info),
					  .info = (uint64_t)(uintptr_t)&info } };

	if (syscall(SYS_bpf, BPF_OBJ_GET_INFO_BY_FD, &attr, sizeof(attr)) < 0)
		return -errno;
	if (info.type != BPF_MAP_TYPE_RINGBUF || info.max_entries < RING_SIZE_MIN)
		return -EINVAL;
	// kernel/bpf/ringbuf.c: the consumer page, the producer page, the data twice in a row.
	void *consumer = mmap(NULL, page, PROT_READ | PROT_WRITE, MAP_SHARED, s->ring_fds[w->index], 0);
	if (consumer == MAP_FAILED)
		return -errno;
	void *producer = mmap(NULL, page + 2 * (size_t)info.max_entries, PROT_READ, MAP_SHARED,
			      s->ring_fds[w->index], (off_t)page);
	if (producer == MAP_FAILED) {
		int e = -errno;
		munmap(consumer, page);
		return e;
	}
	w->ring_consumer = consumer;
	w->ring_producer = producer;
	w->ring_data = (const unsigned char *)producer + page;
	w->ring_mask = info.max_entries - 1;
	return 0;
}

void hook_unmap_ring(struct worker *w)
{
	size_t page = (size_t)sysconf(_SC_PAGESIZE);

	if (!w->ring_consumer)
		return;
	munmap((void *)w->ring_consumer, page);
	munmap((void *)w->ring_producer, page + 2 * (w->ring_mask + 1));
	w->ring_consumer = NULL;
}

/* Each of the three lies on a page of its own: most ops have none, and touch none. */
static void extents_fill(bool *had, struct fb_slot *slot, const struct fb_slot *image)
{
	bool has = image->path_len | image->path2_len | image->text_len | (image->flags & FB_HAS_PATH);

	if (!has && !*had)
		return;
	*had = has;
	memcpy(slot->path, image->path, image->path_len);
	memcpy(slot->path2, image->path2, image->path2_len);
	memcpy(slot->text, image->text, image->text_len);
	slot->path[image->path_len] = slot->path2[image->path2_len] = slot->text[image->text_len] = 0;
}

/* Fill the slot in: what the op is now, and nothing that an earlier hook or op left there. */
static void slot_fill(struct request *rq, struct fb_slot *slot, const struct op *op, enum fb_phase phase,
		      const struct chain_hook *hook)
{
	struct fb_slot *image = rq->image;

	image->op = (enum fb_op)op->canonical;
	image->phase = phase;
	image->filter = rq->chain->filters[hook->position].id;
	image->cookie = rq->cookies[hook->position];
	image->error = (enum fb_errno)rq->error;
	image->edits = 0;
	tags_to_slot(rq, op, phase, rq->chain->filters[hook->position].owner);
	image->key_op = image->op;
	image->key_uid = image->uid;
	if (image->name2_len) {
		memcpy(slot, image, HOT_SLOT_SIZE);
	} else {
		memcpy(slot, image, offsetof(struct fb_slot, name2));
		slot->name2.text[0] = 0;
	}
	if (rq->chain->wants & FB_WANTS_CALLER)
		slot->caller = image->caller;
	extents_fill(&rq->mount->shared.has_extents[rq->slot], slot, image);
}

/* Take what lies in the ring, all of it: how many records, and the first one of the right size. */
static int ring_take(struct worker *w, struct fb_verdict_record *out)
{
	unsigned long at = atomic_load_explicit(w->ring_consumer, memory_order_relaxed);
	unsigned long end = atomic_load_explicit(w->ring_producer, memory_order_acquire);
	int n = 0;

	while (at < end) {
		uint32_t header = __atomic_load_n((const uint32_t *)(w->ring_data + (at & w->ring_mask)), __ATOMIC_ACQUIRE);
		uint32_t len = header & ~(BPF_RINGBUF_BUSY_BIT | BPF_RINGBUF_DISCARD_BIT);
		if (!(header & (BPF_RINGBUF_BUSY_BIT | BPF_RINGBUF_DISCARD_BIT)) && len == sizeof(*out) && n == 0)
			memcpy(out, w->ring_data + (at & w->ring_mask) + BPF_RINGBUF_HDR_SZ, sizeof(*out));
		else
			n++; // not a verdict: one too many, whatever it is
		n++;
		at += (len + BPF_RINGBUF_HDR_SZ + 7) / 8 * 8;
	}
	atomic_store_explicit(w->ring_consumer, end, memory_order_release);
	return n;
}

/**
 * Run one hook of an op and take its verdict record. `op` is rq->op, or dirent for an entry of a listing.
 *
 * Returns 0, or -EIO after fail_closed: the program did not run, or left no record, several, or one that is not
 * for this run.
 */
int hook_run(struct request *rq, const struct op *op, enum fb_phase phase, const struct chain_hook *hook,
	     struct fb_verdict_record *out)
{
	struct worker *w = rq->worker;
	struct fb_hook context = { .unique = rq->in->unique,
				   .slot = rq->slot,
				   .ring = w->index,
				   .filter = rq->chain->filters[hook->position].id,
				   .op = (enum fb_op)op->canonical,
				   .phase = phase };
	union bpf_attr attr;
	int n;

	if (!w->ring_consumer && ring_map(w) < 0) {
		fail_closed(rq, op, hook, phase, "its verdict ring cannot be mapped");
		return -EIO;
	}
	slot_fill(rq, slot_of(rq), op, phase, hook);
	memset(&attr, 0, sizeof(attr));
	attr.test.prog_fd = (uint32_t)hook->program_fd;
	attr.test.ctx_in = (uint64_t)(uintptr_t)&context;
	attr.test.ctx_size_in = sizeof(context);
	int e = (int)syscall(SYS_bpf, BPF_PROG_RUN, &attr, sizeof(attr.test));
	n = ring_take(w, out);
	atomic_fetch_add_explicit(&rq->mount->n_hook_runs, 1, memory_order_relaxed);
	const char *why = NULL;
	if (e < 0)
		why = "its program could not be run";
	else if (n == 0)
		why = "it left no verdict";
	else if (n != 1)
		why = "it left more than one verdict, or something else than a verdict";
	else if (out->unique != rq->in->unique || out->slot != rq->slot || out->filter != context.filter ||
		 out->op != context.op || out->phase != phase)
		why = "its verdict is for another request";
	if (!why) {
		if (out->edits & FB_EDIT_TEXT)
			rq->mount->shared.has_extents[rq->slot] = true;
		rq->cookies[hook->position] = out->cookie;
		return 0;
	}
	fail_closed(rq, op, hook, phase, why);
	return -EIO;
}
