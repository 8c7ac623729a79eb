/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The mounts that the backing tree is made of: what file handles are relative to. The list only grows while the fusebpf mount
 * lives, so it is walked without a lock.
 */
#include "core.h"

#include <linux/fs.h>
#include <linux/magic.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/vfs.h>

#define CONFIGFS_MAGIC 0x62656570UL /* fs/configfs/mount.c */

/* Of the file system that the file is on; 0 if it does not say. */
static unsigned long magic_of(int fd)
{
	struct statfs fs;

	return fstatfs(fd, &fs) < 0 ? 0 : (unsigned long)fs.f_type;
}

static bool can_reopen(int mount_fd, int dir_fd)
{
	union {
		struct file_handle handle;
		char bytes[sizeof(struct file_handle) + MAX_HANDLE_SIZE];
	} h = { .handle.handle_bytes = MAX_HANDLE_SIZE };
	int id;

	// FUSE makes handles that it may not find again (fs/fuse/inode.c: fuse_get_dentry).
	unsigned long magic = magic_of(mount_fd);
	if (!magic || magic == FUSE_SUPER_MAGIC)
		return false;
	if (name_to_handle_at(dir_fd, "", &h.handle, &id, AT_EMPTY_PATH) < 0)
		return false;
	int fd = open_by_handle_at(mount_fd, &h.handle, O_PATH | O_CLOEXEC);
	if (fd < 0)
		return false;
	close(fd);
	return true;
}

/* A file system whose close(2) may say that an earlier write failed. */
static bool is_remote(int fd)
{
	switch (magic_of(fd)) {
	case 0:
	case NFS_SUPER_MAGIC:
	case SMB_SUPER_MAGIC:
	case CIFS_SUPER_MAGIC:
	case SMB2_SUPER_MAGIC:
	case CEPH_SUPER_MAGIC:
	case AFS_SUPER_MAGIC:
	case CODA_SUPER_MAGIC:
	case V9FS_MAGIC:
	case FUSE_SUPER_MAGIC:
		return true;
	default:
		return false;
	}
}

/* Is it a file of a file system whose files the kernel makes up as they are read? */
static bool is_made_up(int fd)
{
	switch (magic_of(fd)) {
	case PROC_SUPER_MAGIC:
	case SYSFS_MAGIC:
	case DEBUGFS_MAGIC:
	case TRACEFS_MAGIC:
	case SECURITYFS_MAGIC:
	case SELINUX_MAGIC:
	case SMACK_MAGIC:
	case CGROUP_SUPER_MAGIC:
	case CGROUP2_SUPER_MAGIC:
	case CONFIGFS_MAGIC:
		return true;
	default:
		return false;
	}
}

/** Does the kernel make this inode's file, which is open by fd, up as it is read? */
bool inode_is_made_up(const struct inode *inode, int fd)
{
	return inode->mnt ? inode->mnt->is_made_up : is_made_up(fd);
}

/* Is a file known by its number and the time at which it was made, since none ever gets those of another? On btrfs a snapshot has
 * them all, and the device number of a deleted one is given again; of others nobody has looked. */
static bool are_births_own(int fd)
{
	switch (magic_of(fd)) {
	case EXT4_SUPER_MAGIC:
	case F2FS_SUPER_MAGIC:
	case TMPFS_MAGIC:
	case XFS_SUPER_MAGIC:
		return true;
	default:
		return false;
	}
}

/* Of ext4, f2fs and tmpfs the kernel says under /sys whether it can fold case at all; then a directory does that has the attribute. */
static enum case_folding folding_by_directory(const char *type)
{
	char features[64], casefold[80];

	snprintf(features, sizeof(features), "/sys/fs/%s/features", type);
	snprintf(casefold, sizeof(casefold), "%s/casefold", features);
	return access(features, F_OK) < 0 || access(casefold, F_OK) == 0 ? FOLDS_BY_DIRECTORY : FOLDS_NOT;
}

/* Other file systems may have been made so, and do not say. */
static enum case_folding folding_of(int fd)
{
	switch (magic_of(fd)) {
	case BTRFS_SUPER_MAGIC:
		return FOLDS_NOT;
	case EXT4_SUPER_MAGIC:
		return folding_by_directory("ext4");
	case F2FS_SUPER_MAGIC:
		return folding_by_directory("f2fs");
	case TMPFS_MAGIC:
		return folding_by_directory("tmpfs");
	default:
		return FOLDS_PERHAPS;
	}
}

/** May names that differ in case alone be the same in that directory? */
bool backing_folds_case(const struct backing_mount *b, int dir_fd)
{
	int flags = 0;

	if (b->folding != FOLDS_BY_DIRECTORY)
		return b->folding == FOLDS_PERHAPS;
	int fd = openat(dir_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC); // an O_PATH descriptor takes no ioctl
	if (fd < 0)
		return true;
	bool is_known = !ioctl(fd, FS_IOC_GETFLAGS, &flags) || errno == ENOTTY;
	close(fd);
	return !is_known || flags & FS_CASEFOLD_FL;
}

static uint64_t fsid_of(int fd)
{
	struct statfs fs;
	uint64_t fsid = 0;

	if (!fstatfs(fd, &fs))
		memcpy(&fsid, &fs.f_fsid, sizeof(fsid));
	return fsid;
}

/** The backing mount of that id, if it was met. */
struct backing_mount *backing_mount_find(struct mount *m, int id)
{
	struct backing_mount *b = atomic_load(&m->inodes.mounts);

	while (b && b->id != id)
		b = b->next;
	return b;
}

/** The backing mount of an inode that was found through fd, added when it is first met. NULL: memory is short. */
struct backing_mount *backing_mount_get(struct mount *m, int id, int fd, uint32_t type)
{
	struct inodes *t = &m->inodes;

	struct backing_mount *b = backing_mount_find(m, id);
	if (b)
		return b;
	pthread_mutex_lock(&t->mounts_lock);
	b = backing_mount_find(m, id);
	if (!b && (b = calloc(1, sizeof(*b)))) {
		b->id = id;
		b->fd = -1;
		if (type == S_IFDIR)
			b->fd = openat(fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
		b->can_reopen = b->fd >= 0 && can_reopen(b->fd, fd);
		b->is_remote = is_remote(fd);
		b->is_made_up = is_made_up(fd);
		b->fsid = fsid_of(fd);
		b->are_births_own = are_births_own(fd);
		b->folding = folding_of(fd);
		b->is_watched = b->fd >= 0 && watch_add(m, b->fd);
		b->next = atomic_load(&t->mounts);
		atomic_store(&t->mounts, b);
	}
	pthread_mutex_unlock(&t->mounts_lock);
	return b;
}

/** Forget them all. After the inodes. */
void backing_mounts_deinit(struct mount *m)
{
	for (struct backing_mount *b = atomic_load(&m->inodes.mounts); b;) {
		struct backing_mount *next = b->next;
		if (b->fd >= 0)
			close(b->fd);
		free(b);
		b = next;
	}
	atomic_store(&m->inodes.mounts, NULL);
}
