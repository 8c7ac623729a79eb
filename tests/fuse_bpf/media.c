/* Owners, and what all may read, pass at once; files that are no one else's business are refused; the rest is asked for. */
#include "fusebpf.h"

FILTER(media, .altitude = FB_POLICY + 5, .wants = FB_WANTS_IDS | FB_WANTS_DAEMON, .doc = "Easy decisions here, hard ones elsewhere.")

enum { EASY = 1, CLOSED = 2, HARD = 3 };

POST(media, lookup)
{
	u32 mode = ctx->result.attr.mode;

	if (ctx->error)
		return FB_CONTINUE;
	/* The tag is the owner, beside how hard it is. */
	ctx->tag = (u64)ctx->result.attr.uid << 8 | (mode & 04 ? EASY : mode & 040 ? HARD : CLOSED);
	ctx->edits |= FB_EDIT_TAG;
	return FB_REWRITE;
}

PRE(media, open)
{
	if ((ctx->tag & 0xff) == EASY || ctx->tag >> 8 == ctx->uid)
		return FB_CONTINUE;
	return (ctx->tag & 0xff) == HARD ? FB_DAEMON : -EACCES;
}
