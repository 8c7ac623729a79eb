/* SPDX-License-Identifier: Apache-2.0 */
/*
 * pyfuse3's answer, checked like anything from outside, and turned into the reply of the op: with our numbers of inodes and
 * handles. What makes no sense is -EPROTO.
 */
#include "core.h"

static bool attr_is_sane(const struct fuse_attr *a)
{
	return a->size <= INT64_MAX && a->atimensec < 1000000000u && a->mtimensec < 1000000000u &&
	       a->ctimensec < 1000000000u;
}

/* What the daemon says may be cached, unless nothing may: a filter judges each time. */
static void ttl_limit(uint64_t ttl_ns, uint64_t *seconds, uint32_t *ns)
{
	if (ttl_ns == 0 || *ns >= 1000000000u)
		ttl_set(ttl_ns, seconds, ns);
}

/* The daemon's attributes of an inode; one with a backing keeps its inode number. */
static int attr_take(struct request *rq, struct inode *inode, const struct fuse_attr *from, struct fuse_attr *to)
{
	struct fuse_attr real;

	if ((from->mode & S_IFMT) != inode->type || !attr_is_sane(from))
		return -EPROTO;
	*to = *from;
	to->flags = 0;
	if (inode->is_virtual) {
		to->ino = inode->daemon_id;
		return 0;
	}
	int fd = inode_fd_get(rq->mount, inode);
	if (fd < 0)
		return fd;
	int e = attr_of_fd(rq, fd, &real);
	inode_fd_put(rq->mount, inode);
	to->ino = e ? inode->nodeid : real.ino;
	return e;
}

/** Turn an entry of the daemon's into ours; on success the inode is counted. Returns 0 or -errno. */
int daemon_entry(struct request *rq, const struct fuse_entry_out *in, const char *name, struct fuse_entry_out *out,
		 struct inode **inode)
{
	*inode = NULL;
	*out = *in;
	int e = daemon_inode_of(rq, in->nodeid, in->attr.mode, name, inode);
	if (e) {
		*inode = NULL;
		return e;
	}
	if ((e = attr_take(rq, *inode, &in->attr, &out->attr))) {
		inodes_forget(rq->mount, *inode, 1);
		*inode = NULL;
		return e;
	}
	out->nodeid = (*inode)->nodeid;
	out->generation = 0;
	ttl_limit(entry_ttl_ns(rq, *inode), &out->entry_valid, &out->entry_valid_nsec);
	ttl_limit(rq->attr_ttl_ns, &out->attr_valid, &out->attr_valid_nsec);
	return 0;
}

static int take_entry(struct request *rq, const struct fuse_entry_out *in)
{
	rq->reply = &rq->out.create.entry;
	rq->reply_len = sizeof(rq->out.create.entry);
	if (!in->nodeid && rq->op->canonical == FB_OP_lookup)
		return -ENOENT; // so it is for the kernel; filters above are to see it as that
	return daemon_entry(rq, in, rq->name, &rq->out.create.entry, &rq->entry);
}

static int take_attr(struct request *rq, const struct fuse_attr_out *in)
{
	rq->out.attr = *in;
	rq->out.attr.dummy = 0;
	ttl_limit(rq->attr_ttl_ns, &rq->out.attr.attr_valid, &rq->out.attr.attr_valid_nsec);
	rq->btime.tv_nsec = -1;
	rq->reply = &rq->out.attr;
	rq->reply_len = sizeof(rq->out.attr);
	return attr_take(rq, rq->inode, &in->attr, &rq->out.attr.attr);
}

/* Open the backing file of what the daemon opened, so that its later ops may go there; -1: there is none to be had. */
static int open_beside(struct request *rq, struct inode *inode, bool leaves_data)
{
	bool creates = rq->op->canonical == FB_OP_create;
	uint32_t flags = creates ? rq->image->args.create.flags : rq->image->args.open.flags;
	char path[PROC_PATH_SIZE];
	int fd = inode->is_virtual ? -1 : inode_fd_get(rq->mount, inode);

	if (fd < 0)
		return -1;
	proc_path(path, fd);
	if (!leaves_data)
		flags &= ~(uint32_t)O_TRUNC; // truncating was the handler's business
	int opened = open(path, backing_open_flags(flags));
	inode_fd_put(rq->mount, inode);
	return opened;
}

static int take_open(struct request *rq, const struct daemon_call *call, struct inode *inode,
		     const struct fuse_open_out *in, struct fb_fuse_open_out *out)
{
	bool is_dir = rq->op->canonical == FB_OP_opendir, leaves_data = call->flags & DAEMON_CALL_LEAVES_DATA;
	int fd = open_beside(rq, inode, leaves_data);
	struct handle *h = leaves_data && fd < 0 ? NULL : handle_create(rq->mount, inode, fd, is_dir);

	memset(out, 0, sizeof(*out));
	if (rq->op->canonical != FB_OP_create) {
		rq->reply = out;
		rq->reply_len = sizeof(*out);
	}
	if (!h) {
		if (fd >= 0)
			close(fd);
		daemon_release(rq->mount->daemon, in->fh, is_dir);
		return leaves_data && fd < 0 ? -EOPNOTSUPP : -ENFILE;
	}
	h->has_daemon = true;
	h->leaves_data = leaves_data;
	h->daemon_fh = in->fh;
	rq->opened = h;
	out->fh = handle_number(h);
	if (is_dir)
		return 0;
	if (leaves_data)
		return passthrough_open(rq, h, out);
	out->open_flags = in->open_flags & (FOPEN_DIRECT_IO | FOPEN_KEEP_CACHE | FOPEN_NONSEEKABLE);
	return passthrough_refuse(rq, h);
}

/* Read and its like: bytes, at most as many as there was room for. */
static int take_bytes(struct request *rq, const char *body, size_t len)
{
	bool is_read = rq->op->canonical == FB_OP_read;
	size_t most = is_read ? rq->image->args.rw.size
		      : rq->op->canonical == FB_OP_readlink ? FB_PATH_SIZE - 1
							    : value_room(rq);

	if (len > most || (rq->op->canonical == FB_OP_readlink && len == 0))
		return -EPROTO;
	if (rq->chain) // hooks expect it where reads put it
		body = memmove(rq->worker->payload, body, len);
	rq->payload = body;
	rq->payload_len = len;
	if (is_read)
		rq->count = len;
	return 0;
}

static int take_write(struct request *rq, const struct fuse_write_out *in)
{
	if (in->size > rq->image->args.rw.size)
		return -EPROTO;
	rq->count = in->size;
	rq->out.write = (struct fuse_write_out){ .size = in->size };
	rq->reply = &rq->out.write;
	rq->reply_len = sizeof(rq->out.write);
	return 0;
}

static int take_statfs(struct request *rq, const struct fuse_statfs_out *in)
{
	rq->out.statfs = *in;
	rq->reply = &rq->out.statfs;
	rq->reply_len = sizeof(rq->out.statfs);
	return 0;
}

static int take_created(struct request *rq, const struct daemon_call *call, const char *body)
{
	const struct fuse_open_out *opened = (const void *)(body + sizeof(struct fuse_entry_out));
	int e = take_entry(rq, (const void *)body);

	if (e) {
		daemon_release(rq->mount->daemon, opened->fh, false);
		return e == -ENOENT ? -EPROTO : e;
	}
	rq->reply = &rq->out.create;
	rq->reply_len = sizeof(rq->out.create);
	return take_open(rq, call, rq->entry, opened, &rq->out.create.open);
}

/* Note where things are after a rename that the daemon did. */
static int take_rename(struct request *rq)
{
	struct inode *newdir = inodes_get(rq->mount, rq->image->args.rename.newdir);

	if (newdir)
		inodes_moved_child(rq->mount, rq->inode, rq->name, newdir, rq->name2,
				   rq->image->args.rename.flags & RENAME_EXCHANGE);
	return 0;
}

/** Take an answer that says success. Returns 0 or -errno, -EPROTO where it is none that this op has. */
int daemon_reply(struct request *rq, const struct daemon_call *call, const char *body, size_t len)
{
	uint32_t flags = rq->op->flags;

	if (flags & FB_OP_ENTRY && flags & FB_OP_OPENS)
		return len == sizeof(struct fuse_entry_out) + sizeof(struct fuse_open_out)
			       ? take_created(rq, call, body)
			       : -EPROTO;
	if (flags & FB_OP_ENTRY)
		return len == sizeof(struct fuse_entry_out) ? take_entry(rq, (const void *)body) : -EPROTO;
	if (flags & FB_OP_ATTR)
		return len == sizeof(struct fuse_attr_out) ? take_attr(rq, (const void *)body) : -EPROTO;
	if (flags & FB_OP_OPENS)
		return len == sizeof(struct fuse_open_out)
			       ? take_open(rq, call, rq->inode, (const void *)body, &rq->out.open)
			       : -EPROTO;
	if (flags & FB_OP_STATFS)
		return len == sizeof(struct fuse_statfs_out) ? take_statfs(rq, (const void *)body) : -EPROTO;
	if (rq->op->canonical == FB_OP_read || flags & FB_OP_TEXT)
		return take_bytes(rq, body, len);
	if (rq->op->canonical == FB_OP_write)
		return len == sizeof(struct fuse_write_out) ? take_write(rq, (const void *)body) : -EPROTO;
	if (rq->op->canonical == FB_OP_rename)
		return len ? -EPROTO : take_rename(rq);
	return len ? -EPROTO : 0;
}

/** An answer that came when nobody waited any more: what it hands out is given back. */
void daemon_late_reply(struct daemon *d, const struct op *op, const char *body, size_t len)
{
	const struct fuse_entry_out *entry = (const void *)body;
	const struct fuse_open_out *opened = (const void *)body;

	if (op->flags & FB_OP_ENTRY && len >= sizeof(*entry)) {
		if (entry->nodeid)
			daemon_forget(d, entry->nodeid, 1);
		opened = (const void *)(body + sizeof(*entry));
		len -= sizeof(*entry);
	}
	if (op->flags & FB_OP_OPENS && len >= sizeof(*opened))
		daemon_release(d, opened->fh, op->canonical == FB_OP_opendir);
	if (op->canonical == FB_OP_readdir)
		daemon_listing_late(d, body, len);
}
