/* SPDX-License-Identifier: Apache-2.0 */
/* An op as its filters see it, in our own copy, from which the slot is filled in before each hook. On a worker's thread. */
#include "core.h"

#include <sys/stat.h>
#include <time.h>

/** What the filters see of the op before it runs, and records tell of it; the arguments are there from decoding. */
void image_fill(struct request *rq)
{
	struct fb_slot *image = rq->image;
	struct timespec now;

	clock_gettime(CLOCK_REALTIME, &now);
	image->abi = FB_ABI_VERSION;
	image->time_ns = (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
	image->type = rq->inode ? rq->inode->type : 0;
	image->backing = rq->inode ? rq->inode->root : 0;
	if (rq->inode && rq->inode->is_gone)
		image->flags |= FB_GONE;
	image->tag = 0;
	image->view = rq->inode ? rq->inode->view : 0;
	image->ttl_ns = 0;
	image->delay_ns = 0;
	image->zero = 0;
	image->path_len = image->path2_len = image->text_len = 0;
	// Names are padded with zeros; only what the op before this one left there is to be cleared.
	memset(&image->name, 0, image->name_len);
	memset(&image->name2, 0, image->name2_len);
	image->name_len = image->name2_len = 0;
	memset(&image->result, 0, sizeof(image->result));
	if (rq->name) {
		image->name_len = (uint32_t)strlen(rq->name);
		memcpy(image->name.text, rq->name, image->name_len);
	}
	if (rq->name2) {
		image->name2_len = (uint32_t)strlen(rq->name2);
		memcpy(image->name2.text, rq->name2, image->name2_len);
	}
	if (rq->text) {
		image->text_len = (uint32_t)strlen(rq->text);
		memcpy(image->text, rq->text, image->text_len + 1);
	} else if (rq->op->canonical == FB_OP_setxattr) {
		text_show(rq, rq->body + rq->body_at, image->args.xattr.size);
	} else if (rq->op->canonical == FB_OP_ioctl) {
		text_show(rq, rq->body + rq->body_at, image->args.ioctl.in_size);
	}
}

static int path_fill(struct request *rq, struct inode *inode, const char *name, char out[FB_PATH_SIZE])
{
	int len = inode ? inode_path(rq->mount, inode, name, &rq->worker->directory, out) : -1;

	if (len < 0)
		rq->image->flags |= FB_PATH_LOST;
	return len < 0 ? 0 : len;
}

/* What is there, S_IFMT bits; 0 if nothing is, or that cannot be told. */
static uint16_t type_at(struct request *rq, struct inode *dir, const char *name)
{
	struct stat st;
	int fd = dir ? parent_fd_get(rq, dir) : -1;

	if (fd < 0)
		return 0;
	uint16_t type = fstatat(fd, name, &st, AT_SYMLINK_NOFOLLOW) < 0 ? 0 : (uint16_t)(st.st_mode & S_IFMT);
	parent_fd_put(rq, dir, fd);
	return type;
}

/** The types of what a rename is about, for filters that want paths. */
void types_fill(struct request *rq)
{
	struct fb_rename *args = &rq->image->args.rename;

	if (rq->op->canonical != FB_OP_rename || !(rq->image->flags & FB_HAS_PATH) || rq->is_rehearsed)
		return;
	args->type = type_at(rq, rq->inode, rq->name);
	args->type2 = type_at(rq, inodes_get(rq->mount, args->newdir), rq->name2);
}

/* The last part of a path becomes another name. A path that is lost stays so. */
static void path_end(struct fb_slot *image, char path[FB_PATH_SIZE], __u32 *path_len, const char *name)
{
	const char *slash = memrchr(path, '/', *path_len);
	size_t start = slash ? (size_t)(slash - path) + 1 : 0, len = strlen(name);

	if (!*path_len)
		return;
	if (start + len >= FB_PATH_SIZE) {
		image->flags |= FB_PATH_LOST;
		start = len = 0;
	}
	memcpy(path + start, name, len);
	*path_len = (uint32_t)(start + len);
	path[*path_len] = 0;
}

/** The op has other names in the image, or another root: so have its paths. */
void paths_follow(struct request *rq, bool is_name, bool is_name2)
{
	struct fb_slot *image = rq->image;
	bool is_link = rq->op->canonical == FB_OP_link;

	if (!(image->flags & FB_HAS_PATH) || rq->op->flags & FB_OP_XATTR)
		return;
	if (is_name)
		path_end(image, is_link ? image->path2 : image->path, is_link ? &image->path2_len : &image->path_len, image->name.text);
	if (is_name2)
		path_end(image, image->path2, &image->path2_len, image->name2.text);
}

/** Its paths, for filters that want them. */
void paths_fill(struct request *rq)
{
	struct fb_slot *image = rq->image;
	struct mount *m = rq->mount;
	const char *name = rq->op->flags & FB_OP_XATTR || !rq->name ? NULL : image->name.text;

	image->flags = (image->flags | FB_HAS_PATH) & ~(uint32_t)FB_PATH_LOST;
	if (rq->op->canonical == FB_OP_link) {
		struct inode *linked = inodes_get(m, image->args.link.inode);
		image->args.link.type = linked ? linked->type : 0;
		if (!image->path_len) // asked again after the op, it may be known by its new name
			image->path_len = (uint32_t)path_fill(rq, linked, NULL, image->path);
		image->path2_len = (uint32_t)path_fill(rq, rq->inode, name, image->path2);
		return;
	}
	image->path_len = (uint32_t)path_fill(rq, rq->inode, name, image->path);
	if (rq->op->canonical == FB_OP_rename) {
		struct inode *newdir = inodes_get(m, image->args.rename.newdir);
		image->path2_len = (uint32_t)path_fill(rq, newdir, image->name2.text, image->path2);
	}
}
