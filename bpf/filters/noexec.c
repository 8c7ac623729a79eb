/* SPDX-License-Identifier: Apache-2.0 OR MIT OR GPL-2.0 */
#include "fusebpf.h"

FILTER(noexec, .altitude = FB_POLICY + 35, .wants = FB_WANTS_PATH | FB_WANTS_IDS | FB_WANTS_CALLER,
       .doc = "Programs below the paths in its map `paths`, and any by the users in `uids` or from the cgroups in "
	      "`cgroups`, cannot be executed (EACCES), as far as the kernel tells.")

#define N_CGROUPS 64

BPF_ARRAY(noexec__paths, struct fb_patterns, 1);
BPF_HASH(noexec__uids, u32, u32, 4096);
/* An array, as a program cannot tell whether a hash has items: with some, who is in no known cgroup is refused. */
BPF_ARRAY(noexec__cgroups, u64, N_CGROUPS);

FB_ALWAYS_INLINE int noexec_cgroup(const struct fb_slot *ctx)
{
	u32 i;

#pragma clang loop unroll(disable)
	for (i = 0; i < N_CGROUPS; i++) {
		u32 index = i;
		u64 *id = noexec__cgroups.lookup(&index);

		if (id && *id && (!(ctx->flags & FB_CALLER_KNOWN) || *id == ctx->caller.cgroup_id))
			return 1;
	}
	return 0;
}

PRE(noexec, open)
{
	u32 first = 0;

	if (!(ctx->flags & FB_KNOWN_EXEC))
		return FB_CONTINUE;
	if (noexec__uids.lookup(&ctx->uid) || noexec_cgroup(ctx))
		return -EACCES;
	if (ctx->flags & FB_PATH_LOST)
		return -EACCES;
	return fb_match_path(ctx, noexec__paths.lookup(&first), FB_MATCH_BELOW) ? -EACCES : FB_CONTINUE;
}
