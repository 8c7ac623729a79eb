/* A filter that lists other names than there are, by how long they are. */
#include "fusebpf.h"

FILTER(entries, .altitude = FB_VIEW, .doc = "Names of two bytes are listed with 200 more, those of three not at all.")

POST(entries, dirent)
{
	if (ctx->name_len == 3)
		return FB_DROP;
	if (ctx->name_len != 2)
		return FB_CONTINUE;
	__builtin_memset(ctx->name.text + 2, 'x', 200);
	ctx->name_len = 202;
	ctx->edits |= FB_EDIT_NAME;
	return FB_REWRITE;
}
