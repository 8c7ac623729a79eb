/* SPDX-License-Identifier: Apache-2.0 OR MIT OR GPL-2.0 */
#include "fusebpf.h"

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

PRE(deny, any)
{
	int said = FB_CONTINUE;

	FB_RULE(ctx, deny_by, &said);
	return said;
}
