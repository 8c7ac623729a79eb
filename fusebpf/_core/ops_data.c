/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Open files: open, read, write, flush, lseek, fallocate, copy_file_range, fsync, release. Reads and writes come here
 * only for files that are not passed through by the kernel.
 */
#include "core.h"

/**
 * The flags that a file is opened with on the backing root. Without O_DIRECT, since write-back of mapped pages is not
 * aligned, and without O_APPEND, since such a write carries its offset. Without O_TMPFILE, with which the kernel opens such a file
 * again, by its inode, for a mount that is stacked on this one and passes it through.
 */
int backing_open_flags(uint32_t flags)
{
	const uint32_t dropped = O_CREAT | O_EXCL | O_NOCTTY | O_DIRECT | O_APPEND | O_NOFOLLOW | O_TMPFILE;

	return (int)(flags & ~dropped) | O_CLOEXEC;
}

/** Make a handle that owns fd, and answer with it. On error fd is closed. With profile=small the kernel sends no RELEASE of
 * what was created either (fs/fuse/file.c: fuse_file_put), so that is closed at once, and open under the number 0. */
int reply_opened(struct request *rq, struct inode *inode, int fd, bool is_dir, struct fb_fuse_open_out *out)
{
	memset(out, 0, sizeof(*out));
	if (rq->mount->is_small && !is_dir) {
		passthrough_none(rq);
		return close(fd) < 0 && errno != EINTR ? -errno : 0; // it is closed all the same, and nothing is to be made again
	}
	struct handle *h = handle_create(rq->mount, inode, fd, is_dir);
	if (!h) {
		close(fd);
		return -ENFILE;
	}
	rq->opened = h;
	out->fh = handle_number(h);
	if (!is_dir)
		return passthrough_open(rq, h, out);
	out->open_flags = cache_list_flags(rq);
	h->is_cached = out->open_flags & FOPEN_CACHE_DIR;
	return 0;
}

/* Open the inode's file as the caller, who may truncate it by that. */
static int open_as_caller(struct request *rq, int flags)
{
	const struct fuse_open_in *in = (const void *)rq->body;

	if (!(flags & O_TRUNC))
		return inode_open(rq->mount, rq->inode, flags);
	int e = passthrough_ask(rq), path_fd = e ? e : inode_fd_get(rq->mount, rq->inode);
	if (path_fd < 0)
		return path_fd;
	enum creds_fsetid fsetid = in->open_flags & FUSE_OPEN_KILL_SUIDGID ? LACKS_FSETID : HAS_FSETID;
	struct creds_bits bits = creds_bits_begin(rq, path_fd, fsetid);
	int fd = inode_open(rq->mount, rq->inode, flags);
	creds_bits_end(bits);
	inode_fd_put(rq->mount, rq->inode);
	return fd;
}

int op_open(struct request *rq)
{
	int flags = backing_open_flags(rq->image->args.open.flags);

	if (rq->inode->type != S_IFREG)
		return -EIO; // the kernel opens all others itself
	rq->reply = &rq->out.open;
	rq->reply_len = sizeof(rq->out.open);
	if (passthrough_share(rq, flags, &rq->out.open))
		return 0;
	int fd = open_as_caller(rq, flags);
	// Without O_APPEND, as we open, nobody may write to an append-only file; with it we may, and op_write sees to the rest.
	if (fd == -EPERM && rq->image->args.open.flags & O_APPEND) {
		fd = open_as_caller(rq, flags | O_APPEND);
		atomic_store(&rq->inode->is_append_only, fd >= 0);
	}
	return fd < 0 ? fd : reply_opened(rq, rq->inode, fd, false, &rq->out.open);
}

/* Files that the kernel makes up, as in debugfs, may know no offsets: they are read and written as they come. */
static ssize_t read_at(int fd, void *data, size_t n, off_t offset)
{
	ssize_t done = pread(fd, data, n, offset);

	return done < 0 && errno == ESPIPE ? read(fd, data, n) : done;
}

static ssize_t write_at(int fd, const void *data, size_t n, off_t offset)
{
	ssize_t done = pwrite(fd, data, n, offset);

	return done < 0 && errno == ESPIPE ? write(fd, data, n) : done;
}

int op_read(struct request *rq)
{
	const struct fb_rw *args = &rq->image->args.rw;
	struct handle *h = handle_of(rq, rq->inode, args->fh, O_RDONLY | (int)(args->flags & O_NOATIME));

	if (!h)
		return -errno;
	rq->payload_len = rq->count = splice_read(rq, h->fd, args->offset, args->size);
	if (rq->payload_len)
		return 0;
	ssize_t n = read_at(h->fd, rq->worker->payload, args->size, (off_t)args->offset);
	if (n < 0)
		return -errno;
	rq->payload = rq->worker->payload;
	rq->payload_len = rq->count = (size_t)n;
	return 0;
}

/* Write to the handle's file: return what `call` returned, or -errno. suid and sgid bits go unless the caller keeps them. */
#define AS_WRITER(rq, h, fsetid, call)                                               \
	({                                                                           \
		struct creds_bits bits = creds_bits_begin((rq), (h)->fd, (fsetid));  \
		ssize_t result = (call);                                             \
		result = result < 0 ? -errno : result;                               \
		creds_bits_end(bits);                                                \
		result;                                                              \
	})

/* Answer with n bytes written, or with -errno. */
static int reply_written(struct request *rq, ssize_t n)
{
	if (n < 0)
		return (int)n;
	rq->count = (uint64_t)n;
	rq->out.write = (struct fuse_write_out){ .size = (uint32_t)n };
	rq->reply = &rq->out.write;
	rq->reply_len = sizeof(rq->out.write);
	return 0;
}

int op_write(struct request *rq)
{
	const struct fb_rw *args = &rq->image->args.rw;
	const struct fuse_write_in *in = (const void *)rq->body;
	struct handle *h = handle_of(rq, rq->inode, args->fh, O_WRONLY | (int)(args->flags & O_SYNC));
	struct iovec data = { rq->input ? rq->input : (char *)rq->body + sizeof(*in), args->size };

	if (!h)
		return -errno;
	// An append is done as one, unless it is write-back of pages, whose offsets are what counts.
	bool appends = (args->flags & O_APPEND || h->appends) && !(in->write_flags & FUSE_WRITE_CACHE) &&
		       !(rq->all_edits & FB_EDIT_OFFSET);
	if (!appends && h->inode->is_append_only && fcntl(h->fd, F_GETFL) & O_APPEND)
		return -EPERM; // its offset would be ignored
	ssize_t n = AS_WRITER(rq, h, in->write_flags & FUSE_WRITE_KILL_SUIDGID ? LACKS_FSETID : HAS_FSETID,
			      appends ? pwritev2(h->fd, &data, 1, 0, RWF_APPEND)
				      : write_at(h->fd, data.iov_base, data.iov_len, (off_t)args->offset));
	return reply_written(rq, n);
}

/* close(2) of one descriptor: the process's locks go, and a network file system may tell of a late write error. */
int op_flush(struct request *rq)
{
	const struct fb_flush *args = &rq->image->args.flush;
	struct handle *h = handle_find(rq->mount, args->fh, false);

	if (!h)
		return -EBADF;
	locks_flush(rq->mount, h->inode, args);
	if (h->fd < 0 || (h->inode->mnt && !h->inode->mnt->is_remote))
		return 0;
	int fd = fcntl(h->fd, F_DUPFD_CLOEXEC, 0);
	return fd < 0 || close(fd) < 0 ? -errno : 0;
}

int op_lseek(struct request *rq)
{
	const struct fb_lseek *args = &rq->image->args.lseek;
	struct handle *h = handle_of(rq, rq->inode, args->fh, O_RDONLY);

	if (!h)
		return -errno;
	off_t offset = lseek(h->fd, (off_t)args->offset, (int)args->whence);
	if (offset < 0)
		return -errno;
	rq->count = (uint64_t)offset;
	rq->out.lseek = (struct fuse_lseek_out){ .offset = (uint64_t)offset };
	rq->reply = &rq->out.lseek;
	rq->reply_len = sizeof(rq->out.lseek);
	return 0;
}

int op_fallocate(struct request *rq)
{
	const struct fb_fallocate *args = &rq->image->args.fallocate;
	struct handle *h = handle_of(rq, rq->inode, args->fh, O_WRONLY);

	if (!h)
		return -errno;
	return (int)AS_WRITER(rq, h, FSETID_IS_ROOTS,
			      fallocate(h->fd, (int)args->mode, (off_t)args->offset, (off_t)args->length));
}

#define COPY_AT_ONCE (64U << 20) /* a copy answers short after this much, so that it can be interrupted */

/* One call on the backing root, unless a filter wants to see the data: then the kernel reads and writes. */
int op_copy_file_range(struct request *rq)
{
	const struct fb_copy *args = &rq->image->args.copy;
	struct handle *in = handle_of(rq, rq->inode, args->fh, O_RDONLY);
	struct handle *out = in ? handle_of(rq, inodes_get(rq->mount, args->nodeid_out), args->fh_out, O_WRONLY) : NULL;
	const struct chain *chain = rq->worker->chain;
	off_t from = (off_t)args->offset, to = (off_t)args->offset_out;

	if (!in || !out)
		return -errno;
	if (out->appends)
		return -EBADF; // as the kernel says where it knows of O_APPEND
	if (chain && (chain_hooks(chain, FB_OP_read) || chain_hooks(chain, FB_OP_write)))
		return -EOPNOTSUPP;
	in->is_copied = true;
	size_t length = args->length < COPY_AT_ONCE ? (size_t)args->length : COPY_AT_ONCE;
	return reply_written(rq, AS_WRITER(rq, out, FSETID_IS_ROOTS,
					   copy_file_range(in->fd, &from, out->fd, &to, length, 0)));
}

static int sync_handle(struct request *rq, bool is_dir)
{
	const struct fb_fsync *args = &rq->image->args.fsync;
	struct handle *h = handle_of(rq, rq->inode, args->fh, O_RDONLY | (is_dir ? O_DIRECTORY : 0));

	if (!h)
		return -errno;
	return (args->flags & FUSE_FSYNC_FDATASYNC ? fdatasync(h->fd) : fsync(h->fd)) < 0 ? -errno : 0;
}

int op_fsync(struct request *rq)
{
	return sync_handle(rq, false);
}

int op_fsyncdir(struct request *rq)
{
	return sync_handle(rq, true);
}

static int release(struct request *rq, bool is_dir)
{
	struct handle *h = handle_find(rq->mount, rq->image->args.release.fh, is_dir);

	if (!h)
		return 0;
	locks_release_handle(rq->mount, h->inode, rq->image->args.release.fh);
	handle_destroy(rq->mount, h);
	return 0;
}

int op_release(struct request *rq)
{
	return release(rq, false);
}

int op_releasedir(struct request *rq)
{
	return release(rq, true);
}
