/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ioctl: the attributes of inodes (chattr(1), xfs project ids) and nothing else, since an ioctl that we do not know may do
 * anything. poll: what the backing file says.
 */
#include "core.h"

#include <linux/fs.h>
#include <poll.h>
#include <sys/ioctl.h>

static struct handle *any_handle(struct request *rq, uint64_t fh)
{
	struct handle *h = handle_of(rq, rq->inode, fh, O_RDONLY);

	return h || errno != EBADF ? h : handle_of(rq, rq->inode, fh, O_RDONLY | O_DIRECTORY);
}

int op_ioctl(struct request *rq)
{
	const struct fb_ioctl *args = &rq->image->args.ioctl;
	const char *in = rq->input ? rq->input : rq->body + rq->body_at;
	struct handle *h = any_handle(rq, args->fh);
	union {
		int flags;
		struct fsxattr xattr;
	} data = { 0 };
	size_t in_size = 0, out_size = 0;

	// Those alone for which the kernel asks whether the caller may, whatever his program's word size (fs/ioctl.c): we act as root.
	switch (args->command) {
	case FS_IOC_GETFLAGS:
		out_size = sizeof(data.flags);
		break;
	case FS_IOC_SETFLAGS:
		in_size = sizeof(data.flags);
		break;
	case FS_IOC_FSGETXATTR:
		out_size = sizeof(data.xattr);
		break;
	case FS_IOC_FSSETXATTR:
		in_size = sizeof(data.xattr);
		break;
	default:
		return -ENOTTY;
	}
	if (!h)
		return -errno;
	if (args->in_size < in_size || args->out_size < out_size)
		return -EINVAL;
	memcpy(&data, in, in_size);
	if (ioctl(h->fd, args->command, &data) < 0)
		return -errno;
	if (in_size) // the kernel does not know that this changes the time of change
		notify_inode(rq->mount, rq->inode->nodeid, -1, 0);
	rq->out.ioctl = (struct fuse_ioctl_out){ 0 };
	rq->reply = &rq->out.ioctl;
	rq->reply_len = sizeof(rq->out.ioctl);
	memcpy(rq->worker->payload, &data, out_size);
	rq->payload = rq->worker->payload;
	rq->payload_len = out_size;
	return 0;
}

int op_poll(struct request *rq)
{
	const struct fb_poll *args = &rq->image->args.poll;
	struct handle *h = any_handle(rq, args->fh);
	struct pollfd one = { .fd = h ? h->fd : -1, .events = (short)args->events };

	if (!h)
		return -errno;
	if (poll(&one, 1, 0) < 0)
		return -errno;
	rq->count = (uint16_t)one.revents;
	rq->out.poll = (struct fuse_poll_out){ .revents = (uint32_t)rq->count };
	rq->reply = &rq->out.poll;
	rq->reply_len = sizeof(rq->out.poll);
	return 0;
}
