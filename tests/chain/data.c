/* A filter that sees payloads, and edits them as its map `way` says; tests/chain/test_data.py has the numbers. `looks` counts
 * what it was shown. Beside it a filter that edits data and does not say that it wants any. */
#include "fusebpf.h"

FILTER(data, .altitude = FB_DATA, .wants = FB_WANTS_DATA, .doc = "Edits payloads.")
FILTER(blind, .altitude = FB_STORE, .doc = "Edits data, and is shown none.")

BPF_ARRAY(way, u32, 1);
BPF_ARRAY(looks, u64, 8); /* runs, bytes, the last one's offset, length and whether more follow; without data */

FB_ALWAYS_INLINE u32 now(void)
{
	u32 zero = 0, *at = way.lookup(&zero);

	return at ? *at : 0;
}

FB_ALWAYS_INLINE void look(u32 index, u64 add, u64 set)
{
	u64 *value = looks.lookup(&index);

	if (value)
		*value = set + (add ? *value + add : 0);
}

FB_ALWAYS_INLINE struct fb_window *shown(struct fb_slot *ctx)
{
	struct fb_window *data = fb_data(ctx);

	if (!data) {
		look(5, 1, 0);
		return data;
	}
	look(0, 1, 0);
	look(1, ctx->data_len, 0);
	look(2, 0, ctx->data_offset);
	look(3, 0, ctx->data_len);
	look(4, 0, ctx->data_more);
	return data;
}

#define USE(bits) ({ ctx->edits = (bits); FB_REWRITE; })

FB_ALWAYS_INLINE int scramble(struct fb_slot *ctx, struct fb_window *data)
{
	FB_EACH_WORD(i, ctx->data_len)
		*fb_word(data, i) ^= 0x5a5a5a5a5a5a5a5aull;
	return USE(FB_EDIT_DATA);
}

PRE(data, read)
{
	struct fb_window *data = fb_data(ctx);

	if (!data || now() < 20 || now() > 29)
		return FB_CONTINUE;
	switch (now()) {
	case 21: if (ctx->data_offset >= FB_DATA_SIZE) return FB_CONTINUE; break;
	case 22: ctx->data_len = 3; break;
	case 23: ctx->data_len += 1; break;
	case 24: return FB_REPLY; /* the end of the file */
	case 25: if (ctx->data_offset >= FB_DATA_SIZE) return -EDQUOT; break;
	}
	*fb_byte(data, 0) = 'm';
	*fb_byte(data, 1) = 'a';
	*fb_byte(data, 2) = 'd';
	*fb_byte(data, 3) = 'e';
	ctx->edits = FB_EDIT_DATA;
	return FB_REPLY;
}

POST(data, read)
{
	struct fb_window *data = shown(ctx);

	if (!data)
		return FB_CONTINUE;
	switch (now()) {
	case 1: return scramble(ctx, data);
	case 2: fb_data_zero(data, 3, 3); fb_data_zero(data, 5, ctx->data_len - 1); return USE(FB_EDIT_DATA);
	case 3: *fb_byte(data, 0) = 'X'; return FB_CONTINUE; /* not declared */
	case 4: if (!ctx->data_more) { ctx->data_len -= 2; return USE(FB_EDIT_DATA); } return FB_CONTINUE;
	case 5: ctx->data_len -= 1; return USE(FB_EDIT_DATA);
	case 6: ctx->data_len += 1; return USE(FB_EDIT_DATA);
	case 7: ctx->data_len = 0xffffffff; return USE(FB_EDIT_DATA);
	case 8: if (ctx->data_offset >= FB_DATA_SIZE) return -EACCES; return FB_CONTINUE;
	case 9: ctx->result.count = 5; return USE(FB_EDIT_COUNT);
	}
	return FB_CONTINUE;
}

PRE(data, write)
{
	struct fb_window *data = shown(ctx);

	if (!data)
		return FB_CONTINUE;
	switch (now()) {
	case 1: return scramble(ctx, data);
	case 2: fb_data_zero(data, 5, ctx->data_len - 1); return USE(FB_EDIT_DATA);
	case 3: *fb_byte(data, 0) = 'X'; return FB_CONTINUE;
	case 4: if (!ctx->data_more) { ctx->data_len -= 2; return USE(FB_EDIT_DATA); } return FB_CONTINUE;
	case 5: ctx->data_len -= 1; return USE(FB_EDIT_DATA);
	case 6: ctx->data_len += 1; return USE(FB_EDIT_DATA);
	case 8: if (ctx->data_offset >= FB_DATA_SIZE) return -EACCES; return FB_CONTINUE;
	case 10: *fb_byte(data, 0) = 'X'; ctx->edits = FB_EDIT_DATA; return FB_BACKING | FB_REWRITE;
	case 11: if (ctx->data_more) return FB_CONTINUE; /* swallowed, when all of it was seen */
		ctx->result.count = ctx->args.rw.size; ctx->edits = FB_EDIT_COUNT; return FB_REPLY;
	}
	return FB_CONTINUE;
}

/* A value of any length, made longer, shorter or other. */
FB_ALWAYS_INLINE int edit_value(struct fb_slot *ctx)
{
	struct fb_window *data = shown(ctx);

	if (!data)
		return FB_CONTINUE;
	switch (now()) {
	case 30: scramble(ctx, data); return USE(FB_EDIT_DATA);
	case 31: *fb_byte(data, ctx->data_len) = '!'; ctx->data_len += 1; return USE(FB_EDIT_DATA);
	case 32: ctx->data_len -= 1; return USE(FB_EDIT_DATA);
	case 33: ctx->data_len = FB_DATA_SIZE + 1; return USE(FB_EDIT_DATA);
	case 34: return USE(FB_EDIT_DATA | FB_EDIT_TEXT);
	case 35: *fb_byte(data, 1) = 0; return USE(FB_EDIT_DATA);
	case 37: *fb_byte(data, 0) = 0; return USE(FB_EDIT_DATA);
	}
	return FB_CONTINUE;
}

FB_ALWAYS_INLINE int reply_value(struct fb_slot *ctx, u32 len)
{
	struct fb_window *data = fb_data(ctx);

	if (!data || now() != 36)
		return FB_CONTINUE;
	if (len > ctx->data_len)
		return -ERANGE; /* as getxattr(2) says it: the caller comes again with a larger buffer */
	FB_EACH_WORD(i, len)
		*fb_word(data, i) = FB_EVERY_BYTE('v');
	ctx->data_len = len;
	ctx->edits = FB_EDIT_DATA;
	return FB_REPLY;
}

POST(data, getxattr) { return fb_name_starts(ctx, "user.") && !ctx->error ? edit_value(ctx) : FB_CONTINUE; }
PRE(data, getxattr) { return fb_name_starts(ctx, "user.") ? reply_value(ctx, 10000) : FB_CONTINUE; }
PRE(data, setxattr) { return edit_value(ctx); }
POST(data, listxattr) { return edit_value(ctx); }
POST(data, readlink) { return edit_value(ctx); }
PRE(data, readlink) { return reply_value(ctx, 4000); }

PRE(blind, write)
{
	if (now() != 40)
		return FB_CONTINUE;
	return USE(fb_data(ctx) ? FB_EDIT_SIZE : FB_EDIT_DATA);
}
