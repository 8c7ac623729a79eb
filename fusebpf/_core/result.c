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

static void attr_from_slot(const struct fb_attr *a, struct fuse_attr *out)
{
	*out = (struct fuse_attr){ .ino = a->ino,
				   .size = a->size,
				   .blocks = a->blocks,
				   .atime = a->atime_ns / 1000000000u,
				   .mtime = a->mtime_ns / 1000000000u,
				   .ctime = a->ctime_ns / 1000000000u,
				   .atimensec = (uint32_t)(a->atime_ns % 1000000000u),
				   .mtimensec = (uint32_t)(a->mtime_ns % 1000000000u),
				   .ctimensec = (uint32_t)(a->ctime_ns % 1000000000u),
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

/** Show a value or a target as text, if the slot can hold it. */
void text_show(struct request *rq, const char *text, size_t len)
{
	struct fb_slot *image = rq->image;

	image->text_len = len < FB_PATH_SIZE ? (uint32_t)len : 0;
	if (text != image->text)
		memcpy(image->text, text, image->text_len);
	image->text[image->text_len] = 0;
}

/** Is it names with a zero byte behind each, as listxattr(2) gives them? */
bool xattr_list_is_whole(const char *list, size_t len)
{
	for (size_t at = 0; at < len;) {
		size_t n = strnlen(list + at, len - at);
		if (n == 0 || n == len - at)
			return false;
		at += n + 1;
	}
	return true;
}

/** Show the result of an op that succeeded to the post hooks. */
void result_to_slot(struct request *rq)
{
	struct fb_slot *image = rq->image;
	uint32_t flags = rq->op->flags;

	if (flags & (FB_OP_ENTRY | FB_OP_ATTR)) {
		attr_to_slot(reply_attr(rq), &image->result.attr);
		if (rq->entry)
			image->view = rq->entry->view;
	} else if (flags & FB_OP_STATFS) {
		const struct fuse_kstatfs *st = &rq->out.statfs.st;
		image->result.statfs = (struct fb_statfs){ .blocks = st->blocks, .bfree = st->bfree,
							   .bavail = st->bavail, .files = st->files,
							   .ffree = st->ffree, .bsize = st->bsize,
							   .namelen = st->namelen, .frsize = st->frsize };
	} else if (flags & FB_OP_COUNT) {
		image->result.count = rq->count;
	} else if (flags & FB_OP_TEXT) {
		image->result.count = rq->payload_len;
		text_show(rq, rq->payload, rq->payload_len);
	}
}

/** Where the caller asks how long a value is, that is the answer, and not the value. Once the hooks have left it. */
void value_finish(struct request *rq)
{
	if (rq->op->canonical == FB_OP_readlink || rq->image->args.xattr.size)
		return;
	rq->out.xattr = (struct fuse_getxattr_out){ .size = (uint32_t)rq->payload_len };
	rq->reply = &rq->out.xattr;
	rq->reply_len = sizeof(rq->out.xattr);
	rq->payload_len = 0;
}

/** Bring what hooks edited, or answered in the op's stead, into the reply. */
void result_from_slot(struct request *rq, uint64_t edits)
{
	struct fb_slot *image = rq->image;

	if (edits & FB_EDIT_ATTR) {
		attr_from_slot(&image->result.attr, reply_attr(rq));
		if (!rq->reply_len) {
			rq->reply = &rq->out.attr;
			rq->reply_len = sizeof(rq->out.attr);
		}
	}
	if (edits & (FB_EDIT_TTL | FB_EDIT_ATTR) && rq->op->flags & FB_OP_ATTR)
		ttl_set(attr_ttl_ns(rq, rq->inode), &rq->out.attr.attr_valid, &rq->out.attr.attr_valid_nsec);
	if (edits & FB_EDIT_TTL && rq->op->flags & FB_OP_ENTRY) {
		struct fuse_entry_out *entry = &rq->out.create.entry;
		ttl_set(attr_ttl_ns(rq, rq->entry), &entry->attr_valid, &entry->attr_valid_nsec);
		ttl_set(entry_ttl_ns(rq, rq->entry), &entry->entry_valid, &entry->entry_valid_nsec);
	}
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
		rq->count = image->result.count;
	if (edits & FB_EDIT_COUNT && rq->op->canonical != FB_OP_read) {
		rq->out.write = (struct fuse_write_out){ .size = (uint32_t)image->result.count };
		rq->reply = &rq->out.write;
		rq->reply_len = sizeof(rq->out.write);
	} else if (edits & FB_EDIT_COUNT) {
		rq->payload_len = image->result.count;
	}
	if (edits & FB_EDIT_TEXT && rq->op->flags & FB_OP_TEXT) {
		rq->payload = image->text;
		rq->payload_len = image->result.count = image->text_len;
	}
}

/** The reply will not hand out what it was to hand out. */
void result_undo(struct request *rq)
{
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
	if (op->canonical == FB_OP_lseek || op->canonical == FB_OP_getlk || op->canonical == FB_OP_ioctl ||
	    op->canonical == FB_OP_poll)
		return "it answered success, which for this op only the backing root can";
	return NULL;
}

/** A negative entry that the kernel may keep for the filter's ttl. */
void result_negative(struct request *rq)
{
	memset(&rq->out.create.entry, 0, sizeof(rq->out.create.entry));
	ttl_set(rq->entry_ttl_ns, &rq->out.create.entry.entry_valid, &rq->out.create.entry.entry_valid_nsec);
	rq->reply = &rq->out.create.entry;
	rq->reply_len = sizeof(rq->out.create.entry);
}
