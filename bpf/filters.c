/* SPDX-License-Identifier: Apache-2.0 OR MIT OR GPL-2.0 */
/*
 * The stock filters, one block each. `fusebpf mount … --filter NAME --set NAME.MAP=VALUE,…`
 */
#include "fusebpf.h"

#define O_ACCMODE 3
#define O_TRUNC 01000
#define W_OK 2

/* ------------------------------------------------------------------------------------ hide */

FILTER(hide, .altitude = FB_POLICY + 10,
       .doc = "Hides the names and globs in its map `names`: absent to lookup, gone from listings, "
	      "EACCES where one would be made.")

BPF_ARRAY(hide__names, struct fb_patterns, 1);

FB_ALWAYS_INLINE struct fb_patterns *hide_patterns(void)
{
	u32 first = 0;

	return hide__names.lookup(&first);
}

PRE(hide, name)
{
	if (!fb_match_names(ctx, hide_patterns()))
		return FB_CONTINUE | FB_NOPOST;
	if (ctx->op == FB_OP_lookup)
		return FB_NEGATIVE;
	return ctx->op == FB_OP_unlink || ctx->op == FB_OP_rmdir ? -ENOENT : -EACCES;
}

POST(hide, dirent)
{
	return fb_match_name(ctx, hide_patterns()) ? FB_DROP : FB_CONTINUE;
}

/* -------------------------------------------------------------------------------- readonly */

FILTER(readonly, .altitude = FB_POLICY + 20, .wants = FB_WANTS_PATH,
       .doc = "Makes the paths in its map `paths`, and all below them, read-only (EROFS); with an empty map, "
	      "everything.")

BPF_ARRAY(readonly__paths, struct fb_patterns, 1);

FB_ALWAYS_INLINE int readonly_judge(const struct fb_slot *ctx)
{
	u32 first = 0;
	struct fb_patterns *patterns = readonly__paths.lookup(&first);
	int match;

	if (ctx->op == FB_OP_open && (ctx->args.open.flags & O_ACCMODE) == 0 &&
	    !(ctx->args.open.flags & O_TRUNC))
		return FB_CONTINUE;
	if (ctx->op == FB_OP_access && !(ctx->args.access.mask & W_OK))
		return FB_CONTINUE;
	if (ctx->op == FB_OP_ioctl && !ctx->args.ioctl.in_size) /* it only asks */
		return FB_CONTINUE;
	if (!patterns || !patterns->list[0].text[0] || (ctx->flags & FB_PATH_LOST))
		return -EROFS;
	/* Whoever moves a directory above a path moves what is protected there; a new entry must not be below one. */
	if (ctx->op == FB_OP_rename || ctx->op == FB_OP_link)
		match = fb_match_paths(ctx, patterns, FB_MATCH_BELOW | FB_MATCH_ABOVE);
	else
		match = fb_match_path(ctx, patterns, FB_MATCH_BELOW);
	return match ? -EROFS : FB_CONTINUE;
}

PRE(readonly, setattr) { return readonly_judge(ctx); }
PRE(readonly, symlink) { return readonly_judge(ctx); }
PRE(readonly, mknod) { return readonly_judge(ctx); }
PRE(readonly, mkdir) { return readonly_judge(ctx); }
PRE(readonly, unlink) { return readonly_judge(ctx); }
PRE(readonly, rmdir) { return readonly_judge(ctx); }
PRE(readonly, rename) { return readonly_judge(ctx); }
PRE(readonly, link) { return readonly_judge(ctx); }
PRE(readonly, open) { return readonly_judge(ctx); }
PRE(readonly, create) { return readonly_judge(ctx); }
PRE(readonly, setxattr) { return readonly_judge(ctx); }
PRE(readonly, removexattr) { return readonly_judge(ctx); }
PRE(readonly, access) { return readonly_judge(ctx); }
PRE(readonly, ioctl) { return readonly_judge(ctx); }
PRE(readonly, tmpfile) { return readonly_judge(ctx); }
PRE(readonly, fallocate) { return readonly_judge(ctx); }

/* ------------------------------------------------------------------------------------ deny */

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

/* ----------------------------------------------------------------------------------- audit */

FILTER(audit, .altitude = FB_WATCH, .doc = "Decides nothing: every op is recorded in `recent` and counted in `stats`.")

PRE(audit, any) { return FB_CONTINUE; }
POST(audit, any) { return FB_CONTINUE; }
