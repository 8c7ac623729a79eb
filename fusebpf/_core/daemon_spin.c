/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Looking for a request that may come at once, instead of a sleep until it is there. Python's thread, without its lock.
 */
#include "core.h"

#include <poll.h>

#define SPIN_NS 50000	/* how long to look */
#define MAX_LEFT_OUT 7	/* how often not to, at most, once it was in vain */

/** Is there a message? */
bool is_readable(int fd)
{
	struct pollfd p = { .fd = fd, .events = POLLIN };

	return poll(&p, 1, 0) > 0;
}

/**
 * Look for a request at pyfuse3's end for a moment, on Python's thread. Returns whether there is one. What comes at once is
 * not worth a sleep: waking up takes longer, and leaves Python's code and data cold. Where it was in vain it is left out the
 * next times, twice as many each time.
 */
bool daemon_spin(struct daemon *d, int fd)
{
	bool found;

	if (d->n_spins_left_out < d->n_spins_to_leave_out) {
		d->n_spins_left_out++;
		return false;
	}
	int64_t until = now_ns() + SPIN_NS;
	while (!(found = is_readable(fd)) && now_ns() < until)
		continue;
	d->n_spins_left_out = 0;
	if (found)
		d->n_spins_to_leave_out = 0;
	else if (d->n_spins_to_leave_out < MAX_LEFT_OUT)
		d->n_spins_to_leave_out = 2 * d->n_spins_to_leave_out + 1;
	return found;
}
