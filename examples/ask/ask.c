/* Opens below the directories in the map `paths` are asked for; all others do not even reach the daemon. */
#include "fusebpf.h"

FILTER(ask, .altitude = FB_VIEW + 80, .wants = FB_WANTS_PATH | FB_WANTS_DAEMON,
       .doc = "Opening what is below the paths in its map `paths` is asked for.")

BPF_ARRAY(ask__paths, struct fb_patterns, 1);

PRE(ask, open)
{
	u32 first = 0;

	if (ctx->flags & FB_PATH_LOST) /* it may be below one of them */
		return FB_DAEMON;
	return fb_match_path(ctx, ask__paths.lookup(&first), FB_MATCH_BELOW) ? FB_DAEMON : FB_CONTINUE;
}
