/* Notes who called, and whether a thread is the one that the name which it looks up says. */
#include "fusebpf.h"

FILTER(who, .altitude = FB_WATCH + 20, .wants = FB_WANTS_CALLER)

struct caller_seen {
	struct fb_caller caller;
	u64 n_known, n_unknown;
};
BPF_ARRAY(who__seen, struct caller_seen, 256); /* by op */
BPF_ARRAY(who__wrong, u64, 1);

PRE(who, any)
{
	u32 op = ctx->op, zero = 0;
	struct caller_seen *seen = who__seen.lookup(&op);
	u64 *wrong = who__wrong.lookup(&zero);

	if (!seen || !wrong)
		return FB_CONTINUE;
	seen->caller = ctx->caller;
	__sync_fetch_and_add(ctx->flags & FB_CALLER_KNOWN ? &seen->n_known : &seen->n_unknown, 1);
	/* A thread that is called who-0007 looks up who-0007. */
	if (ctx->op == FB_OP_lookup && fb_name_starts(ctx, "who-") &&
	    fb_differs(ctx->name.text, 0, ctx->caller.comm, 8))
		__sync_fetch_and_add(wrong, 1);
	return FB_CONTINUE;
}
