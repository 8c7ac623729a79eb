/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The start and the end of a mount's threads, on the control path, and the choice of its transport.
 * Lock: workers.lock.
 */
#include "core.h"

#include <sched.h>
#include <signal.h>

#define STOP_TIMEOUT_MS 10000

static void on_kick(int signal)
{
	(void)signal; // only ends a blocking system call with EINTR
}

/* All signals are the embedding program's but the one that we send. */
static void block_signals(sigset_t *old)
{
	sigset_t all;

	sigfillset(&all);
	sigdelset(&all, KICK_SIGNAL);
	pthread_sigmask(SIG_SETMASK, &all, old);
}

/* A worker for each core's queue, with all that may fail, before the kernel is told that there are such queues. 0, or
 * -errno when none is left. */
static int create_for_cores(struct mount *m, struct worker *first[], uint32_t n_cores)
{
	int e = 0;
	uint32_t n = 0;

	while (!e && n < n_cores) {
		m->queues[1 + n] = (struct queue){ .transport = &uring_transport, .core = (int)n };
		e = worker_create(m, &m->queues[1 + n], &first[n]);
		if (!e)
			n++;
	}
	while (e && n > 0)
		worker_destroy(first[--n]);
	return e;
}

/* Choose the transport, and start the workers of the cores' queues if it is io_uring. */
static int start_for_cores(struct mount *m)
{
	struct workers *p = &m->workers;
	uint32_t n = transport_n_cores();

	if (m->transport == TRANSPORT_DEV)
		return 0;
	if (!(m->offered & FB_FUSE_OVER_IO_URING))
		return transport_refuse_uring(m, transport_why_no_uring());
	if (!n || n > MAX_CORES)
		return transport_refuse_uring(m, "how many cores there may be cannot be found out, or they are more than 1,024");
	struct worker **first = calloc(n, sizeof(*first));
	int e = first ? create_for_cores(m, first, n) : -ENOMEM;
	if (e) {
		free(first);
		return transport_refuse_uring(m, e == -EPERM ? "this process may not use io_uring" : strerror(-e));
	}
	pthread_mutex_lock(&p->lock);
	for (uint32_t i = 0; i < n; i++) {
		if (!e)
			e = worker_begin(first[i]);
		else
			worker_destroy(first[i]);
	}
	pthread_mutex_unlock(&p->lock);
	free(first);
	m->n_queues = 1 + n;
	return e;
}

/* Heed the signal by which workers are fetched back. */
static int handle_kicks(void)
{
	struct sigaction action, kick_action = { .sa_handler = on_kick };

	if (sigaction(KICK_SIGNAL, NULL, &action) < 0)
		return -errno;
	// Whatever else handles it does as well, as long as it does not restart system calls.
	if (action.sa_handler == SIG_DFL || action.sa_handler == SIG_IGN)
		sigaction(KICK_SIGNAL, &kick_action, NULL);
	return 0;
}

static void *act(void *error)
{
	*(int *)error = creds_init_thread();
	return NULL;
}

/* Try in a thread what every worker begins with: seccomp or a user namespace may forbid it. */
static int try_creds(void)
{
	pthread_t thread;
	int error = 0;
	int e = -pthread_create(&thread, NULL, act, &error);

	if (!e)
		pthread_join(thread, NULL);
	return e ? e : error;
}

/** Start the first workers and the janitor. They wait until workers_open. */
int workers_start(struct mount *m)
{
	sigset_t old;

	m->queues[0] = (struct queue){ .transport = &device_transport, .core = -1 };
	m->n_queues = 1;
	m->failed_call = "starting the workers";
	m->workers.policy = sched_getscheduler(0);
	m->workers.has_deadline = transport_has_deadline();
	m->workers.load_fd = open("/proc/loadavg", O_RDONLY | O_CLOEXEC);
	int e = handle_kicks();
	if (e)
		return e;
	block_signals(&old);
	e = try_creds();
	if (e) {
		m->failed_call = "a thread cannot act as its callers here (unshare, setgroups)";
		pthread_sigmask(SIG_SETMASK, &old, NULL);
		return e;
	}
	e = start_for_cores(m);
	if (!e)
		e = idle_start(m);
	for (int i = 0; !e && i < (m->n_queues > 1 ? 1 : KEEP_IDLE); i++)
		e = worker_start(m, &m->queues[0]);
	if (!e)
		e = janitor_start(m);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	return e;
}

/** INIT is answered: let them begin. */
void workers_open(struct mount *m)
{
	struct workers *p = &m->workers;

	pthread_mutex_lock(&p->lock);
	p->is_open = true;
	pthread_cond_broadcast(&p->changed);
	pthread_mutex_unlock(&p->lock);
}

/** End all threads; ops in flight finish, those that block are interrupted. Bounded: a thread that a dead backing holds is left, and
 * then false is returned. */
bool workers_stop(struct mount *m)
{
	struct workers *p = &m->workers;
	int64_t end_ms = now_ms() + STOP_TIMEOUT_MS;

	atomic_store(&p->is_stopping, true);
	pthread_mutex_lock(&p->lock);
	pthread_cond_broadcast(&p->changed);
	do {
		workers_kick(p, true);
		if (p->n)
			clock_wait(&p->changed, &p->lock, INTERRUPT_PERIOD_NS);
	} while (p->n && now_ms() < end_ms);
	uint32_t left = p->n;
	pthread_mutex_unlock(&p->lock);
	if (left)
		mount_log(m, "ERROR", "workers that the backing file system holds are left behind: %u", left);
	janitor_stop(m);
	for (uint32_t i = 1; !left && i < m->n_queues; i++)
		uring_free_spares(&m->queues[i]);
	idle_stop(m, !left);
	if (!left && m->workers.load_fd >= 0) {
		close(m->workers.load_fd);
		m->workers.load_fd = -1;
	}
	return !left;
}
