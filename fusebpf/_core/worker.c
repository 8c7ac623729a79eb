/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The threads that serve a mount. A worker takes a request from its queue, runs it to its reply, and takes the next. When
 * the last idle one of a queue takes a request, another is started, up to the limit, so a worker that blocks does not
 * stop the mount. They retire when idle; those of a core, whose entries the kernel does not give back, in a way of their own
 * (uring.c).
 * Lock: workers.lock guards the list and the ring indexes.
 */
#include "core.h"

#include <sched.h>
#include <stdio.h>
#include <sys/mman.h>
#if __has_include(<sys/rseq.h>)
#include <sys/rseq.h>
#include <sys/syscall.h>
#endif

/* ------------------------------------------------------------------------- verdict rings */

/** Take its ring from a worker that is in state `expected`: it no longer counts against the limit. Called with
 * workers.lock held; any thread. */
bool worker_park_locked(struct worker *w, int expected)
{
	struct workers *p = &w->mount->workers;

	// In the place of one that wants to return it may be parked always: the two change places.
	if (p->n_parked >= MAX_PARKED + atomic_load(&p->n_returning) || !atomic_compare_exchange_strong(&w->state, &expected, WORKER_PARKED))
		return false;
	hook_leave(w);
	p->rings_taken &= ~(1ULL << w->index);
	p->n_parked++;
	if (atomic_load(&p->n_returning))
		pthread_cond_broadcast(&p->changed);
	return true;
}

static bool park_an_idle_one(struct workers *p)
{
	for (struct worker *w = p->all; w; w = w->next)
		if (atomic_load(&w->state) == WORKER_IDLE && worker_park_locked(w, WORKER_IDLE))
			return true;
	return false;
}

static void take_ring(struct worker *w)
{
	w->index = (uint32_t)__builtin_ctzll(~w->mount->workers.rings_taken);
	w->mount->workers.rings_taken |= 1ULL << w->index;
}

/* It was parked: it takes a ring again, when one is free. */
static void unpark(struct worker *w)
{
	struct workers *p = &w->mount->workers;

	pthread_mutex_lock(&p->lock);
	atomic_fetch_add(&p->n_returning, 1);
	if (!~p->rings_taken)
		pthread_cond_broadcast(&p->changed); // the janitor parks those that block
	while (!~p->rings_taken && !park_an_idle_one(p))
		pthread_cond_wait(&p->changed, &p->lock);
	atomic_fetch_sub(&p->n_returning, 1);
	take_ring(w);
	p->n_parked--;
	atomic_store(&w->state, WORKER_RUNS);
	pthread_mutex_unlock(&p->lock);
}

/** From here on the worker may block for as long as it takes, and be parked meanwhile. */
void worker_enter_backing(struct worker *w)
{
	atomic_store_explicit(&w->since_ms, now_ms(), memory_order_relaxed);
	atomic_store_explicit(&w->state, WORKER_IN_BACKING, memory_order_release);
}

/** Park the calling worker at once, since it is about to wait. False: `most` are parked, so it may not. */
bool worker_park(struct worker *w, uint32_t most)
{
	struct workers *p = &w->mount->workers;

	pthread_mutex_lock(&p->lock);
	bool may_wait = p->n_parked < most;
	if (may_wait)
		worker_park_locked(w, WORKER_IN_BACKING); // if the janitor was not first
	pthread_mutex_unlock(&p->lock);
	if (!may_wait)
		return false;
	if (atomic_load(&w->queue->n_idle) == 0)
		worker_start(w->mount, w->queue);
	return true;
}

/** It is back from the backing file system. */
void worker_leave_backing(struct worker *w)
{
	int expected = WORKER_IN_BACKING;

	if (!atomic_compare_exchange_strong(&w->state, &expected, WORKER_RUNS))
		unpark(w);
}

/* ------------------------------------------------------------------------- life of a worker */

static void *worker_main(void *argument);

/** Undo worker_create. */
void worker_destroy(struct worker *w)
{
	hook_leave(w);
	chain_release(w->chain);
	w->queue->transport->close(w);
	if (w->buffer != MAP_FAILED)
		munmap(w->buffer, 2 * REQUEST_BUFFER_SIZE);
	free(w->image);
	free(w->kept_names);
	free(w);
}

/** Make a worker, with all that may fail but its thread. */
int worker_create(struct mount *m, struct queue *q, struct worker **out)
{
	struct worker *w = calloc(1, sizeof(*w));

	if (!w)
		return -ENOMEM;
	w->mount = m;
	w->queue = q;
	w->device_fd = w->uring.fd = -1;
	splice_init(&w->splice);
	w->image = calloc(1, sizeof(*w->image));
	w->kept_names = calloc(FB_MAX_FILTERS, sizeof(*w->kept_names));
	// Mapped, not allocated: pages that no large request touches cost nothing.
	w->buffer = mmap(NULL, 2 * REQUEST_BUFFER_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	w->own_payload = w->buffer + REQUEST_BUFFER_SIZE;
	int e = !w->image || !w->kept_names || w->buffer == MAP_FAILED ? -ENOMEM : q->transport->open(w);
	if (e)
		worker_destroy(w);
	else
		*out = w;
	return e;
}

/* It ends, with a ring or without. Called with the lock held. */
static void give_back_ring(struct workers *p, const struct worker *w)
{
	if (atomic_load(&w->state) == WORKER_PARKED)
		p->n_parked--;
	else
		p->rings_taken &= ~(1ULL << w->index);
}

/** Let a worker begin, parked if there is no room for one more; it is gone if it cannot. Called with the lock held. */
int worker_begin(struct worker *w)
{
	struct workers *p = &w->mount->workers;
	pthread_attr_t attr;

	if (workers_are_full(p)) {
		atomic_store(&w->state, WORKER_PARKED);
		p->n_parked++;
	} else {
		take_ring(w);
	}
	pthread_attr_init(&attr);
	pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
	pthread_attr_setstacksize(&attr, 256 * 1024);
	int e = -pthread_create(&w->thread, &attr, worker_main, w);
	pthread_attr_destroy(&attr);
	if (e) {
		give_back_ring(p, w);
		worker_destroy(w);
		return e;
	}
	w->next = p->all;
	p->all = w;
	p->n++;
	atomic_fetch_add(&w->queue->n_idle, 1);
	return 0;
}

/** Is there no room for one more worker? Called with the lock held. */
bool workers_are_full(const struct workers *p)
{
	return p->n - p->n_parked >= p->limit || !~p->rings_taken;
}

/** Start one more, unless there are as many as may be. */
int worker_start(struct mount *m, struct queue *q)
{
	struct workers *p = &m->workers;
	struct worker *w;
	int e = -EAGAIN;

	pthread_mutex_lock(&p->lock);
	while (workers_are_full(p) && park_an_idle_one(p)) // more than the limit may have come back from waiting
		continue;
	if (!atomic_load(&p->is_stopping) && !workers_are_full(p))
		e = worker_create(m, q, &w);
	if (!e)
		e = worker_begin(w);
	pthread_mutex_unlock(&p->lock);
	return e;
}

static void worker_leave(struct worker *w)
{
	struct workers *p = &w->mount->workers;

	pthread_mutex_lock(&p->lock);
	for (struct worker **at = &p->all; *at; at = &(*at)->next) {
		if (*at == w) {
			*at = w->next;
			break;
		}
	}
	give_back_ring(p, w);
	p->n--;
	if (atomic_exchange(&w->interrupted, 0))
		atomic_fetch_sub(&p->n_interrupted, 1);
	worker_destroy(w);
	pthread_cond_broadcast(&p->changed);
	pthread_mutex_unlock(&p->lock);
}

/* ------------------------------------------------------------------------------- serving */

/* Take up the chain of this moment; kept until another one is published. */
static void chain_refresh(struct worker *w)
{
	struct mount *m = w->mount;

	if (w->chain == atomic_load_explicit(&m->chain, memory_order_acquire))
		return;
	pthread_mutex_lock(&m->chain_lock);
	struct chain *old = w->chain;
	w->chain = atomic_load(&m->chain);
	if (w->chain)
		chain_hold(w->chain);
	pthread_mutex_unlock(&m->chain_lock);
	chain_release(old);
}

static void serve(struct worker *w, size_t len)
{
	struct request rq;

	// All but the large members at the end, which are set where they are used.
	memset(&rq, 0, offsetof(struct request, out));
	memset(&rq.chain, 0, offsetof(struct request, cookies) - offsetof(struct request, chain));
	rq.mount = w->mount;
	rq.worker = w;
	rq.in = (const struct fuse_in_header *)w->request;
	rq.body = w->request + sizeof(*rq.in);
	rq.body_len = len - sizeof(*rq.in);
	rq.image = w->image;
	rq.slot = NO_SLOT;
	rq.error = 0;
	chain_refresh(w);
	cache_begin(&rq);
	request_run(&rq);
}

static bool may_go_on(int error)
{
	switch (error) {
	case EINTR:  // kicked
	case EAGAIN: // another clone was faster
	case ENOENT: // the request was interrupted before it was read (fs/fuse/dev.c: fuse_dev_do_read)
		return true;
	default:
		return false; // ENODEV: unmounted or aborted
	}
}

static void connection_ended(struct mount *m, int error)
{
	uint64_t one = 1;

	if (error != ENODEV && !atomic_load(&m->workers.is_stopping))
		mount_log(m, "ERROR", "waiting for requests failed: %s", strerror(error));
	if (write(m->ended_fd, &one, sizeof(one)) < 0)
		return; // it is readable already
}

/* May this idle worker leave? Never the last one of its queue: requests that end the blocking of others would lie there. */
static bool try_leave(struct worker *w)
{
	struct queue *q = w->queue;

	if (!atomic_load_explicit(&w->is_retiring, memory_order_relaxed))
		return false;
	if (atomic_fetch_sub(&q->n_idle, 1) > 1)
		return true;
	atomic_fetch_add(&q->n_idle, 1);
	atomic_store(&w->is_retiring, false);
	return false;
}

/* Another worker serves its queue meanwhile. */
static void begin_request(struct worker *w)
{
	struct workers *p = &w->mount->workers;
	const struct fuse_in_header *in = (const struct fuse_in_header *)w->request;
	int expected = WORKER_IDLE;

	atomic_store_explicit(&w->nodeid, in->nodeid, memory_order_relaxed);
	atomic_store_explicit(&w->pid, in->pid, memory_order_relaxed);
	atomic_store(&w->unique, in->unique);
	idle_note(w->mount);
	placement_note(w, in->pid);
	placement_begin(w);
	bool was_parked = !atomic_compare_exchange_strong(&w->state, &expected, WORKER_RUNS);
	uint32_t n_left = atomic_fetch_sub(&w->queue->n_idle, 1) - 1;
	if (n_left < atomic_load_explicit(&w->queue->least_idle, memory_order_relaxed))
		atomic_store_explicit(&w->queue->least_idle, n_left, memory_order_relaxed);
	if (!n_left && worker_start(w->mount, w->queue))
		pthread_cond_broadcast(&p->changed); // the janitor sees to it
	if (was_parked)
		unpark(w);
}

static void end_request(struct worker *w)
{
	struct workers *p = &w->mount->workers;

	atomic_store(&w->unique, 0);
	if (atomic_load(&w->interrupted) && atomic_exchange(&w->interrupted, 0))
		atomic_fetch_sub(&p->n_interrupted, 1);
	atomic_store(&w->state, WORKER_IDLE);
	atomic_fetch_add(&w->queue->n_idle, 1);
	if (!atomic_load(&p->n_returning))
		return;
	pthread_mutex_lock(&p->lock); // one that was parked wants this one's ring
	pthread_cond_broadcast(&p->changed);
	pthread_mutex_unlock(&p->lock);
}

/* Wait until INIT is answered. Returns whether there will be requests. */
static bool wait_for_opening(struct workers *p)
{
	pthread_mutex_lock(&p->lock);
	while (!p->is_open && !atomic_load(&p->is_stopping))
		pthread_cond_wait(&p->changed, &p->lock);
	pthread_mutex_unlock(&p->lock);
	return !atomic_load(&p->is_stopping);
}

/* Stay on the queue's core, until idle.c says otherwise. Where that is off line or not ours, the scheduler chooses. */
static void pin(int core)
{
	cpu_set_t cores;

	CPU_ZERO(&cores);
	CPU_SET(core, &cores);
	pthread_setaffinity_np(pthread_self(), sizeof(cores), &cores);
}

/* What top(1) shows of it. */
static void name_thread(const struct queue *q)
{
	char name[32] = "fusebpf/worker";

	if (q->core >= 0)
		snprintf(name, sizeof(name), "fusebpf/%d", q->core);
	prctl(PR_SET_NAME, name); // 15 bytes of it
}

/* Serve until there is nothing more to serve. Returns whether the worker no longer counts as idle. */
static bool serve_all(struct worker *w)
{
	struct queue *q = w->queue;

	while (!atomic_load(&w->mount->workers.is_stopping)) {
		if (try_leave(w))
			return true;
		ssize_t n = q->transport->receive(w);
		if (n >= 0) {
			KERNEL_HAS_TOLD(w->mount);
			begin_request(w);
			serve(w, (size_t)n);
			end_request(w);
		} else if (may_go_on((int)-n)) {
			chain_refresh(w); // an idle worker must not keep an old chain alive
		} else {
			if (n != -ESHUTDOWN) // else the kernel does without this worker
				connection_ended(w->mount, (int)-n);
			break;
		}
	}
	return false;
}

/* Have the kernel no longer write on which core the thread is into its memory (rseq(2)), each time that it is switched to: a worker is
 * switched to for each request, which that takes 0.1 µs more. The C library registers each thread, for sched_getcpu(3) alone. */
static void leave_rseq(void)
{
#ifdef RSEQ_SIG
	if (__rseq_size)
		syscall(SYS_rseq, (char *)__builtin_thread_pointer() + __rseq_offset, 32, RSEQ_FLAG_UNREGISTER, RSEQ_SIG);
#endif
}

static void *worker_main(void *argument)
{
	struct worker *w = argument;
	struct queue *q = w->queue;
	int e = creds_init_thread();

	name_thread(q);
	leave_rseq();
	if (e)
		connection_ended(w->mount, -e); // without a umask of its own it would change that of all
	if (q->core >= 0)
		pin(q->core);
	placement_start(w);
	watch_own_thread(w->mount, true);
	if (e || !wait_for_opening(&w->mount->workers) || !serve_all(w))
		atomic_fetch_sub(&q->n_idle, 1);
	watch_own_thread(w->mount, false);
	worker_leave(w);
	return NULL;
}
