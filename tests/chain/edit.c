/* A filter that rewrites one thing at a time: which one, its map `way` says. tests/chain/test_rewrites.py has the
 * numbers. Beside it one filter below that refuses what it must not see. */
#include "fusebpf.h"

FILTER(edit, .altitude = FB_VIEW, .doc = "Rewrites.")
FILTER(below, .altitude = FB_STORE, .doc = "Refuses the name `edited` where no rewrite was declared.")

BPF_ARRAY(way, u32, 1);

FB_ALWAYS_INLINE u32 now(void)
{
	u32 zero = 0, *at = way.lookup(&zero);

	return at ? *at : 0;
}

#define NAME(to, text16) __builtin_memcpy((to).text, text16, 16)
#define EDITED "edited\0\0\0\0\0\0\0\0\0"
#define USE(bits) ({ ctx->edits = (bits); FB_REWRITE; })

FB_ALWAYS_INLINE int edit_name(struct fb_slot *ctx)
{
	NAME(ctx->name, EDITED);
	ctx->name_len = 6;
	return USE(FB_EDIT_NAME);
}

/* Names that no filter may give. */
FB_ALWAYS_INLINE int bad_name(struct fb_slot *ctx, u32 at)
{
	u32 i;

	if (at == 20)
		NAME(ctx->name, "a/b\0\0\0\0\0\0\0\0\0\0\0\0");
	if (at == 21)
		NAME(ctx->name, "a\0b\0\0\0\0\0\0\0\0\0\0\0\0");
	ctx->name_len = 3;
	if (at == 22) {
		NAME(ctx->name, "\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
		ctx->name_len = 0;
	}
	if (at == 23) {
		NAME(ctx->name, ".\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
		ctx->name_len = 1;
	}
	if (at == 24) {
		NAME(ctx->name, "..\0\0\0\0\0\0\0\0\0\0\0\0\0");
		ctx->name_len = 2;
	}
	if (at == 25) {
		for (i = 0; i < FB_NAME_SIZE; i++)
			ctx->name.text[i] = 'n';
		ctx->name_len = FB_NAME_SIZE;
	}
	return USE(FB_EDIT_NAME);
}

PRE(edit, mkdir)
{
	u32 at = now();

	switch (at) {
	case 1: case 51: return edit_name(ctx);
	case 2: ctx->args.mkdir.mode = 0711; return USE(FB_EDIT_MODE);
	case 3: ctx->uid = 123; ctx->gid = 456; return USE(FB_EDIT_UID | FB_EDIT_GID);
	case 4: edit_name(ctx); ctx->args.mkdir.mode = 0; return FB_CONTINUE; /* not declared */
	case 5: ctx->backing = 0; return USE(FB_EDIT_BACKING);
	case 6: edit_name(ctx); ctx->args.mkdir.mode = 0; return USE(FB_EDIT_NAME); /* the mode is not */
	case 26: ctx->args.mkdir.mode = 0120777; return USE(FB_EDIT_MODE);
	case 27: ctx->backing = 1; return USE(FB_EDIT_BACKING);
	case 30: return USE(FB_EDIT_SIZE);
	case 31: return USE(1 << 30);
	case 32: return FB_REWRITE;
	case 33: ctx->gid = 0xffffffff; return USE(FB_EDIT_GID);
	case 34: return FB_REPLY;
	case 35: ctx->error = FB_OK; return FB_REPLY | USE(FB_EDIT_ERROR);
	}
	return at >= 20 && at <= 25 ? bad_name(ctx, at) : FB_CONTINUE;
}

PRE(below, mkdir) { return fb_name_is(ctx, "edited") && now() == 4 ? -EPERM : FB_CONTINUE; }

PRE(edit, lookup)
{
	switch (now()) {
	case 70: return fb_name_is(ctx, "name") ? edit_name(ctx) : FB_CONTINUE;
	case 40: ctx->ttl_ns = 3600000000000ull; return USE(FB_EDIT_TTL);
	}
	return FB_CONTINUE;
}

PRE(edit, unlink) { return now() == 1 ? edit_name(ctx) : FB_CONTINUE; }
PRE(edit, rmdir) { return now() == 1 ? edit_name(ctx) : FB_CONTINUE; }
PRE(edit, link) { return now() == 1 ? edit_name(ctx) : FB_CONTINUE; }

PRE(edit, rename)
{
	switch (now()) {
	case 1: return edit_name(ctx);
	case 2: NAME(ctx->name2, EDITED); ctx->name2_len = 6; return USE(FB_EDIT_NAME2);
	case 3: ctx->args.rename.flags = 1; return USE(FB_EDIT_FLAGS);
	case 20: NAME(ctx->name2, "a/b\0\0\0\0\0\0\0\0\0\0\0\0"); ctx->name2_len = 3; return USE(FB_EDIT_NAME2);
	case 21: ctx->args.rename.flags = 8; return USE(FB_EDIT_FLAGS);
	}
	return FB_CONTINUE;
}

PRE(edit, symlink)
{
	switch (now()) {
	case 1: return edit_name(ctx);
	case 2: __builtin_memcpy(ctx->text, "elsewhere", 10); ctx->text_len = 9; return USE(FB_EDIT_TEXT);
	case 20: ctx->text_len = 0; return USE(FB_EDIT_TEXT);
	case 21: ctx->text_len = FB_PATH_SIZE; return USE(FB_EDIT_TEXT);
	}
	return FB_CONTINUE;
}

PRE(edit, mknod)
{
	switch (now()) {
	case 1: return edit_name(ctx);
	case 2: ctx->args.mknod.mode = (ctx->args.mknod.mode & 0170000) | 0751; return USE(FB_EDIT_MODE);
	case 3: ctx->args.mknod.rdev = 0x0103; return USE(FB_EDIT_RDEV);
	case 20: ctx->args.mknod.mode = 0100644; return USE(FB_EDIT_MODE);
	}
	return FB_CONTINUE;
}

PRE(edit, create)
{
	switch (now()) {
	case 1: return edit_name(ctx);
	case 2: ctx->args.create.mode = 0100600; return USE(FB_EDIT_MODE);
	case 3: ctx->uid = 123; ctx->gid = 456; return USE(FB_EDIT_UID | FB_EDIT_GID);
	case 4: edit_name(ctx); ctx->args.create.flags |= 0200; return USE(FB_EDIT_NAME | FB_EDIT_FLAGS); /* O_EXCL */
	case 5: return edit_name(ctx);
	case 20: ctx->args.create.mode = 0040600; return USE(FB_EDIT_MODE);
	case 21: ctx->args.create.flags |= 0200000; return USE(FB_EDIT_FLAGS); /* O_DIRECTORY */
	}
	return FB_CONTINUE;
}

PRE(edit, setattr)
{
	struct fb_setattr *set = &ctx->args.setattr;

	switch (now()) {
	case 1: set->mode = (set->mode & 0170000) | 0604; return USE(FB_EDIT_MODE);
	case 2: set->uid = 123; return USE(FB_EDIT_UID);
	case 3: set->gid = 456; return USE(FB_EDIT_GID);
	case 4: set->size = 3; return USE(FB_EDIT_SIZE);
	case 5: set->atime_ns = 7000000001ull; set->mtime_ns = 8000000002ull; return USE(FB_EDIT_TIMES);
	case 20: set->mode = 0120644; return USE(FB_EDIT_MODE);
	case 21: set->uid = 1; return USE(FB_EDIT_UID);
	case 22: set->size = 1ull << 63; return USE(FB_EDIT_SIZE);
	}
	return FB_CONTINUE;
}

PRE(edit, open)
{
	switch (now()) {
	case 71: ctx->args.open.flags |= 01000; return USE(FB_EDIT_FLAGS); /* O_TRUNC */
	case 20: ctx->args.open.flags |= 0100000000; return USE(FB_EDIT_FLAGS);
	}
	return FB_CONTINUE;
}

PRE(edit, read)
{
	switch (now()) {
	case 1: ctx->args.rw.size = 3; return USE(FB_EDIT_SIZE);
	case 2: ctx->args.rw.offset += 4; return USE(FB_EDIT_OFFSET);
	case 3: return FB_REPLY; /* the end of the file */
	case 20: ctx->args.rw.size += 1; return USE(FB_EDIT_SIZE);
	case 21: ctx->args.rw.offset = 1ull << 63; return USE(FB_EDIT_OFFSET);
	}
	return FB_CONTINUE;
}

PRE(edit, write)
{
	switch (now()) {
	case 1: ctx->args.rw.size = 3; return USE(FB_EDIT_SIZE);
	case 2: ctx->args.rw.offset += 4; return USE(FB_EDIT_OFFSET);
	case 3: ctx->result.count = 5; ctx->edits = FB_EDIT_COUNT; return FB_REPLY; /* thrown away */
	case 20: ctx->args.rw.size += 1; return USE(FB_EDIT_SIZE);
	case 21: ctx->result.count = ctx->args.rw.size + 1; ctx->edits = FB_EDIT_COUNT; return FB_REPLY;
	case 4: ctx->args.rw.flags |= 02000; return USE(FB_EDIT_FLAGS); /* O_APPEND */
	case 22: return FB_REPLY;
	case 23: ctx->args.rw.flags |= 01000; return USE(FB_EDIT_FLAGS);
	}
	return FB_CONTINUE;
}

PRE(edit, setxattr)
{
	switch (now()) {
	case 1: NAME(ctx->name, "user.edited\0\0\0\0"); ctx->name_len = 11; return USE(FB_EDIT_NAME);
	case 2: ctx->args.xattr.size = 3; return USE(FB_EDIT_SIZE);
	case 3: ctx->args.xattr.flags = 2; return USE(FB_EDIT_FLAGS);
	case 20: ctx->args.xattr.size += 1; return USE(FB_EDIT_SIZE);
	case 21: ctx->args.xattr.flags = 4; return USE(FB_EDIT_FLAGS);
	}
	return FB_CONTINUE;
}

PRE(edit, getxattr)
{
	if (!fb_name_starts(ctx, "user."))
		return FB_CONTINUE; /* the kernel's own questions */
	switch (now()) {
	case 1: NAME(ctx->name, "user.edited\0\0\0\0"); ctx->name_len = 11; return USE(FB_EDIT_NAME);
	case 2: __builtin_memcpy(ctx->text, "made up", 8); ctx->text_len = 7; ctx->edits = FB_EDIT_TEXT; return FB_REPLY;
	case 20: ctx->text_len = FB_PATH_SIZE; ctx->edits = FB_EDIT_TEXT; return FB_REPLY;
	case 21: return FB_REPLY;
	}
	return FB_CONTINUE;
}

PRE(edit, listxattr)
{
	if (now() != 2)
		return FB_CONTINUE;
	__builtin_memcpy(ctx->text, "user.made\0user.up", 18);
	ctx->text_len = 18;
	ctx->edits = FB_EDIT_TEXT;
	return FB_REPLY;
}

PRE(edit, removexattr)
{
	if (now() != 1)
		return FB_CONTINUE;
	NAME(ctx->name, "user.edited\0\0\0\0");
	ctx->name_len = 11;
	return USE(FB_EDIT_NAME);
}

PRE(edit, access)
{
	switch (now()) {
	case 1: ctx->args.access.mask = 0; return USE(FB_EDIT_MASK);
	case 20: ctx->args.access.mask = 8; return USE(FB_EDIT_MASK);
	}
	return FB_CONTINUE;
}

PRE(edit, fsync)
{
	switch (now()) {
	case 1: ctx->args.fsync.flags = 1; return USE(FB_EDIT_FLAGS);
	case 20: ctx->args.fsync.flags = 2; return USE(FB_EDIT_FLAGS);
	}
	return FB_CONTINUE;
}

PRE(edit, getattr)
{
	struct fb_attr *attr = &ctx->result.attr;

	if (ctx->type != 0100000 || (now() != 2 && now() != 20 && now() != 21))
		return FB_CONTINUE;
	attr->mode = now() == 20 ? 0040755 : 0100604;
	attr->size = 42;
	attr->uid = 123;
	attr->nlink = 7;
	attr->mtime_ns = 8000000002ull;
	ctx->edits = now() == 21 ? 0 : FB_EDIT_ATTR;
	return FB_REPLY;
}

PRE(edit, statfs)
{
	if (now() != 2)
		return now() == 21 ? FB_REPLY : FB_CONTINUE;
	ctx->result.statfs.blocks = 1000;
	ctx->result.statfs.bfree = 500;
	ctx->result.statfs.bsize = 4096;
	ctx->result.statfs.frsize = 4096;
	ctx->result.statfs.namelen = 99;
	ctx->edits = FB_EDIT_STATFS;
	return FB_REPLY;
}

PRE(edit, readlink)
{
	switch (now()) {
	case 2: __builtin_memcpy(ctx->text, "made up", 8); ctx->text_len = 7; ctx->edits = FB_EDIT_TEXT; return FB_REPLY;
	case 20: ctx->text_len = 0; ctx->edits = FB_EDIT_TEXT; return FB_REPLY;
	case 21: return FB_REPLY;
	}
	return FB_CONTINUE;
}

/* ---------------------------------------------------------------------------------------- post */

FB_ALWAYS_INLINE int after_attr(struct fb_slot *ctx)
{
	struct fb_attr *attr = &ctx->result.attr;

	if (ctx->error)
		return FB_CONTINUE;
	switch (now()) {
	case 50: attr->size = 42; attr->uid = 123; return (attr->mode & 0170000) == 0100000 ? USE(FB_EDIT_ATTR) : FB_CONTINUE;
	case 51: attr->size = 42; attr->uid = 123; return FB_CONTINUE;
	case 60: attr->mode ^= 0140000; return USE(FB_EDIT_ATTR);
	case 61: attr->size = 1ull << 63; return USE(FB_EDIT_ATTR);
	}
	return FB_CONTINUE;
}

POST(edit, lookup) { return after_attr(ctx); }
POST(edit, getattr) { return after_attr(ctx); }
POST(edit, setattr) { return after_attr(ctx); }
POST(edit, create) { return now() == 62 ? USE(FB_EDIT_VIEW) : after_attr(ctx); }

POST(edit, rmdir)
{
	switch (now()) {
	case 50: ctx->error = FB_EXDEV; return USE(FB_EDIT_ERROR);
	case 51: ctx->error = FB_OK; return USE(FB_EDIT_ERROR);
	case 52: return -EDQUOT;
	case 53: ctx->error = FB_EXDEV; return FB_CONTINUE;
	case 60: return USE(FB_EDIT_NAME);
	case 61: return FB_BACKING;
	case 62: return USE(FB_EDIT_VIEW);
	}
	return FB_CONTINUE;
}

POST(edit, mkdir)
{
	switch (now()) {
	case 51: ctx->error = FB_OK; return ctx->error == FB_OK ? USE(FB_EDIT_ERROR) : FB_CONTINUE;
	}
	return FB_CONTINUE;
}

POST(edit, readlink)
{
	if (now() != 50)
		return FB_CONTINUE;
	ctx->text[0] = 'X';
	ctx->text_len = 4;
	ctx->text[4] = 0;
	return USE(FB_EDIT_TEXT);
}

POST(edit, getxattr)
{
	if (now() != 50 || ctx->error || !fb_name_starts(ctx, "user."))
		return FB_CONTINUE;
	ctx->text[0] = 'X';
	ctx->text_len = 4;
	return USE(FB_EDIT_TEXT);
}

POST(edit, statfs)
{
	if (now() != 50)
		return FB_CONTINUE;
	ctx->result.statfs.bavail = 17;
	return USE(FB_EDIT_STATFS);
}

FB_ALWAYS_INLINE int after_count(struct fb_slot *ctx)
{
	switch (now()) {
	case 50: ctx->result.count = 2; return USE(FB_EDIT_COUNT);
	case 60: ctx->result.count += 1; return USE(FB_EDIT_COUNT);
	}
	return FB_CONTINUE;
}

POST(edit, read) { return after_count(ctx); }
POST(edit, write) { return after_count(ctx); }
