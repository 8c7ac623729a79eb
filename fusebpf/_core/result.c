/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The result of an op, between the reply that the kernel gets and the slot that post hooks see; and the taking back
 * of what a reply was to hand out and does not.
 */
#include "core.h"

static void attr_to_slot(const struct fuse_attr *a, struct fb_attr *out)
{
	*out = (struct fb_attr){ .ino = a->ino,
				 .size = a->size,
				 .blocks = a->blocks,
				 .atime_ns = a->atime * 1000000000u + a->atimensec,
				 .mtime_ns = a->mtime * 1000000000u + a->mtimensec,
				 .ctime_ns = a->ctime * 1000000000u + a->ctimensec,
				 .mode = a->mode,
				 .nlink = a->nlink,
				 .uid = a->uid,
				 .gid = a->gid,
				 .rdev = a->rdev,
				 .blksize = a->blksize };
}

/* A time that hooks have left, unless it is the one that was shown: seconds reach further than nanoseconds do. */
static struct timespec time_from_slot(uint64_t ns, uint64_t seconds, uint32_t rest)
{
	return ns == seconds * 1000000000u + rest ? (struct timespec){ (time_t)seconds, rest } : time_of_ns(ns);
}

static void attr_from_slot(const struct fb_attr *a, struct fuse_attr *out)
{
	struct timespec atime = time_from_slot(a->atime_ns, out->atime, out->atimensec);
	struct timespec mtime = time_from_slot(a->mtime_ns, out->mtime, out->mtimensec);
	struct timespec ctime = time_from_slot(a->ctime_ns, out->ctime, out->ctimensec);

	*out = (struct fuse_attr){ .ino = a->ino,
				   .size = a->size,
				   .blocks = a->blocks,
				   .atime = (uint64_t)atime.tv_sec,
				   .mtime = (uint64_t)mtime.tv_sec,
				   .ctime = (uint64_t)ctime.tv_sec,
				   .atimensec = (uint32_t)atime.tv_nsec,
				   .mtimensec = (uint32_t)mtime.tv_nsec,
				   .ctimensec = (uint32_t)ctime.tv_nsec,
				   .mode = a->mode,
				   .nlink = a->nlink,
				   .uid = a->uid,
				   .gid = a->gid,
				   .rdev = a->rdev,
				   .blksize = a->blksize };
}

static struct fuse_attr *reply_attr(struct request *rq)
{
	return rq->op->flags & FB_OP_ENTRY ? &rq->out.create.entry.attr : &rq->out.attr.attr;
}

/* When the file was made; 0: nobody says. */
static uint64_t btime_ns(const struct request *rq)
{
	return rq->btime.tv_nsec < 0 ? 0 : (uint64_t)rq->btime.tv_sec * 1000000000u + (uint64_t)rq->btime.tv_nsec;
}

/** Show a value or a target as text, if the slot can hold it. */
void text_show(struct request *rq, const char *text, size_t len)
{
	struct fb_slot *image = rq->image;

	image->text_len = len < FB_PATH_SIZE ? (uint32_t)len : 0;
	if (text != image->text)
		memcpy(image->text, text, image->text_len);
	image->text[image->text_len] = 0;
}

/* What lost its last name, by the descriptor that it keeps. */
static void removed_to_slot(struct request *rq)
{
	struct fb_slot *image = rq->image;
	struct stat st;

	image->flags |= FB_GONE;
	if (fstat(rq->removed->fd, &st) == 0)
		image->result.attr = (struct fb_attr){ .nodeid = rq->removed->nodeid,
						       .ino = inode_number(rq->mount, st.st_dev, st.st_ino),
						       .mode = st.st_mode,
						       .size = (uint64_t)st.st_size };
}

/** Show the result of an op that succeeded to the post hooks. */
void result_to_slot(struct request *rq)
{
	struct fb_slot *image = rq->image;
	uint32_t flags = rq->op->flags;

	if (rq->inode && rq->inode->is_gone && !rq->sized) // else it is as its turn began
		image->flags |= FB_GONE;
	if (rq->removed && rq->removed->is_gone)
		removed_to_slot(rq);
	if (flags & (FB_OP_ENTRY | FB_OP_ATTR)) {
		attr_to_slot(reply_attr(rq), &image->result.attr);
		if (rq->entry)
			image->view = rq->entry->view;
		image->result.attr.nodeid = rq->entry ? rq->entry->nodeid : image->nodeid;
		image->result.attr.btime_ns = btime_ns(rq);
	} else if (flags & FB_OP_STATFS) {
		const struct fuse_kstatfs *st = &rq->out.statfs.st;
		image->result.statfs = (struct fb_statfs){ .blocks = st->blocks, .bfree = st->bfree,
							   .bavail = st->bavail, .files = st->files,
							   .ffree = st->ffree, .bsize = st->bsize,
							   .namelen = st->namelen, .frsize = st->frsize };
	} else if (flags & FB_OP_COUNT) {
		image->result.count = rq->count;
	} else if (rq->op->canonical == FB_OP_getlk) {
		const struct fuse_file_lock *lk = &rq->out.lock.lk;
		image->result.lock = (struct fb_lock_found){ lk->start, lk->end, lk->type, lk->pid };
	} else if (flags & FB_OP_TEXT) {
		image->result.count = rq->payload_len;
		text_show(rq, rq->payload, rq->payload_len);
	}
}

/** How long the value may be that getxattr or listxattr is answered with. Where the caller asks how long it is, all of it is
 * fetched. */
uint32_t value_room(const struct request *rq)
{
	uint32_t size = rq->image->args.xattr.size;

	return size && size < FB_DATA_SIZE ? size : FB_DATA_SIZE;
}

/** Where the caller asks how long a value is, that is the answer, and not the value. Once the hooks have left it. */
void value_finish(struct request *rq)
{
	bool has_size = rq->op->canonical == FB_OP_getxattr || rq->op->canonical == FB_OP_listxattr;

	if (!has_size || rq->image->args.xattr.size)
		return;
	rq->out.xattr = (struct fuse_getxattr_out){ .size = (uint32_t)rq->payload_len };
	rq->reply = &rq->out.xattr;
	rq->reply_len = sizeof(rq->out.xattr);
	rq->payload_len = 0;
}

/* What the result of an op is that answers with a number. */
static void count_from_slot(struct request *rq)
{
	uint64_t count = rq->image->result.count;

	rq->count = count;
	switch (rq->op->canonical) {
	case FB_OP_read:
		rq->payload_len = count;
		return;
	case FB_OP_lseek:
		rq->out.lseek = (struct fuse_lseek_out){ .offset = count };
		rq->reply_len = sizeof(rq->out.lseek);
		break;
	case FB_OP_poll:
		rq->out.poll = (struct fuse_poll_out){ .revents = (uint32_t)count };
		rq->reply_len = sizeof(rq->out.poll);
		break;
	default:
		rq->out.write = (struct fuse_write_out){ .size = (uint32_t)count };
		rq->reply_len = sizeof(rq->out.write);
		break;
	}
	rq->reply = &rq->out; // a union
}

/** Bring what hooks edited, or answered in the op's stead, into the reply. */
void result_from_slot(struct request *rq, uint64_t edits)
{
	struct fb_slot *image = rq->image;

	if (edits & FB_EDIT_ATTR) {
		if (!rq->reply_len) // a filter answers in the op's stead
			memset(&rq->out.attr, 0, sizeof(rq->out.attr));
		attr_from_slot(&image->result.attr, reply_attr(rq));
		if (image->result.attr.btime_ns != btime_ns(rq))
			rq->btime = image->result.attr.btime_ns ? time_of_ns(image->result.attr.btime_ns)
								: (struct timespec){ .tv_nsec = -1 };
		if (!rq->reply_len) {
			rq->reply = &rq->out.attr;
			rq->reply_len = sizeof(rq->out.attr);
		}
	}
	if (edits & (FB_EDIT_TTL | FB_EDIT_ATTR) && rq->op->flags & FB_OP_ATTR)
		cache_attr(rq);
	if (edits & FB_EDIT_TTL && rq->op->flags & FB_OP_ENTRY)
		cache_entry(rq, rq->entry, &rq->out.create.entry);
	if (edits & FB_EDIT_STATFS) {
		const struct fb_statfs *st = &image->result.statfs;
		rq->out.statfs.st = (struct fuse_kstatfs){ .blocks = st->blocks, .bfree = st->bfree,
							   .bavail = st->bavail, .files = st->files,
							   .ffree = st->ffree, .bsize = st->bsize,
							   .namelen = st->namelen, .frsize = st->frsize };
		rq->reply = &rq->out.statfs;
		rq->reply_len = sizeof(rq->out.statfs);
	}
	if (edits & FB_EDIT_COUNT)
		count_from_slot(rq);
	if (edits & FB_EDIT_LOCK && rq->op->canonical == FB_OP_getlk) {
		const struct fb_lock_found *lock = &image->result.lock;
		rq->out.lock.lk = (struct fuse_file_lock){ lock->start, lock->end, lock->type, lock->pid };
		rq->reply = &rq->out.lock;
		rq->reply_len = sizeof(rq->out.lock);
	}
	if (edits & FB_EDIT_TEXT && rq->op->flags & FB_OP_TEXT) {
		rq->payload = image->text;
		rq->payload_len = image->result.count = image->text_len;
		if (rq->op->canonical == FB_OP_ioctl && !rq->reply_len) {
			rq->out.ioctl = (struct fuse_ioctl_out){ 0 };
			rq->reply = &rq->out.ioctl;
			rq->reply_len = sizeof(rq->out.ioctl);
		}
	}
}

/** The reply will not hand out what it was to hand out. */
void result_undo(struct request *rq)
{
	if (rq->opened && rq->opened->has_daemon)
		daemon_release(rq->mount->daemon, rq->opened->daemon_fh, rq->opened->is_dir);
	if (rq->opened)
		handle_destroy(rq->mount, rq->opened);
	if (rq->entry)
		inodes_forget(rq->mount, rq->entry, 1);
	rq->opened = NULL;
	rq->entry = NULL;
	if (rq->has_plus_entries)
		listing_undo(rq);
	rq->has_plus_entries = false;
}

/** Has a filter that answers success filled in all that the reply needs? NULL, or what is missing. */
const char *result_missing(const struct request *rq, uint64_t edits)
{
	const struct op *op = rq->op;

	if (op->flags & (FB_OP_ENTRY | FB_OP_OPENS))
		return "it answered success where only the backing root can give an inode or a handle";
	if (op->flags & FB_OP_ATTR && !(edits & FB_EDIT_ATTR))
		return "it answered success and no attributes";
	if (op->flags & FB_OP_STATFS && !(edits & FB_EDIT_STATFS))
		return "it answered success and no statfs";
	if (op->flags & FB_OP_TEXT && !(edits & (FB_EDIT_TEXT | FB_EDIT_DATA)))
		return "it answered success and no text";
	if ((op->canonical == FB_OP_write || op->canonical == FB_OP_copy_file_range) && !(edits & FB_EDIT_COUNT))
		return "it answered success and no count of bytes written";
	if (op->canonical == FB_OP_lseek && !(edits & FB_EDIT_COUNT))
		return "it answered success and no offset";
	if (op->canonical == FB_OP_poll && !(edits & FB_EDIT_COUNT))
		return "it answered success and no events";
	if (op->canonical == FB_OP_getlk && !(edits & FB_EDIT_LOCK))
		return "it answered success and no lock";
	return NULL;
}
