/* SPDX-License-Identifier: Apache-2.0 OR MIT OR GPL-2.0 */
#include "fusebpf.h"
#include <linux/falloc.h>
#include <linux/fcntl.h>
#include <linux/fs.h>
#include <linux/stat.h>

FILTER(worm, .altitude = FB_POLICY + 30, .wants = FB_WANTS_PATH,
       .doc = "Write once, append only (EPERM): files below the paths in `paths` and with names in `names`; with both "
	      "maps empty, all files.")

BPF_ARRAY(worm__paths, struct fb_patterns, 1);
BPF_ARRAY(worm__names, struct fb_patterns, 1);

/* A file's tag: its size and 1, so that 0 is a file that may be changed. */

FB_ALWAYS_INLINE int worm_is_all(void)
{
	u32 first = 0;
	struct fb_patterns *paths = worm__paths.lookup(&first), *names = worm__names.lookup(&first);

	return paths && names && !paths->list[0].text[0] && !names->list[0].text[0];
}

/* Are all files kept, or the entry by its name, or either of a rename's? */
FB_ALWAYS_INLINE int worm_keeps_name(const struct fb_slot *ctx)
{
	u32 first = 0;

	return worm_is_all() || fb_match_names(ctx, worm__names.lookup(&first));
}

FB_ALWAYS_INLINE int worm_keeps(const struct fb_slot *ctx)
{
	u32 first = 0;
	struct fb_patterns *paths = worm__paths.lookup(&first);

	if (worm_keeps_name(ctx))
		return 1;
	if (!paths || !paths->list[0].text[0])
		return 0;
	return (ctx->flags & FB_PATH_LOST) ||
	       fb_match_as(ctx, paths, ctx->path, 0, FB_MATCH_BELOW | FB_MATCH_ABOVE, ctx->op != FB_OP_rmdir);
}

FB_ALWAYS_INLINE int worm_is_file(const struct fb_slot *ctx)
{
	return !ctx->error && S_ISREG(ctx->result.attr.mode);
}

FB_ALWAYS_INLINE int worm_note(struct fb_slot *ctx)
{
	u64 end = ctx->result.attr.size + 1;

	if (!worm_is_file(ctx))
		return FB_CONTINUE;
	/* What was asked of the backing root may be older than the last write: a file's end does not come back. And what is kept
	 * by one of its names is not let go by another one. */
	if (worm_keeps(ctx) || (ctx->tag && ctx->result.attr.nlink > 1))
		ctx->tag = end > ctx->tag ? end : ctx->tag;
	else
		ctx->tag = 0;
	ctx->edits |= FB_EDIT_TAG;
	return FB_REWRITE;
}

POST(worm, lookup) { return worm_note(ctx); }
POST(worm, create) { return worm_note(ctx); }
POST(worm, mknod) { return worm_note(ctx); }

/* By a new name a file does not become one that may be changed. */
PRE(worm, link) { return ctx->tag2 ? -EPERM : FB_CONTINUE; }
POST(worm, link) { return worm_note(ctx); }

PRE(worm, unlink) { return worm_keeps(ctx) ? -EPERM : FB_CONTINUE; }
PRE(worm, rmdir) { return worm_keeps(ctx) ? -EPERM : FB_CONTINUE; }

/* What is above a kept path is kept with it. */
PRE(worm, rename)
{
	u32 first = 0;
	struct fb_patterns *paths = worm__paths.lookup(&first);
	/* What is exchanged leaves both of its places. */
	u64 second = ctx->args.rename.flags & RENAME_EXCHANGE ? FB_PATH_SIZE : 0;

	if (worm_keeps_name(ctx))
		return -EPERM;
	if (!paths || !paths->list[0].text[0])
		return FB_CONTINUE;
	if (ctx->flags & FB_PATH_LOST)
		return -EPERM;
	if (fb_match_as(ctx, paths, ctx->path, second, FB_MATCH_BELOW | FB_MATCH_ABOVE, !fb_moves_directory(ctx)))
		return -EPERM;
	if (!fb_match_paths(ctx, paths, FB_MATCH_BELOW))
		return FB_CONTINUE;
	/* What comes in does not take the place of what is there. */
	ctx->args.rename.flags |= RENAME_NOREPLACE;
	ctx->edits |= FB_EDIT_FLAGS;
	return FB_REWRITE;
}

PRE(worm, setattr)
{
	int is_resized = ctx->tag && (ctx->args.setattr.valid & FB_SET_SIZE) && ctx->args.setattr.size != ctx->tag - 1;

	return is_resized ? -EPERM : FB_CONTINUE;
}

PRE(worm, open) { return ctx->tag > 1 && (ctx->args.open.flags & O_TRUNC) ? -EPERM : FB_CONTINUE; }
PRE(worm, fallocate) { return ctx->tag && (ctx->args.fallocate.mode & ~FALLOC_FL_KEEP_SIZE) ? -EPERM : FB_CONTINUE; }

PRE(worm, write)
{
	int is_append = ctx->args.rw.flags & O_APPEND || ctx->args.rw.offset >= ctx->tag - 1;

	return ctx->tag && !is_append ? -EPERM : FB_CONTINUE;
}

POST(worm, write)
{
	u64 end = ctx->args.rw.offset + ctx->result.count + 1;

	if (ctx->error || !ctx->tag)
		return FB_CONTINUE;
	if (ctx->args.rw.flags & O_APPEND)
		end = ctx->tag + ctx->result.count;
	if (end <= ctx->tag)
		return FB_CONTINUE;
	ctx->tag = end;
	ctx->edits |= FB_EDIT_TAG;
	return FB_REWRITE;
}
