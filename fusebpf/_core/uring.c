/* SPDX-License-Identifier: Apache-2.0 */
/*
 * FUSE over io_uring: the kernel has a queue for each core and gives a request to an entry of the caller's core. Each
 * worker is pinned to a core (but see idle.c) and has a ring of its own with one entry, so that one that blocks holds up no other: the
 * kernel's list of entries that wait is what says who is next, last in first out, which keeps the busiest warm. A reply
 * and the wait for the next request are one system call. The kernel has no way to take an entry back, so a worker that is no longer
 * needed leaves with a message of ours that it does not answer: nobody waits for that, and with the answer the next worker
 * takes the entry over. Source: fs/fuse/dev_uring.c.
 *
 * A worker's buffer: what the kernel calls the entry's headers, at PAYLOAD_AT its payload. Threads: the worker's own,
 * but for open.
 */
#include "core.h"

#include <sched.h>
#include <sys/mman.h>

#define PAYLOAD_AT 4096
#define PAYLOAD_SIZE (REQUEST_BUFFER_SIZE - PAYLOAD_AT)

_Static_assert(PAYLOAD_SIZE >= MAX_WRITE, "the kernel wants room for the largest request");
_Static_assert(sizeof(struct fb_uring_headers) + sizeof(struct fuse_in_header) + FB_URING_OP_SIZE < PAYLOAD_AT,
	       "a request is put together before its payload");

static struct fb_uring_headers *headers_of(const struct worker *w)
{
	return (struct fb_uring_headers *)w->buffer;
}

/* Take over an entry that a worker left, in place of the buffer for a new one. Called with workers.lock held, but for the first ones. */
static void spare_take(struct worker *w)
{
	struct spare *spare = w->queue->spares;

	if (!spare)
		return;
	w->queue->spares = spare->next;
	munmap(w->buffer, 2 * REQUEST_BUFFER_SIZE);
	w->buffer = spare->buffer;
	w->own_payload = w->buffer + REQUEST_BUFFER_SIZE;
	w->is_unanswered = true;
	free(spare);
}

static int entry_open(struct worker *w)
{
	int e = uring_open(&w->uring, w->mount->device_fd);

	if (!e)
		spare_take(w);
	return e;
}

/** The mount ends: free what nobody took over. */
void uring_free_spares(struct queue *q)
{
	struct spare *spare;

	while ((spare = q->spares)) {
		q->spares = spare->next;
		munmap(spare->buffer, 2 * REQUEST_BUFFER_SIZE);
		free(spare);
	}
}

static struct io_uring_sqe *prepare(struct worker *w, uint32_t command, uint64_t commit_id)
{
	struct io_uring_sqe *sqe = uring_prepare(&w->uring);
	struct fb_uring_command *request = (struct fb_uring_command *)(void *)sqe->cmd;

	sqe->opcode = IORING_OP_URING_CMD;
	sqe->flags = IOSQE_FIXED_FILE; // the only one
	sqe->cmd_op = command;
	request->commit_id = commit_id;
	request->queue = (uint16_t)w->queue->core;
	return sqe;
}

/* Have the kernel send the calling thread's core a message of ours: a NOTIFY_REPLY for an inode. 0, or -errno. */
static int notify(struct mount *m, uint64_t nodeid)
{
	struct fuse_notify_retrieve_out retrieve = { .nodeid = nodeid };
	struct fuse_out_header header = { .len = sizeof(header) + sizeof(retrieve), .error = FUSE_NOTIFY_RETRIEVE };
	struct iovec iov[] = { { &header, sizeof(header) }, { &retrieve, sizeof(retrieve) } };

	// The kernel's own numbers count up from 0.
	retrieve.notify_unique = 1ULL << 63 | atomic_fetch_add(&m->n_nudges, 1) << 1;
	return writev(m->device_fd, iov, 2) < 0 ? -errno : 0;
}

/* A regular file that the kernel may know, out of one shard of the table; 0 if there is none. */
static uint64_t regular_of_shard(struct mount *m, uint32_t shard)
{
	struct inode_shard *s = &m->inodes.by_id[shard];
	uint64_t nodeid = 0;

	pthread_mutex_lock(&s->lock);
	for (uint32_t i = 0; i < s->n_buckets && !nodeid; i++)
		for (const struct inode *inode = s->buckets[i]; inode && !nodeid; inode = inode->next_by_id)
			nodeid = inode->type == S_IFREG ? inode->nodeid : 0;
	pthread_mutex_unlock(&s->lock);
	return nodeid;
}

/* Send the queue of the calling thread's core a message. Newer kernels want a regular file for it: one that a worker is busy with,
 * or any that is known. */
static void nudge(struct mount *m, const struct queue *q)
{
	struct workers *p = &m->workers;
	uint64_t nodeids[FB_MAX_WORKERS];
	int n = 0;

	pthread_mutex_lock(&p->lock);
	for (struct worker *other = p->all; other && n < FB_MAX_WORKERS; other = other->next)
		if (other->queue == q && atomic_load(&other->unique))
			nodeids[n++] = atomic_load_explicit(&other->nodeid, memory_order_relaxed);
	pthread_mutex_unlock(&p->lock);
	int e = notify(m, ROOT_NODEID);
	while (e && n > 0)
		e = notify(m, nodeids[--n]);
	for (uint32_t shard = 0; e && shard < N_SHARDS; shard++) {
		uint64_t nodeid = regular_of_shard(m, shard);
		e = nodeid ? notify(m, nodeid) : e;
	}
}

/** Let n workers of a core leave: those that get a message. On the janitor's thread, which goes to that core for it. */
void uring_let_leave(struct mount *m, struct queue *q, uint32_t n)
{
	cpu_set_t before, core;

	CPU_ZERO(&core);
	CPU_SET(q->core, &core);
	if (sched_getaffinity(0, sizeof(before), &before) < 0 || sched_setaffinity(0, sizeof(core), &core) < 0)
		return; // it is off line, or not ours
	atomic_store(&q->n_surplus, n);
	for (; n; n--)
		nudge(m, q);
	sched_setaffinity(0, sizeof(before), &before);
}

/* Is the worker, which got a message, one of those that may leave? */
static bool is_surplus(struct queue *q)
{
	uint32_t n = atomic_load(&q->n_surplus);

	while (n && !atomic_compare_exchange_weak(&q->n_surplus, &n, n - 1))
		continue;
	return n;
}

/* Give the kernel this worker's entry. */
static int entry_register(struct worker *w)
{
	int e = uring_enable(&w->uring);

	if (e)
		return e;
	if (w->is_unanswered) { // it takes an entry over
		w->is_registered = true;
		return 0;
	}
	w->entry[0] = (struct iovec){ w->buffer, sizeof(struct fb_uring_headers) };
	w->entry[1] = (struct iovec){ w->buffer + PAYLOAD_AT, PAYLOAD_SIZE };
	struct io_uring_sqe *sqe = prepare(w, FB_URING_REGISTER, 0);
	sqe->addr = (uint64_t)(uintptr_t)w->entry;
	sqe->len = 2;
	w->is_registered = true;
	if (!atomic_exchange(&w->queue->is_in_use, true))
		return 0; // the first one: nothing comes before all cores have one
	e = uring_submit(&w->uring, false);
	// Requests that came while no entry was free wait for a commit, a new one does not get them (fuse_uring_do_register).
	nudge(w->mount, w->queue);
	return e;
}

/* The kernel did not take a command. Returns what the worker is to make of it. */
static int refused(struct worker *w, int error)
{
	if (error == ENOTCONN || error == ECONNABORTED || error == ECANCELED)
		return -ENODEV;
	mount_log(w->mount, "ERROR", "the kernel refused an entry of core %d's queue: %s", w->queue->core, strerror(error));
	// If it was the first one, the kernel goes over to /dev/fuse, for the whole mount. One that was taken over never is.
	if (error != ENOMEM && w->entry[0].iov_base)
		atomic_store(&w->queue->is_closed, true);
	return -ESHUTDOWN;
}

/* Put the request together before its payload: header, op's struct, payload, as /dev/fuse would give it. */
static ssize_t assemble(struct worker *w)
{
	const struct fb_uring_headers *headers = headers_of(w);
	const struct fuse_in_header *in = (const struct fuse_in_header *)headers->in_out;
	size_t payload = headers->entry.payload_size;

	if (in->len < sizeof(*in) + payload || in->len > sizeof(*in) + payload + FB_URING_OP_SIZE)
		return -EPROTO;
	size_t op_size = in->len - sizeof(*in) - payload;
	char *at = w->buffer + PAYLOAD_AT - op_size;
	memcpy(at, headers->op_in, op_size);
	at -= sizeof(*in);
	memcpy(at, in, sizeof(*in));
	w->request = at;
	// Results go straight to where the kernel takes them from, unless the arguments lie there.
	w->payload = payload ? w->own_payload : w->buffer + PAYLOAD_AT;
	return in->len;
}

static int entry_reply(struct worker *w, const struct fuse_out_header *header, const struct iovec body[2])
{
	struct fb_uring_headers *headers = headers_of(w);
	char *payload = w->buffer + PAYLOAD_AT;

	if (body[1].iov_len && (body[0].iov_len || body[1].iov_base != payload))
		memmove(payload + body[0].iov_len, body[1].iov_base, body[1].iov_len);
	if (body[0].iov_len)
		memcpy(payload, body[0].iov_base, body[0].iov_len);
	memcpy(headers->in_out, header, sizeof(*header));
	headers->entry.payload_size = (uint32_t)(body[0].iov_len + body[1].iov_len);
	prepare(w, FB_URING_COMMIT_AND_FETCH, headers->entry.commit_id);
	placement_choose(w);
	w->is_unanswered = false;
	return 0;
}

static ssize_t entry_receive(struct worker *w)
{
	static const struct iovec nothing[2];
	int result, e = w->is_registered ? 0 : entry_register(w);

	if (w->is_unanswered) // by this transport all are, even DESTROY and our own messages
		entry_reply(w, &(struct fuse_out_header){ .len = sizeof(struct fuse_out_header),
							  .unique = headers_of(w)->entry.commit_id }, nothing);
	if (!e)
		e = uring_submit(&w->uring, true);
	if (!uring_take(&w->uring, &result))
		return e ? e : -EINTR;
	if (result < 0)
		return refused(w, -result);
	w->is_unanswered = true;
	if (((struct fuse_in_header *)headers_of(w)->in_out)->opcode != FUSE_NOTIFY_REPLY)
		return assemble(w);
	if (is_surplus(w->queue))
		atomic_store(&w->is_retiring, true);
	return -EINTR;
}

/* Leave the entry, with the message that it got, to the next worker of the core. Called with workers.lock held. */
static void spare_leave(struct worker *w)
{
	struct spare *spare = malloc(sizeof(*spare));

	if (!spare)
		return; // the entry is lost to us; it goes with the connection
	madvise(w->buffer + PAYLOAD_AT, 2 * REQUEST_BUFFER_SIZE - PAYLOAD_AT, MADV_DONTNEED);
	*spare = (struct spare){ .next = w->queue->spares, .buffer = w->buffer };
	w->queue->spares = spare;
	w->buffer = MAP_FAILED;
}

static void entry_close(struct worker *w)
{
	if (w->uring.n_prepared)
		uring_submit(&w->uring, false);
	uring_close(&w->uring);
	if (w->is_unanswered)
		spare_leave(w);
}

const struct transport uring_transport = {
	.open = entry_open, .receive = entry_receive, .reply = entry_reply, .close = entry_close
};
