/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The backing roots of a mount, numbered from 0. Every inode is below one of them, and its path below the mount's root is its path
 * below that one. A filter leads an op on a name to another root: to the directory that has the same path there. Any worker.
 */
#include "core.h"

#include <linux/openat2.h>
#include <sys/syscall.h>

/** The root that the names of the op are in, and so the entry that it answers with. */
uint32_t entry_root(const struct request *rq)
{
	return rq->has_root ? rq->root : rq->inode->root;
}

/** Meet the mount of each root by its directory: one that is met by a file first has no way back by handles (backing_mounts.c), and
 * names may be all that is led to a root. After inodes_init. */
int roots_meet(struct mount *m)
{
	struct inode_key key;
	int id;

	for (uint32_t i = 1; i < m->n_roots; i++) {
		int e = inode_key_of(m->roots[i], "", &key, &id);
		if (!e && id >= 0 && !backing_mount_get(m, id, m->roots[i], S_IFDIR))
			e = -ENOMEM;
		if (e)
			return e;
	}
	return 0;
}

/* Open the directory of this path below a root: never by way of a symbolic link, so it cannot lead out of there. */
static int counterpart_open(struct mount *m, struct inode *directory, uint32_t root)
{
	static const struct open_how how = {
		.flags = O_PATH | O_DIRECTORY | O_CLOEXEC,
		.resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS,
	};
	char path[FB_PATH_SIZE];

	if (inode_path(m, directory, NULL, NULL, path) < 0)
		return -ENAMETOOLONG;
	int fd = (int)syscall(SYS_openat2, m->roots[root], path[0] ? path : ".", &how, sizeof(how));
	return fd < 0 ? -errno : fd;
}

/** A descriptor of the directory that has the path of this one below a root; given back by directory_fd_put. */
int directory_fd_get(struct mount *m, struct inode *directory, uint32_t root)
{
	return root == directory->root ? inode_fd_get(m, directory) : counterpart_open(m, directory, root);
}

/* Whose it is, the number says: the directory's own stays open while it is used. Which root the directory is below may have
 * changed since, where it was moved behind the mount. */
void directory_fd_put(struct mount *m, struct inode *directory, int fd)
{
	if (fd == __atomic_load_n(&directory->fd, __ATOMIC_RELAXED))
		inode_fd_put(m, directory);
	else
		close(fd);
}

/** A descriptor of a directory that the op names, in the root that its names are in; given back by parent_fd_put. */
int parent_fd_get(struct request *rq, struct inode *directory)
{
	return directory_fd_get(rq->mount, directory, entry_root(rq));
}

void parent_fd_put(struct request *rq, struct inode *directory, int fd)
{
	directory_fd_put(rq->mount, directory, fd);
}

/** A filter leads the op to another root. Returns NULL, or why the op must fail. */
const char *root_edit(struct request *rq, uint32_t root)
{
	bool is_on_name = rq->op->canonical == FB_OP_tmpfile || (rq->op->n_names && !(rq->op->flags & FB_OP_XATTR));

	if (root >= rq->mount->n_roots)
		return "a rewritten backing root is out of range: the mount has not so many";
	if (!is_on_name && root != rq->inode->root)
		return "it rewrote the backing root of an op that is not about a name";
	rq->has_root = true;
	rq->root = root;
	rq->image->backing = root;
	return NULL;
}
