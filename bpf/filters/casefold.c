/* SPDX-License-Identifier: Apache-2.0 OR MIT OR GPL-2.0 */
#include "fusebpf.h"

#define CASE 0x20 /* what tells a from A */
#define N_WORDS (FB_NAME_SIZE / 8)

/* Above the filters that judge names, so that they judge the stored one: a hidden name is hidden in upper case too. */
FILTER(casefold, .altitude = FB_POLICY + 90,
       .doc = "Names are the same in upper and lower case (ASCII), for trees whose names are stored in lower case.")

/* Bring a name into lower case; returns whether it was in another. */
FB_ALWAYS_INLINE u64 casefold_lower(struct fb_name *name)
{
	u64 *words = (u64 *)name->text, upper, any = 0;
	u32 i;

#pragma clang loop unroll(full)
	for (i = 0; i < N_WORDS; i++) {
		upper = fb_bytes_between(words[i], 'A', 'Z') & FB_EVERY_BYTE(CASE);
		words[i] ^= upper;
		any |= upper;
	}
	return any;
}

PRE(casefold, name)
{
	if (casefold_lower(&ctx->name))
		ctx->edits |= FB_EDIT_NAME;
	if (ctx->op == FB_OP_rename && casefold_lower(&ctx->name2))
		ctx->edits |= FB_EDIT_NAME2;
	return ctx->edits ? FB_REWRITE : FB_CONTINUE;
}

/* What is stored in upper case cannot be reached by any name, so it is not listed. */
POST(casefold, dirent) { return casefold_lower(&ctx->name) ? FB_DROP : FB_CONTINUE; }
