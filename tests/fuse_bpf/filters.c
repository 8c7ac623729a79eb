/* One filter for each case of fuse-bpf's that has one; each acts on names or maps of its own. */
#include "fusebpf.h"

/* ------------------------------------------------------------------------ errnos, listings */

FILTER(errnos, .altitude = 700)
POST(errnos, removexattr) { return ctx->error == FB_ENODATA ? -EXDEV : FB_CONTINUE; }

FILTER(second, .altitude = 690, .doc = "Every second entry of a listing is left out: those with odd numbers.")
BPF_ARRAY(second__is_on, u64, 1);

POST(second, dirent)
{
	u32 first = 0;
	u64 *is_on = second__is_on.lookup(&first);

	return is_on && *is_on && ctx->name.text[FB_INDEX(ctx->name_len - 1)] & 1 ? FB_DROP : FB_CONTINUE;
}

/* ------------------------------------------------------------------------ chosen by inode */

FILTER(chosen, .altitude = 680, .doc = "A lookup says for each inode whether it may be opened.")
BPF_ARRAY(chosen__is_on, u64, 1);

POST(chosen, lookup)
{
	u32 first = 0;
	u64 *is_on = chosen__is_on.lookup(&first);

	if (ctx->error || !fb_name_starts(ctx, "chosen"))
		return FB_CONTINUE;
	ctx->tag = is_on && *is_on;
	ctx->edits |= FB_EDIT_TAG;
	return FB_REWRITE;
}

PRE(chosen, open) { return ctx->tag ? -EACCES : FB_CONTINUE; }

FILTER(failed, .altitude = 670, .doc = "A lookup that failed chooses for what is made then; and is counted.")
BPF_ARRAY(failed__count, u64, 1);

POST(failed, lookup)
{
	u32 first = 0;
	u64 *count = failed__count.lookup(&first);

	if (count && ctx->error == FB_ENOENT && fb_name_starts(ctx, "to-come"))
		__sync_fetch_and_add(count, 1);
	return FB_CONTINUE;
}

FB_ALWAYS_INLINE int failed_choose(struct fb_slot *ctx)
{
	u32 first = 0;
	u64 *count = failed__count.lookup(&first);

	if (ctx->error || !count || !*count || !fb_name_starts(ctx, "to-come"))
		return FB_CONTINUE;
	ctx->tag = 7;
	ctx->edits |= FB_EDIT_TAG;
	return FB_REWRITE;
}

POST(failed, create) { return failed_choose(ctx); }
POST(failed, mkdir) { return failed_choose(ctx); }
PRE(failed, setxattr) { return ctx->tag == 7 ? -EDQUOT : FB_CONTINUE; }

/* ------------------------------------------------------------------------ data and attributes */

FILTER(partial, .altitude = 600, .wants = FB_WANTS_DATA,
       .doc = "The first page of files of user 4321 comes from the filter, the rest from the backing root.")

POST(partial, lookup)
{
	if (ctx->error || ctx->result.attr.uid != 4321)
		return FB_CONTINUE;
	ctx->tag = 1;
	ctx->edits |= FB_EDIT_TAG;
	return FB_REWRITE;
}

PRE(partial, read)
{
	struct fb_window *data = fb_data(ctx);
	u32 len = ctx->data_len < 4096 ? ctx->data_len : 4096;

	if (!ctx->tag || ctx->args.rw.offset || !data)
		return FB_CONTINUE;
	FB_EACH_WORD(at, 4096)
		*fb_word(data, at) = FB_EVERY_BYTE('F');
	ctx->data_len = len;
	ctx->edits |= FB_EDIT_DATA;
	return FB_REPLY;
}

FILTER(attrs, .altitude = 590)
FB_ALWAYS_INLINE int attrs_edit(struct fb_slot *ctx)
{
	if (ctx->error || ctx->result.attr.gid != 4444)
		return FB_CONTINUE;
	ctx->result.attr.mode = (ctx->result.attr.mode & 0170000) | 0123;
	ctx->result.attr.mtime_ns = 1000000000;
	ctx->result.attr.uid = 99;
	ctx->edits |= FB_EDIT_ATTR;
	return FB_REWRITE;
}
POST(attrs, lookup) { return attrs_edit(ctx); }
POST(attrs, getattr) { return attrs_edit(ctx); }

POST(attrs, statfs)
{
	ctx->result.statfs.files = 4242;
	ctx->edits |= FB_EDIT_STATFS;
	return FB_REWRITE;
}

POST(attrs, lseek) { return FB_CONTINUE; }
PRE(attrs, getxattr) { return fb_name_is(ctx, "user.secret") ? -ENODATA : FB_CONTINUE; }
PRE(attrs, setxattr) { return fb_name_is(ctx, "user.fixed") ? -EPERM : FB_CONTINUE; }

/* ------------------------------------------------------------------------ callers */

FILTER(callers, .altitude = 580, .wants = FB_WANTS_IDS, .doc = "`private` is there for root alone.")
PRE(callers, lookup) { return ctx->uid && fb_name_is(ctx, "private") ? FB_NEGATIVE : FB_CONTINUE; }
