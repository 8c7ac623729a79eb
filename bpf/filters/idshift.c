/* SPDX-License-Identifier: Apache-2.0 OR MIT OR GPL-2.0 */
#include "fusebpf.h"
#include <linux/fs.h>

#define OVERFLOW_ID 65534 /* as user namespaces show what they cannot */
#define N_RANGES 16

FILTER(idshift, .altitude = FB_VIEW + 30, .wants = FB_WANTS_IDS,
       .doc = "Owners and groups are shown and stored differently: ranges shown:stored:count in `uids` and `gids`.")

struct idshift_range {
	u32 shown;
	u32 stored;
	u32 count; /* 0: no range */
};

BPF_ARRAY(idshift__uids, struct idshift_range, N_RANGES);
BPF_ARRAY(idshift__gids, struct idshift_range, N_RANGES);

#define NO_ID 0xffffffffffffffffull /* no range has it */

FB_ALWAYS_INLINE u64 idshift_in(const struct idshift_range *r, u32 id, int to_stored)
{
	u32 from = to_stored ? r->shown : r->stored, to = to_stored ? r->stored : r->shown;

	u64 other = (u64)to + (id - from);

	return id >= from && id - from < r->count && other < (u32)-1 ? other : NO_ID; // a range ends at the last id
}

FB_ALWAYS_INLINE u64 idshift_uid(u32 id, int to_stored)
{
	u64 found, none = id; /* no ranges at all: ids are what they are */
	u32 i;

	for (i = 0; i < N_RANGES; i++) {
		struct idshift_range *r = idshift__uids.lookup(&i);
		if (!r || !r->count)
			continue;
		none = NO_ID;
		found = idshift_in(r, id, to_stored);
		if (found != NO_ID)
			return found;
	}
	return none;
}

FB_ALWAYS_INLINE u64 idshift_gid(u32 id, int to_stored)
{
	u64 found, none = id; /* no ranges at all: ids are what they are */
	u32 i;

	for (i = 0; i < N_RANGES; i++) {
		struct idshift_range *r = idshift__gids.lookup(&i);
		if (!r || !r->count)
			continue;
		none = NO_ID;
		found = idshift_in(r, id, to_stored);
		if (found != NO_ID)
			return found;
	}
	return none;
}

FB_ALWAYS_INLINE int idshift_show(struct fb_slot *ctx)
{
	u64 uid, gid;

	if (ctx->error)
		return FB_CONTINUE;
	uid = idshift_uid(ctx->result.attr.uid, 0);
	gid = idshift_gid(ctx->result.attr.gid, 0);
	ctx->result.attr.uid = uid == NO_ID ? OVERFLOW_ID : uid;
	ctx->result.attr.gid = gid == NO_ID ? OVERFLOW_ID : gid;
	ctx->edits |= FB_EDIT_ATTR;
	return FB_REWRITE;
}

/* Who makes a file owns it, by the id that is stored. */
FB_ALWAYS_INLINE int idshift_make(struct fb_slot *ctx)
{
	u64 uid = idshift_uid(ctx->uid, 1), gid = idshift_gid(ctx->gid, 1);

	if (uid == NO_ID || gid == NO_ID)
		return -EOVERFLOW;
	ctx->uid = uid;
	ctx->gid = gid;
	ctx->edits |= FB_EDIT_UID | FB_EDIT_GID;
	return FB_REWRITE;
}

PRE(idshift, setattr)
{
	u64 uid, gid;

	if (ctx->args.setattr.valid & FB_SET_UID) {
		uid = idshift_uid(ctx->args.setattr.uid, 1);
		if (uid == NO_ID)
			return -EOVERFLOW;
		ctx->args.setattr.uid = uid;
		ctx->edits |= FB_EDIT_UID;
	}
	if (ctx->args.setattr.valid & FB_SET_GID) {
		gid = idshift_gid(ctx->args.setattr.gid, 1);
		if (gid == NO_ID)
			return -EOVERFLOW;
		ctx->args.setattr.gid = gid;
		ctx->edits |= FB_EDIT_GID;
	}
	return ctx->edits ? FB_REWRITE : FB_CONTINUE;
}

/* A whiteout would be made in the caller's own name, and rename has no owner to rewrite. */
PRE(idshift, rename) { return ctx->args.rename.flags & RENAME_WHITEOUT ? -EINVAL : FB_CONTINUE; }

PRE(idshift, symlink) { return idshift_make(ctx); }
PRE(idshift, mknod) { return idshift_make(ctx); }
PRE(idshift, mkdir) { return idshift_make(ctx); }
PRE(idshift, create) { return idshift_make(ctx); }
PRE(idshift, tmpfile) { return idshift_make(ctx); }

POST(idshift, lookup) { return idshift_show(ctx); }
POST(idshift, getattr) { return idshift_show(ctx); }
POST(idshift, setattr) { return idshift_show(ctx); }
POST(idshift, symlink) { return idshift_show(ctx); }
POST(idshift, mknod) { return idshift_show(ctx); }
POST(idshift, mkdir) { return idshift_show(ctx); }
POST(idshift, create) { return idshift_show(ctx); }
POST(idshift, tmpfile) { return idshift_show(ctx); }
POST(idshift, link) { return idshift_show(ctx); }
