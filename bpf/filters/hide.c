/* SPDX-License-Identifier: Apache-2.0 OR MIT OR GPL-2.0 */
#include "fusebpf.h"

FILTER(hide, .altitude = FB_POLICY + 10,
       .doc = "Hides the names and globs in its map `names`: absent to lookup, gone from listings, "
	      "EACCES where one would be made.")

BPF_ARRAY(hide__names, struct fb_patterns, 1);

FB_ALWAYS_INLINE struct fb_patterns *hide_patterns(void)
{
	u32 first = 0;

	return hide__names.lookup(&first);
}

PRE(hide, name)
{
	if (!fb_match_names(ctx, hide_patterns()))
		return FB_CONTINUE | FB_NOPOST;
	if (ctx->op == FB_OP_lookup)
		return FB_NEGATIVE;
	return ctx->op == FB_OP_unlink || ctx->op == FB_OP_rmdir ? -ENOENT : -EACCES;
}

POST(hide, dirent)
{
	return fb_match_name(ctx, hide_patterns()) ? FB_DROP : FB_CONTINUE;
}
