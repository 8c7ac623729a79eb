/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The janitor: sends idle workers away, signals those whose request was interrupted until they leave their system call,
 * and where a queue has no idle worker and there may be no more, parks those that block. Interrupts are here too.
 * Lock: workers.lock.
 */
#include "core.h"

#include <signal.h>
#include <stdio.h>

#define JANITOR_PERIOD_NS 500000000L
#define ACTIVE_PERIOD_NS 50000000L /* over io_uring, while there are requests: placement_look */
#define BLOCKED_MS 20 /* an op that takes longer blocks: its worker is parked where the pool is at its limit */
#define KEEP_OF_CORE 4 /* idle workers of a core that stay */
#define MOST_LEAVE 16  /* and how many leave in one round */
#define EARLY_MS 1000 /* how long an interrupt waits for its request to be taken up */
#define LOST_MS 100   /* how long an op takes before its caller is looked at for a signal */
#define LOOK_MS 300   /* and how often: many may wait */

/* ---------------------------------------------------------------------------- interrupting */

/* Interrupt whoever serves `unique`. Called with the lock held. */
static bool interrupt(struct workers *p, uint64_t unique)
{
	for (struct worker *w = p->all; w; w = w->next) {
		if (atomic_load(&w->unique) != unique)
			continue;
		if (!atomic_exchange(&w->interrupted, unique))
			atomic_fetch_add(&p->n_interrupted, 1);
		pthread_kill(w->thread, KICK_SIGNAL);
		pthread_cond_broadcast(&p->changed);
		return true;
	}
	return false;
}

/* Keep an interrupt until its request is taken up. Called with the lock held. */
static void keep_early(struct workers *p, uint64_t unique)
{
	struct early_interrupt *at = &p->early[p->next_early++ % N_EARLY];

	*at = (struct early_interrupt){ .unique = unique, .since_ms = now_ms() };
	atomic_store(&p->has_early, true);
	pthread_cond_broadcast(&p->changed);
}

/* See whether the requests of early interrupts have been taken up. Called with the lock held. */
static void retry_early(struct workers *p)
{
	bool any = false;

	for (int i = 0; i < N_EARLY; i++) {
		struct early_interrupt *at = &p->early[i];
		if (at->unique && (interrupt(p, at->unique) || now_ms() - at->since_ms > EARLY_MS))
			at->unique = 0;
		any |= at->unique != 0;
	}
	atomic_store(&p->has_early, any);
}

/**
 * INTERRUPT: end the blocking system call of the worker that serves `unique`. Where no worker does, it may not have got
 * that far, so the interrupt is kept. The kernel would ask again if told so (EAGAIN), but hears that only on the descriptor
 * that the request was read from, and not at all of those that come over io_uring (fs/fuse/dev.c: fuse_dev_do_write).
 */
void worker_interrupt(struct worker *by, uint64_t unique)
{
	struct workers *p = &by->mount->workers;

	atomic_fetch_add(&by->mount->n_interrupts, 1);
	pthread_mutex_lock(&p->lock);
	if (!interrupt(p, unique))
		keep_early(p, unique);
	pthread_mutex_unlock(&p->lock);
}

static uint64_t signals_after(const char *status, const char *title)
{
	const char *at = strstr(status, title);

	return at ? strtoull(at + strlen(title), NULL, 16) : 0;
}

/* Has this thread a signal that it does not block? proc_pid_status(5) */
static bool has_signal(uint32_t pid)
{
	char path[32], status[4096];

	snprintf(path, sizeof(path), "/proc/%u/status", pid);
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? -1 : read(fd, status, sizeof(status) - 1);
	if (fd >= 0)
		close(fd);
	if (n <= 0)
		return false;
	status[n] = 0;
	return (signals_after(status, "\nSigPnd:") | signals_after(status, "\nShdPnd:")) &
	       ~signals_after(status, "\nSigBlk:");
}

/* The kernel loses the interrupt of a request that waits for an io_uring entry, or for the entry's thread to run: it sends on
 * only what comes after that (fs/fuse/dev_uring.c: fuse_uring_prepare_send; fuse_dev_do_read looks for earlier ones). And
 * of those that came too early only some are kept. The caller's signal is pending still. Called with the lock held. */
static void find_lost_interrupts(struct workers *p)
{
	int64_t now = now_ms(), before = now - LOST_MS;

	if (now - p->looked_ms < LOOK_MS)
		return;
	p->looked_ms = now;
	for (struct worker *w = p->all; w; w = w->next) {
		uint64_t unique = atomic_load(&w->unique);
		uint32_t pid = atomic_load_explicit(&w->pid, memory_order_relaxed);
		int state = atomic_load(&w->state);
		bool is_blocked = (state == WORKER_IN_BACKING || state == WORKER_PARKED) && atomic_load(&w->since_ms) < before;

		if (unique && pid && is_blocked && !atomic_load(&w->interrupted) && has_signal(pid))
			interrupt(p, unique);
	}
}

/** Is the op to end early: its caller was interrupted, or the mount stops? */
bool request_is_interrupted(const struct request *rq)
{
	const struct worker *w = rq->worker;

	return atomic_load_explicit(&w->interrupted, memory_order_relaxed) == rq->in->unique ||
	       atomic_load_explicit(&rq->mount->workers.is_stopping, memory_order_relaxed);
}

/* -------------------------------------------------------------------------------- the janitor */

/** Signal those that must leave their system call: the signal may have come before the call began. */
void workers_kick(struct workers *p, bool all)
{
	for (struct worker *w = p->all; w; w = w->next) {
		uint64_t interrupted = atomic_load(&w->interrupted);
		// One that has answered its request just before it was marked goes on.
		if (interrupted && atomic_load(&w->unique) != interrupted &&
		    atomic_compare_exchange_strong(&w->interrupted, &interrupted, 0))
			atomic_fetch_sub(&p->n_interrupted, 1);
		if (all || atomic_load(&w->interrupted))
			pthread_kill(w->thread, KICK_SIGNAL);
	}
}

/* Send idle workers of /dev/fuse away, but for the few that the next requests find. */
static void retire(struct mount *m)
{
	struct queue *q = &m->queues[0];
	uint32_t n_idle = atomic_load(&q->n_idle), spare = n_idle > KEEP_IDLE ? n_idle - KEEP_IDLE : 0;

	for (struct worker *w = m->workers.all; w && spare; w = w->next) {
		if (w->queue != q || atomic_load(&w->unique))
			continue;
		atomic_store(&w->is_retiring, true);
		pthread_kill(w->thread, KICK_SIGNAL);
		spare--;
	}
}

/* Let those of cores go that have been idle ever since the last round. */
static void retire_of_cores(struct mount *m)
{
	for (uint32_t i = 1; i < m->n_queues; i++) {
		struct queue *q = &m->queues[i];
		uint32_t least = atomic_exchange(&q->least_idle, atomic_load(&q->n_idle));
		uint32_t n = least > KEEP_OF_CORE ? least - KEEP_OF_CORE : 0;

		atomic_store(&q->n_surplus, 0);
		if (n && !m->workers.has_deadline)
			uring_let_leave(m, q, n < MOST_LEAVE ? n : MOST_LEAVE);
	}
}

/* All workers are busy and there may be no more, or all rings are taken: park those that block. Without it the requests that
 * would end the blocking (INTERRUPT, an unlock, a release) would wait behind it. Called with the lock held. */
static void relieve(struct workers *p)
{
	int64_t before = now_ms() - BLOCKED_MS;

	for (struct worker *w = p->all; w; w = w->next)
		if (atomic_load(&w->state) == WORKER_IN_BACKING && atomic_load(&w->since_ms) < before)
			worker_park_locked(w, WORKER_IN_BACKING);
}

/* A queue whose workers are all busy, or NULL. */
static struct queue *starved(struct mount *m)
{
	for (uint32_t i = 0; i < m->n_queues; i++)
		if (!atomic_load(&m->queues[i].n_idle) && !atomic_load(&m->queues[i].is_closed))
			return &m->queues[i];
	return NULL;
}

/* Have requests come over io_uring since the last round? */
static bool is_active(struct mount *m)
{
	uint64_t n = 0;

	for (uint32_t i = 1; i < m->n_queues; i++)
		n += atomic_load_explicit(&m->queues[i].n_requests, memory_order_relaxed);
	bool is_more = n != m->workers.n_served;
	m->workers.n_served = n;
	return is_more;
}

/* One round. Called with the lock held, which it lets go meanwhile. */
static void look_after(struct mount *m)
{
	struct workers *p = &m->workers;
	bool is_urgent = atomic_load(&p->n_interrupted) || atomic_load(&p->has_early) ||
			 atomic_load(&p->n_returning) || starved(m);
	bool is_soon = placement_look(m) | is_active(m);

	clock_wait(&p->changed, &p->lock, is_urgent ? INTERRUPT_PERIOD_NS : is_soon ? ACTIVE_PERIOD_NS : JANITOR_PERIOD_NS);
	pthread_mutex_unlock(&p->lock);
	backing_ids_sweep(m);
	daemon_drain(m);
	retire_of_cores(m);
	pthread_mutex_lock(&p->lock);
	if (atomic_load(&p->has_early))
		retry_early(p);
	find_lost_interrupts(p);
	if (atomic_load(&p->n_interrupted))
		workers_kick(p, false);
	else
		retire(m);
	if (atomic_load(&p->n_returning) && !~p->rings_taken)
		relieve(p);
	struct queue *q = starved(m);
	if (!q || !p->is_open)
		return;
	if (workers_are_full(p))
		relieve(p);
	pthread_mutex_unlock(&p->lock);
	worker_start(m, q); // also where an earlier start failed
	pthread_mutex_lock(&p->lock);
}

static void *janitor_main(void *argument)
{
	struct mount *m = argument;
	struct workers *p = &m->workers;

	prctl(PR_SET_NAME, "fusebpf/janitor");
	pthread_mutex_lock(&p->lock);
	while (!atomic_load(&p->is_stopping))
		look_after(m);
	pthread_mutex_unlock(&p->lock);
	return NULL;
}

int janitor_start(struct mount *m)
{
	int e = -pthread_create(&m->workers.janitor, NULL, janitor_main, m);

	m->workers.has_janitor = !e;
	return e;
}

void janitor_stop(struct mount *m)
{
	if (m->workers.has_janitor)
		pthread_join(m->workers.janitor, NULL);
	m->workers.has_janitor = false;
}
