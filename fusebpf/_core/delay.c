/* SPDX-License-Identifier: Apache-2.0 */
/* Delays that filters order: the op's thread sleeps as if it were in the backing file system, so that it can be parked. */
#include "core.h"

/**
 * Sleep for as long as filters ordered, once. Called between worker_enter_backing and worker_leave_backing.
 *
 * Returns 0, or -EINTR: the caller was interrupted, or the mount stops. A rehearsal does not wait.
 */
int request_delay(struct request *rq)
{
	struct timespec until;

	clock_gettime(CLOCK_MONOTONIC, &until);
	until.tv_sec += (time_t)(rq->delay_ns / 1000000000u);
	until.tv_nsec += (long)(rq->delay_ns % 1000000000u);
	if (until.tv_nsec >= 1000000000) {
		until.tv_sec++;
		until.tv_nsec -= 1000000000;
	}
	rq->delay_ns = 0;
	if (!rq->mount->is_started)
		return 0;
	// A kick that comes between the question and the sleep is repeated by the janitor.
	do {
		if (request_is_interrupted(rq))
			return -EINTR;
	} while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL) == EINTR);
	return 0;
}

/** The same for an op that is done. Whoever interrupts it is answered at once. */
void answer_delay(struct request *rq)
{
	worker_enter_backing(rq->worker);
	request_delay(rq);
	worker_leave_backing(rq->worker);
}
