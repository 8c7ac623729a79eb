/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The inode table for those who serve no op: what it has, and inodes that may go at any time, so that each comes with a
 * reference. Any thread. Lock: a shard's, for as long as it is looked through.
 */
#include "core.h"

/** The inode of a nodeid, with a reference that the caller releases; or NULL. */
struct inode *inodes_get_held(struct mount *m, uint64_t nodeid)
{
	struct inode_shard *s = &m->inodes.by_id[nodeid % N_SHARDS];

	pthread_mutex_lock(&s->lock);
	struct inode *inode = s->buckets[nodeid / N_SHARDS & (s->n_buckets - 1)];
	while (inode && inode->nodeid != nodeid)
		inode = inode->next_by_id;
	if (inode)
		inode_hold(inode); // it leaves the table before its last reference goes
	pthread_mutex_unlock(&s->lock);
	return inode;
}

/** The nodeids of one shard of the table as of now, for walking it without its lock; the caller frees them. */
uint64_t *inodes_of_shard(struct mount *m, uint32_t shard, uint32_t *n)
{
	struct inode_shard *s = &m->inodes.by_id[shard];

	*n = 0;
	pthread_mutex_lock(&s->lock);
	uint64_t *nodeids = calloc(s->n_inodes + 1, sizeof(*nodeids));
	for (uint32_t i = 0; nodeids && i < s->n_buckets; i++)
		for (const struct inode *inode = s->buckets[i]; inode; inode = inode->next_by_id)
			nodeids[(*n)++] = inode->nodeid;
	pthread_mutex_unlock(&s->lock);
	return nodeids;
}

/* Inodes with a reference on each. */
struct held {
	struct inode **all;
	size_t n, capacity;
};

/* Called with the lock of the inode's shard held. Returns false where memory is short. */
static bool held_add(struct held *h, struct inode *inode)
{
	if (h->n == h->capacity) {
		size_t capacity = h->capacity ? 2 * h->capacity : 64;
		struct inode **more = realloc(h->all, capacity * sizeof(*more));
		if (!more)
			return false;
		h->all = more;
		h->capacity = capacity;
	}
	inode_hold(inode);
	h->all[h->n++] = inode;
	return true;
}

/* Those of a shard that are passed through: a hint, since whoever opens or closes one meanwhile races with us anyway. */
static bool held_add_passed(struct held *h, struct inode_shard *s)
{
	bool has_memory = true;

	pthread_mutex_lock(&s->lock);
	for (uint32_t b = 0; b < s->n_buckets && s->buckets && has_memory; b++)
		for (struct inode *inode = s->buckets[b]; inode && has_memory; inode = inode->next_by_id)
			if (__atomic_load_n(&inode->n_passthrough, __ATOMIC_RELAXED))
				has_memory = held_add(h, inode);
	pthread_mutex_unlock(&s->lock);
	return has_memory;
}

/**
 * The inodes whose data is passed through to the kernel now, each with a reference that the caller releases. Returns how
 * many there are, or -ENOMEM; *out is the caller's to free.
 */
ssize_t inodes_passed_through(struct mount *m, struct inode ***out)
{
	struct held h = { 0 };
	bool has_memory = true;

	for (int i = 0; i < N_SHARDS && has_memory; i++)
		has_memory = held_add_passed(&h, &m->inodes.by_id[i]);
	if (has_memory) {
		*out = h.all;
		return (ssize_t)h.n;
	}
	while (h.n)
		inode_release(m, h.all[--h.n]);
	free(h.all);
	return -ENOMEM;
}
