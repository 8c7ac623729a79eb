/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Time, and waiting for some of it, by a clock that nobody sets. Any thread.
 */
#include "core.h"

#include <time.h>

/** Milliseconds of the monotonic clock, at its last step (some milliseconds). */
int64_t now_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
	return now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/** Nanoseconds of that clock, at this moment; takes longer. */
int64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000000000 + now.tv_nsec;
}

/** Make a condition that clock_wait can wait for. */
void clock_cond_init(pthread_cond_t *cond)
{
	pthread_condattr_t attr;

	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(cond, &attr);
	pthread_condattr_destroy(&attr);
}

/** Wait until the condition is signalled, but not longer. Called with the lock held. */
void clock_wait(pthread_cond_t *cond, pthread_mutex_t *lock, int64_t ns)
{
	struct timespec until;

	clock_gettime(CLOCK_MONOTONIC, &until);
	until.tv_sec += (until.tv_nsec + ns) / 1000000000;
	until.tv_nsec = (until.tv_nsec + ns) % 1000000000;
	pthread_cond_timedwait(cond, lock, &until);
}
