/* Filters on data beside a daemon. */
#include "fusebpf.h"

FILTER(value, .altitude = 500, .wants = FB_WANTS_DATA, .doc = "The first byte of each value that is set becomes an X.")
PRE(value, setxattr)
{
	u8 *first = fb_byte(fb_data(ctx), 0);

	if (!first || !fb_name_starts(ctx, "user."))
		return FB_CONTINUE;
	*first = 'X';
	ctx->edits |= FB_EDIT_DATA;
	return FB_REWRITE;
}

FILTER(look, .altitude = 490, .wants = FB_WANTS_DATA | FB_WANTS_DAEMON, .doc = "The daemon looks at what is read.")
POST(look, read)
{
	return FB_DAEMON;
}

FILTER(empty, .altitude = 480, .doc = "Nothing is listed.")
POST(empty, dirent)
{
	return FB_DROP;
}

FILTER(slow, .altitude = 470, .doc = "A close takes its time.")
PRE(slow, flush)
{
	ctx->delay_ns = 3000000000ull;
	ctx->edits |= FB_EDIT_DELAY;
	return FB_REWRITE;
}
