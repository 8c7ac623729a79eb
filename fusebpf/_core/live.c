/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the control path asks of a mount that serves: that ops in flight leave the snapshots that they began with. Any
 * thread but a worker's; ops go on meanwhile.
 */
#include "core.h"

#include <signal.h>
#include <time.h>

#define FIRST_PAUSE_NS 200000L
#define LONGEST_PAUSE_NS 10000000L

/* How many still hold a snapshot that is older than `revision`. */
static uint32_t n_holders(struct mount *m, uint32_t revision)
{
	uint32_t n = 0;

	pthread_mutex_lock(&m->chain_lock);
	for (const struct chain *c = m->old_chains; c; c = c->next_old)
		if (c->revision < revision)
			n += atomic_load(&c->refs);
	pthread_mutex_unlock(&m->chain_lock);
	return n;
}

/* Idle workers keep the snapshot of their last op until they wake up. */
static void wake_idle(struct workers *p)
{
	pthread_mutex_lock(&p->lock);
	for (struct worker *w = p->all; w; w = w->next)
		if (!atomic_load(&w->unique))
			pthread_kill(w->thread, KICK_SIGNAL);
	pthread_mutex_unlock(&p->lock);
}

/** Wait until no op uses a snapshot older than `revision`, at most so long. Returns how many still do. */
uint32_t chain_drain(struct mount *m, uint32_t revision, uint32_t timeout_ms)
{
	struct timespec pause = { .tv_nsec = FIRST_PAUSE_NS };
	int64_t end_ms = now_ms() + timeout_ms;
	uint32_t n;

	while ((n = n_holders(m, revision))) {
		// A signal that comes just before the read is lost, so it is sent again.
		wake_idle(&m->workers);
		nanosleep(&pause, NULL);
		pause.tv_nsec = pause.tv_nsec * 2 < LONGEST_PAUSE_NS ? pause.tv_nsec * 2 : LONGEST_PAUSE_NS;
		if (now_ms() >= end_ms)
			return n_holders(m, revision);
	}
	return 0;
}

/** The oldest revision that an op may still use; the current one if there is none. */
uint32_t chain_oldest(struct mount *m)
{
	pthread_mutex_lock(&m->chain_lock);
	const struct chain *current = atomic_load(&m->chain);
	uint32_t oldest = current ? current->revision : 0;
	for (const struct chain *c = m->old_chains; c; c = c->next_old)
		if (c->revision < oldest)
			oldest = c->revision;
	pthread_mutex_unlock(&m->chain_lock);
	return oldest;
}
