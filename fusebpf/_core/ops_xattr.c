/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Extended attributes. There is no fd-relative form that takes an O_PATH descriptor on all kernels, so they go by
 * /proc/self/fd, which leads to the file itself, a symbolic link included.
 */
#include "core.h"

#include <sys/stat.h>
#include <sys/xattr.h>

/* Set a value. An ACL may take the sgid bit along: the kernel says so where it is set by somebody who is not in the file's group. */
static int set_value(struct request *rq, const char *path, const char *value)
{
	const struct fb_xattr *args = &rq->image->args.xattr;
	bool kills = rq->mount->features & FUSE_SETXATTR_EXT &&
		     ((const struct fuse_setxattr_in *)(const void *)rq->body)->setxattr_flags & FUSE_SETXATTR_ACL_KILL_SGID;
	bool keeps = !kills && !strcmp(rq->name, "system.posix_acl_access");
	uint32_t group = 0;

	if (kills)
		group = creds_group_leave();
	if (keeps)
		creds_raise_fsetid();
	int e = setxattr(path, rq->name, value, args->size, (int)args->flags) < 0 ? -errno : 0;
	if (keeps)
		creds_drop_fsetid();
	if (kills)
		creds_group_restore(group);
	return e;
}

int op_setxattr(struct request *rq)
{
	char path[PROC_PATH_SIZE];
	int fd = inode_fd_get(rq->mount, rq->inode);

	if (fd < 0)
		return fd;
	proc_path(path, fd);
	int e = set_value(rq, path, rq->input ? rq->input : rq->body + rq->body_at);
	inode_fd_put(rq->mount, rq->inode);
	return e;
}

/* Answer with a value of n bytes in the worker's payload; where only its size was asked for, value_finish says it. */
static int reply_value(struct request *rq, ssize_t n)
{
	if (n < 0)
		return (int)n;
	rq->payload = rq->worker->payload;
	rq->payload_len = (size_t)n;
	return 0;
}

/* How much of the value to read. Where the caller asks for its size, and hooks or the daemon may change the value, all of it. */
static size_t value_size(const struct request *rq)
{
	bool is_seen = (rq->hooks && rq->hooks->n_post) || (rq->mount->daemon && daemon_sees_result(rq));

	return rq->image->args.xattr.size || is_seen ? value_room(rq) : 0;
}

/* The kernel asks so for security.capability before the first write to a file, which is open then: that takes a tenth of the
 * way by /proc, which has no entry yet for a descriptor that is new. */
static bool get_opened(struct request *rq, ssize_t *n)
{
	struct handle *h = opened_get(rq->mount, rq->inode);

	if (!h)
		return false;
	*n = fgetxattr(h->fd, rq->name, rq->worker->payload, value_size(rq));
	*n = *n < 0 ? -errno : *n;
	opened_put(rq->mount, h);
	return true;
}

/* A file system that knows no ACLs has none: by another errno the kernel, which asks for them where it judges, would refuse access to
 * all but the owner. */
static ssize_t without_acl(const struct request *rq, ssize_t n)
{
	bool is_judged = n == -EOPNOTSUPP && rq->mount->default_permissions;

	return is_judged && !strncmp(rq->name, "system.posix_acl_", 17) ? -ENODATA : n;
}

int op_getxattr(struct request *rq)
{
	char path[PROC_PATH_SIZE];
	ssize_t n;

	if (get_opened(rq, &n))
		return reply_value(rq, without_acl(rq, n));
	int fd = inode_fd_get(rq->mount, rq->inode);
	if (fd < 0)
		return fd;
	proc_path(path, fd);
	n = getxattr(path, rq->name, rq->worker->payload, value_size(rq));
	n = n < 0 ? -errno : n;
	inode_fd_put(rq->mount, rq->inode);
	return reply_value(rq, without_acl(rq, n));
}

static bool is_trusted(const char *name)
{
	return !strncmp(name, "trusted.", 8);
}

/* Take the names out of a list of n bytes that only a caller with CAP_SYS_ADMIN sees (fs/xattr.c: xattr_permission); returns how many
 * bytes stay. Who has it is asked where there is such a name. */
static ssize_t without_trusted(const struct request *rq, char *names, ssize_t n)
{
	ssize_t kept = 0, len;
	bool is_asked = false, sees_all = false;

	for (ssize_t at = 0; at < n && !sees_all; at += len) {
		len = (ssize_t)strlen(names + at) + 1;
		if (is_trusted(names + at) && !is_asked) {
			is_asked = true;
			sees_all = creds_caller_is_admin(rq);
		}
		if (is_trusted(names + at))
			continue;
		memmove(names + kept, names + at, (size_t)len);
		kept += len;
	}
	return sees_all ? n : kept;
}

int op_listxattr(struct request *rq)
{
	char path[PROC_PATH_SIZE];
	int fd = inode_fd_get(rq->mount, rq->inode);

	if (fd < 0)
		return fd;
	proc_path(path, fd);
	size_t size = value_size(rq);
	ssize_t n = listxattr(path, rq->worker->payload, FB_DATA_SIZE);
	n = n < 0 ? -errno : n;
	inode_fd_put(rq->mount, rq->inode);
	if (n > 0) {
		n = without_trusted(rq, rq->worker->payload, n);
		n = size && (size_t)n > size ? -ERANGE : n;
	}
	return reply_value(rq, n);
}

/* Without default_permissions the kernel takes a file's capabilities before it asks whether the caller may do what costs them
 * (fs/attr.c: setattr_prepare, at kill_priv). What he then does takes them by itself, if he may. */
static bool removes_too_soon(const struct request *rq, int fd, const char *path)
{
	struct stat st;

	return creds_are_users() && !strcmp(rq->name, "security.capability") && fstat(fd, &st) == 0 &&
	       st.st_uid != rq->create_uid && faccessat(AT_FDCWD, path, W_OK, AT_EACCESS) < 0;
}

int op_removexattr(struct request *rq)
{
	char path[PROC_PATH_SIZE];
	int fd = inode_fd_get(rq->mount, rq->inode), e = 0;

	if (fd < 0)
		return fd;
	proc_path(path, fd);
	if (!removes_too_soon(rq, fd, path))
		e = removexattr(path, rq->name) < 0 ? -errno : 0;
	inode_fd_put(rq->mount, rq->inode);
	return e;
}
