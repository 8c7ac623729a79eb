/* Names that begin with x are in the backing root that `roots__to` says; `seen` is what each op's hooks saw, by op. */
#include "fusebpf.h"

FILTER(roots, .altitude = FB_VIEW, .doc = "Names that begin with x are elsewhere.")

BPF_ARRAY(roots__to, u32, 1);
BPF_ARRAY(roots__seen, u32, 256);
BPF_ARRAY(roots__open, u32, 1); /* for open: the root and 1 */

FB_ALWAYS_INLINE int roots_note(struct fb_slot *ctx)
{
	u32 op = ctx->op, *seen = roots__seen.lookup(&op);

	if (seen)
		*seen = ctx->backing;
	return FB_CONTINUE;
}

FB_ALWAYS_INLINE int roots_lead(struct fb_slot *ctx)
{
	u32 first = 0, *to = roots__to.lookup(&first);

	if (!to)
		return -EIO;
	ctx->backing = *to;
	ctx->edits |= FB_EDIT_BACKING;
	return FB_REWRITE;
}

PRE(roots, name) { return ctx->name.text[0] == 'x' || ctx->name2.text[0] == 'x' ? roots_lead(ctx) : FB_CONTINUE; }
PRE(roots, tmpfile) { return roots_lead(ctx); }

PRE(roots, open)
{
	u32 first = 0, *root = roots__open.lookup(&first);

	roots_note(ctx);
	if (!root || !*root)
		return FB_CONTINUE;
	ctx->backing = *root - 1;
	ctx->edits |= FB_EDIT_BACKING;
	return FB_REWRITE;
}

POST(roots, lookup) { return roots_note(ctx); }
POST(roots, getattr) { return roots_note(ctx); }
POST(roots, mkdir) { return roots_note(ctx); }
