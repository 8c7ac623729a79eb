/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The op table of fusebpf.h, expanded, and the decoding of requests into the arguments of a slot. The place that
 * touches raw request bytes; every access is bounded by request_take.
 */
#include "core.h"

/* ------------------------------------------------------------------------------- decoding */

/** The next `size` bytes of the request, or NULL if it is shorter. */
const void *request_take(struct request *rq, size_t size)
{
	const char *at = rq->body + rq->body_at;

	if (rq->body_len - rq->body_at < size)
		return NULL;
	rq->body_at += size;
	return at;
}

/* The next zero-terminated text, of 1 to `most` bytes. */
static int take_text(struct request *rq, size_t most, const char **out)
{
	const char *at = rq->body + rq->body_at;
	size_t left = rq->body_len - rq->body_at, len = strnlen(at, left);

	if (len == left || len == 0)
		return -EINVAL;
	if (len > most)
		return -ENAMETOOLONG;
	rq->body_at += len + 1;
	*out = at;
	return 0;
}

static bool is_file_name(const char *name)
{
	return !strchr(name, '/') && strcmp(name, ".") && strcmp(name, "..");
}

/* A setxattr's value follows its name. */
static bool has_value(const struct request *rq)
{
	uint32_t size = rq->image->args.xattr.size;

	return size <= FB_DATA_SIZE && size <= rq->body_len - rq->body_at;
}

static int take_names(struct request *rq)
{
	const char **names[] = { &rq->name, &rq->name2 };

	for (int i = 0; i < rq->op->n_names; i++) {
		int e = take_text(rq, FB_NAME_SIZE - 1, names[i]);
		if (e)
			return e;
		if (!(rq->op->flags & FB_OP_XATTR) && !is_file_name(*names[i]))
			return -EINVAL;
	}
	if (rq->op->opcode == FB_OP_setxattr && !has_value(rq))
		return -EINVAL;
	rq->asked = rq->name;
	rq->asked2 = rq->name2;
	return rq->op->opcode == FB_OP_symlink ? take_text(rq, FB_PATH_SIZE - 1, &rq->text) : 0;
}

#define TAKE(type, name)                                          \
	const struct type *name = request_take(rq, sizeof(*name)); \
	if (!name)                                                \
	return -EINVAL

static int decode_nothing(struct request *rq)
{
	rq->image->args.nothing = (struct fb_nothing){ 0 };
	return 0;
}

static int decode_getattr(struct request *rq)
{
	TAKE(fuse_getattr_in, in);
	rq->image->args.getattr = (struct fb_getattr){ .fh = in->getattr_flags & FUSE_GETATTR_FH ? in->fh : 0,
						       .flags = in->getattr_flags };
	return 0;
}

static uint64_t to_ns(uint64_t seconds, uint32_t ns)
{
	return seconds * 1000000000u + ns;
}

/* The kernel's FATTR_ bits are our FB_SET_ bits; those beyond stay in the raw request for op_setattr. */
_Static_assert(FB_SET_MODE == FATTR_MODE && FB_SET_SIZE == FATTR_SIZE && FB_SET_FH == FATTR_FH &&
		       FB_SET_MTIME_NOW == FATTR_MTIME_NOW,
	       "setattr bits");

static int decode_setattr(struct request *rq)
{
	TAKE(fuse_setattr_in, in);
	rq->image->args.setattr = (struct fb_setattr){ .valid = in->valid,
						       .mode = in->mode,
						       .uid = in->uid,
						       .gid = in->gid,
						       .size = in->size,
						       .fh = in->fh,
						       .atime_ns = to_ns(in->atime, in->atimensec),
						       .mtime_ns = to_ns(in->mtime, in->mtimensec) };
	return 0;
}

static int decode_mknod(struct request *rq)
{
	TAKE(fuse_mknod_in, in);
	rq->image->umask = in->umask;
	rq->image->args.mknod = (struct fb_mknod){ .mode = in->mode, .rdev = in->rdev };
	return 0;
}

static int decode_mkdir(struct request *rq)
{
	TAKE(fuse_mkdir_in, in);
	rq->image->umask = in->umask;
	rq->image->args.mkdir = (struct fb_mkdir){ .mode = in->mode };
	return 0;
}

static int decode_rename(struct request *rq)
{
	if (rq->op->opcode == FB_OP_rename) {
		TAKE(fuse_rename_in, in);
		rq->image->args.rename = (struct fb_rename){ .newdir = in->newdir };
		return 0;
	}
	TAKE(fuse_rename2_in, in);
	rq->image->args.rename = (struct fb_rename){ .newdir = in->newdir, .flags = in->flags };
	return 0;
}

static int decode_link(struct request *rq)
{
	TAKE(fuse_link_in, in);
	rq->image->args.link = (struct fb_link){ .inode = in->oldnodeid };
	return 0;
}

static int decode_open(struct request *rq)
{
	TAKE(fuse_open_in, in);
	if (in->flags & FB_O_EXEC)
		rq->image->flags |= FB_KNOWN_EXEC;
	rq->image->args.open = (struct fb_open){ .flags = in->flags & ~(uint32_t)FB_O_EXEC };
	return 0;
}

static int decode_create(struct request *rq)
{
	TAKE(fuse_create_in, in);
	rq->image->umask = in->umask;
	rq->image->args.create = (struct fb_create){ .mode = in->mode, .flags = in->flags & ~(uint32_t)FB_O_EXEC };
	return 0;
}

_Static_assert(offsetof(struct fuse_read_in, flags) == offsetof(struct fuse_write_in, flags) &&
		       sizeof(struct fuse_read_in) == sizeof(struct fuse_write_in),
	       "read and write are decoded as one");

static int decode_rw(struct request *rq)
{
	TAKE(fuse_read_in, in);
	if (in->size > MAX_WRITE || in->offset > INT64_MAX)
		return -EINVAL;
	if (rq->op->opcode == FB_OP_write && rq->body_len - rq->body_at < in->size)
		return -EINVAL;
	rq->image->args.rw =
		(struct fb_rw){ .fh = in->fh, .offset = in->offset, .size = in->size, .flags = in->flags };
	return 0;
}

static int decode_release(struct request *rq)
{
	TAKE(fuse_release_in, in);
	rq->image->args.release = (struct fb_release){ .fh = in->fh, .flags = in->flags };
	return 0;
}

static int decode_fsync(struct request *rq)
{
	TAKE(fuse_fsync_in, in);
	rq->image->args.fsync = (struct fb_fsync){ .fh = in->fh, .flags = in->fsync_flags };
	return 0;
}

static int decode_flush(struct request *rq)
{
	TAKE(fuse_flush_in, in);
	rq->image->args.flush = (struct fb_flush){ .fh = in->fh, .lock_owner = in->lock_owner };
	return 0;
}

static int decode_xattr(struct request *rq)
{
	if (rq->op->opcode != FB_OP_setxattr) {
		TAKE(fuse_getxattr_in, in);
		rq->image->args.xattr = (struct fb_xattr){ .size = in->size };
		return 0;
	}
	bool is_long = rq->mount->features & FUSE_SETXATTR_EXT;
	const struct fuse_setxattr_in *in =
		request_take(rq, is_long ? sizeof(*in) : FUSE_COMPAT_SETXATTR_IN_SIZE);
	if (!in)
		return -EINVAL;
	rq->image->args.xattr = (struct fb_xattr){ .size = in->size, .flags = in->flags };
	return 0;
}

static int decode_access(struct request *rq)
{
	TAKE(fuse_access_in, in);
	rq->image->args.access = (struct fb_access){ .mask = in->mask };
	return 0;
}

static int decode_statx(struct request *rq)
{
	TAKE(fb_fuse_statx_in, in);
	rq->image->args.statx = (struct fb_statx){ .fh = in->getattr_flags & FUSE_GETATTR_FH ? in->fh : 0,
						   .flags = in->sx_flags,
						   .mask = in->sx_mask };
	return 0;
}

static int decode_fallocate(struct request *rq)
{
	TAKE(fuse_fallocate_in, in);
	if (in->offset > INT64_MAX || in->length > INT64_MAX)
		return -EINVAL;
	rq->image->args.fallocate = (struct fb_fallocate){ .fh = in->fh, .offset = in->offset,
							   .length = in->length, .mode = in->mode };
	return 0;
}

static int decode_lseek(struct request *rq)
{
	TAKE(fuse_lseek_in, in);
	rq->image->args.lseek = (struct fb_lseek){ .fh = in->fh, .offset = in->offset, .whence = in->whence };
	return 0;
}

static int decode_copy(struct request *rq)
{
	TAKE(fuse_copy_file_range_in, in);
	if (in->off_in > INT64_MAX || in->off_out > INT64_MAX)
		return -EINVAL;
	rq->image->args.copy = (struct fb_copy){ .fh = in->fh_in, .offset = in->off_in, .fh_out = in->fh_out,
						 .nodeid_out = in->nodeid_out, .offset_out = in->off_out,
						 .length = in->len };
	return 0;
}

/* One request of the kernel is two ops: locks of ranges, and flock(2)'s of whole files. */
static int decode_lock(struct request *rq)
{
	TAKE(fuse_lk_in, in);
	if (in->lk_flags & FUSE_LK_FLOCK)
		rq->op = &ops[FB_OP_flock];
	rq->image->args.lock = (struct fb_lock){ .fh = in->fh, .owner = in->owner,
						 .start = in->lk.start, .end = in->lk.end, .type = in->lk.type,
						 .flags = rq->in->opcode == FUSE_SETLKW ? FB_LOCK_WAITS : 0 };
	return 0;
}

static int decode_ioctl(struct request *rq)
{
	TAKE(fuse_ioctl_in, in);
	if (in->out_size > MAX_WRITE || rq->body_len - rq->body_at < in->in_size)
		return -EINVAL;
	rq->image->args.ioctl = (struct fb_ioctl){ .fh = in->fh, .command = in->cmd, .in_size = in->in_size,
						   .out_size = in->out_size, .flags = in->flags };
	return 0;
}

static int decode_poll(struct request *rq)
{
	TAKE(fuse_poll_in, in);
	rq->image->args.poll = (struct fb_poll){ .fh = in->fh, .events = in->events };
	return 0;
}

static int decode_dirent(struct request *rq)
{
	(void)rq;
	return -EINVAL; // ours: no request has this opcode
}

/* The caller's one supplementary group that matters, where the kernel sends it (FUSE_CREATE_SUPP_GROUP). It stands behind the
 * name, at any address. */
static void take_extensions(struct request *rq)
{
	size_t len = (size_t)rq->in->total_extlen * 8;

	if (!len || len > rq->body_len)
		return;
	rq->body_len -= len;
	const char *at = rq->body + rq->body_len, *end = at + len;
	while ((size_t)(end - at) >= sizeof(struct fuse_ext_header)) {
		struct fuse_ext_header ext;
		struct fb_fuse_supp_group groups;
		memcpy(&ext, at, sizeof(ext));
		if (ext.size < sizeof(ext) || ext.size > (size_t)(end - at))
			return;
		if (ext.type == FB_FUSE_EXT_GROUPS && ext.size >= sizeof(ext) + sizeof(groups)) {
			memcpy(&groups, at + sizeof(ext), sizeof(groups));
			rq->has_supplementary_group = groups.nr_groups == 1;
			rq->supplementary_group = groups.group;
		}
		at += ext.size;
	}
}

/* A request of the kernel's own: its uid and gid read 0 and must not be taken for root's. */
static bool has_no_caller(const struct request *rq)
{
	const struct fuse_in_header *in = rq->in;

	if (rq->op->flags & FB_OP_UNREFUSABLE)
		return true;
	return in->pid == 0 && in->uid == 0 && in->gid == 0 &&
	       (rq->op->opcode == FB_OP_read || rq->op->opcode == FB_OP_write);
}

/* The kernel sends one of these, and after this answer none in the life of the mount (fs/fuse/file.c: fuse_file_open,
 * fuse_flush). */
static bool op_is_absent(const struct mount *m, const struct op *op)
{
	switch (op->opcode) {
	case FB_OP_open:
	case FB_OP_flush:
		return m->is_small;
	case FB_OP_opendir:
		return m->keeps_listings;
	default:
		return false;
	}
}

/**
 * Decode rq->in and rq->body into rq->op, rq->inode, the image's header and arguments, names and text.
 * Returns 0 or -errno, which is the answer then (ENOSYS: no such op here).
 */
int request_decode(struct request *rq)
{
	const struct fuse_in_header *in = rq->in;
	struct fb_slot *image = rq->image;
	const struct op *op = in->opcode < 256 ? &ops[in->opcode] : NULL;

	if (!op || !op->name)
		return -ENOSYS;
	if (op_is_absent(rq->mount, op))
		return -ENOSYS;
	rq->op = op;
	image->unique = in->unique;
	image->nodeid = in->nodeid;
	image->flags = 0;
	image->pid = in->pid;
	image->uid = in->uid;
	image->gid = in->gid;
	image->umask = 0;
	if (has_no_caller(rq)) {
		image->flags = FB_NO_CALLER;
		image->uid = image->gid = UINT32_MAX;
		image->pid = 0;
	}
	rq->create_uid = in->uid;
	rq->create_gid = in->gid;
	take_extensions(rq);
	if (op->flags & FB_OP_NO_REPLY)
		return 0;
	int e = op->decode(rq);
	if (!e)
		e = take_names(rq);
	if (e)
		return e;
	rq->inode = inodes_get(rq->mount, in->nodeid);
	return rq->inode ? 0 : -ESTALE;
}

/* -------------------------------------------------------------------------------- the table */

#define DECLARE(name, ...) int op_##name(struct request *rq);
#define DECLARE_ALIAS(name, alias, opcode) int op_##alias(struct request *rq);
FB_OPS(DECLARE, DECLARE_ALIAS, DECLARE)

/* The kernel answers INIT once, before there are workers; entries of a listing come out of readdir. */
int op_init(struct request *rq)
{
	(void)rq;
	return -EIO;
}

int op_dirent(struct request *rq)
{
	(void)rq;
	return -EIO;
}

#define ROW(op_name, number, args, names, op_flags, hook)                             \
	[number] = { .name = #op_name, .opcode = number, .canonical = number,          \
		     .n_names = names, .flags = op_flags, .is_hook = hook,             \
		     .decode = decode_##args, .run = op_##op_name },
#define ROW_HOOK(name, opcode, args, names, flags) ROW(name, opcode, args, names, flags, true)
#define ROW_PLAIN(name, opcode, args, names, flags) ROW(name, opcode, args, names, flags, false)

/* An alias has its op's row but for its own number, name and function. */
#define ALIAS_rename decode_rename, 2, FB_OP_MUTATES | FB_OP_DAEMON
#define ALIAS_setlk decode_lock, 0, 0
#define ALIAS_readdir decode_rw, 0, FB_OP_COUNT | FB_OP_DAEMON
#define ALIAS_ROW(of, alias_name, number, decoder, names, op_flags)                   \
	[number] = { .name = #alias_name, .opcode = number, .canonical = FB_OP_##of,   \
		     .n_names = names, .flags = op_flags, .is_hook = false,            \
		     .decode = decoder, .run = op_##alias_name },
#define ALIAS_EXPAND(...) ALIAS_ROW(__VA_ARGS__)
#define ROW_ALIAS(of, alias_name, number) ALIAS_EXPAND(of, alias_name, number, ALIAS_##of)

const struct op ops[256] = { FB_OPS(ROW_HOOK, ROW_ALIAS, ROW_PLAIN) };

/* ... and as it is shown. */
#define LISTED_HOOK(name, opcode, args, names, flags) { #name, opcode, names, flags, "hook", "" },
#define LISTED_PLAIN(name, opcode, args, names, flags) { #name, opcode, names, flags, "plain", "" },
#define LISTED_ALIAS(name, alias, opcode) { #alias, opcode, 0, 0, "alias", #name },

const struct op_row op_rows[] = { FB_OPS(LISTED_HOOK, LISTED_ALIAS, LISTED_PLAIN) };
const size_t n_op_rows = sizeof(op_rows) / sizeof(*op_rows);

#define CHECK_ENUM(name, opcode, ...) _Static_assert(opcode < 256, #name);
#define CHECK_ALIAS(name, alias, opcode) _Static_assert(opcode < 192, #alias);
FB_OPS(CHECK_ENUM, CHECK_ALIAS, CHECK_ENUM)
#define SAME(ours, kernels) ((int)(ours) == (int)(kernels))
_Static_assert(SAME(FB_OP_lookup, FUSE_LOOKUP) && SAME(FB_OP_create, FUSE_CREATE) &&
		       SAME(FB_OP_rename2, FUSE_RENAME2) && SAME(FB_OP_readdirplus, FUSE_READDIRPLUS) &&
		       SAME(FB_OP_removexattr, FUSE_REMOVEXATTR) && SAME(FB_OP_fsyncdir, FUSE_FSYNCDIR) &&
		       SAME(FB_OP_batch_forget, FUSE_BATCH_FORGET) && SAME(FB_OP_access, FUSE_ACCESS),
	       "opcodes are the kernel's");
