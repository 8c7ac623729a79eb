/* Two filters that set the tags that their maps say, and note those that they see. */
#include "fusebpf.h"

/* By op: seen before and after, the second one's, whether it was mixed; what to set, and one more, so that 1 clears. */
struct seen {
	u64 before, after, second, before_mixed, after_mixed;
};
BPF_ARRAY(one__seen, struct seen, 256);
BPF_ARRAY(two__seen, struct seen, 256);
BPF_ARRAY(one__set_before, u64, 256);
BPF_ARRAY(two__set_before, u64, 256);
BPF_ARRAY(one__set_after, u64, 256);

FILTER(one, .altitude = FB_POLICY + 1)
FILTER(two, .altitude = FB_POLICY)

FB_ALWAYS_INLINE int tag_before(struct fb_slot *ctx, struct seen *seen, const u64 *set)
{
	if (seen) {
		seen->before = ctx->tag;
		seen->second = ctx->tag2;
		seen->before_mixed = !!(ctx->flags & FB_TAG_MIXED);
	}
	if (!set || !*set)
		return FB_CONTINUE;
	ctx->tag = *set - 1;
	ctx->edits = FB_EDIT_TAG;
	return FB_REWRITE;
}

PRE(one, any)
{
	u32 op = ctx->op;

	return tag_before(ctx, one__seen.lookup(&op), one__set_before.lookup(&op));
}

PRE(two, any)
{
	u32 op = ctx->op;

	return tag_before(ctx, two__seen.lookup(&op), two__set_before.lookup(&op));
}

POST(one, any)
{
	u32 op = ctx->op;
	struct seen *seen = one__seen.lookup(&op);
	u64 *set = one__set_after.lookup(&op);

	if (seen) {
		seen->after = ctx->tag;
		seen->after_mixed = !!(ctx->flags & FB_TAG_MIXED);
	}
	if (!set || !*set || ctx->error)
		return FB_CONTINUE;
	ctx->tag = *set - 1;
	ctx->edits = FB_EDIT_TAG;
	return FB_REWRITE;
}

POST(one, dirent)
{
	u32 op = ctx->op;
	struct seen *seen = one__seen.lookup(&op);

	if (seen)
		seen->after = ctx->tag;
	return FB_CONTINUE;
}
