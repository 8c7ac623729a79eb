/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Where the backing file system has no file handles, each inode that the kernel knows holds a descriptor. Past the limit the
 * kernel is asked to let go of those that nobody uses: it answers with FORGETs. On the notifier's thread, without a lock.
 */
#include "core.h"

#define PRUNE_BATCH 256
#define PAUSE_US 2000
#define MAX_WAITS 500 /* a second */

/* Does the inode hold a descriptor for as long as the kernel knows it, and may the kernel not know it? */
static bool is_held_by_kernel(const struct inode *inode)
{
	return inode->nodeid != ROOT_NODEID && !inode->is_virtual && inode->fd >= 0 &&
	       !(inode->mnt && inode->mnt->can_reopen);
}

/* Returns false if the kernel does not know this notification. */
static bool send_prune(struct mount *m, const uint64_t *nodeids, uint32_t n)
{
	struct fb_fuse_notify_prune_out out = { .count = n };
	struct fuse_out_header header = { .error = FB_FUSE_NOTIFY_PRUNE };
	struct iovec iov[] = { { &header, sizeof(header) }, { &out, sizeof(out) }, { (void *)nodeids, n * sizeof(*nodeids) } };

	header.len = (uint32_t)(iov[0].iov_len + iov[1].iov_len + iov[2].iov_len);
	atomic_fetch_add_explicit(&m->notifier.n_sent, 1, memory_order_relaxed);
	return writev(m->device_fd, iov, 3) >= 0 || errno != EINVAL;
}

/* The kernel lets go of an entry, and of an inode that nobody uses. Not of directories: what is mounted on them would go. */
static void drop_entries(struct mount *m, const uint64_t *nodeids, uint32_t n)
{
	char name[FB_NAME_SIZE];

	for (uint32_t i = 0; i < n; i++) {
		struct inode *inode = inodes_get_held(m, nodeids[i]);
		bool is_dir = !inode || inode->type == S_IFDIR;
		inode_release(m, inode);
		uint64_t parent = is_dir ? 0 : inode_place(m, nodeids[i], name);
		if (parent)
			notifier_drop(m, parent, name);
	}
}

/* Those of a shard's inodes that hold a descriptor, in place. */
static uint32_t held_of(struct mount *m, uint64_t *nodeids, uint32_t n)
{
	uint32_t n_held = 0;

	for (uint32_t i = 0; i < n; i++) {
		struct inode *inode = inodes_get_held(m, nodeids[i]);
		if (inode && is_held_by_kernel(inode))
			nodeids[n_held++] = nodeids[i];
		inode_release(m, inode);
	}
	return n_held;
}

/** Ask the kernel to let go of inodes until a quarter of the limit is free. Its FORGETs come later, and all may be in use: so
 * there is a pause behind. */
void prune(struct mount *m)
{
	struct notifier *n = &m->notifier;
	uint32_t target = m->fds.limit - m->fds.limit / 4;

	for (uint32_t i = 0; i < N_SHARDS && atomic_load(&m->fds.n_open) > target; i++) {
		uint32_t count;
		uint64_t *nodeids = inodes_of_shard(m, n->next_pruned++ % N_SHARDS, &count);
		count = nodeids ? held_of(m, nodeids, count) : 0;
		for (uint32_t at = 0; at < count; at += PRUNE_BATCH) {
			uint32_t some = count - at < PRUNE_BATCH ? count - at : PRUNE_BATCH;
			if (!send_prune(m, nodeids + at, some))
				drop_entries(m, nodeids + at, some);
		}
		free(nodeids);
	}
	usleep(PAUSE_US);
}

/** There is no descriptor for what a worker wants to open: if those of inodes are what takes them, wait a little for the kernel to
 * let go of some. Returns whether to try again. */
bool prune_wait(struct request *rq, uint32_t *n_waits)
{
	struct mount *m = rq->mount;

	if (atomic_load(&m->fds.n_open) <= m->fds.limit || *n_waits == MAX_WAITS || request_is_interrupted(rq))
		return false;
	++*n_waits;
	notify_prune(m);
	usleep(PAUSE_US);
	return true;
}
