/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The leg itself: the socket pair, the table of calls, and waiting for answers. Whoever waits reads: the first waiter takes
 * replies off the socket until its own is among them, hands the others theirs, and wakes the next to read. So an answer
 * comes without a thread in between. Any worker; Python's thread takes events and finishes post calls.
 */
#include "core.h"

#include <stdio.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>

#define SOCKET_BUFFER (4 << 20)
#define SLICE_MS 50	 /* how long a waiter sleeps before it looks whether it was interrupted */
#define CANCEL_MS 1000	 /* how long a cancelled handler may take to answer */
#define INDEX_BITS 10
_Static_assert(1 << INDEX_BITS == DAEMON_N_CALLS, "tokens");

/* ------------------------------------------------------------------------------- begin and end */

/* pyfuse3's INIT: what the kernel would offer it of what we can pass on. */
static int send_init(struct daemon *d)
{
	struct {
		struct fuse_in_header header;
		struct fuse_init_in init;
	} message = { .header = { .len = sizeof(message), .opcode = FUSE_INIT },
		      .init = { .major = FUSE_KERNEL_VERSION,
				.minor = 38,
				.max_readahead = DAEMON_MAX_WRITE,
				.flags = FUSE_ASYNC_READ | FUSE_ATOMIC_O_TRUNC | FUSE_BIG_WRITES | FUSE_DO_READDIRPLUS |
					 FUSE_PARALLEL_DIROPS | FUSE_MAX_PAGES } };

	return send(d->fd, &message, sizeof(message), MSG_NOSIGNAL) < 0 ? -errno : 0;
}

static void waiters_init(struct daemon *d)
{
	for (int i = 0; i < DAEMON_N_CALLS; i++) {
		clock_cond_init(&d->waiters[i].cond);
		d->waiters[i].next_free = i + 1 < DAEMON_N_CALLS ? i + 1 : -1;
	}
	pthread_mutex_init(&d->lock, NULL);
	pthread_mutex_init(&d->backing_lock, NULL);
	pthread_mutex_init(&d->kept_lock, NULL);
}

/** Make the leg, before the mount starts; *peer_fd, pyfuse3's end, is the caller's. 0 or -errno: then there is no leg. */
int daemon_start(struct mount *m, const uint8_t routes[256], int64_t timeout_ms, bool falls_back, int *peer_fd)
{
	struct timeval slice = { .tv_usec = SLICE_MS * 1000 };
	int fds[2], size = SOCKET_BUFFER;

	if (m->daemon || m->is_started)
		return -EALREADY;
	struct daemon *d = calloc(1, sizeof(*d));
	if (!d)
		return -ENOMEM;
	waiters_init(d);
	d->timeout_ms = timeout_ms;
	d->falls_back = falls_back;
	memcpy(d->routes, routes, sizeof(d->routes));
	d->has_data_routes = (routes[FB_OP_read] | routes[FB_OP_write]) & (DAEMON_PRE | DAEMON_POST);
	d->fd = -1;
	d->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	d->calls = mmap(NULL, sizeof(*d->calls) * DAEMON_N_CALLS, PROT_READ | PROT_WRITE,
			MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	m->daemon = d;
	if (d->event_fd < 0 || d->calls == MAP_FAILED || socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds) < 0) {
		int e = -errno;
		daemon_destroy(m);
		return e;
	}
	d->fd = fds[0];
	*peer_fd = fds[1];
	for (int i = 0; i < 2; i++)
		if (setsockopt(fds[i], SOL_SOCKET, SO_SNDBUFFORCE, &size, sizeof(size)) < 0)
			setsockopt(fds[i], SOL_SOCKET, SO_SNDBUF, &size, sizeof(size));
	setsockopt(d->fd, SOL_SOCKET, SO_RCVTIMEO, &slice, sizeof(slice));
	setsockopt(d->fd, SOL_SOCKET, SO_SNDTIMEO, &slice, sizeof(slice));
	int e = send_init(d);
	if (e) {
		close(*peer_fd);
		daemon_destroy(m);
	}
	return e;
}

/** The daemon is gone: whoever waits for it fails at once. */
void daemon_end(struct daemon *d)
{
	atomic_store(&d->is_dead, true);
	shutdown(d->fd, SHUT_RDWR); // whoever reads comes back
	pthread_mutex_lock(&d->lock);
	for (int i = 0; i < DAEMON_N_CALLS; i++)
		pthread_cond_signal(&d->waiters[i].cond);
	pthread_mutex_unlock(&d->lock);
}

/** The mount has stopped: nobody waits any more. What Python may still look at stays until daemon_destroy, but for inodes and
 * handles, which go now. */
void daemon_stop(struct mount *m)
{
	struct daemon *d = m->daemon;

	if (!d)
		return;
	atomic_store(&d->is_dead, true); // pyfuse3 keeps its socket until its session is ended
	pthread_mutex_lock(&d->backing_lock);
	d->is_stopped = true;
	pthread_mutex_unlock(&d->backing_lock);
}

void daemon_destroy(struct mount *m)
{
	struct daemon *d = m->daemon;

	if (!d)
		return;
	m->daemon = NULL;
	if (d->fd >= 0)
		close(d->fd);
	if (d->event_fd >= 0)
		close(d->event_fd);
	if (d->calls && d->calls != MAP_FAILED)
		munmap(d->calls, sizeof(*d->calls) * DAEMON_N_CALLS);
	for (int i = 0; i < DAEMON_N_CALLS; i++) {
		pthread_cond_destroy(&d->waiters[i].cond);
		free(d->waiters[i].data);
	}
	pthread_mutex_destroy(&d->lock);
	pthread_mutex_destroy(&d->backing_lock);
	daemon_drop_kept(d);
	pthread_mutex_destroy(&d->kept_lock);
	free(d);
}

/* ------------------------------------------------------------------------------------- events */

/** Tell Python of a call that it is to look at. */
void daemon_tell(struct daemon *d, enum daemon_event_kind kind, uint32_t token)
{
	uint64_t one = 1;

	pthread_mutex_lock(&d->lock);
	d->events[d->events_end++ % (2 * DAEMON_N_CALLS)] = (uint64_t)kind << 32 | token;
	pthread_mutex_unlock(&d->lock);
	if (write(d->event_fd, &one, sizeof(one)) < 0)
		return; // it is readable already
}

/** The next event, 0: there is none. */
uint64_t daemon_next_event(struct daemon *d)
{
	pthread_mutex_lock(&d->lock);
	uint64_t event = d->events_at == d->events_end ? 0 : d->events[d->events_at++ % (2 * DAEMON_N_CALLS)];
	pthread_mutex_unlock(&d->lock);
	return event;
}

/* -------------------------------------------------------------------------------------- calls */

static struct daemon_waiter *waiter_of(struct daemon *d, uint32_t token)
{
	struct daemon_waiter *w = &d->waiters[token & (DAEMON_N_CALLS - 1)];

	return w->generation == token >> INDEX_BITS ? w : NULL;
}

/* Take an entry of the table. Called with the lock held; -1: none is free. */
static int call_take(struct daemon *d, const struct op *op, enum daemon_wait state)
{
	int index = d->first_free;

	if (index < 0)
		return -1;
	struct daemon_waiter *w = &d->waiters[index];
	d->first_free = w->next_free;
	w->generation = w->generation % 0xfffff + 1; // 20 bits, never 0: a token fits a pid
	w->state = state;
	w->op = op;
	w->reply_len = 0;
	w->is_cancelled = false;
	atomic_store(&w->by_socket, false);
	d->calls[index].token = (uint32_t)index | w->generation << INDEX_BITS;
	return index;
}

/** Begin a call for which nobody waits. NULL: the table has no room. */
struct daemon_call *daemon_call_unawaited(struct daemon *d, const struct op *op)
{
	pthread_mutex_lock(&d->lock);
	int index = call_take(d, op, CALL_ABANDONED);
	struct daemon_call *call = index < 0 ? NULL : &d->calls[index];
	if (call) {
		uint32_t token = call->token;
		atomic_store(&d->waiters[index].by_socket, true);
		memset(call, 0, offsetof(struct daemon_call, slot));
		call->token = token;
		call->op = op->opcode;
	}
	pthread_mutex_unlock(&d->lock);
	return call;
}

/* Called with the lock held. */
static void call_free(struct daemon *d, struct daemon_waiter *w)
{
	int index = (int)(w - d->waiters);

	w->state = CALL_FREE;
	free(w->data);
	w->data = NULL;
	d->calls[index].token = 0;
	w->next_free = d->first_free;
	d->first_free = index;
}

/** Begin a call of the daemon for an op. NULL: more ops wait for it than the table has room for. */
struct daemon_call *daemon_call_begin(struct request *rq, enum fb_phase phase, struct daemon_waiter **waiter)
{
	struct daemon *d = rq->mount->daemon;
	const struct fb_slot *image = rq->image;
	struct handle *h = daemon_handle(rq);
	const struct inode *other = op_other(rq);

	pthread_mutex_lock(&d->lock);
	int index = call_take(d, rq->op, CALL_WAITING);
	pthread_mutex_unlock(&d->lock);
	if (index < 0)
		return NULL;
	struct daemon_waiter *w = *waiter = &d->waiters[index];
	struct daemon_call *call = &d->calls[index];
	w->worker = rq->worker;
	w->root = entry_root(rq);
	w->deadline_ms = now_ms() + d->timeout_ms;
	call->op = rq->op->canonical == FB_OP_statx ? FB_OP_getattr : rq->op->canonical;
	call->phase = phase;
	call->flags = 0;
	call->unique = rq->in->unique;
	call->nodeid = daemon_id_of(rq->inode);
	call->fh = h ? daemon_fh_of(h) : 0;
	call->our_nodeid = daemon_number_of(rq->inode);
	call->our_fh = h && handle_has_file(rq->mount, h) ? daemon_handle_number(h) : 0;
	call->other = other ? daemon_id_of(other) : 0;
	call->our_other = other ? daemon_number_of(other) : 0;
	call->slot.args = image->args;
	call->uid = image->uid;
	call->gid = image->gid;
	call->pid = image->pid;
	call->umask = image->umask;
	call->error = (uint32_t)rq->error;
	call->edits = call->data = call->data_len = call->data_capacity = 0;
	atomic_fetch_add(&d->n_waiting, 1);
	return call;
}

/** Give a call's entry back; one that was given up keeps it until its late answer has come: of a look that may be for good, but a
 * dead daemon is not asked again. */
void daemon_call_end(struct request *rq, struct daemon_waiter *w)
{
	struct daemon *d = rq->mount->daemon;

	atomic_fetch_sub(&d->n_waiting, 1);
	pthread_mutex_lock(&d->lock);
	struct inode **held = w->held;
	uint32_t n_held = w->n_held;
	w->held = NULL;
	w->n_held = 0;
	w->worker = NULL;
	if (w->state == CALL_WAITING && !(w->by_socket && atomic_load(&d->is_dead)))
		w->state = CALL_ABANDONED;
	else
		call_free(d, w);
	pthread_mutex_unlock(&d->lock);
	for (uint32_t i = 0; i < n_held; i++)
		inodes_forget(rq->mount, held[i], 1);
	free(held);
}

/** Python is done with a post call. False: nobody waits for it any more. */
bool daemon_finish(struct daemon *d, uint32_t token)
{
	pthread_mutex_lock(&d->lock);
	struct daemon_waiter *w = waiter_of(d, token);
	bool waits = w && w->state == CALL_WAITING && !w->by_socket;
	if (waits) {
		w->state = CALL_DONE;
		pthread_cond_signal(&w->cond);
	} else if (w && w->state == CALL_ABANDONED && !w->by_socket) {
		call_free(d, w);
	}
	pthread_mutex_unlock(&d->lock);
	return waits;
}

/* ------------------------------------------------------------------------------------- waiting */

/* Hand a reply that lies in `buffer` to whom it is for. Called with the lock held, by the reader. */
static void deliver(struct mount *m, const char *buffer, size_t len)
{
	struct daemon *d = m->daemon;
	const struct fuse_out_header *header = (const void *)buffer;

	if (len < sizeof(*header))
		return;
	if (!header->unique && header->error > 0) {
		pthread_mutex_unlock(&d->lock);
		daemon_notice(m, header->error, buffer + sizeof(*header), len - sizeof(*header));
		pthread_mutex_lock(&d->lock);
		return;
	}
	struct daemon_waiter *w = header->unique <= UINT32_MAX ? waiter_of(d, (uint32_t)header->unique) : NULL;
	if (!w || !w->by_socket)
		return; // INIT's
	if (w->state == CALL_ABANDONED) {
		const struct op *op = w->op;
		call_free(d, w);
		pthread_mutex_unlock(&d->lock);
		if (!header->error && len > sizeof(*header))
			daemon_late_reply(d, op, buffer + sizeof(*header), len - sizeof(*header));
		pthread_mutex_lock(&d->lock);
		return;
	}
	if (w->state != CALL_WAITING)
		return;
	if (w->worker->payload != buffer)
		memcpy(w->worker->payload, buffer, len);
	w->reply_len = len;
	w->state = CALL_DONE;
	pthread_cond_signal(&w->cond);
}

/* Somebody else has to read now. Called with the lock held. */
static void wake_reader(struct daemon *d)
{
	for (int i = 0; i < DAEMON_N_CALLS; i++) {
		struct daemon_waiter *w = &d->waiters[i];
		if (w->state == CALL_WAITING && w->by_socket) {
			pthread_cond_signal(&w->cond);
			return;
		}
	}
}

/* Read one reply. Called with the lock held, which it lets go of meanwhile. */
static void read_reply(struct request *rq, struct daemon *d)
{
	char *buffer = rq->worker->payload;

	d->has_reader = true;
	pthread_mutex_unlock(&d->lock);
	ssize_t n = recv(d->fd, buffer, 2 * DAEMON_MAX_WRITE, 0);
	pthread_mutex_lock(&d->lock);
	if (n > 0)
		deliver(rq->mount, buffer, (size_t)n);
	else if (n == 0)
		atomic_store(&d->is_dead, true);
	d->has_reader = false;
}

/** Take what came while nobody waits: notifications; and send what there was no room for. The janitor's. */
void daemon_drain(struct mount *m)
{
	struct daemon *d = m->daemon;
	char *buffer = NULL;
	ssize_t n;

	if (!d || atomic_load(&d->is_dead))
		return;
	daemon_send_kept(d);
	if (!is_readable(d->fd))
		return;
	pthread_mutex_lock(&d->lock);
	if (!d->has_reader && (buffer = malloc(2 * DAEMON_MAX_WRITE))) {
		d->has_reader = true;
		while ((n = recv(d->fd, buffer, 2 * DAEMON_MAX_WRITE, MSG_DONTWAIT)) > 0)
			deliver(m, buffer, (size_t)n);
		d->has_reader = false;
		if (atomic_load(&d->n_waiting))
			wake_reader(d);
	}
	pthread_mutex_unlock(&d->lock);
	free(buffer);
}

/* May it go on waiting? 0, or -errno: the daemon is dead, the time is over, the caller was interrupted and the handler
 * did not heed it. */
static int may_wait(struct request *rq, struct daemon_call *call, struct daemon_waiter *w)
{
	struct daemon *d = rq->mount->daemon;

	if (atomic_load(&d->is_dead))
		return -ENOTCONN;
	if (!w->is_cancelled && request_is_interrupted(rq) && !(rq->op->flags & FB_OP_UNREFUSABLE)) {
		w->is_cancelled = true;
		if (w->deadline_ms > now_ms() + CANCEL_MS)
			w->deadline_ms = now_ms() + CANCEL_MS;
		pthread_mutex_unlock(&d->lock);
		daemon_tell(d, DAEMON_EVENT_CANCEL, call->token);
		pthread_mutex_lock(&d->lock);
		return 0;
	}
	if (now_ms() < w->deadline_ms)
		return 0;
	return w->is_cancelled ? -EINTR : -ETIMEDOUT;
}

/** Wait until a call is answered. Returns 0 or -errno; after -ETIMEDOUT and -EINTR its handler is being cancelled. */
int daemon_await(struct request *rq, struct daemon_call *call, struct daemon_waiter *w)
{
	struct daemon *d = rq->mount->daemon;
	bool was_reader = false;
	int e = 0;

	pthread_mutex_lock(&d->lock);
	while (w->state == CALL_WAITING && !e) {
		if (w->by_socket && !d->has_reader) {
			was_reader = true;
			read_reply(rq, d);
		} else {
			clock_wait(&w->cond, &d->lock, SLICE_MS * 1000000L);
		}
		if (w->state == CALL_WAITING)
			e = may_wait(rq, call, w);
	}
	if (was_reader && !d->has_reader && atomic_load(&d->n_waiting) > 1)
		wake_reader(d);
	pthread_mutex_unlock(&d->lock);
	if (e == -ETIMEDOUT)
		daemon_tell(d, DAEMON_EVENT_CANCEL, call->token);
	return e;
}

/* ------------------------------------------------------------------------------------- sending */

/** Send a request whose answer `w` waits for; while the socket is full it waits as for the answer. */
int daemon_send(struct request *rq, struct daemon_waiter *w, const struct iovec *iov, int n)
{
	struct daemon *d = rq->mount->daemon;
	struct msghdr message = { .msg_iov = (struct iovec *)iov, .msg_iovlen = (size_t)n };
	int e = 0;

	atomic_store(&w->by_socket, true);
	while (!e && sendmsg(d->fd, &message, MSG_NOSIGNAL) < 0) {
		if (errno != EAGAIN && errno != EINTR)
			e = errno == EPIPE ? -ENOTCONN : -errno;
		else if (now_ms() >= w->deadline_ms)
			e = -ETIMEDOUT;
		else if (request_is_interrupted(rq))
			e = -EINTR;
	}
	if (e) {
		pthread_mutex_lock(&d->lock);
		w->state = CALL_DONE; // no answer will come
		pthread_mutex_unlock(&d->lock);
	}
	return e;
}
