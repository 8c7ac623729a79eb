/* A filter for each place: it sends mkdir to the daemon before, after, or both, and has a post hook of its own. */
#include "fusebpf.h"

FILTER(before, .altitude = 500, .wants = FB_WANTS_DAEMON)
PRE(before, mkdir)
{
	return FB_DAEMON;
}

POST(before, mkdir)
{
	ctx->result.attr.gid = 4321;
	ctx->edits |= FB_EDIT_ATTR;
	return FB_REWRITE;
}

FILTER(after, .altitude = 510, .wants = FB_WANTS_DAEMON)
POST(after, mkdir)
{
	return FB_DAEMON;
}

FILTER(top, .altitude = 520)
POST(top, mkdir)
{
	ctx->result.attr.uid = 1234;
	ctx->edits |= FB_EDIT_ATTR;
	return FB_REWRITE;
}

FILTER(straight, .altitude = 530)
PRE(straight, mkdir)
{
	return FB_BACKING;
}
