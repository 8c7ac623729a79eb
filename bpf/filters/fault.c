/* SPDX-License-Identifier: Apache-2.0 OR MIT OR GPL-2.0 */
#include "fusebpf.h"

FILTER(fault, .altitude = FB_STORE + 50, .wants = FB_WANTS_PATH | FB_WANTS_IDS,
       .doc = "Injects faults by op, uid and name: `errors`, `shorts` (bytes), `delays` (ms); `when`: how likely, from "
	      "which occurrence on, how often.")

#define NS_PER_MS 1000000ull

struct fault_error {
	enum fb_errno error;
};

struct fault_bytes {
	u64 bytes;
};

struct fault_delay {
	u64 ms;
};

struct fault_when {
	u32 percent; /* 0: always */
	u32 first;   /* the occurrence that is the first to fail; 0: the first one */
	u32 count;   /* how often in all; 0: without end */
};

struct fault_seen {
	u64 seen;
	u64 hit;
};

BPF_HASH(fault__errors, struct fb_key, struct fault_error, 1024);
BPF_HASH(fault__shorts, struct fb_key, struct fault_bytes, 1024);
BPF_HASH(fault__delays, struct fb_key, struct fault_delay, 1024);
BPF_HASH(fault__when, struct fb_key, struct fault_when, 1024);
BPF_HASH(fault__seen, struct fb_key, struct fault_seen, 1024);

struct fault_found {
	u64 bytes;
	u64 ms;
	u32 error;
	u32 is_short;
};

/* Does a rule hit now? Its occurrences are counted by its own key. */
FB_ALWAYS_INLINE int fault_hits(struct fb_key *key)
{
	struct fault_when *when = fault__when.lookup(key);
	struct fault_seen none = {}, *seen;

	if (!when)
		return 1;
	seen = fault__seen.lookup(key);
	if (!seen) {
		fault__seen.insert(key, &none);
		seen = fault__seen.lookup(key);
	}
	if (!seen || __sync_fetch_and_add(&seen->seen, 1) + 1 < when->first)
		return 0;
	if (when->percent && bpf_get_prandom_u32() % 100 >= when->percent)
		return 0;
	return !when->count || __sync_fetch_and_add(&seen->hit, 1) < when->count;
}

/* Is there a rule with this key? Then it is the one, whether it hits or not. */
FB_ALWAYS_INLINE int fault_by(struct fb_key *key, struct fault_found *found)
{
	struct fault_error *error = fault__errors.lookup(key);
	struct fault_bytes *bytes = fault__shorts.lookup(key);
	struct fault_delay *delay = fault__delays.lookup(key);

	if (!error && !bytes && !delay)
		return 0;
	if (!fault_hits(key))
		return 1;
	found->error = error ? error->error : 0;
	found->is_short = !!bytes;
	found->bytes = bytes ? bytes->bytes : 0;
	found->ms = delay ? delay->ms : 0;
	return 1;
}

PRE(fault, any)
{
	struct fault_found found = {};

	FB_RULE(ctx, fault_by, &found);
	if (found.ms) {
		ctx->delay_ns = found.ms < FB_MAX_DELAY / NS_PER_MS ? found.ms * NS_PER_MS : FB_MAX_DELAY;
		ctx->edits |= FB_EDIT_DELAY;
	}
	if (found.error)
		return -(int)found.error;
	if (found.is_short && (ctx->op == FB_OP_read || ctx->op == FB_OP_write) && found.bytes < ctx->args.rw.size) {
		ctx->args.rw.size = found.bytes;
		ctx->edits |= FB_EDIT_SIZE;
	}
	return ctx->edits ? FB_REWRITE : FB_CONTINUE;
}
