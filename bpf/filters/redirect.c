/* SPDX-License-Identifier: Apache-2.0 OR MIT OR GPL-2.0 */
#include "fusebpf.h"

#define N_RULES 8
#define N_PREFIXES 8
#define PREFIX_SIZE 32
#define N_WORDS (FB_NAME_SIZE / 8)

FILTER(redirect, .altitude = FB_VIEW + 10,
       .doc = "Names lead to other names: shown:stored in `names`, and beginnings of names in `prefixes`; in all ops and "
	      "in listings.")

struct redirect_pair {
	struct fb_name shown;
	struct fb_name stored;
};

struct redirect_prefix {
	char shown[PREFIX_SIZE];
	char stored[PREFIX_SIZE];
};

BPF_ARRAY(redirect__names, struct redirect_pair, N_RULES);
BPF_ARRAY(redirect__prefixes, struct redirect_prefix, N_PREFIXES);

enum redirect_found {
	REDIRECT_NONE = 0,  /* no rule is about the name */
	REDIRECT_MOVED = 1, /* it was rewritten */
	REDIRECT_GONE = 2,  /* it is the other side of a rule: no such name on this one */
	REDIRECT_LONG = 3,  /* it would be longer than 255 bytes */
};

/* Loops here are kept as loops: unrolled they want more stack than there is. And they have no branch but their end, or
 * the verifier walks each way through them: all ones or zeros stand for true and false, as masks. */

FB_ALWAYS_INLINE u64 redirect_mask(u64 is)
{
	u64 mask = -is;

	asm volatile("" : "+r"(mask));
	return mask;
}

FB_ALWAYS_INLINE u64 redirect_same(const struct fb_name *a, const struct fb_name *b)
{
	const u64 *x = (const u64 *)a->text, *y = (const u64 *)b->text;
	u64 difference = 0;
	u32 i, at;

	FB_ROUNDS(i, fb_zero_of(*x), N_WORDS, (void)0) {
		at = i;
		FB_BOUND(at, 0x1f);
		difference |= x[at] ^ y[at];
	}
	return redirect_mask(fb_is_zero(difference));
}

FB_ALWAYS_INLINE void redirect_copy(char *to, const struct fb_name *from)
{
	const u64 *y = (const u64 *)from->text;
	u64 *x = (u64 *)to;
	u32 i, at;

	FB_ROUNDS(i, fb_zero_of(*y), N_WORDS, (void)0) {
		at = i;
		FB_BOUND(at, 0x1f);
		x[at] = y[at];
	}
}

/* The length of a text in a buffer of `size` bytes, a power of two. */
FB_ALWAYS_INLINE u32 redirect_len(const char *text, u32 size)
{
	u64 zero = fb_zero_of(*(const u64 *)text), i, len = zero, goes_on = zero | 1;

	FB_ROUNDS(i, zero, size, FB_BOUND(len, 0xff)) {
		goes_on &= fb_is_zero((u8)text[i & (size - 1)]) ^ 1;
		len += goes_on;
	}
	return len;
}

/* Does the name begin with the prefix? "" is the beginning of every name. */
FB_ALWAYS_INLINE u64 redirect_begins(const struct fb_name *name, const char *prefix)
{
	const u64 *x = (const u64 *)name->text, *y = (const u64 *)prefix;
	u64 difference = 0, is_text;
	u32 i;

#pragma clang loop unroll(full)
	for (i = 0; i < PREFIX_SIZE / 8; i++) {
		/* The top bit of each byte that is not 0. */
		is_text = (((y[i] & FB_EVERY_BYTE(0x7f)) + FB_EVERY_BYTE(0x7f)) | y[i]) & FB_EVERY_BYTE(0x80);
		difference |= (x[i] ^ y[i]) & (is_text >> 7) * 0xff;
	}
	return redirect_mask(fb_is_zero(difference));
}

/* Put `to` where `from` was at a name's beginning; `scratch` has the name. Returns the new length, or 0. */
FB_ALWAYS_INLINE u32 redirect_replace(struct fb_name *name, const char *scratch, u32 len, const char *from, const char *to)
{
	u64 from_len = redirect_len(from, PREFIX_SIZE), to_len = redirect_len(to, PREFIX_SIZE), i;
	u64 new_len = len - from_len + to_len;

	if (new_len >= FB_NAME_SIZE || !new_len)
		return 0;
	FB_ROUNDS(i, fb_zero_of(*(const u64 *)scratch), FB_NAME_SIZE, (void)0) {
		u64 in_prefix, inside;

		in_prefix = redirect_mask((i - to_len) >> 63);
		inside = redirect_mask((i - new_len) >> 63);
		name->text[FB_INDEX(i)] = ((to[i & (PREFIX_SIZE - 1)] & in_prefix) |
					   (scratch[FB_INDEX(i - to_len + from_len)] & ~in_prefix)) & inside;
	}
	return new_len;
}

#define NO_RULE 0x1f
/* Keep the first rule that fits. */
#define REDIRECT_KEEP(hit, i, fits)                                                   \
	do {                                                                           \
		u64 is_first = redirect_mask(fb_is_zero((hit) ^ NO_RULE)) & (fits);    \
		(hit) = ((hit) & ~is_first) | ((i) & is_first);                        \
		FB_BOUND(hit, 0x1f);                                                   \
	} while (0)

/* Rewrite a name from one side of the rules to the other. The slot's text serves as a scratch pad: nobody sees it. */
FB_ALWAYS_INLINE int redirect_name(struct fb_slot *ctx, struct fb_name *name, u32 *len, int to_stored)
{
	/* What the verifier does not know to be constants, or each number of rules would be a state of its own. */
	u64 named = ctx->zero | NO_RULE, prefixed = ctx->zero | NO_RULE, gone = ctx->zero;
	u32 i;

	FB_BOUND(named, 0x1f);
	FB_BOUND(prefixed, 0x1f);
	FB_BOUND(gone, 0x1);
	FB_ROUNDS(i, ctx->zero, N_RULES, (void)0) {
		struct redirect_pair *pair = redirect__names.lookup(&i);
		if (!pair || !pair->shown.text[0])
			break;
		REDIRECT_KEEP(named, i, redirect_same(name, to_stored ? &pair->shown : &pair->stored));
		gone |= redirect_same(name, to_stored ? &pair->stored : &pair->shown);
		FB_BOUND(gone, 0x1);
	}
	FB_ROUNDS(i, ctx->zero, N_PREFIXES, (void)0) {
		struct redirect_prefix *p = redirect__prefixes.lookup(&i);
		if (!p || !p->shown[0])
			break;
		REDIRECT_KEEP(prefixed, i, redirect_begins(name, to_stored ? p->shown : p->stored));
		gone |= redirect_begins(name, to_stored ? p->stored : p->shown);
		FB_BOUND(gone, 0x1);
	}
	i = named;
	struct redirect_pair *pair = redirect__names.lookup(&i);
	if (pair) {
		redirect_copy(name->text, to_stored ? &pair->stored : &pair->shown);
		*len = redirect_len(name->text, FB_NAME_SIZE);
		return REDIRECT_MOVED;
	}
	i = prefixed;
	struct redirect_prefix *p = redirect__prefixes.lookup(&i);
	if (p) {
		redirect_copy(ctx->text, name);
		*len = redirect_replace(name, ctx->text, *len, to_stored ? p->shown : p->stored,
					to_stored ? p->stored : p->shown);
		return *len ? REDIRECT_MOVED : REDIRECT_LONG;
	}
	return gone ? REDIRECT_GONE : REDIRECT_NONE;
}

FB_ALWAYS_INLINE int redirect_refuse(const struct fb_slot *ctx, int found)
{
	if (found == REDIRECT_LONG)
		return -ENAMETOOLONG;
	if (ctx->op == FB_OP_lookup)
		return FB_NEGATIVE;
	return ctx->op == FB_OP_unlink || ctx->op == FB_OP_rmdir ? -ENOENT : -EACCES;
}

PRE(redirect, name)
{
	int found = redirect_name(ctx, &ctx->name, &ctx->name_len, 1);

	if (found > REDIRECT_MOVED)
		return redirect_refuse(ctx, found);
	if (found)
		ctx->edits |= FB_EDIT_NAME;
	return ctx->edits ? FB_REWRITE : FB_CONTINUE;
}

/* Both names, in one loop: one after the other they would be too much for the verifier. */
PRE(redirect, rename)
{
	u64 found = ctx->zero, edits = ctx->zero, base;
	u32 i;

	FB_ROUNDS(i, ctx->zero, 2, (void)0) {
		base = (ctx->zero + i) * FB_NAME_SIZE;
		FB_BOUND(base, 0x100);
		found |= 1 << redirect_name(ctx, (struct fb_name *)((char *)&ctx->name + base),
					    (u32 *)((char *)&ctx->name_len + base / (FB_NAME_SIZE / sizeof(u32))), 1)
			 << 4 * i;
		FB_BOUND(found, 0xff);
	}
	if (found & (1 << REDIRECT_LONG | 1 << REDIRECT_LONG << 4))
		return -ENAMETOOLONG;
	if (found & (1 << REDIRECT_GONE | 1 << REDIRECT_GONE << 4))
		return -EACCES;
	edits |= found & 1 << REDIRECT_MOVED ? FB_EDIT_NAME : 0;
	edits |= found & 1 << REDIRECT_MOVED << 4 ? FB_EDIT_NAME2 : 0;
	ctx->edits |= edits;
	return edits ? FB_REWRITE : FB_CONTINUE;
}

POST(redirect, dirent)
{
	int found = redirect_name(ctx, &ctx->name, &ctx->name_len, 0);

	if (found > REDIRECT_MOVED)
		return FB_DROP;
	if (!found)
		return FB_CONTINUE;
	ctx->edits |= FB_EDIT_NAME;
	return FB_REWRITE;
}
