/* SPDX-License-Identifier: Apache-2.0 OR MIT OR GPL-2.0 */
#include "fusebpf.h"
#include <linux/fcntl.h>
#include <linux/fs.h>
#include <linux/stat.h>

#define N_RULES 8
#define PATH_SIZE 128
#define ROOT 1 /* the nodeid of the mount's root */

FILTER(quota, .altitude = FB_STORE + 5, .wants = FB_WANTS_PATH | FB_WANTS_SIZES,
       .doc = "Bytes and files below the paths in `rules` have a limit (EDQUOT): path:max_bytes:max_files:bytes:files.")

struct quota_rule {
	char path[PATH_SIZE]; /* `/` is the root; empty: none */
	u64 max_bytes; /* 0: no limit */
	u64 max_files;
	s64 bytes; /* below 0: what was there before and was not said has gone */
	s64 files;
};

BPF_ARRAY(quota__rules, struct quota_rule, N_RULES);

/* A tag is the number of the rule that counts what is there; what is below a directory inherits its. */
FB_ALWAYS_INLINE struct quota_rule *quota_rule_of(u64 tag)
{
	u32 index = tag - 1;
	struct quota_rule *rule = quota__rules.lookup(&index);

	return rule && rule->path[0] ? rule : 0; /* it may have been taken out since */
}

/* Take from a rule's room; what does not fit is given back. */
FB_ALWAYS_INLINE int quota_take(struct quota_rule *rule, u64 bytes, u64 files)
{
	s64 now_bytes = __sync_fetch_and_add(&rule->bytes, bytes) + bytes;
	s64 now_files = __sync_fetch_and_add(&rule->files, files) + files;

	if ((!bytes || !rule->max_bytes || now_bytes <= (s64)rule->max_bytes) &&
	    (!files || !rule->max_files || now_files <= (s64)rule->max_files))
		return 1;
	__sync_fetch_and_add(&rule->bytes, -bytes);
	__sync_fetch_and_add(&rule->files, -files);
	return 0;
}

FB_ALWAYS_INLINE void quota_give(struct quota_rule *rule, u64 bytes, u64 files)
{
	__sync_fetch_and_add(&rule->bytes, -bytes);
	__sync_fetch_and_add(&rule->files, -files);
}

/* The rule that a file counts for: one whose last name has gone counts for none. */
FB_ALWAYS_INLINE struct quota_rule *quota_of_file(const struct fb_slot *ctx)
{
	return ctx->flags & FB_GONE ? 0 : quota_rule_of(ctx->tag);
}

/* The number of the rule whose path this is, 0 if none's. */
FB_ALWAYS_INLINE u64 quota_named(struct fb_slot *ctx)
{
	u64 *path = (u64 *)ctx->path, found = 0, difference, mask, i;
	u32 index, word, at;

	if (ctx->path_len >= PATH_SIZE)
		return 0;
	FB_ROUNDS(at, ctx->zero, PATH_SIZE, (void)0) {
		i = at;
		FB_BOUND(i, 0x7f);
		mask = (u64)((s64)(i - ctx->path_len) >> 63);
		asm volatile("" : "+r"(mask));
		ctx->path[i] &= mask;
	}
	FB_ROUNDS(index, ctx->zero, N_RULES, (void)0) {
		struct quota_rule *rule = quota__rules.lookup(&index);
		if (!rule || !rule->path[0])
			continue; /* taken out; those behind it hold */
		difference = 0;
#pragma clang loop unroll(full)
		for (word = 0; word < PATH_SIZE / 8; word++)
			difference |= path[word] ^ ((u64 *)rule->path)[word];
		if (!difference)
			found = index + 1;
	}
	return found;
}

/* The number of the rule for the whole mount, 0 if there is none. */
FB_ALWAYS_INLINE u64 quota_of_root(const struct fb_slot *ctx)
{
	u64 found = 0;
	u32 index;

	FB_ROUNDS(index, ctx->zero, N_RULES, (void)0) {
		struct quota_rule *rule = quota__rules.lookup(&index);
		if (rule && rule->path[0] == '/')
			found = index + 1;
	}
	return found;
}

/* An entry counts for its directory's rule, also where it has one of its own. The root is looked up by nobody, so its tag is
 * seen to here. */
PRE(quota, lookup)
{
	u64 rule = ctx->nodeid == ROOT ? quota_of_root(ctx) : ctx->tag;

	ctx->cookie = rule;
	if (ctx->nodeid != ROOT || ctx->tag == rule)
		return FB_CONTINUE;
	ctx->tag = rule;
	ctx->edits |= FB_EDIT_TAG;
	return FB_REWRITE;
}

FB_ALWAYS_INLINE int quota_note(struct fb_slot *ctx, u64 tag)
{
	ctx->tag = tag;
	ctx->edits |= FB_EDIT_TAG;
	return FB_REWRITE;
}

/* A directory's rule is by its path, or that of the directory that it is in. A file with links below several rules stays with the one
 * that it was seen below first. */
POST(quota, lookup)
{
	u64 rule;

	if (ctx->error)
		return FB_CONTINUE;
	if (!S_ISDIR(ctx->result.attr.mode))
		return ctx->flags & FB_TAG_MIXED ? quota_note(ctx, ctx->tag) : FB_CONTINUE;
	rule = quota_named(ctx);
	rule = rule ? rule : ctx->cookie;
	return rule == ctx->tag ? FB_CONTINUE : quota_note(ctx, rule);
}

/* ------------------------------------------------------------------------ files */

FB_ALWAYS_INLINE int quota_make(struct fb_slot *ctx)
{
	struct quota_rule *rule = quota_rule_of(ctx->tag);

	ctx->cookie = rule ? ctx->tag : 0;
	return rule && !quota_take(rule, 0, 1) ? -EDQUOT : FB_CONTINUE;
}

FB_ALWAYS_INLINE int quota_made(struct fb_slot *ctx)
{
	struct quota_rule *rule = quota_rule_of(ctx->cookie);

	if (rule && ctx->error)
		quota_give(rule, 0, 1);
	return FB_CONTINUE;
}

PRE(quota, create) { return quota_make(ctx); }
PRE(quota, mkdir) { return quota_make(ctx); }
PRE(quota, mknod) { return quota_make(ctx); }
PRE(quota, symlink) { return quota_make(ctx); }
POST(quota, create) { return quota_made(ctx); }
POST(quota, mkdir) { return quota_made(ctx); }
POST(quota, mknod) { return quota_made(ctx); }
POST(quota, symlink) { return quota_made(ctx); }

/* Files without a name come and go unseen. */
PRE(quota, tmpfile)
{
	return ctx->tag || (ctx->nodeid == ROOT && quota_of_root(ctx)) ? -EOPNOTSUPP : FB_CONTINUE;
}

/* What lost its last name counts no longer: its bytes for its own rule, and it for its directory's. */
FB_ALWAYS_INLINE int quota_gone(const struct fb_slot *ctx)
{
	struct quota_rule *of_bytes = quota_rule_of(ctx->tag2), *of_file = quota_rule_of(ctx->cookie);

	if (ctx->error || !(ctx->flags & FB_GONE))
		return FB_CONTINUE;
	if (of_bytes && S_ISREG(ctx->result.attr.mode))
		quota_give(of_bytes, ctx->result.attr.size, 0);
	if (of_file)
		quota_give(of_file, 0, 1);
	return FB_CONTINUE;
}

/* Where a name is taken away, in the directory. */
FB_ALWAYS_INLINE int quota_from(struct fb_slot *ctx)
{
	ctx->cookie = ctx->tag;
	return FB_CONTINUE;
}

PRE(quota, unlink) { return quota_from(ctx); }
PRE(quota, rmdir) { return quota_from(ctx); }
POST(quota, unlink) { return quota_gone(ctx); }
POST(quota, rmdir) { return quota_gone(ctx); }

/* Is this a rule's path, or one above it? All ones for yes: a branch in the loop would be walked both ways. */
FB_ALWAYS_INLINE u64 quota_is_above(const struct fb_slot *ctx, const char *path, u64 len)
{
	u64 found = 0, difference, mask, end, i;
	u32 index, at;
	s64 before;

	if (len >= PATH_SIZE)
		return 0;
	FB_ROUNDS(index, ctx->zero, N_RULES, (void)0) {
		struct quota_rule *rule = quota__rules.lookup(&index);
		if (!rule || !rule->path[0])
			continue; /* taken out; those behind it hold */
		difference = 0;
		FB_ROUNDS(at, ctx->zero, PATH_SIZE, (void)0) {
			i = at;
			FB_BOUND(i, 0x7f);
			before = (s64)(i - len);
			asm volatile("" : "+r"(before));
			mask = (u64)(before >> 63);
			difference |= (u8)(path[i] ^ rule->path[i]) & mask;
		}
		end = (u8)rule->path[len & (PATH_SIZE - 1)];
		found |= fb_is_zero(difference) & (fb_is_zero(end) | fb_is_zero(end ^ '/'));
	}
	return found;
}

/* What moves to another rule is copied, as between file systems; so is what a rule's path leads to. */
PRE(quota, link) { return ctx->tag != ctx->tag2 ? -EXDEV : FB_CONTINUE; }

PRE(quota, rename)
{
	/* A whiteout would be one more that is not counted. */
	if (ctx->tag && (ctx->args.rename.flags & RENAME_WHITEOUT))
		return -EINVAL;
	if (ctx->tag != ctx->tag2)
		return -EXDEV;
	ctx->cookie = ctx->tag2;
	return quota_is_above(ctx, ctx->path, ctx->path_len) || quota_is_above(ctx, ctx->path2, ctx->path2_len) ? -EXDEV : FB_CONTINUE;
}

POST(quota, rename) { return quota_gone(ctx); }

/* ------------------------------------------------------------------------ bytes */

/* What the file system says of the size before the op and after it is what counts, whoever sees the file as what. The cookie is by how
 * much it may grow. */
FB_ALWAYS_INLINE int quota_grow(struct fb_slot *ctx, u64 end)
{
	struct quota_rule *rule = quota_of_file(ctx);

	if (rule && end >> 62) /* a sum that could go round */
		return -EDQUOT;
	ctx->cookie = rule && end > ctx->size ? end - ctx->size : 0;
	return ctx->cookie && !quota_take(rule, ctx->cookie, 0) ? -EDQUOT : FB_CONTINUE;
}

FB_ALWAYS_INLINE int quota_sized(struct fb_slot *ctx)
{
	struct quota_rule *rule = quota_rule_of(ctx->tag);
	u64 grown = ctx->flags & FB_GONE ? 0 : ctx->size - ctx->old_size;

	if (rule)
		quota_give(rule, ctx->cookie - grown, 0);
	return FB_CONTINUE;
}

PRE(quota, write)
{
	u64 start = ctx->args.rw.flags & O_APPEND ? ctx->size : ctx->args.rw.offset;

	return quota_grow(ctx, start + ctx->args.rw.size);
}

PRE(quota, setattr)
{
	return ctx->args.setattr.valid & FB_SET_SIZE ? quota_grow(ctx, ctx->args.setattr.size) : FB_CONTINUE;
}

/* Modes that shorten or lengthen a file in the middle, or take room behind its end, are not had. */
PRE(quota, fallocate)
{
	u32 mode = ctx->args.fallocate.mode;
	u64 end = ctx->args.fallocate.offset + ctx->args.fallocate.length;

	if (!ctx->tag)
		return FB_CONTINUE;
	if (mode & ~3 || (mode == 1 && end > ctx->size))
		return -EOPNOTSUPP;
	return mode ? FB_CONTINUE : quota_grow(ctx, end);
}

POST(quota, write) { return quota_sized(ctx); }
POST(quota, setattr) { return quota_sized(ctx); }
POST(quota, fallocate) { return quota_sized(ctx); }
POST(quota, open) { return quota_sized(ctx); }
