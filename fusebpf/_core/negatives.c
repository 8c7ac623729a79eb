/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Names that filters have called absent, or that the backing root has not, and that the kernel may take as absent for a while:
 * no inode stands for them, so they are noted here, to be invalidated with everything else. Any worker; one lock, held for
 * some instructions.
 */
#include "core.h"

#define MAX_NEGATIVES 65536
#define SWEEP_MS 1000
/* So that the list is not full for good, and of a name no more than that is lost if another spelling becomes the same. */
#define ABSENT_NS 60000000000u

/* Forget those that the kernel has forgotten, now and then. Called with the lock held. */
static void drop_expired(struct negatives *t)
{
	int64_t now = now_ms();
	uint32_t n = 0;

	if (now < t->swept_ms + SWEEP_MS)
		return;
	t->swept_ms = now;
	for (uint32_t i = 0; i < t->n; i++) {
		if (t->list[i].until_ms < now)
			free(t->list[i].name);
		else
			t->list[n++] = t->list[i];
	}
	t->n = n;
}

/* Note that the kernel is told so. Returns false if there is no room: then it may not keep it. */
static bool negatives_note(struct mount *m, uint64_t parent, const char *name, uint64_t ttl_ns)
{
	struct negatives *t = &m->negatives;
	uint64_t ttl_ms = ttl_ns / 1000000;
	bool is_noted = false;

	pthread_mutex_lock(&t->lock);
	if (!t->list)
		t->list = calloc(MAX_NEGATIVES, sizeof(*t->list));
	if (t->list && t->n == MAX_NEGATIVES)
		drop_expired(t);
	if (t->list && t->n < MAX_NEGATIVES) {
		struct negative *negative = &t->list[t->n];
		negative->parent = parent;
		negative->until_ms = ttl_ms > INT64_MAX / 2 ? INT64_MAX : now_ms() + (int64_t)ttl_ms + 1000;
		negative->name = strdup(name);
		is_noted = negative->name;
		t->n += is_noted;
	}
	pthread_mutex_unlock(&t->lock);
	return is_noted;
}

/** Answer a lookup that found nothing so that the kernel takes the name for absent without asking for a while. Returns false if it
 * may not: then the answer is ENOENT. */
bool negative_reply(struct request *rq)
{
	bool by_filter = rq->verdict == FB_NEGATIVE && rq->all_edits & FB_EDIT_TTL;
	struct fuse_entry_out *entry = &rq->out.create.entry;
	uint64_t ttl_ns = rq->entry_ttl_ns;
	const char *asked = rq->body; // a filter may have gone on with another name

	if (rq->error != ENOENT || !ttl_ns || !(by_filter || rq->is_absent))
		return false;
	if (!by_filter && ttl_ns > ABSENT_NS)
		ttl_ns = ABSENT_NS;
	// Noted first, so that what changes from here on finds it.
	if (!negatives_note(rq->mount, rq->in->nodeid, asked, ttl_ns) || cache_is_outdated(rq) ||
	    (!by_filter && cache_has_changed(rq)))
		return false;
	memset(entry, 0, sizeof(*entry));
	ttl_set(ttl_ns, &entry->entry_valid, &entry->entry_valid_nsec);
	rq->reply = entry;
	rq->reply_len = sizeof(*entry);
	return true;
}

/** Take all of them, to invalidate them. Returns how many there are; list and names are the caller's to free. */
uint32_t negatives_take(struct mount *m, struct negative **out)
{
	struct negatives *t = &m->negatives;

	pthread_mutex_lock(&t->lock);
	uint32_t n = t->n;
	*out = t->list;
	t->list = NULL;
	t->n = 0;
	pthread_mutex_unlock(&t->lock);
	return n;
}

void negatives_deinit(struct mount *m)
{
	struct negative *list;
	uint32_t n = negatives_take(m, &list);

	while (n)
		free(list[--n].name);
	free(list);
}
