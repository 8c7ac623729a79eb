/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the kernel knows of a directory's entries, as far as it decides what a listing is to bring: a listing with attributes
 * costs two system calls for each entry, a GETATTR that it spares a round trip, which takes five times as long. All of it is a
 * guess: where it is wrong the kernel asks. Any worker.
 *
 * The kernel takes the attributes of a file for changed when it is read or written, its time of access at least (fs/fuse/file.c:
 * fuse_read_args_fill, fs/fuse/passthrough.c: fuse_file_accessed); such a file is called stale from its last close on.
 */
#include "core.h"

#define KNOWN_MS 1000
#define FEW 4 /* of so many entries, or so many stale ones, a listing makes no difference */

/* Called with the inode's name lock held. */
static void count_fresh(struct inode *inode)
{
	if (!atomic_exchange(&inode->is_stale, false) || !inode->parent)
		return;
	uint32_t n = atomic_load(&inode->parent->n_stale);
	while (n && !atomic_compare_exchange_weak(&inode->parent->n_stale, &n, n - 1))
		continue;
}

/** A file was closed, or changed behind the mount: the kernel no longer goes by the attributes that it has of it. */
void known_stale(struct mount *m, struct inode *inode)
{
	if (atomic_load_explicit(&inode->is_stale, memory_order_relaxed))
		return;
	pthread_mutex_lock(inode_name_lock(m, inode));
	if (!atomic_exchange(&inode->is_stale, true) && inode->parent)
		atomic_fetch_add(&inode->parent->n_stale, 1);
	pthread_mutex_unlock(inode_name_lock(m, inode));
}

/** The kernel is about to be told the inode's attributes. */
void known_fresh(struct mount *m, struct inode *inode)
{
	if (!atomic_load_explicit(&inode->is_stale, memory_order_relaxed))
		return;
	pthread_mutex_lock(inode_name_lock(m, inode));
	count_fresh(inode);
	pthread_mutex_unlock(inode_name_lock(m, inode));
}

/** The kernel knows the inode no longer. Called with its name lock held. */
void known_forgotten(struct inode *inode)
{
	count_fresh(inode);
	if (inode->parent)
		known_no_longer(inode->parent);
}

/** The kernel lacks some entry of a directory. */
void known_no_longer(struct inode *dir)
{
	atomic_store_explicit(&dir->known_until_ms, 0, memory_order_relaxed);
}

/** Are so many of a directory's files stale that to list it anew is cheaper than to be asked for each? */
bool known_is_stale(const struct inode *dir)
{
	uint32_t n_stale = dir->n_stale;

	return n_stale >= FEW && dir->n_known && n_stale >= dir->n_known / 4;
}

/** Does the kernel know of all entries of a directory what a listing would bring? */
bool known_all(const struct request *rq)
{
	const struct inode *dir = rq->inode;

	return now_ms() < dir->known_until_ms && dir->known_all == (uint32_t)rq->n_all && dir->n_stale < FEW;
}

/** A whole directory was listed, in one reply: its n entries, and their attributes, may be kept for so long. */
void known_listed(const struct request *rq, uint32_t n, uint64_t ttl_ns)
{
	struct inode *dir = rq->inode;
	uint64_t known_ms = ttl_ns / 2000000;

	dir->n_known = n;
	dir->n_stale = 0;
	dir->known_all = (uint32_t)rq->n_all;
	dir->known_until_ms = now_ms() + (int64_t)(known_ms < KNOWN_MS ? known_ms : KNOWN_MS);
}

/** A directory that takes several replies was listed: that brings the attributes of its first entries alone (fs/fuse/readdir.c:
 * fuse_use_readdirplus), so what is stale of the others would have it listed anew for ever. */
void known_in_part(struct inode *dir)
{
	dir->n_known = 0;
}
