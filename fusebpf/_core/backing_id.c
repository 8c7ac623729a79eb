/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Kernel passthrough of file data: one backing id per inode, counted. The kernel's rule (fs/fuse/iomode.c): while one
 * passthrough open of an inode lives, every other open of it must be passthrough with the same id; while an open
 * lives that is served, a passthrough open fails. The fields are under the inode's fd stripe.
 *
 * An id outlives its last open by a second or more, so that the next open of a file that is in use costs no system call
 * on the backing root. It keeps the file's space, so it goes at once when the last link does.
 */
#include "core.h"

#include <sys/ioctl.h>

#define IDLE_MS 1000

static bool data_is_hooked(const struct chain *c)
{
	return c && (chain_hooks(c, FB_OP_read) || chain_hooks(c, FB_OP_write));
}

/* ------------------------------------------------------------------------------------- ids */

/* The inode's backing id, got from the kernel for the first one. Writes through it act with the credentials of this
 * moment, so without CAP_FSETID and in no group: suid and sgid bits then go as for any writer (fs/backing-file.c). */
static int32_t backing_id_get(struct mount *m, struct inode *inode, int fd)
{
	struct fb_fuse_backing_map map = { .fd = fd };

	if (inode->backing_id > 0)
		return inode->backing_id;
	creds_drop_fsetid(NO_GROUP);
	inode->backing_id = ioctl(m->device_fd, FB_FUSE_DEV_IOC_BACKING_OPEN, &map);
	creds_raise_fsetid();
	return inode->backing_id;
}

static void backing_id_put(struct mount *m, struct inode *inode)
{
	if (inode->backing_id > 0) // else it was never got
		ioctl(m->device_fd, FB_FUSE_DEV_IOC_BACKING_CLOSE, &inode->backing_id);
	inode->backing_id = 0;
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

/** Let the ids go that nobody has used for a second. The janitor calls it. */
void passthrough_sweep(struct mount *m)
{
	pthread_mutex_lock(&m->backing_ids.lock);
	for (uint32_t i = 0; i < MAX_IDLE_BACKING_IDS; i++)
		idle_evict(m, i, now_ms() - IDLE_MS, NULL);
	pthread_mutex_unlock(&m->backing_ids.lock);
}

/** The last link of a file is gone: its space must go with the last who has it open. */
void passthrough_unlinked(struct mount *m, struct inode *inode)
{
	pthread_mutex_lock(fds_stripe(m, inode));
	if (inode->n_passthrough == 0)
		backing_id_put(m, inode);
	pthread_mutex_unlock(fds_stripe(m, inode));
}

/** The inode is about to be freed: nobody has it open. */
void passthrough_forget(struct mount *m, struct inode *inode)
{
	if (__atomic_load_n(&inode->idle_index, __ATOMIC_ACQUIRE) < 0 && inode->backing_id <= 0)
		return;
	pthread_mutex_lock(&m->backing_ids.lock);
	idle_leave(&m->backing_ids, inode);
	pthread_mutex_unlock(&m->backing_ids.lock);
	backing_id_put(m, inode);
}

/* ------------------------------------------------------------------------------------ opens */

/* FLUSH is how the locks of a process that closes a file are let go. */
static uint32_t flush_flag(const struct request *rq)
{
	const struct chain *chain = rq->worker->chain;
	bool wants_flush = rq->mount->features & FUSE_POSIX_LOCKS || (chain && chain_hooks(chain, FB_OP_flush));

	return wants_flush ? 0 : FB_FOPEN_NOFLUSH;
}

/* Whether a write clears suid and sgid bits depends on who writes, and a backing id has one writer's rights for all. */
static bool has_privilege_bits(const struct request *rq, int fd)
{
	uint32_t flags = rq->op->canonical == FB_OP_open ? rq->image->args.open.flags : rq->image->args.create.flags;
	struct stat st;

	if ((flags & O_ACCMODE) == O_RDONLY)
		return false;
	return fstat(fd, &st) < 0 || st.st_mode & (S_ISUID | S_ISGID);
}

/* Note that a handle's data goes past the server. Called with the stripe held. */
static void passthrough_count(struct request *rq, struct handle *h, struct fb_fuse_open_out *out)
{
	out->open_flags |= FB_FOPEN_PASSTHROUGH;
	out->backing_id = h->inode->backing_id;
	h->inode->n_passthrough++;
	h->is_passthrough = true;
	atomic_fetch_add_explicit(&rq->mount->n_passthrough_opens, 1, memory_order_relaxed);
}

/**
 * Open a file to read that has a backing id already, without opening it: the kernel does it with the id.
 *
 * Returns true and fills *out in, or false where it has to be opened.
 */
bool passthrough_share(struct request *rq, int flags, struct fb_fuse_open_out *out)
{
	static const int harmless = O_LARGEFILE | O_NONBLOCK | O_CLOEXEC | FB_O_EXEC;
	struct mount *m = rq->mount;
	struct inode *inode = rq->inode;

	// Read without the lock, to turn most away: below it is read again.
	if (__atomic_load_n(&inode->backing_id, __ATOMIC_RELAXED) <= 0 || flags & ~harmless || data_is_hooked(rq->worker->chain) ||
	    !m->default_permissions || !inode->mnt || inode->mnt->is_remote || inode_fd_get(m, inode) < 0)
		return false;
	struct handle *h = handle_create(m, inode, -1, false);
	if (!h) {
		inode_fd_put(m, inode);
		return false;
	}
	h->holds_inode_fd = true;
	memset(out, 0, sizeof(*out));
	pthread_mutex_lock(fds_stripe(m, inode));
	if (inode->backing_id > 0 && inode->n_served == 0 && (!m->inodes.has_views || inode->n_passthrough > 0))
		passthrough_count(rq, h, out);
	pthread_mutex_unlock(fds_stripe(m, inode));
	if (!h->is_passthrough) {
		handle_destroy(m, h);
		return false;
	}
	out->fh = handle_number(h);
	out->open_flags |= flush_flag(rq);
	rq->opened = h;
	return true;
}

/**
 * Decide how the data of a regular file that is being opened goes, and count it.
 *
 * Fills in the FOPEN_ flags of the reply, and its backing_id if FOPEN_PASSTHROUGH is among them. Returns 0, or -EBUSY where
 * a filter wants to see data of a file that other opens still pass through: the kernel cannot mix the two.
 */
int passthrough_open(struct request *rq, struct handle *h, struct fb_fuse_open_out *out)
{
	struct mount *m = rq->mount;
	struct inode *inode = h->inode;
	bool is_hooked = data_is_hooked(rq->worker->chain);
	bool is_plain = !inode->is_append_only && !has_privilege_bits(rq, h->fd);
	int e = 0;

	out->open_flags = flush_flag(rq);
	if (!is_plain)
		atomic_store(&inode->has_bits, true);
	pthread_mutex_lock(fds_stripe(m, inode));
	// What goes to the backing file at once we do not see, and another view would keep what it has cached.
	bool may = m->has_passthrough && inode->type == S_IFREG && inode->n_served == 0 && !is_hooked &&
		   ((is_plain && !m->inodes.has_views) || inode->n_passthrough > 0);
	if (is_hooked && inode->n_passthrough > 0) {
		e = -EBUSY;
	} else if (may && backing_id_get(m, inode, h->fd) > 0) {
		passthrough_count(rq, h, out);
		// What is cached of it for ever is to be asked for anew while it is written (cache.c).
		if (inode->mnt && inode->mnt->is_watched && (fcntl(h->fd, F_GETFL) & O_ACCMODE) != O_RDONLY)
			notify_inode(m, inode->nodeid, -1, 0);
	} else {
		inode->n_served++;
		h->is_served = true;
		if (is_hooked)
			out->open_flags |= FOPEN_DIRECT_IO | FB_FOPEN_PARALLEL_DIRECT_WRITES;
	}
	pthread_mutex_unlock(fds_stripe(m, inode));
	return e;
}

void passthrough_close(struct mount *m, struct handle *h)
{
	struct inode *inode = h->inode;
	struct stat st;

	pthread_mutex_lock(fds_stripe(m, inode));
	if (h->is_passthrough && --inode->n_passthrough == 0) {
		// One that was opened to write may have lost its links meanwhile; the others are let go by the sweep.
		if (inode->fd_pinned || (h->fd >= 0 && (fstat(h->fd, &st) < 0 || st.st_nlink == 0)))
			backing_id_put(m, inode);
		else
			idle_enter(m, inode);
	} else if (h->is_served) {
		inode->n_served--;
	}
	pthread_mutex_unlock(fds_stripe(m, inode));
	h->is_passthrough = h->is_served = false;
}
