/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Attributes: getattr, setattr, access, statfs.
 */
#include "core.h"

#include <linux/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/vfs.h>

#define FB_SYS_FCHMODAT2 452 /* on every architecture; C libraries may be older */

/** The attributes of what a name leads to, "" for the descriptor's own file, by one statx(2). */
int attr_at(struct request *rq, int fd, const char *name, struct fuse_attr *out)
{
	static const int flags = AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT;
	struct statx st;

	if (syscall(SYS_statx, fd, name, flags, STATX_BASIC_STATS | STATX_BTIME | STATX_MNT_ID, &st) < 0)
		return -errno;
	rq->mnt_id = st.stx_mask & STATX_MNT_ID ? (int64_t)st.stx_mnt_id : -1;
	rq->btime = (struct timespec){ st.stx_btime.tv_sec, st.stx_mask & STATX_BTIME ? (long)st.stx_btime.tv_nsec : -1 };
	uint32_t major = st.stx_rdev_major, minor = st.stx_rdev_minor;
	dev_t dev = makedev(st.stx_dev_major, st.stx_dev_minor);
	*out = (struct fuse_attr){ .ino = inode_number(rq->mount, dev, st.stx_ino),
				   .size = st.stx_size,
				   .blocks = st.stx_blocks,
				   .atime = (uint64_t)st.stx_atime.tv_sec,
				   .mtime = (uint64_t)st.stx_mtime.tv_sec,
				   .ctime = (uint64_t)st.stx_ctime.tv_sec,
				   .atimensec = st.stx_atime.tv_nsec,
				   .mtimensec = st.stx_mtime.tv_nsec,
				   .ctimensec = st.stx_ctime.tv_nsec,
				   .mode = st.stx_mode,
				   .nlink = st.stx_nlink,
				   .uid = st.stx_uid,
				   .gid = st.stx_gid,
				   .rdev = (minor & 0xff) | major << 8 | (minor & ~0xffU) << 12,
				   .blksize = st.stx_blksize };
	return 0;
}

/** The attributes of an open file. */
int attr_of_fd(struct request *rq, int fd, struct fuse_attr *out)
{
	return attr_at(rq, fd, "", out);
}

static int reply_attr(struct request *rq, int fd)
{
	memset(&rq->out.attr, 0, sizeof(rq->out.attr));
	rq->reply = &rq->out.attr;
	rq->reply_len = sizeof(rq->out.attr);
	int e = attr_of_fd(rq, fd, &rq->out.attr.attr);
	if (!e)
		cache_attr(rq);
	return e;
}

/* A descriptor of the inode's file for calls that take any kind: that of *h, who has it open, or its own. */
static int some_fd_get(struct request *rq, struct handle **h)
{
	*h = opened_get(rq->mount, rq->inode);
	return *h ? (*h)->fd : inode_fd_get(rq->mount, rq->inode);
}

static void some_fd_put(struct request *rq, struct handle *h)
{
	if (h)
		opened_put(rq->mount, h);
	else
		inode_fd_put(rq->mount, rq->inode);
}

int op_getattr(struct request *rq)
{
	struct handle *h;
	int fd = some_fd_get(rq, &h);

	if (fd < 0)
		return fd;
	int e = reply_attr(rq, fd);
	some_fd_put(rq, h);
	return e;
}

int op_statx(struct request *rq)
{
	return op_getattr(rq);
}

/** A filter answered with attributes in the op's stead: the inode number is the file's all the same. */
void attr_number(struct request *rq)
{
	struct timespec btime = rq->btime;
	struct fuse_attr own;
	int fd = rq->inode->is_virtual ? -1 : inode_fd_get(rq->mount, rq->inode);

	if (fd < 0)
		return;
	worker_enter_backing(rq->worker);
	if (!attr_of_fd(rq, fd, &own))
		rq->out.attr.attr.ino = own.ino;
	worker_leave_backing(rq->worker);
	inode_fd_put(rq->mount, rq->inode);
	rq->btime = btime;
}

/** Compose statx's reply from the attributes that the post hooks have left. */
void statx_finish(struct request *rq)
{
	const struct fuse_attr *a = &rq->out.attr.attr;
	bool is_wanted = !(rq->all_edits & FB_EDIT_MASK) || rq->image->args.statx.mask & STATX_BTIME;
	bool has_btime = rq->btime.tv_nsec >= 0 && is_wanted;

	rq->statx = (struct fb_fuse_statx_out){
		.attr_valid = rq->out.attr.attr_valid,
		.attr_valid_nsec = rq->out.attr.attr_valid_nsec,
		.stat = { .mask = STATX_BASIC_STATS | (has_btime ? STATX_BTIME : 0),
			  .blksize = a->blksize,
			  .nlink = a->nlink,
			  .uid = a->uid,
			  .gid = a->gid,
			  .mode = (uint16_t)a->mode,
			  .ino = a->ino,
			  .size = a->size,
			  .blocks = a->blocks,
			  .atime = { .tv_sec = (int64_t)a->atime, .tv_nsec = a->atimensec },
			  .ctime = { .tv_sec = (int64_t)a->ctime, .tv_nsec = a->ctimensec },
			  .mtime = { .tv_sec = (int64_t)a->mtime, .tv_nsec = a->mtimensec },
			  .rdev_major = a->rdev >> 8 & 0xfff,
			  .rdev_minor = (a->rdev & 0xff) | (a->rdev >> 12 & 0xfff00) },
	};
	if (has_btime)
		rq->statx.stat.btime = (struct fb_fuse_sx_time){ .tv_sec = rq->btime.tv_sec,
								 .tv_nsec = (uint32_t)rq->btime.tv_nsec };
	rq->reply = &rq->statx;
	rq->reply_len = sizeof(rq->statx);
}

/** A filter's time: nanoseconds since 1970, a negative number before. */
struct timespec time_of_ns(uint64_t ns)
{
	int64_t seconds = (int64_t)ns / 1000000000, rest = (int64_t)ns % 1000000000;

	if (rest < 0) {
		rest += 1000000000;
		seconds--;
	}
	return (struct timespec){ .tv_sec = seconds, .tv_nsec = rest };
}

/* A time to set: the one that a filter rewrote, else as the caller said, whose seconds reach further than nanoseconds do. */
static struct timespec time_to_set(bool is_set, bool is_now, uint64_t ns, uint64_t seconds, uint32_t rest)
{
	if (!is_set)
		return (struct timespec){ .tv_nsec = UTIME_OMIT };
	if (ns != seconds * 1000000000u + rest)
		return time_of_ns(ns);
	return is_now ? (struct timespec){ .tv_nsec = UTIME_NOW } : (struct timespec){ (time_t)seconds, rest };
}

static int set_times(struct request *rq, int fd)
{
	const struct fb_setattr *args = &rq->image->args.setattr;
	const struct fuse_setattr_in *in = (const void *)rq->body;
	struct timespec times[2] = { time_to_set(args->valid & FB_SET_ATIME, args->valid & FB_SET_ATIME_NOW,
						 args->atime_ns, in->atime, in->atimensec),
				     time_to_set(args->valid & FB_SET_MTIME, args->valid & FB_SET_MTIME_NOW,
						 args->mtime_ns, in->mtime, in->mtimensec) };

	return utimensat(fd, "", times, AT_EMPTY_PATH) < 0 ? -errno : 0;
}

/* Change the mode of what an O_PATH descriptor stands for. The way by /proc, which takes twice as long, is for kernels before 6.6. */
static int chmod_fd(int fd, mode_t mode)
{
	char path[PROC_PATH_SIZE];

	if (!syscall(FB_SYS_FCHMODAT2, fd, "", mode, AT_EMPTY_PATH))
		return 0;
	if (errno != ENOSYS && errno != EPERM) // so older seccomp profiles refuse what they do not know
		return -errno;
	proc_path(path, fd);
	return chmod(path, mode) < 0 ? -errno : 0;
}

/* Truncate, by the handle if the caller did, since that one may write where the mode forbids it by now, and since that sets the times
 * of a file that has that size already, which truncate(2) does not on tmpfs, xfs and btrfs. So does an open with O_TRUNC, which
 * with profile=small comes as a truncate to 0 by nothing (fs/fuse/dir.c: fuse_do_setattr), far more often than such a truncate. */
static int set_size(struct request *rq, int fd)
{
	const struct fb_setattr *args = &rq->image->args.setattr;
	bool by_handle = args->valid & FB_SET_FH || (rq->mount->is_small && !args->size);
	const struct handle *h = by_handle ? handle_of(rq, rq->inode, args->fh, O_WRONLY) : NULL;
	char path[PROC_PATH_SIZE];
	int e;

	struct creds_bits bits = creds_bits_begin(rq, fd, args->valid & FATTR_KILL_SUIDGID ? LACKS_FSETID : HAS_FSETID);
	if (h) {
		e = ftruncate(h->fd, (off_t)args->size) < 0 ? -errno : 0;
	} else {
		proc_path(path, fd);
		e = truncate(path, (off_t)args->size) < 0 ? -errno : 0;
	}
	creds_bits_end(bits);
	return e;
}

static int set_owner(struct request *rq, int fd)
{
	const struct fb_setattr *args = &rq->image->args.setattr;
	uid_t uid = args->valid & FB_SET_UID ? args->uid : (uid_t)-1;
	gid_t gid = args->valid & FB_SET_GID ? args->gid : (gid_t)-1;

	struct creds_bits bits = creds_bits_begin(rq, fd, FSETID_IS_ROOTS);
	int e = fchownat(fd, "", uid, gid, AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW) < 0 ? -errno : 0;
	creds_bits_end(bits);
	return e;
}

/* Is it a chown(2) to nobody new? That says nothing, and takes set-id bits all the same (fs/fuse/dir.c: fuse_setattr leaves them to
 * us). A user's write asks the same way before it takes them itself: so from others than owner and root there is nothing to do. */
static bool is_chown_to_nobody_new(const struct request *rq, int fd)
{
	const struct fuse_setattr_in *in = (const void *)rq->body;
	const uint32_t said = FATTR_MODE | FATTR_UID | FATTR_GID | FATTR_SIZE | FATTR_ATIME | FATTR_MTIME | FATTR_CTIME;
	struct stat st;

	if (in->valid & said || fstat(fd, &st) < 0 || S_ISDIR(st.st_mode))
		return false;
	uid_t caller = creds_caller_uid(rq);
	return !caller || caller == st.st_uid;
}

static int set_mode(struct request *rq, int fd)
{
	uint32_t mode = rq->image->args.setattr.mode & 07777;

	if (mode & S_ISGID)
		creds_raise_fsetid();
	int e = chmod_fd(fd, mode);
	if (mode & S_ISGID)
		creds_drop_fsetid();
	return e;
}

static int set_all(struct request *rq, int fd)
{
	const struct fb_setattr *args = &rq->image->args.setattr;
	int e = 0;

	if (args->valid & (FB_SET_UID | FB_SET_GID) || is_chown_to_nobody_new(rq, fd))
		e = set_owner(rq, fd);
	if (!e && args->valid & FB_SET_SIZE)
		e = set_size(rq, fd);
	// After chown and truncate, which clear suid and sgid bits that the caller may be setting.
	if (!e && args->valid & FB_SET_MODE)
		e = set_mode(rq, fd);
	if (!e && args->valid & (FB_SET_ATIME | FB_SET_MTIME))
		e = set_times(rq, fd);
	return e;
}

int op_setattr(struct request *rq)
{
	struct handle *h;
	int fd = some_fd_get(rq, &h);

	if (fd < 0)
		return fd;
	int e = set_all(rq, fd);
	if (!e)
		e = reply_attr(rq, fd);
	some_fd_put(rq, h);
	return e;
}

/* Only comes without default_permissions, and then the thread acts as the caller already (route.c). */
int op_access(struct request *rq)
{
	char path[PROC_PATH_SIZE];
	int fd = inode_fd_get(rq->mount, rq->inode);

	if (fd < 0)
		return fd;
	proc_path(path, fd);
	int e = faccessat(AT_FDCWD, path, (int)rq->image->args.access.mask, AT_EACCESS) < 0 ? -errno : 0;
	inode_fd_put(rq->mount, rq->inode);
	return e;
}

int op_statfs(struct request *rq)
{
	struct statfs st;
	int fd = inode_fd_get(rq->mount, rq->inode);

	if (fd < 0)
		return fd;
	int e = fstatfs(fd, &st) < 0 ? -errno : 0;
	inode_fd_put(rq->mount, rq->inode);
	if (e)
		return e;
	memset(&rq->out.statfs, 0, sizeof(rq->out.statfs));
	rq->out.statfs.st = (struct fuse_kstatfs){ .blocks = st.f_blocks,
						   .bfree = st.f_bfree,
						   .bavail = st.f_bavail,
						   .files = st.f_files,
						   .ffree = st.f_ffree,
						   .bsize = (uint32_t)st.f_bsize,
						   .namelen = (uint32_t)st.f_namelen,
						   .frsize = (uint32_t)st.f_frsize };
	rq->reply = &rq->out.statfs;
	rq->reply_len = sizeof(rq->out.statfs);
	return 0;
}
