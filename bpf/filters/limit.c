/* SPDX-License-Identifier: Apache-2.0 OR MIT OR GPL-2.0 */
#include "fusebpf.h"

FILTER(limit, .altitude = FB_STORE + 40, .wants = FB_WANTS_IDS,
       .doc = "Token buckets per user: `ops` and `bytes` a second; who is over the limit waits, or gets the errno in "
	      "`answer`.")

#define NS_PER_S 1000000000ull
#define N_TRIES 8

struct limit_rate {
	u64 per_second;
	u64 burst;
};

struct limit_bucket {
	u64 free_ns; /* when all that was taken is paid off */
};

struct limit_answer {
	enum fb_errno error; /* 0: it waits */
};

BPF_HASH(limit__ops, u32, struct limit_rate, 4096);
BPF_HASH(limit__bytes, u32, struct limit_rate, 4096);
BPF_ARRAY(limit__answer, struct limit_answer, 1);
BPF_TABLE("lru_hash", u32, struct limit_bucket, limit__ops_taken, 16384);
BPF_TABLE("lru_hash", u32, struct limit_bucket, limit__bytes_taken, 16384);

FB_ALWAYS_INLINE struct limit_bucket *limit_ops_bucket(u32 *uid)
{
	struct limit_bucket none = {}, *bucket = limit__ops_taken.lookup(uid);

	if (bucket)
		return bucket;
	limit__ops_taken.insert(uid, &none);
	return limit__ops_taken.lookup(uid);
}

FB_ALWAYS_INLINE struct limit_bucket *limit_bytes_bucket(u32 *uid)
{
	struct limit_bucket none = {}, *bucket = limit__bytes_taken.lookup(uid);

	if (bucket)
		return bucket;
	limit__bytes_taken.insert(uid, &none);
	return limit__bytes_taken.lookup(uid);
}

/* Take n tokens. Returns how long to wait for them, in ns; where `only_now` and that is not 0 none are taken. */
FB_ALWAYS_INLINE u64 limit_take(struct limit_bucket *bucket, const struct limit_rate *rate, u64 n, int only_now)
{
	u64 now = bpf_ktime_get_ns(), per_second = rate->per_second ? rate->per_second : 1;
	u64 burst_ns = rate->burst * NS_PER_S / per_second, free_ns, from, wait;
	u32 i;

#pragma clang loop unroll(full)
	for (i = 0; i < N_TRIES; i++) {
		free_ns = bucket->free_ns;
		from = free_ns > now ? free_ns : now;
		wait = from - now > burst_ns ? from - now - burst_ns : 0;
		if (wait && only_now)
			return wait;
		if (__sync_val_compare_and_swap(&bucket->free_ns, free_ns, from + n * NS_PER_S / per_second) == free_ns)
			return wait;
	}
	return NS_PER_S / per_second; /* everybody else was quicker */
}

FB_ALWAYS_INLINE u64 limit_ops(u32 uid, int only_now)
{
	u32 any = FB_ANY;
	struct limit_rate *rate = limit__ops.lookup(&uid);
	struct limit_bucket *bucket;

	if (!rate)
		rate = limit__ops.lookup(&any);
	bucket = rate ? limit_ops_bucket(&uid) : 0;
	return bucket ? limit_take(bucket, rate, 1, only_now) : 0;
}

FB_ALWAYS_INLINE u64 limit_bytes(u32 uid, u64 n, int only_now)
{
	u32 any = FB_ANY;
	struct limit_rate *rate = limit__bytes.lookup(&uid);
	struct limit_bucket *bucket;

	if (!rate)
		rate = limit__bytes.lookup(&any);
	bucket = rate ? limit_bytes_bucket(&uid) : 0;
	return bucket ? limit_take(bucket, rate, n, only_now) : 0;
}

PRE(limit, any)
{
	u32 first = 0;
	struct limit_answer *answer = limit__answer.lookup(&first);
	u32 error = answer ? answer->error : 0;
	u64 wait, for_bytes = 0;

	if (ctx->flags & FB_NO_CALLER)
		return FB_CONTINUE;
	wait = limit_ops(ctx->uid, error);
	if (ctx->op == FB_OP_read || ctx->op == FB_OP_write)
		for_bytes = limit_bytes(ctx->uid, ctx->args.rw.size, error);
	wait = for_bytes > wait ? for_bytes : wait;
	if (!wait)
		return FB_CONTINUE;
	if (error)
		return -(int)error;
	ctx->delay_ns = ctx->delay_ns > wait ? ctx->delay_ns : wait;
	ctx->delay_ns = ctx->delay_ns < FB_MAX_DELAY ? ctx->delay_ns : FB_MAX_DELAY;
	ctx->edits |= FB_EDIT_DELAY;
	return FB_REWRITE;
}
