/* SPDX-License-Identifier: Apache-2.0 OR MIT OR GPL-2.0 */
/* A hook on read that changes every byte: what it adds to a read of 64 KiB is what a window costs. */
#include "fusebpf.h"

FILTER(bench_window, .altitude = FB_DATA, .wants = FB_WANTS_DATA, .doc = "Turns every byte around.")

POST(bench_window, read)
{
	struct fb_window *data = fb_data(ctx);

	if (!data)
		return FB_CONTINUE;
	FB_EACH_WORD(at, ctx->data_len)
		*fb_word(data, at) = ~*fb_word(data, at);
	ctx->edits |= FB_EDIT_DATA;
	return FB_REWRITE;
}
