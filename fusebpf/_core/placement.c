/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Keeps callers on their cores, over io_uring. A caller is woken by the worker that answers it, on the same core; the
 * scheduler sees that core busy with the worker and, if another one has just become idle, moves the caller there, where
 * it waits for that core to take it up (some 20 µs on a virtual machine) and is served by another worker, from which it
 * moves back. A core that runs nothing but SCHED_IDLE threads, though, is idle in the scheduler's eyes, so that the
 * caller stays. So while callers move about, the workers of a core are SCHED_IDLE. Such a worker waits longer where
 * other programs compute on its core: it is one again as all others are as soon as answers become slow.
 * Threads: the workers, each for itself. Source: kernel/sched/fair.c: select_idle_sibling, sched_idle_cpu.
 */
#include "core.h"

#include <linux/capability.h>
#include <sched.h>
#include <stdio.h>

/* Answers that a core's workers give so, from the last time that a caller came from another core. */
#define N_ANSWERS 256
/* Every so many of them it is looked at how long they took, and if that is long, how long of it a worker was kept waiting. */
#define N_BETWEEN_LOOKS 16
#define SLOW_MS 16
#define WAITED_MS 8
/* No more of it for so long after a worker had to wait. */
#define PAUSE_MS 1000

static void set_yielding(struct worker *w, bool yields)
{
	if (yields == w->is_yielding || !w->can_yield)
		return;
	if (!sched_setscheduler(0, yields ? SCHED_IDLE : SCHED_OTHER, &(struct sched_param){ 0 }))
		w->is_yielding = yields;
}

/** The calling worker begins. A thread has the policy of the one that started it, which may just have given way. */
void placement_start(struct worker *w)
{
	// Only from SCHED_OTHER, and only who may come back from SCHED_IDLE.
	w->can_yield = w->queue->core >= 0 && w->mount->workers.policy == SCHED_OTHER && creds_have(CAP_SYS_NICE);
	w->is_yielding = w->can_yield && sched_getscheduler(0) == SCHED_IDLE;
	set_yielding(w, false);
}

static void begin(struct queue *q)
{
	int64_t now = now_ms();

	if (now < atomic_load_explicit(&q->not_before_ms, memory_order_relaxed))
		return;
	atomic_store_explicit(&q->looked_ms, now, memory_order_relaxed);
	atomic_store_explicit(&q->n_yielding, N_ANSWERS, memory_order_relaxed);
}

/** Note on which core a caller is, when its request has come. `tid` 0: nobody waits. */
void placement_note(struct worker *w, uint32_t tid)
{
	struct queue *q = w->queue;
	struct placement *at = &w->mount->placements[tid % N_PLACEMENTS];
	uint64_t is = (uint64_t)tid << 32 | (uint32_t)q->core;

	if (q->core < 0 || !tid)
		return;
	uint64_t was = atomic_load_explicit(&at->tid_and_core, memory_order_relaxed);
	if (was == is)
		return;
	atomic_store_explicit(&at->tid_and_core, is, memory_order_relaxed);
	if (was >> 32 == tid)
		begin(q);
}

/* Has the calling worker waited for its core for long, since this was asked last? (Documentation/scheduler/sched-stats.rst:
 * /proc/<pid>/schedstat) */
static bool has_waited(struct worker *w)
{
	unsigned long long ran_ns, waited_ns;
	char text[128];
	int fd = open("/proc/thread-self/schedstat", O_RDONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? -1 : read(fd, text, sizeof(text) - 1);

	if (fd >= 0)
		close(fd);
	text[n < 0 ? 0 : n] = 0;
	if (sscanf(text, "%llu %llu", &ran_ns, &waited_ns) < 2)
		return true; // it cannot be found out
	uint64_t since_ns = waited_ns - w->waited_ns;
	w->waited_ns = waited_ns;
	return since_ns > WAITED_MS * 1000000ULL;
}

/* Count an answer. Returns whether it is to be given as SCHED_IDLE. */
static bool take_one(struct worker *w)
{
	struct queue *q = w->queue;
	uint32_t n = atomic_load_explicit(&q->n_yielding, memory_order_relaxed);

	if (!n)
		return false;
	atomic_store_explicit(&q->n_yielding, n - 1, memory_order_relaxed);
	if (n % N_BETWEEN_LOOKS)
		return true;
	int64_t now = now_ms(), before = atomic_exchange_explicit(&q->looked_ms, now, memory_order_relaxed);
	if (now - before <= SLOW_MS || !has_waited(w))
		return true;
	atomic_store_explicit(&q->not_before_ms, now + PAUSE_MS, memory_order_relaxed);
	atomic_store_explicit(&q->n_yielding, 0, memory_order_relaxed);
	return false;
}

/** Choose the calling worker's policy, before it answers. */
void placement_choose(struct worker *w)
{
	set_yielding(w, take_one(w));
}

/** The calling worker has got a request: what it was when it last answered, which may be long ago, need not hold. */
void placement_begin(struct worker *w)
{
	if (w->is_yielding && !atomic_load_explicit(&w->queue->n_yielding, memory_order_relaxed))
		set_yielding(w, false);
}
