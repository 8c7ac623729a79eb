/* SPDX-License-Identifier: Apache-2.0 OR MIT OR GPL-2.0 */
#include "fusebpf.h"

FILTER(hide, .altitude = FB_POLICY + 10,
       .doc = "Hides the names and globs in its map `names`: absent to lookup, gone from listings, "
	      "EACCES where one would be made.")

BPF_ARRAY(hide__names, struct fb_patterns, 1);
BPF_ARRAY(hide__ttl, u32, 1); /* ms; how long the kernel may keep that a name is not hidden, and what is listed */

FB_ALWAYS_INLINE struct fb_patterns *hide_patterns(void)
{
	u32 first = 0;

	return hide__names.lookup(&first);
}

FB_ALWAYS_INLINE u64 hide_ttl_ns(void)
{
	u32 first = 0, *ttl = hide__ttl.lookup(&first);

	return ttl ? *ttl * 1000000ull : 0;
}

/* What is judged by its name alone is the same for every caller, so the answer may be kept, where there is one. */
FB_ALWAYS_INLINE int hide_pass(struct fb_slot *ctx)
{
	u64 ttl_ns = hide_ttl_ns();

	if (!ttl_ns || ctx->op == FB_OP_unlink || ctx->op == FB_OP_rmdir || ctx->op == FB_OP_rename)
		return FB_CONTINUE | FB_NOPOST;
	ctx->ttl_ns = ttl_ns;
	ctx->edits |= FB_EDIT_TTL;
	return FB_CONTINUE | FB_NOPOST | FB_REWRITE;
}

PRE(hide, name)
{
	if (!fb_match_names(ctx, hide_patterns()))
		return hide_pass(ctx);
	if (ctx->op == FB_OP_lookup)
		return FB_NEGATIVE;
	return ctx->op == FB_OP_unlink || ctx->op == FB_OP_rmdir ? -ENOENT : -EACCES;
}

POST(hide, dirent)
{
	u32 verdict = fb_match_name(ctx, hide_patterns()) ? FB_DROP : FB_CONTINUE;

	ctx->ttl_ns = hide_ttl_ns();
	if (!ctx->ttl_ns)
		return verdict;
	ctx->edits |= FB_EDIT_TTL;
	return verdict | FB_REWRITE;
}
