/* SPDX-License-Identifier: Apache-2.0 OR MIT OR GPL-2.0 */
#include "fusebpf.h"

FILTER(noexec, .altitude = FB_POLICY + 35, .wants = FB_WANTS_PATH | FB_WANTS_IDS,
       .doc = "Programs below the paths in its map `paths`, and any by the users in `uids`, cannot be executed (EACCES), "
	      "as far as the kernel tells.")

BPF_ARRAY(noexec__paths, struct fb_patterns, 1);
BPF_HASH(noexec__uids, u32, u32, 4096);

PRE(noexec, open)
{
	u32 first = 0;

	if (!(ctx->flags & FB_KNOWN_EXEC))
		return FB_CONTINUE;
	if (noexec__uids.lookup(&ctx->uid))
		return -EACCES;
	if (ctx->flags & FB_PATH_LOST)
		return -EACCES;
	return fb_match_path(ctx, noexec__paths.lookup(&first), FB_MATCH_BELOW) ? -EACCES : FB_CONTINUE;
}
