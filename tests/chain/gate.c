/* A filter whose verdict on each op is set from outside, and that counts its runs. */
#include "fusebpf.h"

FILTER(gate, .altitude = FB_POLICY, .doc = "Says what its maps say.")

/* By op: what the pre hook and the post hook return. */
BPF_ARRAY(gate__pre, int, 256);
BPF_ARRAY(gate__post, int, 256);
/* By op: how often the hooks ran; the last errno that the post hook saw. */
BPF_ARRAY(gate__pre_ran, u32, 256);
BPF_ARRAY(gate__post_ran, u32, 256);
BPF_ARRAY(gate__error, u32, 256);
/* Where not 0: how long a negative entry lasts, in nanoseconds. */
BPF_ARRAY(gate__ttl, u64, 1);

PRE(gate, any)
{
	u32 op = ctx->op, zero = 0;
	int *said = gate__pre.lookup(&op);
	u32 *ran = gate__pre_ran.lookup(&op);
	u64 *ttl = gate__ttl.lookup(&zero);

	if (ran)
		__sync_fetch_and_add(ran, 1);
	if (said && *said == FB_NEGATIVE && ttl && *ttl) {
		ctx->ttl_ns = *ttl;
		ctx->edits = FB_EDIT_TTL;
		return FB_NEGATIVE | FB_REWRITE;
	}
	return said ? *said : FB_CONTINUE;
}

FB_ALWAYS_INLINE int gate_after(struct fb_slot *ctx)
{
	u32 op = ctx->op;
	int *said = gate__post.lookup(&op);
	u32 *ran = gate__post_ran.lookup(&op);
	u32 *error = gate__error.lookup(&op);

	if (ran)
		__sync_fetch_and_add(ran, 1);
	if (error)
		*error = ctx->error;
	return said ? *said : FB_CONTINUE;
}

POST(gate, any) { return gate_after(ctx); }
POST(gate, dirent) { return gate_after(ctx); }
