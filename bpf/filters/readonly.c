/* SPDX-License-Identifier: Apache-2.0 OR MIT OR GPL-2.0 */
#include "fusebpf.h"
#include <linux/fcntl.h>

#define W_OK 2

FILTER(readonly, .altitude = FB_POLICY + 20, .wants = FB_WANTS_PATH,
       .doc = "Makes the paths in its map `paths`, and all below them, read-only (EROFS); with an empty map, "
	      "everything.")

BPF_ARRAY(readonly__paths, struct fb_patterns, 1);

FB_ALWAYS_INLINE int readonly_judge(const struct fb_slot *ctx)
{
	u32 first = 0;
	struct fb_patterns *patterns = readonly__paths.lookup(&first);

	if (ctx->op == FB_OP_open && (ctx->args.open.flags & O_ACCMODE) == 0 &&
	    !(ctx->args.open.flags & O_TRUNC))
		return FB_CONTINUE;
	if (ctx->op == FB_OP_access && !(ctx->args.access.mask & W_OK))
		return FB_CONTINUE;
	if (ctx->op == FB_OP_ioctl && !ctx->args.ioctl.in_size) /* it only asks */
		return FB_CONTINUE;
	if (!patterns || !patterns->list[0].text[0] || (ctx->flags & FB_PATH_LOST))
		return -EROFS;
	/* Whoever moves a directory above a path moves what is protected there; a new entry must not be below one. */
	return fb_match_op(ctx, patterns) ? -EROFS : FB_CONTINUE;
}

PRE(readonly, setattr) { return readonly_judge(ctx); }
PRE(readonly, symlink) { return readonly_judge(ctx); }
PRE(readonly, mknod) { return readonly_judge(ctx); }
PRE(readonly, mkdir) { return readonly_judge(ctx); }
PRE(readonly, unlink) { return readonly_judge(ctx); }
PRE(readonly, rmdir) { return readonly_judge(ctx); }
PRE(readonly, rename) { return readonly_judge(ctx); }
PRE(readonly, link) { return readonly_judge(ctx); }
PRE(readonly, open) { return readonly_judge(ctx); }
PRE(readonly, create) { return readonly_judge(ctx); }
PRE(readonly, setxattr) { return readonly_judge(ctx); }
PRE(readonly, removexattr) { return readonly_judge(ctx); }
PRE(readonly, access) { return readonly_judge(ctx); }
PRE(readonly, ioctl) { return readonly_judge(ctx); }
PRE(readonly, tmpfile) { return readonly_judge(ctx); }
PRE(readonly, fallocate) { return readonly_judge(ctx); }
