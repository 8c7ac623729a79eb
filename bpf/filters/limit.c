/* SPDX-License-Identifier: Apache-2.0 OR MIT OR GPL-2.0 */
#include "fusebpf.h"

FILTER(limit, .altitude = FB_STORE + 40, .wants = FB_WANTS_IDS | FB_WANTS_CALLER,
       .doc = "Token buckets per user and per cgroup: `ops` and `bytes` a second; who is over the limit waits, or gets "
	      "the errno in `answer`.")

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

enum limit_of { LIMIT_USER_OPS, LIMIT_USER_BYTES, LIMIT_CGROUP_OPS, LIMIT_CGROUP_BYTES };

struct limit_owner {
	u64 id; /* a user or a cgroup */
	enum limit_of of;
	u32 reserved0;
};

BPF_HASH(limit__ops, u32, struct limit_rate, 4096);
BPF_HASH(limit__bytes, u32, struct limit_rate, 4096);
BPF_HASH(limit__cgroup_ops, u64, struct limit_rate, 4096);
BPF_HASH(limit__cgroup_bytes, u64, struct limit_rate, 4096);
BPF_ARRAY(limit__answer, struct limit_answer, 1);
BPF_TABLE("lru_hash", struct limit_owner, struct limit_bucket, limit__taken, 32768);

FB_ALWAYS_INLINE struct limit_bucket *limit_bucket_of(enum limit_of of, u64 id)
{
	struct limit_owner owner = {.id = id, .of = of};
	struct limit_bucket none = {}, *bucket = limit__taken.lookup(&owner);

	if (bucket)
		return bucket;
	limit__taken.insert(&owner, &none);
	return limit__taken.lookup(&owner);
}

/* Take n tokens. Returns how long to wait for them, in ns; where `only_now` and that is not 0 none are taken. */
FB_ALWAYS_INLINE u64 limit_take(struct limit_bucket *bucket, const struct limit_rate *rate, u64 n, int only_now)
{
	u64 now = bpf_ktime_get_ns(), per_second = rate->per_second ? rate->per_second : 1;
	/* Its nanoseconds need not fit: a longer one is as good as none. */
	u64 burst_ns = rate->burst < ~0ull / NS_PER_S ? rate->burst * NS_PER_S / per_second : ~0ull, free_ns, from, wait;
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

/* Take n of the tokens that an owner has by a rule, if there is one. Returns how long to wait for them, in ns. */
FB_ALWAYS_INLINE u64 limit_by(const struct limit_rate *rate, enum limit_of of, u64 id, u64 n, int only_now)
{
	struct limit_bucket *bucket = rate ? limit_bucket_of(of, id) : 0;

	return bucket ? limit_take(bucket, rate, n, only_now) : 0;
}

FB_ALWAYS_INLINE u64 limit_ops(struct fb_slot *ctx, int only_now)
{
	u32 uid = ctx->uid, any = FB_ANY;
	u64 cgroup = ctx->caller.cgroup_id, by_user, by_cgroup;
	struct limit_rate *rate = limit__ops.lookup(&uid);

	if (!rate)
		rate = limit__ops.lookup(&any);
	by_user = limit_by(rate, LIMIT_USER_OPS, uid, 1, only_now);
	by_cgroup = limit_by(limit__cgroup_ops.lookup(&cgroup), LIMIT_CGROUP_OPS, cgroup, 1, only_now);
	return by_user > by_cgroup ? by_user : by_cgroup;
}

FB_ALWAYS_INLINE u64 limit_bytes(struct fb_slot *ctx, int only_now)
{
	u32 uid = ctx->uid, any = FB_ANY;
	u64 cgroup = ctx->caller.cgroup_id, n = ctx->args.rw.size, by_user, by_cgroup;
	struct limit_rate *rate = limit__bytes.lookup(&uid);

	if (!rate)
		rate = limit__bytes.lookup(&any);
	by_user = limit_by(rate, LIMIT_USER_BYTES, uid, n, only_now);
	by_cgroup = limit_by(limit__cgroup_bytes.lookup(&cgroup), LIMIT_CGROUP_BYTES, cgroup, n, only_now);
	return by_user > by_cgroup ? by_user : by_cgroup;
}

PRE(limit, any)
{
	u32 first = 0;
	struct limit_answer *answer = limit__answer.lookup(&first);
	u32 error = answer ? answer->error : 0;
	u64 wait, for_bytes = 0;

	if (ctx->flags & FB_NO_CALLER)
		return FB_CONTINUE;
	/* Who is not known has cgroup_id 0, as no cgroup has: by user alone, unless there is a rule for 0. */
	wait = limit_ops(ctx, error);
	if (ctx->op == FB_OP_read || ctx->op == FB_OP_write)
		for_bytes = limit_bytes(ctx, error);
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
