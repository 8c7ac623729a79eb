/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Names, link targets and values that a filter rewrote: part of edits.c. A function returns NULL, or why the edit is refused.
 */
#include "core.h"

const char *edit_name(const struct op *op, uint32_t slot_len, const struct fb_name *from, struct fb_name *to, uint32_t *len)
{
	struct fb_name copy = { { 0 } };

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

/* The most that text may become. */
static uint32_t text_capacity(const struct request *rq)
{
	const struct fb_slot *image = rq->image;
	uint32_t most = FB_PATH_SIZE - 1;
	uint32_t room = most;

	switch (rq->op->canonical) {
	case FB_OP_getxattr:
	case FB_OP_listxattr:
		room = image->args.xattr.size ? image->args.xattr.size : most; // 0 asks how long the value is
		break;
	case FB_OP_ioctl:
		room = image->phase == FB_PRE ? image->args.ioctl.in_size : image->args.ioctl.out_size;
		break;
	default:
		break;
	}
	return room < most ? room : most;
}

/* Is it names with a zero byte behind each, as listxattr(2) gives them? */
static bool xattr_list_is_whole(const char *list, size_t len)
{
	for (size_t at = 0; at < len;) {
		size_t n = strnlen(list + at, len - at);
		if (n == 0 || n == len - at)
			return false;
		at += n + 1;
	}
	return true;
}

/** Can the kernel take this value or link target? */
const char *value_check(const struct op *op, const char *value, uint32_t len)
{
	bool is_target = op->canonical == FB_OP_symlink || op->canonical == FB_OP_readlink;

	if (is_target && (len == 0 || memchr(value, 0, len)))
		return "a rewritten link target is empty or has a zero byte in it";
	if (op->canonical == FB_OP_listxattr && !xattr_list_is_whole(value, len))
		return "a rewritten list of xattrs has an empty name, or no zero byte at its end";
	return NULL;
}

const char *edit_text(struct request *rq, const struct fb_slot *slot, bool is_reply)
{
	struct fb_slot *image = rq->image;
	uint32_t len = __atomic_load_n(&slot->text_len, __ATOMIC_RELAXED);
	uint32_t most = is_reply && rq->op->canonical == FB_OP_ioctl ? image->args.ioctl.out_size : text_capacity(rq);

	if (len > most || len >= FB_PATH_SIZE)
		return "rewritten text is longer than the caller's buffer or 4095 bytes";
	if (rq->op->canonical == FB_OP_ioctl && !is_reply && len != image->text_len)
		return "the data of an ioctl has another length";
	memcpy(image->text, slot->text, len);
	image->text[len] = 0;
	const char *why = value_check(rq->op, image->text, len);
	if (why)
		return why;
	image->text_len = len;
	rq->text = image->text;
	if (image->phase == FB_PRE && !is_reply && rq->op->canonical != FB_OP_symlink)
		rq->input = image->text;
	if (rq->op->canonical == FB_OP_setxattr)
		image->args.xattr.size = len;
	return NULL;
}
