/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One run of one hook, or of several that were joined into one program: the slot is filled in from our own copy, the program
 * runs, and exactly one verdict record of each hook must lie in the ring of the thread that ran it. The records are checked
 * for whom they are; what they say is verdict.c's.
 */
#include "core.h"

#include <linux/bpf.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#define RING_SIZE_MIN 4096UL
#define NOBODY UINT32_MAX /* no filter's id */

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

/* The number by which hooks know the calling thread, or 0. */
static uint32_t thread_number(const struct shared_maps *s)
{
	union bpf_attr attr;

	memset(&attr, 0, sizeof(attr.test));
	attr.test.prog_fd = (uint32_t)s->thread_fd;
	return syscall(SYS_bpf, BPF_PROG_RUN, &attr, sizeof(attr.test)) < 0 ? 0 : attr.test.retval;
}

/* Take a place where the hooks that the calling thread runs find what they are asked (bpf/fusebpf_filter.h: fb_hook_here). -EBUSY:
 * those that its number leads to are taken, as when one in a hundred million threads begins to run hooks beside 63 others. */
static int place_take(struct worker *w)
{
	struct shared_maps *s = &w->mount->shared;
	uint32_t thread = thread_number(s);

	if (!thread)
		return -EIO;
	w->hook_thread = thread;
	for (uint32_t i = 0; i < FB_N_TRIES; i++) {
		uint32_t place = (thread + i * FB_NEXT_PLACE) % FB_N_PLACES;
		if (!atomic_exchange(&s->place_is_taken[place], true)) {
			w->hook = &s->hooks[place];
			return 0;
		}
	}
	return -EBUSY;
}

/* A hook broke a rule: it may have written a number where no thread is, by which another's hooks would find what they are not asked. */
static void places_sweep(struct shared_maps *s)
{
	for (uint32_t place = 0; place < FB_N_PLACES; place++) {
		uint32_t written = __atomic_load_n(&s->hooks[place].thread, __ATOMIC_SEQ_CST);
		if (written && !s->place_is_taken[place]) // who takes it now writes another number
			__atomic_compare_exchange_n(&s->hooks[place].thread, &written, 0, false, __ATOMIC_SEQ_CST,
						    __ATOMIC_SEQ_CST);
	}
}

/* Before the first hook that the calling thread runs, and the first after it was parked. */
static int hook_enter(struct worker *w)
{
	int e = w->ring_consumer ? 0 : ring_map(w);

	return e ? e : place_take(w);
}

/** The worker runs no hooks for now. Its own thread, or with workers.lock held any while it is parked. */
void hook_leave(struct worker *w)
{
	size_t page = (size_t)sysconf(_SC_PAGESIZE);

	if (w->hook) {
		__atomic_store_n(&w->hook->thread, 0, __ATOMIC_RELEASE);
		atomic_store(&w->mount->shared.place_is_taken[w->hook - w->mount->shared.hooks], false);
	}
	w->hook = NULL;
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
	if (rq->chain->wants & FB_WANTS_SIZES) {
		slot->size = image->size;
		slot->old_size = image->old_size;
	}
	extents_fill(&rq->mount->shared.has_extents[rq->slot], slot, image);
}

/* Take what lies in the ring, all of it: how many records, and the first `most` of them; what is no verdict is nobody's. */
static uint32_t ring_take(struct worker *w, struct fb_verdict_record *out, uint32_t most)
{
	unsigned long at = atomic_load_explicit(w->ring_consumer, memory_order_relaxed);
	unsigned long end = atomic_load_explicit(w->ring_producer, memory_order_acquire);
	uint32_t n = 0;

	for (; at < end; n++) {
		uint32_t header = __atomic_load_n((const uint32_t *)(w->ring_data + (at & w->ring_mask)), __ATOMIC_ACQUIRE);
		uint32_t len = header & ~(BPF_RINGBUF_BUSY_BIT | BPF_RINGBUF_DISCARD_BIT);
		bool is_verdict = len == sizeof(*out) && header == len;
		if (n < most && is_verdict)
			memcpy(&out[n], w->ring_data + (at & w->ring_mask) + BPF_RINGBUF_HDR_SZ, sizeof(*out));
		else if (n < most)
			out[n].filter = NOBODY;
		at += (len + BPF_RINGBUF_HDR_SZ + 7) / 8 * 8;
	}
	atomic_store_explicit(w->ring_consumer, end, memory_order_release);
	return n;
}

static uint32_t filter_of(const struct request *rq, const struct chain_hook *hook)
{
	return rq->chain->filters[hook->position].id;
}

static bool is_for(const struct request *rq, const struct op *op, enum fb_phase phase, const struct chain_hook *hook,
		   const struct fb_verdict_record *v)
{
	return v->unique == rq->in->unique && v->slot == rq->slot && v->filter == filter_of(rq, hook) &&
	       v->op == (enum fb_op)op->canonical && v->phase == phase;
}

/* How many of the n records are the verdicts that the hooks that were asked owe, in order; *why is NULL, or what is wrong with
 * what the next one left. */
static uint32_t records_check(struct request *rq, const struct op *op, enum fb_phase phase, const struct chain_hook *hook,
			      uint32_t n_asked, const struct fb_verdict_record *v, uint32_t n, const char **why)
{
	uint32_t good = 0;

	while (good < n_asked && good < n && is_for(rq, op, phase, &hook[good], &v[good]))
		good++;
	*why = NULL;
	if (good == n_asked && n == n_asked)
		return good;
	bool is_surplus = good == n_asked || n > n_asked || (good < n && v[good].filter == NOBODY);
	bool is_missing = good == n || (good + 1 < n_asked && v[good].filter == filter_of(rq, &hook[good + 1]));
	*why = is_surplus   ? "it left more than one verdict, or something else than a verdict"
	       : is_missing ? "it left no verdict"
			    : "its verdict is for another request";
	return good == n_asked ? good - 1 : good;
}

/**
 * Run n_hooks hooks, from `hook` on, by the program fd: one hook's own, or the one that they are joined in, which returns how
 * many it asked. `op` is rq->op, or dirent for an entry of a listing.
 *
 * Returns how many left their verdicts in `out`. If *why is set then, the next one broke a rule.
 */
uint32_t hooks_run(struct request *rq, const struct op *op, enum fb_phase phase, const struct chain_hook *hook, int fd,
		   uint32_t n_hooks, struct fb_verdict_record *out, const char **why)
{
	struct worker *w = rq->worker;
	union bpf_attr attr;

	if (!w->hook && hook_enter(w)) {
		*why = "its thread has no place where it could run";
		return 0;
	}
	__atomic_store_n(&w->hook->thread, w->hook_thread, __ATOMIC_RELAXED); // a wild hook may have written over it
	w->hook->unique = rq->in->unique;
	w->hook->slot = rq->slot;
	w->hook->ring = w->index;
	w->hook->filter = filter_of(rq, hook);
	w->hook->op = (enum fb_op)op->canonical;
	w->hook->phase = phase;
	if (phase == FB_POST && rq->n_kept)
		names_restore(rq, hook->position);
	slot_fill(rq, slot_of(rq), op, phase, hook);
	memset(&attr, 0, sizeof(attr.test));
	attr.test.prog_fd = (uint32_t)fd;
	int e = (int)syscall(SYS_bpf, BPF_PROG_RUN, &attr, sizeof(attr.test));
	uint32_t n = ring_take(w, out, n_hooks), n_asked = n_hooks > 1 ? attr.test.retval : 1;
	if (e < 0 || n_asked - 1 >= n_hooks) {
		*why = "its program could not be run";
		return 0;
	}
	atomic_fetch_add_explicit(&w->queue->n_hook_runs, n_asked, memory_order_relaxed);
	atomic_fetch_add_explicit(&w->queue->n_program_runs, 1, memory_order_relaxed);
	uint32_t n_good = records_check(rq, op, phase, hook, n_asked, out, n, why);
	if (*why)
		places_sweep(&rq->mount->shared);
	for (uint32_t i = 0; i < n_good; i++) {
		if (out[i].edits & FB_EDIT_TEXT)
			rq->mount->shared.has_extents[rq->slot] = true;
		rq->cookies[hook[i].position] = out[i].cookie;
	}
	return n_good;
}

/** Run one hook and take its verdict record. Returns 0, or -EIO after fail_closed. */
int hook_run(struct request *rq, const struct op *op, enum fb_phase phase, const struct chain_hook *hook,
	     struct fb_verdict_record *out)
{
	const char *why;

	if (hooks_run(rq, op, phase, hook, hook->program_fd, 1, out, &why) == 1)
		return 0;
	fail_closed(rq, op, hook, phase, why);
	return -EIO;
}
