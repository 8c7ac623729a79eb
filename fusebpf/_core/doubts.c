/* SPDX-License-Identifier: Apache-2.0 */
/*
 * In which directories names changed behind the mount a moment ago. What the mount itself moves out of one of them may be another thing
 * than the kernel, which had not been told yet, has taken along under the new name. Few directories are kept in mind, for a second; where they
 * are more, all are in doubt.
 *
 * Threads: the watch's own.
 */
#include "core.h"

/* In which the kernel has been told of a name that changed, wherever an op keeps a notification waiting. */
#define DOUBT_MS 1000

static bool is_recent(int64_t at_ms)
{
	return now_ms() < at_ms + DOUBT_MS;
}

void doubts_init(struct doubts *d)
{
	*d = (struct doubts){ .latest_ms = -DOUBT_MS, .all_ms = -DOUBT_MS };
	for (uint32_t i = 0; i < N_DOUBTS; i++)
		d->dirs[i].at_ms = -DOUBT_MS;
}

/** Names changed, nobody knows where. */
void doubts_note_all(struct doubts *d)
{
	d->all_ms = d->latest_ms = now_ms();
}

/** A name of this directory changed. */
void doubts_note(struct doubts *d, uint64_t nodeid)
{
	struct doubt *oldest = &d->dirs[0];

	d->latest_ms = now_ms();
	for (struct doubt *one = d->dirs; one < d->dirs + N_DOUBTS; one++) {
		if (one->nodeid == nodeid) {
			one->at_ms = d->latest_ms;
			return;
		}
		if (one->at_ms < oldest->at_ms)
			oldest = one;
	}
	if (is_recent(oldest->at_ms))
		doubts_note_all(d);
	*oldest = (struct doubt){ .nodeid = nodeid, .at_ms = d->latest_ms };
}

/** Did names change anywhere a moment ago? */
bool doubts_are_any(const struct doubts *d)
{
	return is_recent(d->latest_ms);
}

/** Did names of this directory change a moment ago? */
bool doubts_has(const struct doubts *d, uint64_t nodeid)
{
	for (const struct doubt *one = d->dirs; one < d->dirs + N_DOUBTS; one++)
		if (one->nodeid == nodeid && is_recent(one->at_ms))
			return true;
	return is_recent(d->all_ms);
}

/** May a directory that is not known have been known a moment ago, until it was removed? */
bool doubts_may_know(const struct inodes *inodes)
{
	return is_recent(atomic_load_explicit(&inodes->dir_gone_ms, memory_order_relaxed));
}
