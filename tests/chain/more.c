/* Like edit.c, for the ops and fields that are not in it. tests/chain/test_more_rewrites.py has the numbers. */
#include "fusebpf.h"

FILTER(more, .altitude = FB_VIEW, .doc = "Rewrites.")

BPF_ARRAY(way, u32, 1);

FB_ALWAYS_INLINE u32 now(void)
{
	u32 zero = 0, *at = way.lookup(&zero);

	return at ? *at : 0;
}

#define USE(bits) ({ ctx->edits = (bits); FB_REWRITE; })
#define ANSWER(bits) ({ ctx->edits = (bits); FB_REPLY; })
#define NO_OFFSET (1ull << 63)

PRE(more, setattr)
{
	switch (now()) {
	case 1: ctx->args.setattr.valid &= ~FB_SET_MODE; return USE(FB_EDIT_FLAGS);
	case 20: ctx->args.setattr.valid |= FB_SET_SIZE; return USE(FB_EDIT_FLAGS);
	}
	return FB_CONTINUE;
}

FB_ALWAYS_INLINE int edit_umask(struct fb_slot *ctx)
{
	switch (now()) {
	case 1: ctx->umask = 077; return USE(FB_EDIT_UMASK);
	case 2: ctx->umask = 0; return USE(FB_EDIT_UMASK);
	case 20: ctx->umask = 01000; return USE(FB_EDIT_UMASK);
	}
	return FB_CONTINUE;
}

PRE(more, mkdir) { return edit_umask(ctx); }
PRE(more, mknod) { return edit_umask(ctx); }
PRE(more, create) { return edit_umask(ctx); }

PRE(more, fallocate)
{
	struct fb_fallocate *args = &ctx->args.fallocate;

	switch (now()) {
	case 1: args->offset += 4096; return USE(FB_EDIT_OFFSET);
	case 2: args->length = 1; return USE(FB_EDIT_SIZE);
	case 3: args->mode |= 1; return USE(FB_EDIT_MODE); /* KEEP_SIZE */
	case 20: args->offset = NO_OFFSET; return USE(FB_EDIT_OFFSET);
	case 21: args->length += 1; return USE(FB_EDIT_SIZE);
	case 22: args->length = 0; return USE(FB_EDIT_SIZE);
	case 23: args->mode |= 8; return USE(FB_EDIT_MODE);
	}
	return FB_CONTINUE;
}

PRE(more, lseek)
{
	struct fb_lseek *args = &ctx->args.lseek;

	switch (now()) {
	case 1: args->offset = 3 << 20; return USE(FB_EDIT_OFFSET);
	case 2: args->whence = 7 - args->whence; return USE(FB_EDIT_WHENCE);
	case 3: ctx->result.count = 77; return ANSWER(FB_EDIT_COUNT);
	case 20: args->offset = NO_OFFSET; return USE(FB_EDIT_OFFSET);
	case 21: args->whence = 0; return USE(FB_EDIT_WHENCE);
	case 22: return FB_REPLY;
	}
	return FB_CONTINUE;
}

POST(more, lseek)
{
	switch (now()) {
	case 50: ctx->result.count += 5; return USE(FB_EDIT_COUNT);
	case 60: ctx->result.count = NO_OFFSET; return USE(FB_EDIT_COUNT);
	}
	return FB_CONTINUE;
}

PRE(more, copy_file_range)
{
	struct fb_copy *args = &ctx->args.copy;

	switch (now()) {
	case 1: args->offset += 2; return USE(FB_EDIT_OFFSET);
	case 2: args->offset_out += 3; return USE(FB_EDIT_OFFSET2);
	case 3: args->length = 4; return USE(FB_EDIT_SIZE);
	case 20: args->offset = NO_OFFSET; return USE(FB_EDIT_OFFSET);
	case 21: args->offset_out = NO_OFFSET; return USE(FB_EDIT_OFFSET2);
	case 22: args->length += 1; return USE(FB_EDIT_SIZE);
	}
	return FB_CONTINUE;
}

FB_ALWAYS_INLINE int edit_lock(struct fb_slot *ctx)
{
	struct fb_lock *lock = &ctx->args.lock;

	switch (now()) {
	case 1: lock->start += 100; lock->end = lock->start + 9; return USE(FB_EDIT_LOCK);
	case 2: lock->type = 0; return USE(FB_EDIT_LOCK); /* F_RDLCK */
	case 3: lock->flags = 0; return USE(FB_EDIT_FLAGS);
	case 20: lock->end = lock->start - 1; return USE(FB_EDIT_LOCK);
	case 21: lock->end = NO_OFFSET; return USE(FB_EDIT_LOCK);
	case 22: lock->type = 3; return USE(FB_EDIT_LOCK);
	case 23: lock->type = 2; return USE(FB_EDIT_LOCK); /* F_UNLCK */
	case 24: lock->flags = 2; return USE(FB_EDIT_FLAGS);
	}
	return FB_CONTINUE;
}

PRE(more, setlk) { return ctx->args.lock.type == 2 ? FB_CONTINUE : edit_lock(ctx); }
PRE(more, flock) { return ctx->args.lock.type == 2 ? FB_CONTINUE : edit_lock(ctx); }

PRE(more, getlk)
{
	struct fb_lock_found found = { .start = 5, .end = 9, .type = 1 };

	switch (now()) {
	case 4: ctx->result.lock = found; return ANSWER(FB_EDIT_LOCK);
	case 25: return FB_REPLY;
	case 26: found.end = 4; ctx->result.lock = found; return ANSWER(FB_EDIT_LOCK);
	}
	return edit_lock(ctx);
}

POST(more, getlk)
{
	switch (now()) {
	case 50: ctx->result.lock.type = 0; ctx->result.lock.start = 1; ctx->result.lock.end = 2; return USE(FB_EDIT_LOCK);
	case 60: ctx->result.lock.type = 7; return USE(FB_EDIT_LOCK);
	}
	return FB_CONTINUE;
}

PRE(more, statx)
{
	if (now() != 1)
		return FB_CONTINUE;
	ctx->args.statx.mask &= ~0x800; /* STATX_BTIME */
	return USE(FB_EDIT_MASK);
}

POST(more, statx)
{
	switch (now()) {
	case 50: ctx->result.attr.btime_ns = 7000000042ull; return USE(FB_EDIT_ATTR);
	case 51: ctx->result.attr.btime_ns = 0; return USE(FB_EDIT_ATTR);
	}
	return FB_CONTINUE;
}

FB_ALWAYS_INLINE int edit_old(struct fb_slot *ctx)
{
	if (now() != 52 || ctx->error)
		return FB_CONTINUE;
	ctx->result.attr.mtime_ns = -1500000000ll;
	return USE(FB_EDIT_ATTR);
}

POST(more, getattr) { return edit_old(ctx); }
POST(more, lookup) { return edit_old(ctx); }

PRE(more, poll)
{
	switch (now()) {
	case 1: ctx->args.poll.events = 4; return USE(FB_EDIT_MASK); /* POLLOUT */
	case 2: ctx->result.count = 1; return ANSWER(FB_EDIT_COUNT);
	case 20: ctx->args.poll.events = 0x8000; return USE(FB_EDIT_MASK);
	case 21: return FB_REPLY;
	}
	return FB_CONTINUE;
}

POST(more, poll)
{
	switch (now()) {
	case 50: ctx->result.count = 4; return USE(FB_EDIT_COUNT);
	case 60: ctx->result.count = 0x8000; return USE(FB_EDIT_COUNT);
	}
	return FB_CONTINUE;
}

FB_ALWAYS_INLINE int edit_value_size(struct fb_slot *ctx)
{
	if (!ctx->args.xattr.size)
		return FB_CONTINUE;
	switch (now()) {
	case 1: ctx->args.xattr.size = 3; return USE(FB_EDIT_SIZE);
	case 20: ctx->args.xattr.size += 1; return USE(FB_EDIT_SIZE);
	case 21: ctx->args.xattr.size = 0; return USE(FB_EDIT_SIZE);
	}
	return FB_CONTINUE;
}

PRE(more, getxattr) { return fb_name_starts(ctx, "user.") ? edit_value_size(ctx) : FB_CONTINUE; }
PRE(more, listxattr) { return edit_value_size(ctx); }

PRE(more, setxattr)
{
	switch (now()) {
	case 1: __builtin_memcpy(ctx->text, "another value", 14); ctx->text_len = 13; return USE(FB_EDIT_TEXT);
	case 20: ctx->text_len = FB_PATH_SIZE; return USE(FB_EDIT_TEXT);
	}
	return FB_CONTINUE;
}

PRE(more, opendir)
{
	switch (now()) {
	case 1: ctx->args.open.flags |= 01000000; return USE(FB_EDIT_FLAGS); /* O_NOATIME */
	case 20: ctx->args.open.flags |= 2; return USE(FB_EDIT_FLAGS);
	}
	return FB_CONTINUE;
}

PRE(more, readdir)
{
	switch (now()) {
	case 1: ctx->args.rw.size = 1024; return USE(FB_EDIT_SIZE);
	case 20: ctx->args.rw.size += 1; return USE(FB_EDIT_SIZE);
	case 21: ctx->args.rw.offset = NO_OFFSET; return USE(FB_EDIT_OFFSET);
	}
	return FB_CONTINUE;
}

PRE(more, ioctl)
{
	switch (now()) {
	case 1: ctx->text[0] |= 0x40; return USE(FB_EDIT_TEXT); /* chattr +d, however asked */
	case 2: if (ctx->args.ioctl.command != 0x40086602) return FB_CONTINUE;
		ctx->args.ioctl.command = 0x40086699; return USE(FB_EDIT_FLAGS);
	case 3: __builtin_memcpy(ctx->text, "\x40\0\0\0", 4); ctx->text_len = 4; return ANSWER(FB_EDIT_TEXT);
	case 20: ctx->text_len += 1; return USE(FB_EDIT_TEXT);
	case 21: ctx->args.ioctl.command ^= 1 << 20; return USE(FB_EDIT_FLAGS);
	case 22: ctx->args.ioctl.flags |= 0x80; return USE(FB_EDIT_FLAGS);
	case 23: ctx->text_len = 100; return ANSWER(FB_EDIT_TEXT);
	}
	return FB_CONTINUE;
}

POST(more, ioctl)
{
	if (ctx->error)
		return FB_CONTINUE;
	switch (now()) {
	case 50: ctx->text[0] |= 0x40; return USE(FB_EDIT_TEXT);
	case 60: ctx->text_len -= 1; return USE(FB_EDIT_TEXT);
	}
	return FB_CONTINUE;
}
