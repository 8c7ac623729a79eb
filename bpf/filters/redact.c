/* SPDX-License-Identifier: Apache-2.0 OR MIT OR GPL-2.0 */
#include "fusebpf.h"
#include <linux/fcntl.h>
#include <linux/fs.h>
#include <linux/stat.h>

#define REDACTED 1 /* the view of those who do not see everything; and the tag of files in it */

FILTER(redact, .altitude = FB_DATA + 10, .wants = FB_WANTS_DATA | FB_WANTS_PATH | FB_WANTS_IDS,
       .doc = "In files of `paths` and `names`, a range and a kind of bytes read as zeros for all users but those in "
	      "`allowed`.")

struct redact_range {
	u64 from;
	u64 to; /* not included */
};

struct redact_class {
	u8 low;
	u8 high; /* included, at most 0x7f */
};

BPF_ARRAY(redact__paths, struct fb_patterns, 1);
BPF_ARRAY(redact__names, struct fb_patterns, 1);
BPF_HASH(redact__allowed, u32, u32, 4096);
BPF_ARRAY(redact__range, struct redact_range, 1);
BPF_ARRAY(redact__bytes, struct redact_class, 1);

FB_ALWAYS_INLINE int redact_is_about(const struct fb_slot *ctx)
{
	u32 first = 0;
	struct fb_patterns *paths = redact__paths.lookup(&first), *names = redact__names.lookup(&first);

	if (!paths || !names || (ctx->flags & FB_PATH_LOST) || (!paths->list[0].text[0] && !names->list[0].text[0]))
		return 1;
	return fb_match_name(ctx, names) || fb_match_path(ctx, paths, FB_MATCH_BELOW);
}

FB_ALWAYS_INLINE int redact_look(struct fb_slot *ctx)
{
	u32 view = redact__allowed.lookup(&ctx->uid) ? 0 : REDACTED;

	if (view == ctx->view || !redact_is_about(ctx))
		return FB_CONTINUE;
	ctx->view = view;
	ctx->edits |= FB_EDIT_VIEW;
	return FB_REWRITE;
}

/* Directories are the same for all: what is in them is looked up for each caller. */
FB_ALWAYS_INLINE int redact_entry(struct fb_slot *ctx)
{
	if (ctx->error || !S_ISREG(ctx->result.attr.mode))
		return FB_CONTINUE;
	if (redact_look(ctx) == FB_CONTINUE && ctx->tag == ctx->view)
		return FB_CONTINUE;
	ctx->tag = ctx->view;
	ctx->edits |= FB_EDIT_TAG;
	return FB_REWRITE;
}

/* What was opened has its view already. */
FB_ALWAYS_INLINE int redact_made(struct fb_slot *ctx)
{
	if (ctx->error || !ctx->view)
		return FB_CONTINUE;
	ctx->tag = ctx->view;
	ctx->edits |= FB_EDIT_TAG;
	return FB_REWRITE;
}

POST(redact, lookup) { return redact_entry(ctx); }
POST(redact, mknod) { return redact_entry(ctx); }
POST(redact, link) { return redact_entry(ctx); }
PRE(redact, create) { return redact_look(ctx); }
PRE(redact, tmpfile) { return redact_look(ctx); }
POST(redact, create) { return redact_made(ctx); }
POST(redact, tmpfile) { return redact_made(ctx); }

/* Is the new entry of a link or rename one whose file is redacted? `name` is where its name stands; is_not_above is fb_match_as's. 2:
 * that cannot be judged. */
FB_ALWAYS_INLINE int redact_stays(struct fb_slot *ctx, const struct fb_name *name, int is_by_path, u64 is_not_above)
{
	u32 first = 0;

	int is_named = is_by_path ? 0 : fb_match(ctx, redact__names.lookup(&first), name->text, 0, FB_MATCH_WHOLE);

	if (is_named)
		return is_named;
	ctx->path[0] = 0; /* of the two paths only the new one is asked for */
	return fb_match_as(ctx, redact__paths.lookup(&first), ctx->path, FB_PATH_SIZE, FB_MATCH_BELOW | FB_MATCH_ABOVE, is_not_above);
}

FB_ALWAYS_INLINE int redact_is_all(void)
{
	u32 first = 0;
	struct fb_patterns *paths = redact__paths.lookup(&first), *names = redact__names.lookup(&first);

	return paths && names && !paths->list[0].text[0] && !names->list[0].text[0];
}

/* By another name or path a file must not be shown whole to who may not see it: neither by a second link, of what is redacted or
 * will be by the new one … */
PRE(redact, link)
{
	if (redact__allowed.lookup(&ctx->uid) || redact_is_all() || (ctx->args.link.type && !S_ISREG(ctx->args.link.type)))
		return FB_CONTINUE;
	if (ctx->flags & FB_PATH_LOST)
		return -EACCES;
	return redact_stays(ctx, &ctx->name, 0, 1) == (ctx->tag2 == REDACTED) ? FB_CONTINUE : -EACCES;
}

/* … nor by a move, nor by what he has open of a file that he moves to where others write what he may not see. With a directory goes
 * what is in it, whatever the directory's name. */
PRE(redact, rename)
{
	u32 first = 0;
	struct fb_patterns *paths = redact__paths.lookup(&first), *names = redact__names.lookup(&first);
	int is_by_path, is_named, is_about;
	u64 is_exchanged = !!(ctx->args.rename.flags & RENAME_EXCHANGE); /* it leaves both of its places */

	if (redact__allowed.lookup(&ctx->uid) || redact_is_all())
		return FB_CONTINUE;
	if (ctx->flags & FB_PATH_LOST)
		return -EACCES;
	is_by_path = fb_match_as(ctx, paths, ctx->path, is_exchanged * FB_PATH_SIZE, FB_MATCH_BELOW | FB_MATCH_ABOVE,
				 !fb_moves_directory(ctx));
	is_named = fb_match(ctx, names, ctx->name.text, is_exchanged * FB_NAME_SIZE, FB_MATCH_WHOLE);
	is_about = is_by_path || is_named;
	if (is_exchanged || is_by_path == FB_MATCH_TOO_LONG || is_named == FB_MATCH_TOO_LONG)
		return is_about ? -EACCES : FB_CONTINUE;
	return redact_stays(ctx, &ctx->name2, is_by_path, is_about | !fb_moves_directory(ctx)) == is_about ? FB_CONTINUE : -EACCES;
}

/* Who does not see what is there would write zeros back. */
PRE(redact, open)
{
	return ctx->view == REDACTED && ((ctx->args.open.flags & O_ACCMODE) || (ctx->args.open.flags & O_TRUNC))
		       ? -EACCES
		       : FB_CONTINUE;
}

/* Nor may he shorten it; what he has open to write he made. */
PRE(redact, setattr)
{
	u32 valid = ctx->args.setattr.valid;

	return ctx->view == REDACTED && (valid & FB_SET_SIZE) && !(valid & FB_SET_FH) ? -EACCES : FB_CONTINUE;
}

/* All ones where a < b, for numbers below 2^63; opaque, since a branch in a loop is walked both ways each time. */
FB_ALWAYS_INLINE u64 redact_less(u64 a, u64 b)
{
	s64 difference = (s64)(a - b);

	asm volatile("" : "+r"(difference));
	return (u64)(difference >> 63);
}

/* The range as it lies in a window: the words of its ends, and what of them is kept. It stands in the slot's text, where
 * nobody looks: what is read from there the verifier knows nothing of, so that it walks the loop once. */
struct redact_part {
	volatile u64 first;
	volatile u64 last;
	volatile u64 kept_first;
	volatile u64 kept_last;
};

FB_ALWAYS_INLINE struct redact_part *redact_place(struct fb_slot *ctx)
{
	struct redact_part *part = (struct redact_part *)ctx->text;
	u32 index = 0;
	struct redact_range *r = redact__range.lookup(&index);
	u64 offset = ctx->data_offset;
	u64 from = r && r->from > offset ? r->from - offset : 0, to = r && r->to > offset ? r->to - offset : 0;

	to = to < FB_DATA_SIZE ? to : FB_DATA_SIZE;
	from = from < to ? from : to;
	part->first = from / 8;
	part->last = to / 8;
	part->kept_first = (1ull << from % 8 * 8) - 1;
	part->kept_last = ~0ull << to % 8 * 8;
	return part;
}

FB_ALWAYS_INLINE u64 redact_kept(const struct redact_part *part, u64 at)
{
	u64 first = part->first, last = part->last;

	return redact_less(at, first) | redact_less(last, at) | (redact_less(at, first + 1) & part->kept_first) |
	       (redact_less(last, at + 1) & part->kept_last);
}

/* All in one pass without a branch: a loop of its own for the range would be more than the verifier walks through. */
POST(redact, read)
{
	struct fb_window *data = fb_data(ctx);
	struct redact_part *part;
	struct redact_class *class;
	u64 low, high;
	u32 first = 0;

	if (ctx->error || ctx->view != REDACTED || !data)
		return FB_CONTINUE;
	part = redact_place(ctx);
	class = redact__bytes.lookup(&first);
	if (!class)
		return -EIO;
	low = class->low;
	high = class->high; /* with both 0 it takes the bytes that are zeros already */
	FB_EACH_WORD(at, ctx->data_len) {
		u64 word = *fb_word(data, at);

		*fb_word(data, at) = word & redact_kept(part, at) & ~fb_bytes_between(word, low, high);
	}
	ctx->edits |= FB_EDIT_DATA;
	return FB_REWRITE;
}
