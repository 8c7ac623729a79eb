/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Kernel passthrough of file data: one backing id per inode, counted. The kernel's rule (fs/fuse/iomode.c): while one
 * passthrough open of an inode lives, every other open of it must be passthrough with the same id; while an open
 * lives that is served, a passthrough open fails. The fields are under the inode's fd stripe.
 */
#include "core.h"

#include <sys/ioctl.h>

static bool data_is_hooked(const struct chain *c)
{
	return c && (chain_hooks(c, FB_OP_read) || chain_hooks(c, FB_OP_write));
}

/* The inode's backing id, got from the kernel for the first one. Writes through it act with the credentials of this
 * moment, so without CAP_FSETID: suid and sgid bits then go as for any writer (fs/backing-file.c). */
static int32_t backing_id_get(struct mount *m, struct inode *inode, int fd)
{
	struct fb_fuse_backing_map map = { .fd = fd };

	if (inode->backing_id > 0)
		return inode->backing_id;
	creds_drop_fsetid();
	inode->backing_id = ioctl(m->device_fd, FB_FUSE_DEV_IOC_BACKING_OPEN, &map);
	creds_raise_fsetid();
	return inode->backing_id;
}

/* Whether a write clears suid and sgid bits depends on who writes, and a backing id has one writer's rights for all. */
static bool has_privilege_bits(int fd)
{
	struct stat st;

	if ((fcntl(fd, F_GETFL) & O_ACCMODE) == O_RDONLY)
		return false;
	return fstat(fd, &st) < 0 || st.st_mode & (S_ISUID | S_ISGID);
}

/**
 * Decide how the data of a regular file that is being opened goes, and count it.
 *
 * Fills in the FOPEN_ flags of the reply, and *backing_id if FOPEN_PASSTHROUGH is among them. Returns 0, or -EBUSY where
 * a filter wants to see data of a file that other opens still pass through: the kernel cannot mix the two.
 */
int passthrough_open(struct request *rq, struct handle *h, uint32_t *flags, int32_t *backing_id)
{
	struct mount *m = rq->mount;
	struct inode *inode = h->inode;
	const struct chain *chain = rq->worker->chain;
	bool is_hooked = data_is_hooked(chain);
	int e = 0;

	// FLUSH is how the locks of a process that closes a file are let go.
	bool wants_flush = m->features & FUSE_POSIX_LOCKS || (chain && chain_hooks(chain, FB_OP_flush));
	*flags = wants_flush ? 0 : FB_FOPEN_NOFLUSH;
	bool is_plain = !has_privilege_bits(h->fd);
	pthread_mutex_lock(fds_stripe(m, inode));
	bool may = m->has_passthrough && inode->type == S_IFREG && inode->n_served == 0 && !is_hooked &&
		   (is_plain || inode->n_passthrough > 0);
	if (is_hooked && inode->n_passthrough > 0) {
		e = -EBUSY;
	} else if (may && backing_id_get(m, inode, h->fd) > 0) {
		*backing_id = inode->backing_id;
		inode->n_passthrough++;
		h->is_passthrough = true;
		*flags |= FB_FOPEN_PASSTHROUGH;
		atomic_fetch_add_explicit(&m->n_passthrough_opens, 1, memory_order_relaxed);
	} else {
		inode->n_served++;
		h->is_served = true;
		if (is_hooked)
			*flags |= FOPEN_DIRECT_IO | FB_FOPEN_PARALLEL_DIRECT_WRITES;
	}
	pthread_mutex_unlock(fds_stripe(m, inode));
	return e;
}

void passthrough_close(struct mount *m, struct handle *h)
{
	struct inode *inode = h->inode;
	int32_t unused = 0;

	pthread_mutex_lock(fds_stripe(m, inode));
	if (h->is_passthrough && --inode->n_passthrough == 0) {
		unused = inode->backing_id;
		inode->backing_id = 0;
	} else if (h->is_served) {
		inode->n_served--;
	}
	if (unused > 0) // else it was never got
		ioctl(m->device_fd, FB_FUSE_DEV_IOC_BACKING_CLOSE, &unused);
	pthread_mutex_unlock(fds_stripe(m, inode));
	h->is_passthrough = h->is_served = false;
}
