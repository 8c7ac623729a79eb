/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a daemon tells the kernel unasked, by pyfuse3.invalidate_inode and its like: passed on with our numbers of inodes. Who
 * reads the daemon's answers, without its lock.
 */
#include "core.h"

/* The nodeid of what the daemon knows by a number; 0: the kernel does not know it. */
static uint64_t nodeid_of(struct mount *m, uint64_t id)
{
	uint64_t nodeid = 0;

	if (id == ROOT_NODEID)
		return id;
	if (id >= DAEMON_OURS)
		return id & ~DAEMON_OURS;
	for (int i = 0; i < N_SHARDS && !nodeid; i++) {
		struct inode_shard *s = &m->inodes.by_id[i];
		pthread_mutex_lock(&s->lock);
		for (uint32_t b = 0; b < s->n_buckets && !nodeid; b++)
			for (const struct inode *inode = s->buckets[b]; inode && !nodeid; inode = inode->next_by_id)
				if (__atomic_load_n(&inode->daemon_id, __ATOMIC_RELAXED) == id)
					nodeid = inode->nodeid;
		pthread_mutex_unlock(&s->lock);
	}
	return nodeid;
}

static void inode_notice(struct mount *m, uint64_t id, int64_t offset, int64_t length)
{
	uint64_t nodeid = nodeid_of(m, id);

	if (nodeid)
		notify_inode(m, nodeid, offset, length);
}

static void entry_notice(struct mount *m, uint64_t parent, const char *name, size_t len, size_t room)
{
	uint64_t nodeid = nodeid_of(m, parent);

	if (nodeid && len < room && !name[len])
		notify_deleted(m, nodeid, name);
}

/** Pass a notification on. What was to be stored in the kernel's cache is dropped from it, so that the kernel asks for it. */
void daemon_notice(struct mount *m, int code, const char *body, size_t len)
{
	const struct fuse_notify_inval_inode_out *inode = (const void *)body;
	const struct fuse_notify_inval_entry_out *entry = (const void *)body;
	const struct fuse_notify_delete_out *deleted = (const void *)body;
	const struct fuse_notify_store_out *store = (const void *)body;

	if (code == FUSE_NOTIFY_INVAL_INODE && len >= sizeof(*inode))
		inode_notice(m, inode->ino, inode->off, inode->len);
	if (code == FUSE_NOTIFY_INVAL_ENTRY && len >= sizeof(*entry))
		entry_notice(m, entry->parent, body + sizeof(*entry), entry->namelen, len - sizeof(*entry));
	if (code == FUSE_NOTIFY_DELETE && len >= sizeof(*deleted))
		entry_notice(m, deleted->parent, body + sizeof(*deleted), deleted->namelen, len - sizeof(*deleted));
	if (code == FUSE_NOTIFY_STORE && len >= sizeof(*store))
		inode_notice(m, store->nodeid, (int64_t)store->offset, store->size);
}
