/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The map `recent`: the last FB_N_RECENT finished records, written in turn. Any worker; readers map it and take no lock.
 */
#include "core.h"

#define CACHE_LINE 64

static struct fb_record *record_at(const struct shared_maps *s, uint64_t sequence)
{
	return (void *)((char *)s->recent + s->record_stride * (sequence % FB_N_RECENT));
}

/** The op will be recorded: fetch the place into the cache while its hooks run. It was last written 1,024 records ago. */
void recent_prepare(const struct request *rq)
{
	const struct shared_maps *s = &rq->mount->shared;
	const struct fb_record *record = record_at(s, atomic_load_explicit(&s->sequence, memory_order_relaxed));
	const char *name_end = &record->name[rq->image->name_len];

	for (const char *at = (const char *)record; at <= name_end; at += CACHE_LINE)
		__builtin_prefetch(at, 1);
	__builtin_prefetch(name_end, 1);
	__builtin_prefetch(record->name2, 1);
}

/* -------------------------------------------------------------------------------- whose place it is */

/*
 * A writer may be held up for so long that the next op that has the place comes. Only one of the two may write: the later one
 * leaves its number behind, under which the other publishes what it has.
 */
static bool place_take(_Atomic uint64_t *place, uint64_t sequence)
{
	uint64_t taken = 0;

	while (!atomic_compare_exchange_weak(place, &taken, taken < sequence ? sequence : taken))
		continue;
	return !taken;
}

/* Say that a record is whole, for all that have left their number. */
static void place_give_back(_Atomic uint64_t *place, struct fb_record *record, uint64_t sequence)
{
	do {
		__atomic_store_n(&record->sequence, sequence, __ATOMIC_RELEASE);
	} while (!atomic_compare_exchange_strong(place, &sequence, 0));
}

/* --------------------------------------------------------------------------------------- records */

static void fill(struct fb_record *record, const struct request *rq)
{
	static const char nobody[sizeof(record->filter)];
	const struct fb_slot *image = rq->image;

	record->time_ns = image->time_ns;
	record->unique = image->unique;
	record->nodeid = image->nodeid;
	record->op = (enum fb_op)rq->op->canonical;
	record->route = rq->route;
	record->error = (enum fb_errno)rq->error;
	record->verdict = rq->verdict;
	memcpy(record->filter, rq->decider ? rq->decider : nobody, sizeof(record->filter));
	record->uid = image->uid;
	record->gid = image->gid;
	record->pid = image->pid;
	record->backing = image->backing;
	record->pre_ran = rq->pre_ran;
	record->pre_edited = rq->pre_edited;
	record->post_ran = rq->post_ran;
	record->post_edited = rq->post_edited;
	record->edits = rq->all_edits;
	record->result = rq->op->canonical == FB_OP_readdir ? rq->n_listed
			 : rq->op->flags & FB_OP_COUNT	    ? rq->count
							    : 0;
	record->io_mode = rq->io_mode;
	record->io_reason = rq->io_reason;
	memcpy(record->name, image->name.text, image->name_len + 1);
	memcpy(record->name2, image->name2.text, image->name2_len + 1);
}

/** Write the finished record of a hooked op into `recent`. Its sequence is 0 while it is being written. */
void recent_write(struct request *rq)
{
	names_end(rq);
	struct shared_maps *s = &rq->mount->shared;
	uint64_t sequence = atomic_fetch_add(&s->sequence, 1) + 1;
	struct fb_record *record = record_at(s, sequence - 1);
	_Atomic uint64_t *place = &s->recent_places[(sequence - 1) % FB_N_RECENT];

	if (!place_take(place, sequence))
		return;
	uint64_t mine = sequence;
	if (__atomic_load_n(&record->sequence, __ATOMIC_RELAXED) > sequence && atomic_compare_exchange_strong(place, &mine, 0))
		return; // a later op was faster
	__atomic_store_n(&record->sequence, 0, __ATOMIC_RELAXED);
	__atomic_thread_fence(__ATOMIC_RELEASE);
	fill(record, rq);
	place_give_back(place, record, sequence);
}
