/* A filter that lays noise over its verdicts, over the slot, or over both: tests/fuzz/test_records.py fills the map. */
#include "fusebpf.h"

FILTER(noise, .altitude = FB_VIEW, .doc = "Says anything.")

#define NOISE_WORDS 64

struct noise {
	u64 record[(sizeof(struct fb_verdict_record) + 7) / 8 + 8]; /* xored over the record and what follows it */
	u64 slot[NOISE_WORDS];
	u32 size;    /* of the record; 0: the right one */
	u32 at;	     /* from which word of the slot on the noise lies */
	u32 times;   /* how many records */
	u32 is_on;   /* 1: for the pre hook, 2: for the post hook, 3: for both */
};

BPF_ARRAY(noise__what, struct noise, 1);

struct long_record {
	struct fb_verdict_record good;
	u64 more[8];
};

BPF_ARRAY(noise__room, struct long_record, 1);

FB_ALWAYS_INLINE void noise_in_slot(struct fb_slot *ctx, struct noise *what)
{
	u64 *words = (u64 *)ctx;
	u32 i;

	for (i = 0; i < NOISE_WORDS; i++)
		words[(what->at + i) & 1023] ^= what->slot[i];
}

FB_ALWAYS_INLINE int noise_say(u32 phase)
{
	struct fb_hook *hook = fb_hook_here();
	struct fb_slot *ctx = hook ? fb_slot_of(hook) : 0;
	u32 zero = 0, index = hook ? hook->ring : 0, size, i;
	struct noise *what = noise__what.lookup(&zero);
	struct long_record *room = noise__room.lookup(&zero);
	void *ring = fb_rings.lookup(&index);

	if (!ctx || !what || !room || !ring)
		return 0;
	if (!(what->is_on & 1 << phase)) {
		fb_emit(hook, ctx, FB_CONTINUE);
		return 0;
	}
	__builtin_memset(room, 0, sizeof(*room));
	room->good.unique = hook->unique;
	room->good.slot = hook->slot;
	room->good.filter = hook->filter;
	room->good.op = hook->op;
	room->good.phase = hook->phase;
	room->good.verdict = FB_CONTINUE;
	for (i = 0; i < sizeof(*room) / 8; i++)
		((u64 *)room)[i] ^= what->record[i];
	noise_in_slot(ctx, what);
	size = what->size ? what->size : sizeof(room->good);
	if (size > sizeof(*room))
		size = sizeof(*room);
	for (i = 0; i < 3; i++)
		if (i < what->times)
			bpf_ringbuf_output(ring, room, size, BPF_RB_NO_WAKEUP);
	return 0;
}

int noise__pre__any(void *none) { return noise_say(0); }
int noise__post__any(void *none) { return noise_say(1); }
int noise__post__dirent(void *none) { return noise_say(1); }
