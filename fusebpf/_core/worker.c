/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The threads that serve a mount. A worker reads a request, runs it to its reply, and reads the next. When the last idle
 * one takes a request, another is started, up to the limit, so a worker that blocks does not stop the mount; idle
 * ones beyond KEEP_IDLE retire. The janitor sends them away, and signals again workers whose request was interrupted.
 * Lock: workers.lock guards the list and the ring indexes.
 */
#include "core.h"

#include <signal.h>
#include <sys/mman.h>
#include <time.h>

#define KEEP_IDLE 2
#define JANITOR_PERIOD_NS 500000000L
#define INTERRUPT_PERIOD_NS 10000000L
#define STOP_TIMEOUT_S 10
#define MAX_PARKED 1024
#define BLOCKED_MS 20 /* an op that takes longer blocks: its worker is parked where the pool is at its limit */

static void *worker_main(void *argument);

static void on_kick(int signal)
{
	(void)signal; // only ends a blocking system call with EINTR
}

/* ------------------------------------------------------------------------- life of a worker */

static void worker_destroy(struct worker *w)
{
	hook_unmap_ring(w);
	chain_release(w->chain);
	if (w->device_fd >= 0)
		close(w->device_fd);
	if (w->buffer && w->buffer != MAP_FAILED)
		munmap(w->buffer, 2 * REQUEST_BUFFER_SIZE);
	free(w->image);
	free(w);
}

static struct worker *worker_create(struct mount *m)
{
	struct worker *w = calloc(1, sizeof(*w));

	if (!w)
		return NULL;
	w->mount = m;
	w->device_fd = device_clone(m);
	w->image = calloc(1, sizeof(*w->image));
	// Mapped, not allocated: pages that no large request touches cost nothing.
	w->buffer = mmap(NULL, 2 * REQUEST_BUFFER_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (w->device_fd < 0 || !w->image || w->buffer == MAP_FAILED) {
		worker_destroy(w);
		return NULL;
	}
	w->payload = w->buffer + REQUEST_BUFFER_SIZE;
	return w;
}

/* Start one more, unless there are as many as may be. */
static int worker_start(struct mount *m)
{
	struct workers *p = &m->workers;
	struct worker *w;
	pthread_attr_t attr;
	int e;

	pthread_mutex_lock(&p->lock);
	if (p->n - p->n_parked >= p->limit || !~p->rings_taken || atomic_load(&p->is_stopping)) {
		pthread_mutex_unlock(&p->lock);
		return -EAGAIN;
	}
	if (!(w = worker_create(m))) {
		pthread_mutex_unlock(&p->lock);
		return -ENOMEM;
	}
	w->index = (uint32_t)__builtin_ctzll(~p->rings_taken);
	pthread_attr_init(&attr);
	pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
	pthread_attr_setstacksize(&attr, 256 * 1024);
	e = pthread_create(&w->thread, &attr, worker_main, w);
	pthread_attr_destroy(&attr);
	if (!e) {
		p->rings_taken |= 1ULL << w->index;
		w->next = p->all;
		p->all = w;
		p->n++;
		atomic_fetch_add(&p->n_idle, 1);
	}
	pthread_mutex_unlock(&p->lock);
	if (e)
		worker_destroy(w);
	return -e;
}

/** Milliseconds on a clock that never goes back; a few of them late. */
int64_t now_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
	return now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/** From here on the worker may block for as long as it takes, and be parked meanwhile. */
void worker_enter_backing(struct worker *w)
{
	atomic_store_explicit(&w->since_ms, now_ms(), memory_order_relaxed);
	atomic_store_explicit(&w->state, WORKER_IN_BACKING, memory_order_release);
}

/* Take its ring from a worker that is in the backing file system. Called with workers.lock held; any thread. */
static bool park_locked(struct workers *p, struct worker *w)
{
	int expected = WORKER_IN_BACKING;

	if (p->n_parked >= MAX_PARKED || !atomic_compare_exchange_strong(&w->state, &expected, WORKER_PARKED))
		return false;
	hook_unmap_ring(w);
	p->rings_taken &= ~(1ULL << w->index);
	p->n_parked++;
	return true;
}

/** Park the calling worker at once, since it is about to wait: for a lock that another holds. */
void worker_park(struct worker *w)
{
	struct workers *p = &w->mount->workers;

	pthread_mutex_lock(&p->lock);
	if (park_locked(p, w))
		pthread_cond_broadcast(&p->changed);
	pthread_mutex_unlock(&p->lock);
	if (atomic_load(&p->n_idle) == 0)
		worker_start(w->mount);
}

/** It is back from the backing file system; if it was parked it takes a ring again, when one is free. */
void worker_leave_backing(struct worker *w)
{
	struct workers *p = &w->mount->workers;
	int expected = WORKER_IN_BACKING;

	if (atomic_compare_exchange_strong(&w->state, &expected, WORKER_RUNS))
		return;
	pthread_mutex_lock(&p->lock);
	atomic_fetch_add(&p->n_returning, 1);
	if (!~p->rings_taken)
		pthread_cond_broadcast(&p->changed); // the janitor sends idle workers away
	while (!~p->rings_taken)
		pthread_cond_wait(&p->changed, &p->lock);
	atomic_fetch_sub(&p->n_returning, 1);
	w->index = (uint32_t)__builtin_ctzll(~p->rings_taken);
	p->rings_taken |= 1ULL << w->index;
	p->n_parked--;
	atomic_store(&w->state, WORKER_RUNS);
	pthread_mutex_unlock(&p->lock);
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
	p->rings_taken &= ~(1ULL << w->index);
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
	rq.in = (const struct fuse_in_header *)w->buffer;
	rq.body = w->buffer + sizeof(*rq.in);
	rq.body_len = len - sizeof(*rq.in);
	rq.image = w->image;
	rq.slot = NO_SLOT;
	rq.error = 0;
	chain_refresh(w);
	cache_begin(&rq);
	request_run(&rq);
}

/* Read one request. Returns its length, or -errno: -ENODEV when the connection has ended. */
static ssize_t read_request(struct worker *w)
{
	ssize_t n = read(w->device_fd, w->buffer, REQUEST_BUFFER_SIZE);

	if (n < 0)
		return -errno;
	return n < (ssize_t)sizeof(struct fuse_in_header) ? -EIO : n;
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
		mount_log(m, "ERROR", "reading from /dev/fuse failed: %s", strerror(error));
	if (write(m->ended_fd, &one, sizeof(one)) < 0)
		return; // it is readable already
}

/* May this idle worker leave? Never the last one that reads: requests that end the blocking of others would lie there. */
static bool try_leave(struct worker *w)
{
	struct workers *p = &w->mount->workers;

	if (!atomic_load(&w->is_retiring) && !atomic_load(&p->n_returning))
		return false;
	if (atomic_fetch_sub(&p->n_idle, 1) > 1)
		return true;
	atomic_fetch_add(&p->n_idle, 1);
	atomic_store(&w->is_retiring, false);
	return false;
}

/* Take a request that was read: run it, with another worker reading meanwhile. */
static void take(struct worker *w, size_t len)
{
	struct workers *p = &w->mount->workers;

	atomic_store(&w->unique, ((struct fuse_in_header *)w->buffer)->unique);
	atomic_store(&w->is_idle, false);
	if (atomic_fetch_sub(&p->n_idle, 1) == 1 && worker_start(w->mount))
		pthread_cond_broadcast(&p->changed); // the janitor sees to it
	serve(w, len);
	atomic_store(&w->unique, 0);
	if (atomic_exchange(&w->interrupted, 0))
		atomic_fetch_sub(&p->n_interrupted, 1);
	atomic_store(&w->is_idle, true);
	atomic_fetch_add(&p->n_idle, 1);
}

static void *worker_main(void *argument)
{
	struct worker *w = argument;
	struct mount *m = w->mount;
	struct workers *p = &m->workers;
	bool has_left = false;
	int e = creds_init_thread();

	if (e)
		connection_ended(m, -e); // without a umask of its own it would change that of all
	watch_own_thread(m, true);
	atomic_store(&w->is_idle, true);
	while (!e && !atomic_load(&p->is_stopping)) {
		has_left = try_leave(w);
		if (has_left)
			break;
		ssize_t n = read_request(w);
		if (n >= 0) {
			take(w, (size_t)n);
		} else if (may_go_on((int)-n)) {
			chain_refresh(w); // an idle worker must not keep an old chain alive
		} else {
			connection_ended(m, (int)-n);
			break;
		}
	}
	watch_own_thread(m, false);
	if (!has_left)
		atomic_fetch_sub(&p->n_idle, 1);
	worker_leave(w);
	return NULL;
}

/* ---------------------------------------------------------------------------- interrupting */

/**
 * INTERRUPT: end the blocking system call of the worker that serves `unique`. Where no worker does, it may not have got
 * that far, so the kernel is told to ask again (EAGAIN; it does not if the request is answered meanwhile).
 */
void worker_interrupt(struct worker *by, uint64_t unique, uint64_t own_unique)
{
	struct workers *p = &by->mount->workers;
	bool found = false;

	atomic_fetch_add(&by->mount->n_interrupts, 1);
	pthread_mutex_lock(&p->lock);
	for (struct worker *w = p->all; w; w = w->next) {
		if (atomic_load(&w->unique) != unique || w == by)
			continue;
		found = true;
		if (!atomic_exchange(&w->interrupted, unique))
			atomic_fetch_add(&p->n_interrupted, 1);
		pthread_kill(w->thread, KICK_SIGNAL);
		pthread_cond_broadcast(&p->changed);
	}
	pthread_mutex_unlock(&p->lock);
	if (!found)
		device_reply_raw(by->device_fd, own_unique, EAGAIN);
}

/** Is the op to end early: its caller was interrupted, or the mount stops? */
bool request_is_interrupted(const struct request *rq)
{
	const struct worker *w = rq->worker;

	return atomic_load_explicit(&w->interrupted, memory_order_relaxed) == rq->in->unique ||
	       atomic_load_explicit(&rq->mount->workers.is_stopping, memory_order_relaxed);
}

/* -------------------------------------------------------------------------------- the janitor */

static void wait_at_most(struct workers *p, long ns)
{
	struct timespec until;

	clock_gettime(CLOCK_REALTIME, &until);
	until.tv_nsec += ns;
	until.tv_sec += until.tv_nsec / 1000000000L;
	until.tv_nsec %= 1000000000L;
	pthread_cond_timedwait(&p->changed, &p->lock, &until);
}

/* Signal those that must leave their system call: the signal may have come before the call began. */
static void kick(struct workers *p, bool all)
{
	for (struct worker *w = p->all; w; w = w->next)
		if (all || atomic_load(&w->interrupted))
			pthread_kill(w->thread, KICK_SIGNAL);
}

/* Send idle workers away, but for the few that the next requests find. */
static void retire(struct workers *p)
{
	uint32_t spare = atomic_load(&p->n_idle) > KEEP_IDLE ? atomic_load(&p->n_idle) - KEEP_IDLE : 0;

	for (struct worker *w = p->all; w && spare; w = w->next) {
		if (!atomic_load(&w->is_idle))
			continue;
		atomic_store(&w->is_retiring, true);
		pthread_kill(w->thread, KICK_SIGNAL);
		spare--;
	}
}

static bool is_at_limit(const struct workers *p)
{
	return atomic_load(&p->n_idle) == 0 && (p->n - p->n_parked >= p->limit || !~p->rings_taken);
}

/* All workers are busy, and there may be no more: park those that block, and start one in their place. Without it the
 * requests that would end the blocking (INTERRUPT, an unlock, a release) would wait behind it. Called with the lock held. */
static bool relieve(struct workers *p)
{
	int64_t before = now_ms() - BLOCKED_MS;
	bool any = false;

	for (struct worker *w = p->all; w; w = w->next)
		if (atomic_load(&w->state) == WORKER_IN_BACKING && atomic_load(&w->since_ms) < before)
			any |= park_locked(p, w);
	return any;
}

static void *janitor_main(void *argument)
{
	struct mount *m = argument;
	struct workers *p = &m->workers;

	pthread_mutex_lock(&p->lock);
	while (!atomic_load(&p->is_stopping)) {
		bool is_urgent = atomic_load(&p->n_interrupted) > 0 || atomic_load(&p->n_idle) == 0;
		wait_at_most(p, is_urgent ? INTERRUPT_PERIOD_NS : JANITOR_PERIOD_NS);
		pthread_mutex_unlock(&p->lock);
		passthrough_sweep(m);
		pthread_mutex_lock(&p->lock);
		if (atomic_load(&p->n_interrupted))
			kick(p, false);
		else
			retire(p);
		if (atomic_load(&p->n_idle) || (is_at_limit(p) && !relieve(p)))
			continue;
		pthread_mutex_unlock(&p->lock);
		worker_start(m); // also where an earlier start failed
		pthread_mutex_lock(&p->lock);
	}
	pthread_mutex_unlock(&p->lock);
	return NULL;
}

/* ------------------------------------------------------------------------------ start and stop */

/* All signals are the embedding program's but the one that we send. */
static void block_signals(sigset_t *old)
{
	sigset_t all;

	sigfillset(&all);
	sigdelset(&all, KICK_SIGNAL);
	pthread_sigmask(SIG_SETMASK, &all, old);
}

/** Start the first workers and the janitor. */
int workers_start(struct mount *m)
{
	struct workers *p = &m->workers;
	struct sigaction action, kick_action = { .sa_handler = on_kick };
	sigset_t old;

	m->failed_call = "starting the workers";
	if (sigaction(KICK_SIGNAL, NULL, &action) < 0)
		return -errno;
	// Whatever else handles it does as well, as long as it does not restart system calls.
	if (action.sa_handler == SIG_DFL || action.sa_handler == SIG_IGN)
		sigaction(KICK_SIGNAL, &kick_action, NULL);
	block_signals(&old);
	int e = 0;
	for (int i = 0; !e && i < KEEP_IDLE; i++)
		e = worker_start(m);
	if (!e) {
		e = -pthread_create(&p->janitor, NULL, janitor_main, m);
		p->has_janitor = !e;
	}
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	return e;
}

/** End all threads; ops in flight finish, those that block are interrupted. Bounded: a thread that a dead backing holds is left. */
void workers_stop(struct mount *m)
{
	struct workers *p = &m->workers;
	struct timespec now, end;

	atomic_store(&p->is_stopping, true);
	clock_gettime(CLOCK_MONOTONIC, &end);
	end.tv_sec += STOP_TIMEOUT_S;
	pthread_mutex_lock(&p->lock);
	pthread_cond_broadcast(&p->changed);
	do {
		kick(p, true);
		if (p->n)
			wait_at_most(p, INTERRUPT_PERIOD_NS);
		clock_gettime(CLOCK_MONOTONIC, &now);
	} while (p->n && now.tv_sec < end.tv_sec);
	uint32_t left = p->n;
	pthread_mutex_unlock(&p->lock);
	if (left)
		mount_log(m, "ERROR", "%u workers are held by the backing file system and were left behind", left);
	if (p->has_janitor)
		pthread_join(p->janitor, NULL);
	p->has_janitor = false;
}
