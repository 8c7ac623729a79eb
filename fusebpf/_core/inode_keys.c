/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a file is known by: its mount and file handle, or where the file system has no handles, device and inode number.
 */
#include "core.h"

enum { NO_HANDLE_TYPE = -2 }; /* the key is device and inode number */

static uint32_t hash_bytes(uint32_t hash, const void *bytes, size_t n)
{
	const unsigned char *p = bytes;

	while (n--)
		hash = (hash ^ *p++) * 16777619u; // FNV-1a
	return hash;
}

/* Spread the last byte's bits: FNV leaves them in the low half. */
static uint32_t hash_finish(uint32_t hash)
{
	hash ^= hash >> 16;
	hash *= 0x85ebca6bu;
	return hash ^ hash >> 13;
}

/* mount_id is -1 where the key is device and inode number. */
static uint32_t hash_handle(int mount_id, const struct file_handle *handle)
{
	uint32_t hash = 2166136261u;

	if (mount_id >= 0)
		hash = hash_bytes(hash, &mount_id, sizeof(mount_id));
	return hash_finish(hash_bytes(hash, handle->f_handle, handle->handle_bytes));
}

/** What file is it? Fills in handle and hash; *mount_id is -1 where the file system has no handles. */
int inode_key_of(int fd, const char *name, struct inode_key *key, int *mount_id)
{
	struct stat st;
	uint64_t numbers[2];
	bool at = name[0];

	key->handle.handle_bytes = MAX_HANDLE_SIZE;
	if (name_to_handle_at(fd, name, &key->handle, mount_id, at ? 0 : AT_EMPTY_PATH)) {
		if (errno != EOPNOTSUPP && errno != EOVERFLOW)
			return -errno;
		if (fstatat(fd, name, &st, at ? AT_SYMLINK_NOFOLLOW : AT_EMPTY_PATH) < 0)
			return -errno;
		*mount_id = -1;
		numbers[0] = st.st_dev;
		numbers[1] = st.st_ino;
		key->handle.handle_type = NO_HANDLE_TYPE;
		key->handle.handle_bytes = sizeof(numbers);
		memcpy(key->handle.f_handle, numbers, sizeof(numbers));
	}
	key->hash = hash_handle(*mount_id, &key->handle);
	return 0;
}

/** Is it that file, in whichever view? */
bool inode_is_of(const struct inode *inode, const struct inode_key *key)
{
	return inode->key_hash == key->hash && inode->mnt == key->mnt &&
	       inode->handle_type == key->handle.handle_type &&
	       inode->handle_bytes == key->handle.handle_bytes &&
	       !memcmp(inode->handle, key->handle.f_handle, inode->handle_bytes);
}

/** The key by which this inode is known. */
void inode_key_again(const struct inode *inode, struct inode_key *key)
{
	key->mnt = inode->mnt;
	key->hash = inode->key_hash;
	key->handle.handle_type = inode->handle_type;
	key->handle.handle_bytes = inode->handle_bytes;
	memcpy(key->handle.f_handle, inode->handle, inode->handle_bytes);
}

/** The key of a file handle on a backing mount, as somebody else has it. Returns false if it can be none of ours. */
bool inode_key_of_handle(struct backing_mount *b, const struct file_handle *handle, struct inode_key *key)
{
	if (handle->handle_bytes > MAX_HANDLE_SIZE)
		return false;
	key->mnt = b;
	key->handle.handle_bytes = handle->handle_bytes;
	key->handle.handle_type = handle->handle_type;
	memcpy(key->handle.f_handle, handle->f_handle, handle->handle_bytes);
	key->hash = hash_handle(b->id, &key->handle);
	return true;
}
