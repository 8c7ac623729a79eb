/* Callers who may not see where photos were taken look JPEG files up at the daemon. All others, and all other files,
 * never come near it. */
#include "fusebpf.h"
#include <linux/fs.h>

FILTER(exif_redact, .altitude = FB_VIEW + 70, .wants = FB_WANTS_DAEMON | FB_WANTS_IDS,
       .doc = "JPEG files are without their location for all but the users in its map `trusted`.")

BPF_HASH(exif_redact__trusted, u32, u32, 256);

/* The i-th byte from the end, in lower case. */
#define FROM_END(name, len, i) ((name)->text[FB_INDEX((len) - (i))] | 0x20)

FB_ALWAYS_INLINE int is_jpeg(const struct fb_name *name, u32 len)
{
	if (FROM_END(name, len, 1) != 'g')
		return 0;
	if (FROM_END(name, len, 2) == 'p')
		return FROM_END(name, len, 3) == 'j' && FROM_END(name, len, 4) == '.';
	return FROM_END(name, len, 2) == 'e' && FROM_END(name, len, 3) == 'p' && FROM_END(name, len, 4) == 'j' &&
	       FROM_END(name, len, 5) == '.';
}

FB_ALWAYS_INLINE int is_trusted(struct fb_slot *ctx)
{
	u32 uid = ctx->uid;

	return exif_redact__trusted.lookup(&uid) ? 1 : 0;
}

PRE(exif_redact, lookup)
{
	if (!is_jpeg(&ctx->name, ctx->name_len) || is_trusted(ctx))
		return FB_CONTINUE;
	return FB_DAEMON;
}

/* By a name of another kind the file would be seen as it is. */
PRE(exif_redact, rename)
{
	int from = is_jpeg(&ctx->name, ctx->name_len), to = is_jpeg(&ctx->name2, ctx->name2_len);
	int leaves = from && !to;

	if (ctx->args.rename.flags & RENAME_EXCHANGE)
		leaves = from != to;
	return leaves && !is_trusted(ctx) ? -EACCES : FB_CONTINUE;
}
