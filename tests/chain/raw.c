/* A filter whose hook on mkdir leaves what it should not in its verdict ring. */
#include "fusebpf.h"

FILTER(raw, .altitude = FB_POLICY, .doc = "Breaks the rules of the verdict ring.")

BPF_ARRAY(raw__way, u32, 2); /* by phase */

FB_ALWAYS_INLINE u32 raw_way(u32 phase)
{
	u32 *way = raw__way.lookup(&phase);

	return way ? *way : 0;
}

FB_ALWAYS_INLINE void raw_bytes(struct fb_hook *hook, u32 more, u32 less)
{
	char bytes[sizeof(struct fb_verdict_record) + 8] = {};
	u32 index = hook->ring;
	void *ring = fb_rings.lookup(&index);

	if (!ring)
		return;
	if (more)
		bpf_ringbuf_output(ring, bytes, sizeof(bytes), BPF_RB_NO_WAKEUP);
	if (less)
		bpf_ringbuf_output(ring, bytes, 8, BPF_RB_NO_WAKEUP);
}

FB_ALWAYS_INLINE int raw_break(u32 way)
{
	struct fb_hook *hook = fb_hook_here();
	struct fb_slot *ctx = hook ? fb_slot_of(hook) : 0;
	struct fb_hook other = {};

	if (!ctx)
		return 0;
	other.unique = hook->unique;
	other.slot = hook->slot;
	other.ring = hook->ring;
	other.filter = hook->filter;
	other.op = hook->op;
	other.phase = hook->phase;
	if (way == 1) /* none */
		return 0;
	if (way == 2)
		fb_emit(&other, ctx, FB_CONTINUE);
	if (way == 3)
		other.unique += 2;
	if (way == 4)
		other.slot ^= 1;
	if (way == 5)
		other.filter += 1;
	if (way == 6)
		other.op = FB_OP_rmdir;
	if (way == 7)
		other.phase = 1 - hook->phase;
	if (way == 8 || way == 9) { /* of another size, alone */
		raw_bytes(hook, way == 8, way == 9);
		return 0;
	}
	if (way == 10) /* of another size, beside a good one */
		raw_bytes(hook, 0, 1);
	fb_emit(&other, ctx, FB_CONTINUE);
	if (way == 11)
		raw_bytes(hook, 1, 0);
	return 0;
}

int raw__pre__mkdir(void *none) { return raw_break(raw_way(FB_PRE)); }
int raw__post__mkdir(void *none) { return raw_break(raw_way(FB_POST)); }
