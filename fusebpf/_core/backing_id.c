/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The backing ids by which the kernel passes data through: one per inode. The fields are under the inode's fd stripe.
 *
 * An id outlives its last open by a second or more, so that the next open of a file that is in use costs no system call
 * on the backing root. It keeps the file's space, so it goes at once when the last link does.
 */
#include "core.h"

#include <sys/ioctl.h>

#define IDLE_MS 1000

static int32_t backing_id_open(struct mount *m, int fd)
{
	struct fb_fuse_backing_map map = { .fd = fd };

	return ioctl(m->device_fd, FB_FUSE_DEV_IOC_BACKING_OPEN, &map);
}

static void backing_id_put(struct mount *m, struct inode *inode)
{
	int32_t id = atomic_exchange(&inode->backing_id, 0);

	if (id > 0) // else it was never got
		ioctl(m->device_fd, FB_FUSE_DEV_IOC_BACKING_CLOSE, &id);
}

/** The inode's backing id, got from the kernel for the first one. Writes through it act with the credentials of this
 * moment, so without CAP_FSETID and in no group: suid and sgid bits then go as for any writer (fs/backing-file.c). For who
 * has just made the file they act in the group that it was made in, which this worker is in still, and so is the writer.
 *
 * The kernel keeps the file that it is given open for as long. Nobody can run a program that is open to write (ETXTBSY), so
 * of a writer's it is given the inode's O_PATH, which it takes from Linux 6.17 on; else the id goes with the last open. */
int32_t backing_id_get(const struct request *rq, struct inode *inode, int fd, bool writes)
{
	struct mount *m = rq->mount;
	bool is_makers = rq->is_made;

	if (inode->id_is_makers && writes && !inode->n_passthrough)
		backing_id_put(m, inode);
	if (inode->backing_id > 0)
		return inode->backing_id;
	uint32_t group = is_makers ? 0 : creds_group_leave();
	inode->backing_id = writes && inode->fd >= 0 ? backing_id_open(m, inode->fd) : -1;
	inode->id_writes = writes && inode->backing_id <= 0;
	inode->id_is_makers = is_makers;
	inode->id_gid = rq->in->gid;
	if (inode->backing_id <= 0)
		inode->backing_id = backing_id_open(m, fd);
	if (!is_makers)
		creds_group_restore(group);
	return inode->backing_id;
}

/* Take the place of an idle id. Called with backing_ids.lock held. */
static void idle_leave(struct backing_ids *ids, struct inode *inode)
{
	if (inode->idle_index >= 0)
		ids->idle[inode->idle_index] = NULL;
	__atomic_store_n(&inode->idle_index, -1, __ATOMIC_RELEASE);
}

/* Let an id go that nobody uses and that is idle since before `before`. Called with backing_ids.lock held; `own` is an inode
 * whose stripe the caller holds as well. Returns whether its place is free. */
static bool idle_evict(struct mount *m, uint32_t index, int64_t before, const struct inode *own)
{
	struct backing_ids *ids = &m->backing_ids;
	struct inode *victim = ids->idle[index];
	if (!victim)
		return true;
	pthread_mutex_t *stripe = fds_stripe(m, victim); // once it has left, it may be freed
	bool is_own_stripe = own && fds_stripe(m, own) == stripe;
	if (atomic_load_explicit(&ids->since_ms[index], memory_order_relaxed) > before)
		return false;
	if (!is_own_stripe && pthread_mutex_trylock(stripe))
		return false;
	if (victim->n_passthrough == 0)
		backing_id_put(m, victim);
	idle_leave(ids, victim); // one in use comes back when it is closed
	if (!is_own_stripe)
		pthread_mutex_unlock(stripe);
	return true;
}

/* Nobody has it open any more: keep its id for a while, or where there is no room, let it go. Called with its stripe held. */
static void idle_enter(struct mount *m, struct inode *inode)
{
	struct backing_ids *ids = &m->backing_ids;

	if (inode->idle_index < 0) {
		pthread_mutex_lock(&ids->lock);
		uint32_t at = ids->hand++ % MAX_IDLE_BACKING_IDS;
		if (idle_evict(m, at, INT64_MAX, inode)) {
			ids->idle[at] = inode;
			inode->idle_index = (int32_t)at;
		}
		pthread_mutex_unlock(&ids->lock);
	}
	if (inode->idle_index < 0)
		backing_id_put(m, inode);
	else
		atomic_store_explicit(&ids->since_ms[inode->idle_index], now_ms(), memory_order_relaxed);
}

/** The last open that it passes through was closed, whose descriptor is fd (-1: it has none): keep it for the next one, unless the
 * file may have lost its links. Of one that was opened to write that is seen here, of the others by the sweep. Called with the
 * inode's stripe held. */
void backing_id_rest(struct mount *m, struct inode *inode, int fd)
{
	struct stat st;

	if (inode->fd_pinned || inode->id_writes || (fd >= 0 && (fstat(fd, &st) < 0 || st.st_nlink == 0)))
		backing_id_put(m, inode);
	else
		idle_enter(m, inode);
}

/** Let the ids go that nobody has used for a second. The janitor calls it. */
void backing_ids_sweep(struct mount *m)
{
	pthread_mutex_lock(&m->backing_ids.lock);
	for (uint32_t i = 0; i < MAX_IDLE_BACKING_IDS; i++)
		idle_evict(m, i, now_ms() - IDLE_MS, NULL);
	pthread_mutex_unlock(&m->backing_ids.lock);
}

/** The last link of a file is gone: its space must go with the last who has it open. */
void backing_id_unlinked(struct mount *m, struct inode *inode)
{
	pthread_mutex_lock(fds_stripe(m, inode));
	if (inode->n_passthrough == 0)
		backing_id_put(m, inode);
	pthread_mutex_unlock(fds_stripe(m, inode));
}

/** The inode is about to be freed: nobody has it open. */
void backing_id_forget(struct mount *m, struct inode *inode)
{
	if (__atomic_load_n(&inode->idle_index, __ATOMIC_ACQUIRE) < 0 && inode->backing_id <= 0)
		return;
	pthread_mutex_lock(&m->backing_ids.lock);
	idle_leave(&m->backing_ids, inode);
	pthread_mutex_unlock(&m->backing_ids.lock);
	backing_id_put(m, inode);
}

/** The mount ends, its threads have: give all ids back while there is a descriptor to do it by. With the last one the kernel does that
 * too, but over io_uring some 10 ms later, and until then the backing file system cannot be unmounted. */
void backing_ids_deinit(struct mount *m)
{
	for (uint32_t shard = 0; shard < N_SHARDS; shard++) {
		const struct inode_shard *s = &m->inodes.by_id[shard];
		for (uint32_t i = 0; i < s->n_buckets && s->buckets; i++)
			for (struct inode *inode = s->buckets[i]; inode; inode = inode->next_by_id)
				backing_id_put(m, inode);
	}
}
