/* Callers who may not see where photos were taken look JPEG files up at the daemon. All others, and all other files,
 * never come near it. */
#include "fusebpf.h"

FILTER(exif_redact, .altitude = FB_POLICY + 70, .wants = FB_WANTS_DAEMON | FB_WANTS_IDS,
       .doc = "JPEG files are without their location for all but the users in its map `trusted`.")

BPF_HASH(exif_redact__trusted, u32, u32, 256);

FB_ALWAYS_INLINE int is_jpeg(struct fb_slot *ctx)
{
	return fb_name_ends(ctx, ".jpg") || fb_name_ends(ctx, ".jpeg") || fb_name_ends(ctx, ".JPG") ||
	       fb_name_ends(ctx, ".JPEG");
}

PRE(exif_redact, lookup)
{
	u32 uid = ctx->uid;

	if (!is_jpeg(ctx) || exif_redact__trusted.lookup(&uid))
		return FB_CONTINUE;
	return FB_DAEMON;
}
