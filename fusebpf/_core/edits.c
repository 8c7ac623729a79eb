/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a filter rewrote, checked like anything from outside: each field is copied out of the slot once, the copy is
 * checked, and only then it is what the op uses. Which edits an op takes at all is verdict.c's.
 */
#include "core.h"

static const char *edit_name(const struct op *op, const struct fb_slot *slot, uint32_t slot_len,
			     const struct fb_name *from, struct fb_name *to, uint32_t *len)
{
	struct fb_name copy = { { 0 } };

	(void)slot;
	memcpy(copy.text, from->text, FB_NAME_SIZE - 1);
	size_t n = strlen(copy.text);
	// The length is taken from the text: a filter that shortens a name may leave bytes behind its end.
	if (slot_len != n)
		return "a rewritten name's length is not that of its text, or is over 255";
	if (n == 0)
		return "a rewritten name is empty";
	if (!(op->flags & FB_OP_XATTR) && (strchr(copy.text, '/') || !strcmp(copy.text, ".") || !strcmp(copy.text, "..")))
		return "a rewritten name has a slash in it, or is . or ..";
	*to = copy;
	*len = (uint32_t)n;
	return NULL;
}

static const char *edit_text(struct request *rq, const struct fb_slot *slot)
{
	uint32_t len = slot->text_len, capacity = FB_PATH_SIZE - 1;
	bool is_xattr = rq->op->canonical == FB_OP_getxattr || rq->op->canonical == FB_OP_listxattr;

	if (is_xattr && rq->image->args.xattr.size && rq->image->args.xattr.size < capacity)
		capacity = rq->image->args.xattr.size;
	if (len > capacity)
		return "rewritten text is longer than the caller's buffer or 4095 bytes";
	memcpy(rq->image->text, slot->text, len);
	rq->image->text[len] = 0;
	if (!is_xattr && (len == 0 || strlen(rq->image->text) != len))
		return "a rewritten link target is empty or has a zero byte in it";
	rq->image->text_len = len;
	rq->text = rq->image->text;
	return NULL;
}

static const char *edit_mode(struct request *rq, const struct fb_slot *slot)
{
	union {
		uint32_t *mode;
	} at;
	uint32_t mode;

	switch (rq->op->canonical) {
	case FB_OP_setattr:
		at.mode = &rq->image->args.setattr.mode;
		mode = slot->args.setattr.mode;
		if (!(rq->image->args.setattr.valid & FB_SET_MODE))
			return "it rewrote a mode that the caller does not set";
		break;
	case FB_OP_mknod:
		at.mode = &rq->image->args.mknod.mode;
		mode = slot->args.mknod.mode;
		break;
	case FB_OP_mkdir:
		at.mode = &rq->image->args.mkdir.mode;
		mode = slot->args.mkdir.mode;
		break;
	default:
		at.mode = &rq->image->args.create.mode;
		mode = slot->args.create.mode;
		break;
	}
	if ((mode ^ *at.mode) & S_IFMT || mode & ~(uint32_t)(S_IFMT | 07777))
		return "a rewritten mode has another file type";
	*at.mode = mode;
	return NULL;
}

static const char *edit_flags(struct request *rq, const struct fb_slot *slot)
{
	static const uint32_t open_flags = O_ACCMODE | O_APPEND | O_TRUNC | O_SYNC | O_DSYNC | O_NOATIME | O_DIRECT;
	struct fb_slot *image = rq->image;
	uint32_t flags;

	switch (rq->op->canonical) {
	case FB_OP_open:
		flags = slot->args.open.flags;
		if ((flags ^ image->args.open.flags) & ~open_flags || (flags & O_ACCMODE) == O_ACCMODE)
			return "rewritten open flags differ in more than access mode, append, trunc, sync, noatime, direct";
		image->args.open.flags = flags;
		return NULL;
	case FB_OP_create:
	case FB_OP_tmpfile:
		flags = slot->args.create.flags;
		if ((flags ^ image->args.create.flags) & ~(open_flags | O_EXCL) || (flags & O_ACCMODE) == O_ACCMODE)
			return "rewritten open flags differ in more than access mode, append, trunc, sync, noatime, direct, excl";
		image->args.create.flags = flags;
		return NULL;
	case FB_OP_rename:
		flags = slot->args.rename.flags;
		if (flags & ~7U)
			return "rewritten rename flags are none of NOREPLACE, EXCHANGE, WHITEOUT";
		image->args.rename.flags = flags;
		return NULL;
	case FB_OP_setxattr:
		flags = slot->args.xattr.flags;
		if (flags & ~3U)
			return "rewritten setxattr flags are none of XATTR_CREATE, XATTR_REPLACE";
		image->args.xattr.flags = flags;
		return NULL;
	default:
		flags = slot->args.fsync.flags;
		if (flags & ~1U)
			return "rewritten fsync flags are none that are known";
		image->args.fsync.flags = flags;
		return NULL;
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

static const char *edit_size(struct request *rq, const struct fb_slot *slot)
{
	struct fb_slot *image = rq->image;
	uint64_t size;

	switch (rq->op->canonical) {
	case FB_OP_setattr:
		size = slot->args.setattr.size;
		if (!(image->args.setattr.valid & FB_SET_SIZE) || size > INT64_MAX)
			return "it rewrote a size that the caller does not set, or that no file can have";
		image->args.setattr.size = size;
		return NULL;
	case FB_OP_setxattr:
		size = slot->args.xattr.size;
		if (size > image->args.xattr.size)
			return "a rewritten size is larger than the caller's";
		image->args.xattr.size = (uint32_t)size;
		return NULL;
	default:
		size = slot->args.rw.size;
		if (size > image->args.rw.size)
			return "a rewritten size is larger than the caller's";
		image->args.rw.size = (uint32_t)size;
		return NULL;
	}
}

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
	*now = attr;
	return NULL;
}

/* The plain fields: copied, with at most a range to check. */
static const char *edit_numbers(struct request *rq, const struct fb_slot *slot, uint64_t edits)
{
	struct fb_slot *image = rq->image;

	if (edits & FB_EDIT_OFFSET) {
		uint64_t offset = slot->args.rw.offset;
		if (offset > INT64_MAX)
			return "a rewritten offset is one that no file can have";
		image->args.rw.offset = offset;
	}
	if (edits & FB_EDIT_TIMES) {
		image->args.setattr.atime_ns = slot->args.setattr.atime_ns;
		image->args.setattr.mtime_ns = slot->args.setattr.mtime_ns;
	}
	if (edits & FB_EDIT_RDEV)
		image->args.mknod.rdev = slot->args.mknod.rdev;
	if (edits & FB_EDIT_MASK) {
		uint32_t mask = slot->args.access.mask;
		if (mask > 7)
			return "a rewritten access mask is over 7";
		image->args.access.mask = mask;
	}
	if (edits & FB_EDIT_TTL) {
		image->ttl_ns = slot->ttl_ns;
		rq->entry_ttl_ns = rq->attr_ttl_ns = image->ttl_ns;
	}
	if (edits & FB_EDIT_DELAY) {
		uint64_t delay_ns = slot->delay_ns;
		if (delay_ns > FB_MAX_DELAY)
			return "a delay is longer than an hour";
		rq->delay_ns = image->delay_ns = delay_ns;
	}
	if (edits & FB_EDIT_BACKING && slot->backing != 0)
		return "a rewritten backing root is out of range: the mount has one";
	if (edits & FB_EDIT_STATFS)
		image->result.statfs = slot->result.statfs;
	if (edits & FB_EDIT_COUNT) {
		uint64_t count = slot->result.count;
		uint64_t asked = rq->op->canonical == FB_OP_copy_file_range ? image->args.copy.length
									   : image->args.rw.size;
		uint64_t most = rq->image->phase == FB_PRE ? asked : image->result.count;
		if (count > most)
			return "a rewritten count is larger than it was";
		image->result.count = count;
	}
	return NULL;
}

/**
 * Take the fields over that a hook says it edited. `op` is rq->op, or dirent.
 *
 * Returns NULL, or why they are refused; then the op must fail.
 */
const char *verdict_edit(struct request *rq, const struct op *op, enum fb_phase phase, uint64_t edits)
{
	const struct fb_slot *slot = slot_of(rq);
	struct fb_slot *image = rq->image;
	const char *why = NULL;

	if (edits & FB_EDIT_DATA && edits & FB_EDIT_TEXT)
		return "it edited both text and data, which are the same";
	if (!why && edits & FB_EDIT_NAME)
		why = edit_name(op, slot, slot->name_len, &slot->name, &image->name, &image->name_len);
	if (!why && edits & FB_EDIT_NAME2)
		why = edit_name(op, slot, slot->name2_len, &slot->name2, &image->name2, &image->name2_len);
	if (!why && edits & FB_EDIT_TEXT)
		why = edit_text(rq, slot);
	if (!why && edits & FB_EDIT_MODE)
		why = edit_mode(rq, slot);
	if (!why && edits & FB_EDIT_FLAGS)
		why = edit_flags(rq, slot);
	if (!why && edits & (FB_EDIT_UID | FB_EDIT_GID))
		why = edit_owner(rq, slot, edits);
	if (!why && edits & FB_EDIT_SIZE)
		why = edit_size(rq, slot);
	if (!why && edits & FB_EDIT_ATTR)
		why = edit_attr(rq, slot);
	if (!why)
		why = edit_numbers(rq, slot, edits);
	if (!why && edits & FB_EDIT_DATA)
		why = data_edit(rq, phase);
	if (!why && edits & FB_EDIT_TAG)
		why = tag_edit(rq, slot->tag, op, phase);
	if (!why && edits & FB_EDIT_VIEW)
		why = view_edit(rq, slot->view, phase);
	if (!why && phase == FB_PRE) {
		if (edits & FB_EDIT_NAME)
			rq->name = image->name.text;
		if (edits & FB_EDIT_NAME2)
			rq->name2 = image->name2.text;
	}
	return why;
}

