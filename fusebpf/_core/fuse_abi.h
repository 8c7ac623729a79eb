/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What of the FUSE kernel protocol is newer than the oldest <linux/fuse.h> that we build with (7.38, Debian 12).
 * Source: include/uapi/linux/fuse.h, with the protocol version that brought each.
 */
#ifndef FUSEBPF_CORE_FUSE_ABI_H
#define FUSEBPF_CORE_FUSE_ABI_H

#include <linux/fuse.h>
#include <sys/ioctl.h>

#define FB_FUSE_MINOR 45 /* the newest minor version whose structs are below */

#define FB_FUSE_CREATE_SUPP_GROUP (1ULL << 34)	  /* 7.38 */
#define FB_FUSE_DIRECT_IO_ALLOW_MMAP (1ULL << 36) /* 7.39 */
#define FB_FUSE_PASSTHROUGH (1ULL << 37)	  /* 7.40 */
#define FB_FUSE_ALLOW_IDMAP (1ULL << 40)	  /* 7.41 */
#define FB_FUSE_OVER_IO_URING (1ULL << 41)	  /* 7.42 */

#define FB_FOPEN_NOFLUSH (1 << 5)		  /* 7.35 */
#define FB_FOPEN_PARALLEL_DIRECT_WRITES (1 << 6)  /* 7.36 */
#define FB_FOPEN_PASSTHROUGH (1 << 7)		  /* 7.40 */

/* 7.40: max_stack_depth and the rest of what was unused[] before; the size is the old one's. */
struct fb_fuse_init_out {
	uint32_t major;
	uint32_t minor;
	uint32_t max_readahead;
	uint32_t flags;
	uint16_t max_background;
	uint16_t congestion_threshold;
	uint32_t max_write;
	uint32_t time_gran;
	uint16_t max_pages;
	uint16_t map_alignment;
	uint32_t flags2;
	uint32_t max_stack_depth;
	uint16_t request_timeout;
	uint16_t unused[11];
};

/* 7.40: open_flags' neighbour, padding before, carries the backing id. */
struct fb_fuse_open_out {
	uint64_t fh;
	uint32_t open_flags;
	int32_t backing_id;
};

struct fb_fuse_backing_map {
	int32_t fd;
	uint32_t flags;
	uint64_t padding;
};

#define FB_FUSE_EXT_GROUPS 32 /* 7.38 */

struct fb_fuse_supp_group {
	uint32_t nr_groups; /* only 1 is ever sent */
	uint32_t group;
};

/* 7.39: FUSE_STATX */
struct fb_fuse_statx_in {
	uint32_t getattr_flags;
	uint32_t reserved;
	uint64_t fh;
	uint32_t sx_flags;
	uint32_t sx_mask;
};

struct fb_fuse_sx_time {
	int64_t tv_sec;
	uint32_t tv_nsec;
	int32_t reserved;
};

struct fb_fuse_statx {
	uint32_t mask;
	uint32_t blksize;
	uint64_t attributes;
	uint32_t nlink;
	uint32_t uid;
	uint32_t gid;
	uint16_t mode;
	uint16_t spare0;
	uint64_t ino;
	uint64_t size;
	uint64_t blocks;
	uint64_t attributes_mask;
	struct fb_fuse_sx_time atime;
	struct fb_fuse_sx_time btime;
	struct fb_fuse_sx_time ctime;
	struct fb_fuse_sx_time mtime;
	uint32_t rdev_major;
	uint32_t rdev_minor;
	uint32_t dev_major;
	uint32_t dev_minor;
	uint64_t spare2[14];
};

struct fb_fuse_statx_out {
	uint64_t attr_valid;
	uint32_t attr_valid_nsec;
	uint32_t flags;
	uint64_t spare[2];
	struct fb_fuse_statx stat;
};

/* 7.45; kernels before answer EINVAL. `count` nodeids follow. */
enum { FB_FUSE_NOTIFY_PRUNE = 9 };

struct fb_fuse_notify_prune_out {
	uint32_t count;
	uint32_t padding;
	uint64_t spare;
};

/* 7.42: FUSE over io_uring. What an entry's first buffer holds: */
#define FB_URING_OP_SIZE 128

struct fb_uring_headers {
	char in_out[128]; /* fuse_in_header, fuse_out_header */
	char op_in[FB_URING_OP_SIZE]; /* the op's own struct */
	struct {
		uint64_t flags;
		uint64_t commit_id;
		uint32_t payload_size; /* of what is in the second buffer */
		uint32_t padding;
		uint64_t reserved;
	} entry;
};

/* What stands behind a submission entry's first 48 bytes. */
struct fb_uring_command {
	uint64_t flags;
	uint64_t commit_id;
	uint16_t queue;
	uint8_t padding[6];
};

enum { FB_URING_REGISTER = 1, FB_URING_COMMIT_AND_FETCH = 2 };

#define FB_FUSE_DEV_IOC_BACKING_OPEN _IOW(229, 1, struct fb_fuse_backing_map)
#define FB_FUSE_DEV_IOC_BACKING_CLOSE _IOW(229, 2, uint32_t)

_Static_assert(sizeof(struct fb_fuse_init_out) == sizeof(struct fuse_init_out), "init_out");
_Static_assert(sizeof(struct fb_fuse_open_out) == sizeof(struct fuse_open_out), "open_out");

#endif
