/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Keeps callers on their cores, and running, over io_uring. A caller is woken by the worker that answers it, on the same core; the
 * scheduler sees that core busy with the worker and, if another one has just become idle, moves the caller there, where
 * it waits for that core to take it up (some 20 µs on a virtual machine) and is served by another worker, from which it
 * moves back. A core that runs nothing but SCHED_IDLE threads, though, is idle in the scheduler's eyes, so that the
 * caller stays. So while callers move about, the workers of a core are SCHED_IDLE. Such a worker may wait for a second
 * where another program computes on its core: it is done on a machine that has little else to do, and no longer than that.
 *
 * A worker that is woken by what nobody waits for, a close, would take the core from the caller, and give it back a moment later:
 * two changes of address space for nothing. SCHED_BATCH ones wait until the caller sleeps. They also wait, for some milliseconds,
 * where the disk wakes them beside a program that computes, so on a busy machine workers are ordinary.
 *
 * Threads: the workers, each for itself; the janitor for all. Source: kernel/sched/fair.c: select_idle_sibling,
 * sched_idle_cpu, check_preempt_wakeup_fair.
 */
#include "core.h"

#include <linux/capability.h>
#include <sched.h>
#include <stdio.h>

/* Answers that a core's workers give so, from the last time that a caller came from another core. */
#define N_ANSWERS 4096

static void set_policy(struct worker *w, int policy)
{
	if (policy == atomic_load_explicit(&w->policy, memory_order_relaxed) || !w->is_placed)
		return;
	if (!sched_setscheduler(0, policy, &(struct sched_param){ 0 }))
		atomic_store_explicit(&w->policy, policy, memory_order_relaxed);
}

/* Do more threads want to run than half of the cores have, but for n_own of ours? It is the fourth field (proc(5): /proc/loadavg),
 * which counts some that have just gone to sleep. */
static bool is_busy(const struct mount *m, uint32_t n_own)
{
	unsigned int n_running;
	char text[64];
	ssize_t n = pread(m->workers.load_fd, text, sizeof(text) - 1, 0);

	text[n < 0 ? 0 : n] = 0;
	if (sscanf(text, "%*s %*s %*s %u/", &n_running) < 1)
		return true; // it cannot be found out
	return n_running > n_own + (m->n_queues - 1) / 2;
}

/** The calling worker begins. A thread has the policy of the one that started it, which may be another one for the moment. */
void placement_start(struct worker *w)
{
	w->is_placed = w->queue->core >= 0 && w->mount->workers.policy == SCHED_OTHER;
	w->can_yield = w->is_placed && creds_have(CAP_SYS_NICE); // else it could not come back from SCHED_IDLE
	atomic_store(&w->policy, sched_getscheduler(0));
	set_policy(w, SCHED_OTHER);
}

/* Are workers to be on other cores than their callers: idle.c? */
static bool may_be_away(const struct mount *m)
{
	return atomic_load_explicit(&m->idle.has_room, memory_order_relaxed);
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
	if (was >> 32 == tid && !may_be_away(w->mount) && !is_busy(w->mount, 1))
		atomic_store_explicit(&q->n_yielding, N_ANSWERS, memory_order_relaxed);
}

/* It is looked at how busy the machine is at each step of the coarse clock, some milliseconds: that takes longer than to count. */
static bool is_time_to_look(struct queue *q)
{
	int64_t now = now_ms();

	return atomic_exchange_explicit(&q->looked_ms, now, memory_order_relaxed) != now;
}

/* Count an answer. Returns whether it is to be given as SCHED_IDLE. */
static bool take_one(struct worker *w)
{
	struct queue *q = w->queue;
	uint32_t n = atomic_load_explicit(&q->n_yielding, memory_order_relaxed);

	if (!n || !w->can_yield)
		return false;
	bool is_over = is_time_to_look(q) && is_busy(w->mount, 1);
	atomic_store_explicit(&q->n_yielding, is_over ? 0 : n - 1, memory_order_relaxed);
	return !is_over;
}

static bool is_quiet(const struct worker *w)
{
	return atomic_load_explicit(&w->mount->workers.is_quiet, memory_order_relaxed);
}

/** Choose where the calling worker runs, and its policy, before it answers. */
void placement_choose(struct worker *w)
{
	bool is_to_be_away = w->is_placed && may_be_away(w->mount);

	if (is_to_be_away != atomic_load_explicit(&w->is_away, memory_order_relaxed))
		idle_place(w, is_to_be_away);
	set_policy(w, !is_to_be_away && take_one(w) ? SCHED_IDLE : is_quiet(w) ? SCHED_BATCH : SCHED_OTHER);
}

/* Is this policy, which a worker has, no longer the one that it is to have? */
static bool is_outdated(struct worker *w, int policy)
{
	return policy == SCHED_IDLE ? !atomic_load_explicit(&w->queue->n_yielding, memory_order_relaxed)
				    : policy == SCHED_BATCH && !is_quiet(w);
}

/** The calling worker has got a request: what it was when it last answered, which may be long ago, need not hold. */
void placement_begin(struct worker *w)
{
	if (is_outdated(w, atomic_load_explicit(&w->policy, memory_order_relaxed)))
		set_policy(w, SCHED_OTHER);
}

/* Nothing was answered since this was asked last: nobody asks, or other programs keep the workers from their core. */
static bool stands_still(struct queue *q)
{
	uint32_t n = atomic_load_explicit(&q->n_yielding, memory_order_relaxed);
	bool is_same = n == q->n_seen;

	q->n_seen = n;
	return is_same;
}

/** See how busy the machine is, and make those workers ordinary that are something else and may wait for long. Called by the
 * janitor, with workers.lock held. Returns whether it is to look again soon. */
bool placement_look(struct mount *m)
{
	bool is_on = false;

	atomic_store_explicit(&m->workers.is_quiet, m->n_queues > 1 && !is_busy(m, 2), memory_order_relaxed); // it, and a worker
	for (uint32_t i = 1; i < m->n_queues; i++)
		if (stands_still(&m->queues[i]))
			atomic_store_explicit(&m->queues[i].n_yielding, 0, memory_order_relaxed);
	for (struct worker *w = m->workers.all; w; w = w->next) {
		int policy = atomic_load_explicit(&w->policy, memory_order_relaxed);
		if (!w->is_placed)
			continue;
		is_on |= policy == SCHED_IDLE;
		// If it is just changing itself, that is put right when it is looked at next.
		if (is_outdated(w, policy) && !pthread_setschedparam(w->thread, SCHED_OTHER, &(struct sched_param){ 0 }))
			atomic_store_explicit(&w->policy, SCHED_OTHER, memory_order_relaxed);
	}
	return is_on;
}
