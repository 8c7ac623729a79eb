/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The daemon's part of the inode table: nodes without a backing, which number the daemon knows an inode by, and how often it
 * handed it out. Locks as in inodes.c: the key shard's guards n_daemon. Any worker, and Python's thread.
 */
#include "core.h"

/** An inode of the daemon's own, counted once more for the kernel and for the daemon. It is made if it is not known. */
int inodes_enter_virtual(struct mount *m, uint64_t daemon_id, uint32_t type, struct inode *parent, const char *name,
			 struct inode **out)
{
	struct inode_key key = { .mnt = NULL };

	key.handle.handle_type = DAEMON_HANDLE_TYPE;
	key.handle.handle_bytes = sizeof(daemon_id);
	memcpy(key.handle.f_handle, &daemon_id, sizeof(daemon_id));
	key.hash = (uint32_t)(daemon_id * 0x9e3779b97f4a7c15u >> 32);
	int no_fd = -1;
	if (!(*out = inodes_enter_key(m, &key, type, 0, parent, name, &no_fd)))
		return -ENOMEM;
	__atomic_store_n(&(*out)->daemon_id, daemon_id, __ATOMIC_RELAXED);
	return 0;
}

/** Count an inode that is known once more, for the kernel and for the daemon. -ESTALE: it is being forgotten. */
int inodes_count(struct mount *m, struct inode *inode)
{
	pthread_mutex_lock(inode_name_lock(m, inode));
	bool is_known = inode->n_lookup > 0;
	if (is_known) {
		inode->n_lookup++;
		inode->n_daemon++;
	}
	pthread_mutex_unlock(inode_name_lock(m, inode));
	return is_known ? 0 : -ESTALE;
}

/** An inode that was just entered has a number of the daemon's, too, and counts once for it. */
void inodes_pair(struct mount *m, struct inode *inode, uint64_t daemon_id)
{
	pthread_mutex_lock(inode_name_lock(m, inode));
	__atomic_store_n(&inode->daemon_id, daemon_id, __ATOMIC_RELAXED);
	inode->n_daemon++;
	pthread_mutex_unlock(inode_name_lock(m, inode));
}

/* Inodes that somebody holds. */
struct children {
	struct inode **all;
	uint32_t n;
};

static void children_add(struct children *c, struct inode *inode)
{
	struct inode **more = realloc(c->all, (c->n + 1) * sizeof(*more));

	if (!more)
		return;
	inode_hold(inode);
	more[c->n++] = inode;
	c->all = more;
}

/* All that were last seen under a name: beside the one that has it those that lost it, and are open still. */
static void children_find(struct mount *m, const struct inode *parent, const char *name, struct children *found)
{
	for (int i = 0; i < N_SHARDS; i++) {
		struct inode_shard *s = &m->inodes.by_key[i];
		pthread_mutex_lock(&s->lock);
		for (uint32_t b = 0; b < s->n_buckets; b++)
			for (struct inode *inode = s->buckets[b]; inode; inode = inode->next_by_key)
				if (inode->parent == parent && inode->name && !strcmp(inode->name, name))
					children_add(found, inode);
		pthread_mutex_unlock(&s->lock);
	}
}

static void children_move(struct mount *m, struct children *moved, struct inode *to, const char *name)
{
	for (uint32_t i = 0; i < moved->n; i++) {
		inode_moved(m, moved->all[i], to, name);
		inode_release(m, moved->all[i]);
	}
	free(moved->all);
}

/** Note a rename that the daemon did. It says names alone, so all inodes are looked through. */
void inodes_moved_child(struct mount *m, struct inode *parent, const char *name, struct inode *to, const char *to_name,
			bool is_exchange)
{
	struct children there = { .n = 0 }, back = { .n = 0 };

	children_find(m, parent, name, &there);
	if (is_exchange)
		children_find(m, to, to_name, &back);
	children_move(m, &there, to, to_name);
	children_move(m, &back, parent, name);
}
