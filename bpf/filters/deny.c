/* SPDX-License-Identifier: Apache-2.0 OR MIT OR GPL-2.0 */
#include "fusebpf.h"

FILTER(deny, .altitude = FB_POLICY, .wants = FB_WANTS_IDS,
       .doc = "Fails ops by its map `rules`: op, uid, name (each may be any) to the errno; the rule that says most "
	      "decides, and errno 0 lets the op pass.")

struct deny_rule {
	enum fb_errno error;
};

BPF_HASH(deny__rules, struct fb_key, struct deny_rule, 4096);

FB_ALWAYS_INLINE int deny_by(const struct fb_key *key, int *said)
{
	struct deny_rule *rule = deny__rules.lookup((struct fb_key *)key);

	if (rule)
		*said = -(int)rule->error;
	return !!rule;
}

/* All rules for one name, from the one that says most to the one that says least. */
FB_ALWAYS_INLINE int deny_by_name(struct fb_key *key, u32 op, u32 uid, int *said)
{
	key->op = op;
	key->uid = uid;
	if (deny_by(key, said))
		return 1;
	key->uid = FB_ANY;
	if (deny_by(key, said))
		return 1;
	key->op = FB_OP_any;
	key->uid = uid;
	if (deny_by(key, said))
		return 1;
	key->uid = FB_ANY;
	return deny_by(key, said);
}

PRE(deny, any)
{
	struct fb_key unnamed = {};
	int said = FB_CONTINUE;

	if (ctx->name_len && deny_by_name(&ctx->key, ctx->op, ctx->uid, &said))
		return said;
	deny_by_name(&unnamed, ctx->op, ctx->uid, &said);
	return said;
}
