/* SPDX-License-Identifier: Apache-2.0 OR MIT OR GPL-2.0 */
#include "fusebpf.h"
#include <linux/fs.h>

FILTER(deny, .altitude = FB_POLICY, .wants = FB_WANTS_PATH | FB_WANTS_IDS,
       .doc = "Fails ops by its map `rules`: op, uid, name (each may be any) to the errno; the rule that says most "
	      "decides, and errno 0 lets the op pass.")

struct deny_rule {
	enum fb_errno error;
};

BPF_HASH(deny__rules, struct fb_key, struct deny_rule, 4096);

FB_ALWAYS_INLINE int deny_by(struct fb_key *key, int *said)
{
	struct deny_rule *rule = deny__rules.lookup(key);

	if (rule)
		*said = -(int)rule->error;
	return !!rule;
}

/* What is exchanged has two old names. */
PRE(deny, rename)
{
	struct fb_key unnamed = {};
	int said = FB_CONTINUE;
	int is_by_name = FB_RULE_OF_NAME(ctx, &ctx->key, deny_by, &said);

	if (said == FB_CONTINUE && (ctx->args.rename.flags & RENAME_EXCHANGE)) {
		fb_take_name2(ctx);
		is_by_name &= FB_RULE_OF_NAME(ctx, &ctx->key, deny_by, &said);
	}
	if (said == FB_CONTINUE && !is_by_name)
		FB_RULE_OF_NAME(ctx, &unnamed, deny_by, &said);
	return said;
}

PRE(deny, any)
{
	int said = FB_CONTINUE;

	FB_RULE(ctx, deny_by, &said);
	return said;
}
