/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a filter rewrote, checked like anything from outside: each field is copied out of the slot once, the copy is
 * checked, and only then it is what the op uses. Which edits an op takes at all is verdict.c's. A function here returns
 * NULL, or why the edit is refused; then the op must fail.
 */
#include "core.h"

#include <linux/falloc.h>

/* -------------------------------------------------------------------------------- modes, flags */

static const char *edit_mode(struct request *rq, const struct fb_slot *slot)
{
	static const uint32_t fallocate_modes = FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE;
	struct fb_slot *image = rq->image;
	uint32_t *at, mode;

	switch (rq->op->canonical) {
	case FB_OP_setattr:
		at = &image->args.setattr.mode;
		mode = slot->args.setattr.mode;
		if (!(image->args.setattr.valid & FB_SET_MODE))
			return "it rewrote a mode that the caller does not set";
		break;
	case FB_OP_mknod:
		at = &image->args.mknod.mode;
		mode = slot->args.mknod.mode;
		break;
	case FB_OP_mkdir:
		at = &image->args.mkdir.mode;
		mode = slot->args.mkdir.mode;
		break;
	case FB_OP_fallocate:
		mode = slot->args.fallocate.mode;
		if (mode & ~fallocate_modes)
			return "a rewritten fallocate mode is none of KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE";
		image->args.fallocate.mode = mode;
		return NULL;
	default:
		at = &image->args.create.mode;
		mode = slot->args.create.mode;
		break;
	}
	if ((mode ^ *at) & S_IFMT || mode & ~(uint32_t)(S_IFMT | 07777))
		return "a rewritten mode has another file type";
	*at = mode;
	return NULL;
}

static const char *edit_open_flags(uint32_t *at, uint32_t flags, uint32_t may_differ)
{
	if ((flags ^ *at) & ~may_differ || (flags & O_ACCMODE) == O_ACCMODE)
		return "rewritten open flags differ in more than access mode, append, trunc, sync, noatime, direct "
		       "(create: and excl; opendir: noatime alone)";
	*at = flags;
	return NULL;
}

static const char *edit_valid(struct fb_setattr *args, uint32_t valid)
{
	static const uint32_t ours = FB_SET_MODE | FB_SET_UID | FB_SET_GID | FB_SET_SIZE | FB_SET_ATIME | FB_SET_MTIME |
				     FB_SET_ATIME_NOW | FB_SET_MTIME_NOW;

	if (valid & ~args->valid || (valid ^ args->valid) & ~ours)
		return "it rewrote setattr's valid to more than that the caller sets less";
	args->valid = valid;
	return NULL;
}

/* Flags of which each is known. */
static const char *edit_known(uint32_t *at, uint32_t flags, uint32_t known, const char *why)
{
	if (flags & ~known)
		return why;
	*at = flags;
	return NULL;
}

/* The number of an ioctl says how much it takes and gives: another one must agree. */
static const char *edit_ioctl(struct fb_ioctl *args, uint32_t command, uint32_t flags)
{
	if (_IOC_SIZE(command) != _IOC_SIZE(args->command))
		return "a rewritten ioctl takes or gives another number of bytes";
	args->command = command;
	return edit_known(&args->flags, flags, args->flags, "rewritten flags of an ioctl are more than the kernel gave");
}

static const char *edit_flags(struct request *rq, const struct fb_slot *slot)
{
	static const uint32_t open_flags = O_ACCMODE | O_APPEND | O_TRUNC | O_SYNC | O_DSYNC | O_NOATIME | O_DIRECT;
	struct fb_slot *image = rq->image;

	switch (rq->op->canonical) {
	case FB_OP_setattr:
		return edit_valid(&image->args.setattr, slot->args.setattr.valid);
	case FB_OP_open:
		return edit_open_flags(&image->args.open.flags, slot->args.open.flags, open_flags);
	case FB_OP_opendir:
		return edit_open_flags(&image->args.open.flags, slot->args.open.flags, O_NOATIME);
	case FB_OP_create:
	case FB_OP_tmpfile:
		return edit_open_flags(&image->args.create.flags, slot->args.create.flags, open_flags | O_EXCL);
	case FB_OP_write: {
		uint32_t flags = slot->args.rw.flags;
		if ((flags ^ image->args.rw.flags) & ~(uint32_t)O_APPEND)
			return "rewritten flags of a write differ in more than append";
		image->args.rw.flags = flags;
		return NULL;
	}
	case FB_OP_rename:
		return edit_known(&image->args.rename.flags, slot->args.rename.flags, 7,
				  "rewritten rename flags are none of NOREPLACE, EXCHANGE, WHITEOUT");
	case FB_OP_setxattr:
		return edit_known(&image->args.xattr.flags, slot->args.xattr.flags, 3,
				  "rewritten setxattr flags are none of XATTR_CREATE, XATTR_REPLACE");
	case FB_OP_setlk:
	case FB_OP_flock:
		return edit_known(&image->args.lock.flags, slot->args.lock.flags, FB_LOCK_WAITS,
				  "rewritten flags of a lock are other than FB_LOCK_WAITS");
	case FB_OP_ioctl:
		return edit_ioctl(&image->args.ioctl, slot->args.ioctl.command, slot->args.ioctl.flags);
	default:
		return edit_known(&image->args.fsync.flags, slot->args.fsync.flags, 1,
				  "rewritten fsync flags are none that are known");
	}
}

static const char *edit_mask(struct request *rq, const struct fb_slot *slot)
{
	struct fb_slot *image = rq->image;

	switch (rq->op->canonical) {
	case FB_OP_statx:
		image->args.statx.mask = slot->args.statx.mask;
		return NULL;
	case FB_OP_poll:
		return edit_known(&image->args.poll.events, slot->args.poll.events, 0x7fff,
				  "rewritten events of poll are none that poll(2) has");
	default:
		return edit_known(&image->args.access.mask, slot->args.access.mask, 7,
				  "a rewritten access mask is over 7");
	}
}

static const char *edit_owner(struct request *rq, const struct fb_slot *slot, uint64_t edits)
{
	bool is_setattr = rq->op->canonical == FB_OP_setattr;
	struct fb_setattr *args = &rq->image->args.setattr;
	uint32_t uid = is_setattr ? slot->args.setattr.uid : slot->uid;
	uint32_t gid = is_setattr ? slot->args.setattr.gid : slot->gid;

	if ((edits & FB_EDIT_UID && uid == UINT32_MAX) || (edits & FB_EDIT_GID && gid == UINT32_MAX))
		return "a rewritten owner is -1";
	if (is_setattr && ((edits & FB_EDIT_UID && !(args->valid & FB_SET_UID)) ||
			   (edits & FB_EDIT_GID && !(args->valid & FB_SET_GID))))
		return "it rewrote an owner that the caller does not set";
	if (edits & FB_EDIT_UID)
		*(is_setattr ? &args->uid : &rq->create_uid) = uid;
	if (edits & FB_EDIT_GID)
		*(is_setattr ? &args->gid : &rq->create_gid) = gid;
	return NULL;
}

/* --------------------------------------------------------------------------- sizes and places */

static const char *edit_setattr_size(struct fb_setattr *args, uint64_t size)
{
	if (!(args->valid & FB_SET_SIZE) || size > INT64_MAX)
		return "it rewrote a size that the caller does not set, or that no file can have";
	args->size = size;
	return NULL;
}

/* A size of 32 bits, not over the caller's. */
static const char *edit_less(uint32_t *at, uint32_t size)
{
	if (size > *at)
		return "a rewritten size is larger than the caller's";
	*at = size;
	return NULL;
}

static const char *edit_length(__u64 *at, uint64_t length)
{
	if (length > *at || length == 0)
		return "a rewritten length is 0, or larger than the caller's";
	*at = length;
	return NULL;
}

static const char *edit_size(struct request *rq, const struct fb_slot *slot)
{
	struct fb_slot *image = rq->image;
	uint32_t size;

	switch (rq->op->canonical) {
	case FB_OP_setattr:
		return edit_setattr_size(&image->args.setattr, slot->args.setattr.size);
	case FB_OP_setxattr:
		if (edit_less(&image->args.xattr.size, slot->args.xattr.size))
			return "a rewritten size is larger than the caller's";
		if (image->args.xattr.size < image->text_len)
			image->text_len = image->args.xattr.size;
		return NULL;
	case FB_OP_getxattr:
	case FB_OP_listxattr:
		size = slot->args.xattr.size;
		if (!size != !image->args.xattr.size)
			return "a rewritten size makes a question for the size of what was one for the value, or the other way";
		return edit_less(&image->args.xattr.size, size);
	case FB_OP_fallocate:
		return edit_length(&image->args.fallocate.length, slot->args.fallocate.length);
	case FB_OP_copy_file_range:
		return edit_length(&image->args.copy.length, slot->args.copy.length);
	default:
		return edit_less(&image->args.rw.size, slot->args.rw.size);
	}
}

static const char *edit_place(__u64 *at, uint64_t offset)
{
	if (offset > INT64_MAX)
		return "a rewritten offset is one that no file can have";
	*at = offset;
	return NULL;
}

static const char *edit_offset(struct request *rq, const struct fb_slot *slot)
{
	struct fb_slot *image = rq->image;

	switch (rq->op->canonical) {
	case FB_OP_fallocate:
		return edit_place(&image->args.fallocate.offset, slot->args.fallocate.offset);
	case FB_OP_lseek:
		return edit_place(&image->args.lseek.offset, slot->args.lseek.offset);
	case FB_OP_copy_file_range:
		return edit_place(&image->args.copy.offset, slot->args.copy.offset);
	default:
		return edit_place(&image->args.rw.offset, slot->args.rw.offset);
	}
}

static const char *edit_whence(struct request *rq, const struct fb_slot *slot)
{
	uint32_t whence = slot->args.lseek.whence;

	if (whence != SEEK_DATA && whence != SEEK_HOLE)
		return "a rewritten whence is neither SEEK_DATA nor SEEK_HOLE";
	rq->image->args.lseek.whence = whence;
	return NULL;
}

/* ------------------------------------------------------------------------------------- locks */

/* One range and type that fcntl(2) knows? */
static const char *lock_check(uint64_t start, uint64_t end, uint32_t type)
{
	if (type > F_UNLCK)
		return "a rewritten lock has a type that is none";
	if (start > end || end > INT64_MAX)
		return "a rewritten lock ends before it begins, or beyond what a file can have";
	return NULL;
}

static const char *edit_lock_found(struct request *rq, const struct fb_slot *slot)
{
	struct fb_lock_found found = slot->result.lock;
	const char *why = lock_check(found.start, found.end, found.type);

	if (!why)
		rq->image->result.lock = found;
	return why;
}

static const char *edit_lock(struct request *rq, const struct fb_slot *slot)
{
	struct fb_lock *now = &rq->image->args.lock, lock = slot->args.lock;
	const char *why = lock_check(lock.start, lock.end, lock.type);

	if (why)
		return why;
	if ((lock.type == F_UNLCK) != (now->type == F_UNLCK))
		return "it made a lock of an unlocking, or the other way";
	now->start = lock.start;
	now->end = lock.end;
	now->type = lock.type;
	return NULL;
}

/* ------------------------------------------------------------------------------------ results */

static const char *edit_attr(struct request *rq, const struct fb_slot *slot)
{
	struct fb_attr attr = slot->result.attr;
	struct fb_attr *now = &rq->image->result.attr;
	uint32_t type = now->mode & S_IFMT ? now->mode & S_IFMT : rq->inode->type;

	if ((attr.mode & S_IFMT) != type)
		return "rewritten attributes have another file type";
	if (attr.size > INT64_MAX)
		return "rewritten attributes have a size that no file can have";
	if (now->ino)
		attr.ino = now->ino;
	attr.nodeid = now->nodeid;
	*now = attr;
	return NULL;
}

/* The most that result.count may become. */
static uint64_t count_limit(const struct request *rq)
{
	const struct fb_slot *image = rq->image;

	switch (rq->op->canonical) {
	case FB_OP_lseek:
		return INT64_MAX;
	case FB_OP_poll:
		return 0x7fff;
	case FB_OP_copy_file_range:
		return image->phase == FB_PRE ? image->args.copy.length : image->result.count;
	default:
		return image->phase == FB_PRE ? image->args.rw.size : image->result.count;
	}
}

static const char *edit_count(struct request *rq, const struct fb_slot *slot)
{
	uint64_t count = slot->result.count;

	if (count > count_limit(rq))
		return rq->op->canonical == FB_OP_lseek	 ? "a rewritten offset is one that no file can have"
		       : rq->op->canonical == FB_OP_poll ? "rewritten events of poll are none that poll(2) has"
							 : "a rewritten count is larger than it was";
	rq->image->result.count = count;
	return NULL;
}

/* ----------------------------------------------------------------------------------- the rest */

static const char *edit_umask(struct request *rq, const struct fb_slot *slot)
{
	return edit_known(&rq->image->umask, slot->umask, 0777, "a rewritten umask is over 0777");
}

static const char *edit_io(struct request *rq, const struct fb_slot *slot)
{
	bool is_open = rq->op->canonical == FB_OP_open;
	uint32_t mode = is_open ? slot->args.open.io_mode : slot->args.create.io_mode;

	if (mode > FB_IO_CACHE)
		return "a rewritten I/O mode is none that there is";
	*(is_open ? &rq->image->args.open.io_mode : &rq->image->args.create.io_mode) = mode;
	return NULL;
}

/* The plain fields: copied, with at most a range to check. */
static const char *edit_plain(struct request *rq, const struct fb_slot *slot, uint64_t edits)
{
	struct fb_slot *image = rq->image;

	if (edits & FB_EDIT_TIMES) {
		image->args.setattr.atime_ns = slot->args.setattr.atime_ns;
		image->args.setattr.mtime_ns = slot->args.setattr.mtime_ns;
	}
	if (edits & FB_EDIT_RDEV)
		image->args.mknod.rdev = slot->args.mknod.rdev;
	if (edits & FB_EDIT_TTL) {
		image->ttl_ns = slot->ttl_ns;
		rq->gave_ttl |= 1U << image->filter;
		rq->ttls_ns[image->filter] = image->ttl_ns;
		rq->entry_ttl_ns = rq->attr_ttl_ns = image->ttl_ns;
		if (image->ttl_ns)
			atomic_fetch_add_explicit(&rq->mount->n_filter_ttls, 1, memory_order_relaxed);
	}
	if (edits & FB_EDIT_DELAY) {
		uint64_t delay_ns = slot->delay_ns;
		if (delay_ns > FB_MAX_DELAY)
			return "a delay is longer than an hour";
		rq->delay_ns = image->delay_ns = delay_ns;
	}
	if (edits & FB_EDIT_STATFS)
		image->result.statfs = slot->result.statfs;
	return edits & FB_EDIT_BACKING ? root_edit(rq, slot->backing) : NULL;
}

/* Those that only some ops take. */
static const char *edit_rare(struct request *rq, const struct fb_slot *slot, bool is_result, uint64_t edits)
{
	const char *why = NULL;

	if (edits & FB_EDIT_MASK)
		why = edit_mask(rq, slot);
	if (!why && edits & FB_EDIT_OFFSET2)
		why = edit_place(&rq->image->args.copy.offset_out, slot->args.copy.offset_out);
	if (!why && edits & FB_EDIT_WHENCE)
		why = edit_whence(rq, slot);
	if (!why && edits & FB_EDIT_UMASK)
		why = edit_umask(rq, slot);
	if (!why && edits & FB_EDIT_IO)
		why = edit_io(rq, slot);
	if (!why && edits & FB_EDIT_LOCK)
		why = is_result ? edit_lock_found(rq, slot) : edit_lock(rq, slot);
	return why;
}

/* Those of the arguments and results that many ops have. */
static const char *edit_common(struct request *rq, const struct fb_slot *slot, bool is_reply, uint64_t edits)
{
	const char *why = NULL;

	if (edits & FB_EDIT_TEXT)
		why = edit_text(rq, slot, is_reply);
	if (!why && edits & FB_EDIT_MODE)
		why = edit_mode(rq, slot);
	if (!why && edits & FB_EDIT_FLAGS)
		why = edit_flags(rq, slot);
	if (!why && edits & (FB_EDIT_UID | FB_EDIT_GID))
		why = edit_owner(rq, slot, edits);
	if (!why && edits & FB_EDIT_SIZE)
		why = edit_size(rq, slot);
	if (!why && edits & FB_EDIT_OFFSET)
		why = edit_offset(rq, slot);
	if (!why && edits & FB_EDIT_ATTR)
		why = edit_attr(rq, slot);
	if (!why && edits & FB_EDIT_COUNT)
		why = edit_count(rq, slot);
	return why ? why : edit_plain(rq, slot, edits);
}

/**
 * Take the fields over that a hook, or the daemon, says it edited in `slot`. `op` is rq->op, or dirent; with `is_reply` a pre
 * hook answers.
 *
 * Returns NULL, or why they are refused; then the op must fail.
 */
const char *verdict_edit(struct request *rq, const struct fb_slot *slot, const struct op *op, enum fb_phase phase,
			 bool is_reply, uint64_t edits)
{
	static const uint64_t rare = FB_EDIT_MASK | FB_EDIT_OFFSET2 | FB_EDIT_WHENCE | FB_EDIT_UMASK | FB_EDIT_IO |
				     FB_EDIT_LOCK;
	struct fb_slot *image = rq->image;
	const char *why = NULL;

	if (edits & FB_EDIT_DATA && edits & FB_EDIT_TEXT)
		return "it edited both text and data, which are the same";
	if (edits & FB_EDIT_NAME)
		why = edit_name(op, slot->name_len, &slot->name, &image->name, &image->name_len);
	if (!why && edits & FB_EDIT_NAME2)
		why = edit_name(op, slot->name2_len, &slot->name2, &image->name2, &image->name2_len);
	if (!why)
		why = edit_common(rq, slot, is_reply, edits);
	if (!why && edits & rare)
		why = edit_rare(rq, slot, phase == FB_POST || is_reply, edits);
	if (!why && edits & FB_EDIT_DATA)
		why = data_edit(rq, phase);
	if (!why && edits & FB_EDIT_VIEW)
		why = view_edit(rq, slot->view, phase);
	if (!why && edits & FB_EDIT_TAG) // behind the view: each has its own
		why = tag_edit(rq, slot->tag, op, phase);
	if (!why && phase == FB_PRE) {
		if (edits & FB_EDIT_NAME)
			rq->name = image->name.text;
		if (edits & FB_EDIT_NAME2)
			rq->name2 = image->name2.text;
		if (edits & (FB_EDIT_NAME | FB_EDIT_NAME2))
			paths_follow(rq, edits & FB_EDIT_NAME, edits & FB_EDIT_NAME2);
		if (edits & (FB_EDIT_NAME | FB_EDIT_NAME2 | FB_EDIT_BACKING))
			types_fill(rq);
	}
	return why;
}
