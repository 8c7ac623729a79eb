/* SPDX-License-Identifier: Apache-2.0 OR MIT OR GPL-2.0 */
/*
 * Do names and paths match the patterns of a map? Included by fusebpf_filter.h.
 */
#ifndef FUSEBPF_MATCH_H
#define FUSEBPF_MATCH_H

/* How many rounds one match may take in all: one for each byte of a pattern that fits, each pattern that does not, and
 * each byte that a star skips. A list that needs more fails closed. Where the verifier goes through each round it is what bounds
 * them: each branch of one is a jump that it keeps pending, of at most 8,192 (kernel/bpf/verifier.c: BPF_COMPLEXITY_LIMIT_JMP_SEQ). */
#ifdef FB_HAS_MAY_GOTO
#define FB_MATCH_STEPS 0xffff
#else
#define FB_MATCH_STEPS 384
#endif

enum fb_match { FB_MATCH_NONE = 0, FB_MATCH_FOUND = 1, FB_MATCH_TOO_LONG = 2 };

/* How else than whole a text may match. */
enum fb_match_mode {
	FB_MATCH_WHOLE = 0,
	FB_MATCH_BELOW = 1, /* the text is a path below one that matches */
	FB_MATCH_ABOVE = 2, /* the text is a path above one that matches */
};

/* The match behind those below: of the text, and where `second` is not 0 then of the one that many bytes on. With `is_not_above`
 * no path is above one that matches, whatever the mode: a number, since to take the mode for one costs the verifier twice. */
FB_ALWAYS_INLINE int fb_match_as(const struct fb_slot *ctx, const struct fb_patterns *patterns, const char *text, u64 second,
				 u32 mode, u64 is_not_above)
{
	const char *pattern = (const char *)patterns;
	/* Zeros that the verifier does not know to be zeros, or each round would be a state of its own. */
	u64 start = ctx->zero, p = ctx->zero, t = ctx->zero; /* this pattern, where in it, where in the text */
	u64 star_p = ctx->zero, star_t = ctx->zero; /* where to resume behind the last star; 0 without one */
	u64 base = ctx->zero;			    /* which text */
	/* Numbers, where the mode is one: to branch on it would cost the verifier once more for each. */
	const int may_be_above = !__builtin_constant_p(mode) || mode & FB_MATCH_ABOVE;
	u64 slash = mode & FB_MATCH_BELOW ? '/' : 0; /* behind which a text that matches may go on */
	u32 i;

	if (!patterns)
		return FB_MATCH_TOO_LONG;
	/* What the verifier knew of these would make each of their values a state of its own. */
	second += ctx->zero;
	is_not_above = (is_not_above | !(mode & FB_MATCH_ABOVE)) + ctx->zero;
	if (!__builtin_constant_p(mode))
		slash += ctx->zero;
	FB_ROUNDS(i, ctx->zero, FB_MATCH_STEPS, ({
		FB_BOUND(start, 0x3fff);
		FB_BOUND(p, 0x3fff);
		FB_BOUND(t, 0xfff);
		FB_BOUND(star_p, 0x3fff);
		FB_BOUND(star_t, 0xfff);
		FB_BOUND(base, 0x1100);
	})) {
		u64 pc, tc;

		pc = (u8)pattern[p];
		tc = (u8)text[base + t];
		if (pc == '*') {
			star_p = ++p;
			star_t = t;
			continue;
		}
		if (tc && (pc == tc || pc == '?')) {
			p++;
			t++;
			continue;
		}
		if (!pc && p == start) {
			if (base == second)
				return FB_MATCH_NONE;
			base = second;
			start = ctx->zero;
			p = ctx->zero;
			t = ctx->zero;
			star_p = ctx->zero;
			continue;
		}
		if (!pc && (!tc || tc == slash))
			return FB_MATCH_FOUND;
		/* A path goes on with a slash: it stands here, or a star takes it. Not the one in front, as long as nothing behind it has
		 * matched: what it takes may be anything, so that what matches below this path does so below any other. */
		if (may_be_above && !(tc | is_not_above) && t &&
		    (star_p > start + 1 || ((pc == '/' || pc == '?') && !(star_p && p == start + 1))))
			return FB_MATCH_FOUND;
		if (star_p && text[base + star_t]) {
			t = ++star_t;
			p = star_p;
			continue;
		}
		start += FB_NAME_SIZE;
		p = start;
		t = ctx->zero;
		star_p = ctx->zero;
	}
	return FB_MATCH_TOO_LONG;
}

FB_ALWAYS_INLINE int fb_match(const struct fb_slot *ctx, const struct fb_patterns *patterns, const char *text, u64 second, u32 mode)
{
	return fb_match_as(ctx, patterns, text, second, mode, 0);
}

/* Does one of the patterns match the op's name? `*` is any run, `?` any one byte; the list ends at the first empty
 * pattern. Returns enum fb_match; FB_MATCH_TOO_LONG, which stands also for patterns that are NULL, is to be
 * taken for a match. */
FB_ALWAYS_INLINE int fb_match_name(const struct fb_slot *ctx, const struct fb_patterns *patterns)
{
	return fb_match(ctx, patterns, ctx->name.text, 0, FB_MATCH_WHOLE);
}

/* The same for name or name2. */
FB_ALWAYS_INLINE int fb_match_names(const struct fb_slot *ctx, const struct fb_patterns *patterns)
{
	return fb_match(ctx, patterns, ctx->name.text, FB_NAME_SIZE, FB_MATCH_WHOLE);
}

/* The same for the op's path; mode is enum fb_match_mode. */
FB_ALWAYS_INLINE int fb_match_path(const struct fb_slot *ctx, const struct fb_patterns *patterns, u32 mode)
{
	return fb_match(ctx, patterns, ctx->path, 0, mode);
}

/* The same for path or path2. */
FB_ALWAYS_INLINE int fb_match_paths(const struct fb_slot *ctx, const struct fb_patterns *patterns, u32 mode)
{
	return fb_match(ctx, patterns, ctx->path, FB_PATH_SIZE, mode);
}

/* May this be a rename that takes a directory from its path, with all that is below it? */
FB_ALWAYS_INLINE int fb_moves_directory(const struct fb_slot *ctx)
{
	u32 type = ctx->args.rename.type, type2 = ctx->args.rename.type2;

	if (ctx->op != FB_OP_rename)
		return 0;
	/* S_IFDIR, and RENAME_EXCHANGE; filters may have these names from headers, or of their own. */
	return !type || type == 0040000 || ((ctx->args.rename.flags & 2) && (!type2 || type2 == 0040000));
}

/* Is what the op is about at or below a path that matches, or the new entry of a rename or link? Or may it be that a rename takes
 * what matches from its place, since it moves a directory above it? For all ops, so that their hooks are one program. */
FB_ALWAYS_INLINE int fb_match_op(const struct fb_slot *ctx, const struct fb_patterns *patterns)
{
	u64 second = ctx->op == FB_OP_rename || ctx->op == FB_OP_link ? FB_PATH_SIZE : 0;

	return fb_match_as(ctx, patterns, ctx->path, second, FB_MATCH_BELOW | FB_MATCH_ABOVE, !fb_moves_directory(ctx));
}

#endif
