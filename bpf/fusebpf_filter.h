/* SPDX-License-Identifier: Apache-2.0 OR MIT OR GPL-2.0 */
/*
 * The filter author's side of the ABI: the maps that all filters of a mount share, the macros that declare
 * filters and hooks, and helpers that stay within the limits of bcc and of the verifier. Included by
 * fusebpf.h where it is compiled for the BPF machine, by nobody else.
 */
#ifndef FUSEBPF_FILTER_H
#define FUSEBPF_FILTER_H

#include <asm-generic/errno.h>

#define FB_ALWAYS_INLINE static inline __attribute__((always_inline))

/* ------------------------------------------------------------------------ the shared maps */

/* The sizes here are those of the compiler's scratch copies; the loader puts the mount's own maps in. */
BPF_F_TABLE("array", u32, struct fb_slot, fb_slots, 1, BPF_F_MMAPABLE);
BPF_F_TABLE("array", u32, struct fb_window, fb_windows, 1, BPF_F_MMAPABLE);
BPF_F_TABLE("array", u32, struct fb_hook, fb_hooks, 1, BPF_F_MMAPABLE);
BPF_TABLE("hash", struct fb_stat_key, struct fb_stat, fb_stats, 1);
BPF_RINGBUF_OUTPUT(fb_ring0, 1);
BPF_ARRAY_OF_MAPS(fb_rings, "fb_ring0", FB_MAX_WORKERS);

/* The hook that this thread runs, or 0: nobody asked. */
FB_ALWAYS_INLINE struct fb_hook *fb_hook_here(void)
{
	u32 thread = (u32)bpf_get_current_pid_tgid(), i;

#pragma clang loop unroll(full)
	for (i = 0; i < FB_N_TRIES; i++) {
		u32 index = (thread + i * FB_NEXT_PLACE) & (FB_N_PLACES - 1);
		struct fb_hook *hook = fb_hooks.lookup(&index);

		if (hook && hook->thread == thread)
			return hook;
	}
	return 0;
}

FB_ALWAYS_INLINE struct fb_slot *fb_slot_of(struct fb_hook *hook)
{
	u32 index = hook->slot;

	return fb_slots.lookup(&index);
}

FB_ALWAYS_INLINE void fb_count(const struct fb_verdict_record *record)
{
	struct fb_stat_key key = {};
	struct fb_stat none = {}, *stat;

	key.filter = record->filter;
	key.phase = record->phase;
	key.op = record->op;
	key.verdict = record->verdict;
	stat = fb_stats.lookup(&key);
	if (!stat) {
		fb_stats.insert(&key, &none); // fails if another thread was first
		stat = fb_stats.lookup(&key);
	}
	if (stat)
		__sync_fetch_and_add(&stat->count, 1);
}

/* Put a verdict into the ring of the thread that runs this hook. PRE and POST do it; a hook that is written
 * without them has to, exactly once, of the hook that fb_hook_here() finds, and returns what this does: 0 if the filter that
 * stands next may be asked in the same run. */
FB_ALWAYS_INLINE int fb_emit(struct fb_hook *hook, struct fb_slot *ctx, int said)
{
	struct fb_verdict_record record = {};
	u32 index = hook->ring;
	void *ring;

	record.unique = hook->unique;
	record.slot = hook->slot;
	record.filter = hook->filter;
	record.op = hook->op;
	record.phase = hook->phase;
	record.cookie = ctx->cookie;
	record.edits = ctx->edits;
	if (said < 0) {
		record.verdict = FB_REPLY;
		record.error = (enum fb_errno)-said;
	} else {
		record.verdict = (enum fb_verdict)(said & FB_VERDICT_MASK);
		record.flags = said & ~FB_VERDICT_MASK;
		record.error = ctx->error;
	}
	ring = fb_rings.lookup(&index);
	if (ring)
		bpf_ringbuf_output(ring, &record, sizeof(record), BPF_RB_NO_WAKEUP);
	fb_count(&record);
	return (said & ~FB_NOPOST) != FB_CONTINUE;
}

/* ------------------------------------------------------------------------ filters and hooks */

/* Declare a filter:  FILTER(hide, .altitude = FB_POLICY + 10, .doc = "hides names")
 * altitude  1 to 999, its place in the chain, high is near the caller
 * doc       one sentence, at most 239 bytes
 * wants     FB_WANTS_… that are to be filled in or allowed */
struct fb_filter_source {
	u32 altitude;
	u32 wants;
	const char *doc;
};

#define FILTER(filter, ...)                                                           \
	int filter##__filter(struct fb_declaration *declaration)                       \
	{                                                                              \
		const struct fb_filter_source source = { __VA_ARGS__ };                \
		declaration->abi = FB_ABI_VERSION;                                     \
		declaration->altitude = source.altitude;                               \
		declaration->wants = source.wants;                                     \
		declaration->doc_len = source.doc ? __builtin_strlen(source.doc) : 0;  \
		if (source.doc)                                                        \
			__builtin_memcpy(declaration->doc, source.doc,                 \
					 __builtin_strlen(source.doc));                \
		return 0;                                                              \
	}

#define FB_DEFINE_HOOK(filter, phase, op)                                             \
	FB_ALWAYS_INLINE int filter##__##phase##__##op##__body(struct fb_slot *ctx);   \
	int filter##__##phase##__##op(void *none)                                      \
	{                                                                              \
		struct fb_hook *hook = fb_hook_here();                                 \
		struct fb_slot *ctx = hook ? fb_slot_of(hook) : 0;                     \
		return ctx ? fb_leave(hook, ctx, filter##__##phase##__##op##__body(ctx)) : 1; \
	}                                                                              \
	FB_ALWAYS_INLINE int filter##__##phase##__##op##__body(struct fb_slot *ctx)

/* A hook:  PRE(hide, lookup) { … return FB_CONTINUE; }   with `ctx`, the op's slot, at hand. Instead of an op's
 * name: `any`, every op; `name`, every op that carries names. A hook on the op itself beats those. */
#define PRE(filter, op) FB_DEFINE_HOOK(filter, pre, op)
#define POST(filter, op) FB_DEFINE_HOOK(filter, post, op)

/* ------------------------------------------------------------------------ helpers: loops */

/* Keep a value inside a mask that is a literal, where the verifier sees it: with it every path through the
 * loops below reaches the next round in a state that it has seen, so it walks each round once. */
#define FB_BOUND(value, mask) asm volatile("%0 &= " #mask : "+r"(value))

/* A 0, made of a number that the verifier does not know, so that it takes this one for any. */
FB_ALWAYS_INLINE u64 fb_zero_of(u64 number)
{
	u64 wide = number * 0x9e3779b97f4a7c15ull, zero = wide; /* all bits of what it has bounds for become unknown */

	asm volatile("%0 ^= %1" : "+&r"(zero) : "r"(wide));
	return zero;
}

/* `FB_ROUNDS(i, zero, most, head) statement` is a loop of at most `most` rounds, 0xffff at the most. `zero` is a 0 that the verifier does
 * not know to be one (ctx->zero), `head` is done before each round.
 *
 * Since Linux 6.14 the kernel counts the rounds itself (may_goto), and the verifier goes through them until one tells it nothing
 * new: if all numbers that change began as such zeros, and `head` keeps them in bounds, in a round or two. Before, it goes through all.
 * A program whose loops take more than 250 ms leaves no verdict, so that the op fails. */
#ifdef FB_HAS_MAY_GOTO
#define FB_ROUNDS(i, zero, most, head) \
	_Pragma("clang loop unroll(disable)") for (i = (zero); ({ FB_BOUND(i, 0xffff); head; i < (most) && !fb_is_over(); }); i++)

FB_ALWAYS_INLINE u32 fb_is_over(void)
{
	u32 is_over;

	/* Its code, no registers, one instruction on (over the last one, where the count is at its end), no more: compilers lack a name. */
	asm volatile("%0 = 1\n\t.byte 0xe5, 0\n\t.short 1\n\t.long 0\n\t%0 = 0" : "=r"(is_over));
	return is_over;
}
#else
#define fb_is_over() 0
/* The compiler is not to know `i`: it would count down from a number that the verifier does not know. */
#define FB_ROUNDS(i, zero, most, head) \
	_Pragma("clang loop unroll(disable)") for (i = 0; ({ asm volatile("" : "+r"(i)); head; i < (most); }); i++)
#endif

/* Where the kernel has ended a loop nobody knows what it would have found: then there is no verdict. */
FB_ALWAYS_INLINE int fb_leave(struct fb_hook *hook, struct fb_slot *ctx, int verdict)
{
	asm volatile("" : "+r"(verdict)); /* not put together behind the question, where the verifier would name other lines */
	return fb_is_over() ? 1 : fb_emit(hook, ctx, verdict);
}

/* ------------------------------------------------------------------------ helpers: names */

/* An index that the verifier knows to be inside a name. */
#define FB_INDEX(i) ((i) & (FB_NAME_SIZE - 1))

/* Is the name exactly this literal? */
#define fb_name_is(ctx, literal)                                                      \
	((ctx)->name_len == sizeof(literal) - 1 &&                                     \
	 !fb_differs((ctx)->name.text, 0, literal, sizeof(literal) - 1))

/* Does the name begin with this literal? */
#define fb_name_starts(ctx, literal)                                                  \
	((ctx)->name_len >= sizeof(literal) - 1 &&                                     \
	 !fb_differs((ctx)->name.text, 0, literal, sizeof(literal) - 1))

/* Does the name end with this literal? */
#define fb_name_ends(ctx, literal)                                                    \
	((ctx)->name_len >= sizeof(literal) - 1 &&                                     \
	 !fb_differs((ctx)->name.text, (ctx)->name_len - (sizeof(literal) - 1), literal,  \
		     sizeof(literal) - 1))

FB_ALWAYS_INLINE u32 fb_differs(const char *text, u32 from, const char *literal, u32 len)
{
	u32 i, difference = 0;

#pragma clang loop unroll(full)
	for (i = 0; i < len; i++)
		difference |= text[FB_INDEX(from + i)] ^ literal[i];
	return difference;
}

/* Does the name match this literal glob of at most 63 bytes (`*` any run, `?` any one byte)? A set of pattern
 * positions is kept as the bits of one word, so the loop has no branch but its end. */
#define fb_name_glob(ctx, literal)                                                    \
	fb_glob((ctx)->name.text, (ctx)->name_len, literal, sizeof(literal) - 1)

FB_ALWAYS_INLINE u32 fb_is_zero(u64 value)
{
	u64 result = ~(value | -value) >> 63;

	/* Kept opaque: a compare would become a branch, and branches in loops are what the verifier
	 * cannot afford. */
	asm volatile("" : "+r"(result));
	return result;
}

FB_ALWAYS_INLINE int fb_glob(const char *text, u32 text_len, const char *glob, u32 glob_len)
{
	u64 stars = 0, reached = 1;
	u32 i, p;

#pragma clang loop unroll(full)
	for (p = 0; p < glob_len; p++)
		stars |= glob[p] == '*' ? 1ull << p : 0;
	/* A star may match nothing: what stands before it also stands behind it. */
#pragma clang loop unroll(full)
	for (p = 0; p < glob_len; p++)
		reached |= (reached & stars & 1ull << p) << 1;
	FB_ROUNDS(i, fb_zero_of(text_len), FB_NAME_SIZE - 1, (void)0) {
		u64 next = 0, at = i;
		u8 c;

		FB_BOUND(at, 0xff);
		if (i >= text_len)
			break;
		c = text[at];
#pragma clang loop unroll(full)
		for (p = 0; p < glob_len; p++) {
			if (glob[p] == '*')
				next |= reached & 1ull << p;
			else if (glob[p] == '?')
				next |= (reached & 1ull << p) << 1;
			else
				next |= (reached >> p & fb_is_zero(c ^ (u8)glob[p])) << (p + 1);
			if (glob[p] == '*')
				next |= (next & 1ull << p) << 1;
		}
		/* A star that was reached by this byte's own step. */
#pragma clang loop unroll(full)
		for (p = 0; p < glob_len; p++)
			next |= (next & stars & 1ull << p) << 1;
		reached = next;
	}
	return reached >> glob_len & 1;
}

/* ------------------------------------------------------------------------ helpers: data */

/* The payload that the op is about, from ctx->data_offset on, ctx->data_len bytes of it; NULL where there is none, or
 * the filter does not say .wants = FB_WANTS_DATA. Bytes behind data_len are nobody's. */
FB_ALWAYS_INLINE struct fb_window *fb_data(const struct fb_slot *ctx)
{
	u32 index = ctx->window;

	return ctx->flags & FB_HAS_DATA ? fb_windows.lookup(&index) : 0;
}

/* A byte of a window, and a word of eight; the index wraps where the window ends, and the verifier sees that it does:
 * a mask in C is one that the compiler may take away. */
FB_ALWAYS_INLINE u8 *fb_byte(struct fb_window *data, u64 i)
{
	asm volatile("%0 &= 0xffff" : "+r"(i));
	return &data->bytes[i];
}

FB_ALWAYS_INLINE u64 *fb_word(struct fb_window *data, u64 i)
{
	asm volatile("%0 &= 0x1fff" : "+r"(i));
	return &data->words[i];
}

/* Do a statement for each word of `len` bytes: `at` is its index, *fb_word(data, at) the word. The statement has no
 * branch, or the verifier walks each way through all words. Words are gone through in eights, so that up to 63 bytes
 * behind `len` may be touched; within the window, where they are nobody's. */
#define FB_EACH_WORD(at, len)                                                                                          \
	for (u32 at##_round, at##_end = fb_word_end(len), at##_once = 1; at##_once; at##_once = 0)                      \
		FB_ROUNDS(at##_round, fb_zero_of(len), FB_DATA_SIZE / 64, (void)0)                                     \
			if (at##_round * 8 >= at##_end)                                                                 \
				break;                                                                                  \
			else                                                                                            \
				_Pragma("clang loop unroll(full)")                                                      \
				for (u32 at = at##_round * 8, at##_n = 0; at##_n < 8; at##_n++, at++)

FB_ALWAYS_INLINE u32 fb_word_end(u32 len)
{
	u32 end = (len + 7) / 8;

	return end < FB_DATA_SIZE / 8 ? end : FB_DATA_SIZE / 8;
}

/* Make bytes `from` up to, not including, `to` of the window zeros. Both may be any number. */
FB_ALWAYS_INLINE void fb_data_zero(struct fb_window *data, u32 from, u32 to)
{
	u32 first, last, n, i, k;
	u64 head, tail, zero;

	if (to > FB_DATA_SIZE)
		to = FB_DATA_SIZE;
	if (from >= to)
		return;
	first = from / 8;
	last = (to - 1) / 8;
	head = (1ull << from % 8 * 8) - 1;	   /* what stays of the first word */
	tail = ~0ull << (to - 1) % 8 * 8 << 8; /* and of the last one */
	if (first == last) {
		*fb_word(data, first) &= head | tail;
		return;
	}
	zero = fb_zero_of(*fb_word(data, last));
	*fb_word(data, first) &= head;
	*fb_word(data, last) &= tail;
	n = last - first - 1;
	first += 1 + zero;
	/* Eights, then the rest: the verifier keeps each end of a loop pending, of at most 8,192. */
	FB_ROUNDS(i, zero, FB_DATA_SIZE / 64, FB_BOUND(first, 0x1fff)) {
		if (i >= n / 8)
			break;
#pragma clang loop unroll(full)
		for (k = 0; k < 8; k++)
			*fb_word(data, first + k) = 0;
		first += 8;
	}
#pragma clang loop unroll(full)
	for (k = 0; k < 7; k++)
		if (k < n % 8)
			*fb_word(data, first + k) = 0;
}

/* The bytes of a word that lie from `low` to `high`, which are 1 to 0x7f: 0xff there, 0 elsewhere. Without
 * a branch, for use in FB_EACH_WORD. */
#define FB_EVERY_BYTE(byte) (0x0101010101010101ull * (u8)(byte))

FB_ALWAYS_INLINE u64 fb_bytes_between(u64 word, u8 low, u8 high)
{
	u64 tops = FB_EVERY_BYTE(0x80), rest = word & ~tops;
	u64 is_low = rest + FB_EVERY_BYTE(0x80 - low); /* the top bit: at least `low` */
	u64 is_high = rest + FB_EVERY_BYTE(0x7f - high); /* more than `high` */

	return ((is_low & ~is_high & ~word & tops) >> 7) * 0xff;
}

/* Give an op without a name the last part of its path (FB_WANTS_PATH) as ctx->name: for looking it up, nothing else
 * sees it. "" stays where there is no path, and for the root. */
FB_ALWAYS_INLINE void fb_take_name(struct fb_slot *ctx)
{
	/* Read anew for each use: what a loop's end tells the verifier of it would make each end a state of its own. */
	const volatile u32 *len = &ctx->path_len;
	u64 last = ctx->zero, is_slash, at;
	u32 i;

	if (ctx->name_len)
		return;
	FB_ROUNDS(i, ctx->zero, FB_PATH_SIZE - 1, FB_BOUND(last, 0xfff)) {
		at = i;
		FB_BOUND(at, 0xfff);
		if (i >= *len)
			break;
		is_slash = fb_is_zero((u8)ctx->path[at] ^ '/');
		last = (last & (is_slash - 1)) | ((i + 1) & -is_slash);
	}
	FB_ROUNDS(i, ctx->zero, FB_NAME_SIZE - 1, (void)0) {
		at = i;
		FB_BOUND(at, 0xff);
		if (last + i >= *len)
			break;
		ctx->name.text[at] = ctx->path[(last + i) & (FB_PATH_SIZE - 1)];
	}
	ctx->name_len = i;
}

/* Make rename's new name the op's name: for looking it up, nothing else sees it. */
FB_ALWAYS_INLINE void fb_take_name2(struct fb_slot *ctx)
{
	const u64 *from = (const u64 *)ctx->name2.text;
	u64 *to = (u64 *)ctx->name.text;
	u32 i;

#pragma clang loop unroll(full)
	for (i = 0; i < FB_NAME_SIZE / 8; i++)
		to[i] = from[i];
	ctx->name_len = ctx->name2_len;
}

/* Ask `by(struct fb_key *, found)` for the rule of an op that says most, until one answers that it is there: one with the
 * op's name (that of its file, if the filter has FB_WANTS_PATH), then one with the op, then one with the user. A rule
 * for getattr is one for statx too. The keys are those of a map by struct fb_key. */
#define FB_RULE_FOR(key, op_, uid_, by, found) ((key)->op = (op_), (key)->uid = (uid_), by((key), (found)))
#define FB_RULE_OF_OP(ctx, key, op_, by, found) \
	(FB_RULE_FOR(key, op_, (ctx)->uid, by, found) || FB_RULE_FOR(key, op_, FB_ANY, by, found))
#define FB_RULE_OF_NAME(ctx, key, by, found)                                                        \
	(FB_RULE_OF_OP(ctx, key, (ctx)->op, by, found) ||                                           \
	 ((ctx)->op == FB_OP_statx && FB_RULE_OF_OP(ctx, key, FB_OP_getattr, by, found)) ||         \
	 FB_RULE_OF_OP(ctx, key, FB_OP_any, by, found))
#define FB_RULE(ctx, by, found)                                                                     \
	({                                                                                          \
		struct fb_key unnamed = {};                                                         \
		fb_take_name(ctx);                                                                  \
		((ctx)->name_len && FB_RULE_OF_NAME(ctx, &(ctx)->key, by, found)) ||                \
			FB_RULE_OF_NAME(ctx, &unnamed, by, found);                                  \
	})

#include "fusebpf_match.h"

#endif
