/* Asks for the I/O mode that its map `want` says: at 0 before an open, at 1 after it. */
#include "fusebpf.h"

FILTER(io, .altitude = FB_STORE + 50, .doc = "Asks for I/O modes.")

BPF_ARRAY(want, u32, 2);

FB_ALWAYS_INLINE u32 wanted(u32 index)
{
	u32 *mode = want.lookup(&index);

	return mode ? *mode : 0;
}

FB_ALWAYS_INLINE int ask(struct fb_slot *ctx, u32 *io_mode, u32 index)
{
	u32 mode = wanted(index);

	if (!mode || ctx->error)
		return FB_CONTINUE;
	*io_mode = mode;
	ctx->edits |= FB_EDIT_IO;
	return FB_REWRITE;
}

PRE(io, open) { return ask(ctx, &ctx->args.open.io_mode, 0); }
POST(io, open) { return ask(ctx, &ctx->args.open.io_mode, 1); }
PRE(io, create) { return ask(ctx, &ctx->args.create.io_mode, 0); }
POST(io, create) { return ask(ctx, &ctx->args.create.io_mode, 1); }
PRE(io, tmpfile) { return ask(ctx, &ctx->args.create.io_mode, 0); }
