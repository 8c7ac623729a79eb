/* Cookies from pre to post of every op, and the path that each op has; what was wrong is counted by op. */
#include "fusebpf.h"

FILTER(kept, .altitude = FB_POLICY + 2, .wants = FB_WANTS_PATH)
FILTER(other, .altitude = FB_POLICY + 1)

struct kept_path {
	u32 flags, len;
	char text[56];
};
BPF_ARRAY(kept__paths, struct kept_path, 256);
BPF_ARRAY(kept__paths2, struct kept_path, 256);
BPF_ARRAY(kept__good, u32, 256);
BPF_ARRAY(kept__bad, u32, 256);

PRE(other, any)
{
	ctx->cookie = ~ctx->unique;
	return FB_CONTINUE;
}

POST(other, any)
{
	u32 op = ctx->op, *bad = kept__bad.lookup(&op);

	if (bad && ctx->cookie != ~ctx->unique)
		__sync_fetch_and_add(bad, 1);
	return FB_CONTINUE;
}

PRE(kept, any)
{
	u32 op = ctx->op;
	struct kept_path *path = kept__paths.lookup(&op), *path2 = kept__paths2.lookup(&op);

	if (ctx->cookie)
		return -EUCLEAN; /* left by an op before */
	ctx->cookie = ctx->unique << 1;
	if (!path || !path2)
		return FB_CONTINUE;
	path->flags = path2->flags = ctx->flags;
	path->len = ctx->path_len;
	path2->len = ctx->path2_len;
	__builtin_memcpy(path->text, ctx->path, sizeof(path->text));
	__builtin_memcpy(path2->text, ctx->path2, sizeof(path2->text));
	return FB_CONTINUE;
}

POST(kept, any)
{
	u32 op = ctx->op;
	u32 *count = ctx->cookie == ctx->unique << 1 ? kept__good.lookup(&op) : kept__bad.lookup(&op);

	if (count)
		__sync_fetch_and_add(count, 1);
	return FB_CONTINUE;
}

POST(kept, dirent)
{
	u32 op = ctx->op, *count = ctx->cookie == ctx->unique << 1 ? kept__good.lookup(&op) : kept__bad.lookup(&op);

	if (count)
		__sync_fetch_and_add(count, 1);
	return FB_CONTINUE;
}
