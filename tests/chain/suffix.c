/* Names that are stored with a suffix: tests/chain/test_names_agree.py. */
#include "fusebpf.h"

FILTER(suffix, .altitude = FB_VIEW + 10, .doc = "Every name is stored with `.x` behind it, and shown without.")

FB_ALWAYS_INLINE int suffix_add(struct fb_name *name, u32 *len)
{
	u32 at = *len;

	if (at > FB_NAME_SIZE - 3)
		return -ENAMETOOLONG;
	name->text[FB_INDEX(at)] = '.';
	name->text[FB_INDEX(at + 1)] = 'x';
	*len = at + 2;
	return 0;
}

PRE(suffix, name)
{
	int e = suffix_add(&ctx->name, &ctx->name_len);

	ctx->edits |= FB_EDIT_NAME;
	if (!e && ctx->op == FB_OP_rename) {
		e = suffix_add(&ctx->name2, &ctx->name2_len);
		ctx->edits |= FB_EDIT_NAME2;
	}
	return e ? e : FB_REWRITE;
}

POST(suffix, dirent)
{
	if (!fb_name_ends(ctx, ".x") || ctx->name_len < 3)
		return FB_DROP;
	ctx->name_len -= 2;
	ctx->name.text[FB_INDEX(ctx->name_len)] = 0;
	ctx->name.text[FB_INDEX(ctx->name_len + 1)] = 0;
	ctx->edits |= FB_EDIT_NAME;
	return FB_REWRITE;
}
