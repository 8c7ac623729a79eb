/* Files and values are stored with each byte changed. */
#include "fusebpf.h"

FILTER(scramble, .altitude = FB_DATA, .wants = FB_WANTS_DATA, .doc = "No byte is stored as it is written.")

FB_ALWAYS_INLINE int scramble(struct fb_slot *ctx)
{
	struct fb_window *data = fb_data(ctx);

	if (!data)
		return FB_CONTINUE;
	FB_EACH_WORD(i, ctx->data_len)
		*fb_word(data, i) ^= FB_EVERY_BYTE(0x5a);
	ctx->edits |= FB_EDIT_DATA;
	return FB_REWRITE;
}

PRE(scramble, write) { return scramble(ctx); }
POST(scramble, read) { return scramble(ctx); }
PRE(scramble, setxattr) { return scramble(ctx); }
