/* Who is in `by_uid` sees each file in that view: in views that are not 0 files have at most three bytes. */
#include "fusebpf.h"

FILTER(view, .altitude = FB_VIEW, .doc = "Three bytes are enough.")

BPF_HASH(view__by_uid, u32, u32, 16);
BPF_HASH(view__by_owner, u32, u32, 16); /* the owner of the file, judged after the lookup */
BPF_ARRAY(view__seen, u32, 256);	/* by op: the view after it */
BPF_ARRAY(view__ttl, u64, 1);

FB_ALWAYS_INLINE int view_pick(struct fb_slot *ctx)
{
	u32 *view = view__by_uid.lookup(&ctx->uid), zero = 0;
	u64 *ttl = view__ttl.lookup(&zero);

	if (view) {
		ctx->view = *view;
		ctx->edits |= FB_EDIT_VIEW;
	}
	if (ttl && *ttl) {
		ctx->ttl_ns = *ttl;
		ctx->edits |= FB_EDIT_TTL;
	}
	return ctx->edits ? FB_REWRITE : FB_CONTINUE;
}

FB_ALWAYS_INLINE int view_show(struct fb_slot *ctx)
{
	u32 op = ctx->op, *seen = view__seen.lookup(&op);

	if (seen)
		*seen = ctx->view;
	if (ctx->error || !ctx->view || (ctx->result.attr.mode & 0170000) != 0100000 || ctx->result.attr.size <= 3)
		return FB_CONTINUE;
	ctx->result.attr.size = 3;
	ctx->edits = FB_EDIT_ATTR;
	return FB_REWRITE;
}

FB_ALWAYS_INLINE int view_note(struct fb_slot *ctx)
{
	u32 op = ctx->op, *seen = view__seen.lookup(&op);

	if (seen)
		*seen = ctx->view;
	return FB_CONTINUE;
}

PRE(view, lookup) { return view_pick(ctx); }
PRE(view, create) { return view_pick(ctx); }
PRE(view, mkdir) { return view_pick(ctx); }
PRE(view, mknod) { return view_pick(ctx); }
PRE(view, symlink) { return view_pick(ctx); }
PRE(view, tmpfile) { return view_pick(ctx); }

POST(view, lookup)
{
	u32 owner = ctx->result.attr.uid, *view = view__by_owner.lookup(&owner);

	if (!view || ctx->error)
		return view_show(ctx);
	ctx->view = *view;
	view_show(ctx);
	ctx->edits |= FB_EDIT_VIEW;
	return FB_REWRITE;
}

POST(view, getattr) { return view_show(ctx); }
POST(view, setattr) { return view_show(ctx); }
POST(view, create) { return view_show(ctx); }
POST(view, tmpfile) { return view_show(ctx); }
POST(view, link) { return view_show(ctx); }
POST(view, mknod) { return view_show(ctx); }
POST(view, mkdir) { return view_note(ctx); }
POST(view, symlink) { return view_note(ctx); }
POST(view, open) { return view_note(ctx); }
POST(view, opendir) { return view_note(ctx); }
POST(view, unlink) { return view_note(ctx); }
