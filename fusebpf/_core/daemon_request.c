/* SPDX-License-Identifier: Apache-2.0 */
/*
 * An op as the request that pyfuse3 gets: what the op is to use by now, with the daemon's numbers of inodes. The pid and,
 * where a handler gets no context, the handle are the call's token; its wrapper puts the real ones back.
 */
#include "core.h"

struct message {
	struct fuse_in_header header;
	union {
		struct fuse_getattr_in getattr;
		struct fuse_setattr_in setattr;
		struct fuse_mknod_in mknod;
		struct fuse_mkdir_in mkdir;
		struct fuse_rename2_in rename;
		struct fuse_link_in link;
		struct fuse_open_in open;
		struct fuse_create_in create;
		struct fuse_read_in read;
		struct fuse_write_in write;
		struct fuse_release_in release;
		struct fuse_fsync_in fsync;
		struct fuse_flush_in flush;
		struct fuse_getxattr_in getxattr;
		struct fuse_setxattr_in setxattr;
		struct fuse_access_in access;
	} args;
};

/* The handle of an op that has one, NULL without. */
struct handle *daemon_handle(const struct request *rq)
{
	const struct fb_slot *image = rq->image;

	switch (rq->op->canonical) {
	case FB_OP_read:
	case FB_OP_write:
		return handle_find(rq->mount, image->args.rw.fh, false);
	case FB_OP_readdir:
		return handle_find(rq->mount, image->args.rw.fh, true);
	case FB_OP_flush:
		return handle_find(rq->mount, image->args.flush.fh, false);
	case FB_OP_release:
	case FB_OP_releasedir:
		return handle_find(rq->mount, image->args.release.fh, rq->op->canonical == FB_OP_releasedir);
	case FB_OP_fsync:
	case FB_OP_fsyncdir:
		return handle_find(rq->mount, image->args.fsync.fh, rq->op->canonical == FB_OP_fsyncdir);
	case FB_OP_setattr:
		return image->args.setattr.valid & FB_SET_FH ? handle_find(rq->mount, image->args.setattr.fh, false)
							     : NULL;
	case FB_OP_lseek:
		return handle_find(rq->mount, image->args.lseek.fh, false);
	case FB_OP_fallocate:
		return handle_find(rq->mount, image->args.fallocate.fh, false);
	case FB_OP_copy_file_range:
		return handle_find(rq->mount, image->args.copy.fh, false);
	default:
		return NULL;
	}
}

static size_t fill_setattr(const struct request *rq, const struct daemon_call *call, struct fuse_setattr_in *out)
{
	const struct fb_setattr *args = &rq->image->args.setattr;

	memcpy(out, rq->body, sizeof(*out));
	out->valid = args->valid & (FATTR_MODE | FATTR_UID | FATTR_GID | FATTR_SIZE | FATTR_ATIME | FATTR_MTIME |
				    FATTR_FH | FATTR_ATIME_NOW | FATTR_MTIME_NOW | FATTR_CTIME);
	out->mode = args->mode;
	out->uid = args->uid;
	out->gid = args->gid;
	out->size = args->size;
	out->fh = call->fh;
	if (rq->all_edits & FB_EDIT_TIMES) {
		out->atime = args->atime_ns / 1000000000u;
		out->atimensec = (uint32_t)(args->atime_ns % 1000000000u);
		out->mtime = args->mtime_ns / 1000000000u;
		out->mtimensec = (uint32_t)(args->mtime_ns % 1000000000u);
	}
	return sizeof(*out);
}

/* The fixed part of a request. Returns its size, or -ESTALE: an inode that it names is not known. */
static int fill(struct request *rq, const struct daemon_call *call, struct message *out)
{
	const struct fb_slot *image = rq->image;
	struct inode *other;

	switch (rq->op->canonical) {
	case FB_OP_getattr:
	case FB_OP_statx:
		return sizeof(out->args.getattr);
	case FB_OP_setattr:
		return (int)fill_setattr(rq, call, &out->args.setattr);
	case FB_OP_mknod: // the kernel leaves the umask to us, and pyfuse3 expects it applied
		out->args.mknod = (struct fuse_mknod_in){ .mode = image->args.mknod.mode & ~image->umask,
							  .rdev = image->args.mknod.rdev, .umask = image->umask };
		return sizeof(out->args.mknod);
	case FB_OP_mkdir:
		out->args.mkdir = (struct fuse_mkdir_in){ .mode = image->args.mkdir.mode & ~image->umask,
							  .umask = image->umask };
		return sizeof(out->args.mkdir);
	case FB_OP_rename:
		if (!(other = inodes_get(rq->mount, image->args.rename.newdir)))
			return -ESTALE;
		out->args.rename = (struct fuse_rename2_in){ .newdir = daemon_id_of(other),
							     .flags = image->args.rename.flags };
		return sizeof(out->args.rename);
	case FB_OP_link:
		if (!(other = inodes_get(rq->mount, image->args.link.inode)))
			return -ESTALE;
		out->args.link.oldnodeid = daemon_id_of(other);
		return sizeof(out->args.link);
	case FB_OP_open:
	case FB_OP_opendir:
		out->args.open.flags = image->args.open.flags;
		return sizeof(out->args.open);
	case FB_OP_create:
		out->args.create = (struct fuse_create_in){ .flags = image->args.create.flags,
							    .mode = image->args.create.mode & ~image->umask,
							    .umask = image->umask };
		return sizeof(out->args.create);
	case FB_OP_read:
		out->args.read = (struct fuse_read_in){ .fh = call->token, .offset = image->args.rw.offset,
							.size = image->args.rw.size };
		return sizeof(out->args.read);
	case FB_OP_readdir:
		out->args.read = (struct fuse_read_in){ .fh = call->token, .size = image->args.rw.size };
		daemon_offset(daemon_handle(rq), image->args.rw.offset, &out->args.read.offset);
		return sizeof(out->args.read);
	case FB_OP_write:
		out->args.write = (struct fuse_write_in){ .fh = call->token, .offset = image->args.rw.offset,
							  .size = image->args.rw.size };
		return sizeof(out->args.write);
	case FB_OP_release:
	case FB_OP_releasedir:
		out->args.release = (struct fuse_release_in){ .fh = call->token, .flags = image->args.release.flags };
		return sizeof(out->args.release);
	case FB_OP_fsync:
	case FB_OP_fsyncdir:
		out->args.fsync = (struct fuse_fsync_in){ .fh = call->token, .fsync_flags = image->args.fsync.flags };
		return sizeof(out->args.fsync);
	case FB_OP_flush:
		out->args.flush.fh = call->token;
		return sizeof(out->args.flush);
	case FB_OP_setxattr:
		out->args.setxattr.size = image->args.xattr.size;
		out->args.setxattr.flags = image->args.xattr.flags & 3;
		return FUSE_COMPAT_SETXATTR_IN_SIZE;
	case FB_OP_getxattr:
	case FB_OP_listxattr:
		out->args.getxattr.size = value_room(rq);
		return sizeof(out->args.getxattr);
	case FB_OP_access:
		out->args.access.mask = image->args.access.mask;
		return sizeof(out->args.access);
	default: // names alone
		return 0;
	}
}

static uint32_t opcode_of(const struct request *rq)
{
	switch (rq->op->canonical) {
	case FB_OP_statx:
		return FUSE_GETATTR;
	case FB_OP_readdir:
		return FUSE_READDIRPLUS;
	case FB_OP_rename:
		return FUSE_RENAME2;
	default:
		return rq->op->canonical;
	}
}

/** Send the op to pyfuse3. Returns 0 or -errno. */
int daemon_request(struct request *rq, struct daemon_call *call, struct daemon_waiter *waiter)
{
	struct message message = { .header = { .opcode = opcode_of(rq),
					       .unique = call->token,
					       .nodeid = call->nodeid,
					       .uid = rq->create_uid,
					       .gid = rq->create_gid,
					       .pid = call->token } };
	int size = fill(rq, call, &message), n = 1;
	struct iovec iov[4];

	if (size < 0) {
		waiter->state = CALL_DONE;
		return size;
	}
	iov[0] = (struct iovec){ &message, sizeof(message.header) + (size_t)size };
	const char *names[] = { rq->name, rq->op->canonical == FB_OP_symlink ? rq->text : rq->name2 };
	for (int i = 0; i < 2; i++)
		if (names[i])
			iov[n++] = (struct iovec){ (void *)names[i], strlen(names[i]) + 1 };
	const char *data = rq->input ? rq->input : rq->body + rq->body_at; // as filters left it
	if (rq->op->canonical == FB_OP_write)
		iov[n++] = (struct iovec){ (void *)data, rq->image->args.rw.size };
	if (rq->op->canonical == FB_OP_setxattr)
		iov[n++] = (struct iovec){ (void *)data, rq->image->args.xattr.size };
	for (int i = 0; i < n; i++)
		message.header.len += (uint32_t)iov[i].iov_len;
	return daemon_send(rq, waiter, iov, n);
}
