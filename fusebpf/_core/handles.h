/* SPDX-License-Identifier: Apache-2.0 */
/* Open files and directories, and kernel passthrough of their data. */
#ifndef FUSEBPF_HANDLES_H
#define FUSEBPF_HANDLES_H

#include "core.h"

/* An open file or directory. Its number is index | generation << 32, so a stale or invented one is refused. The kernel sends
 * RELEASE after the last op that uses it. */
struct handle {
	uint32_t index, generation;
	_Atomic int fd; /* -1: opened by handle_get */
	bool is_used, is_dir, is_passthrough, is_served, has_flock;
	bool is_cached; /* a directory whose listing the kernel keeps when it was read by this handle */
	bool holds_inode_fd; /* so that the file can be opened later, whatever happens to its names */
	bool has_daemon;       /* the daemon opened it, as daemon_fh; fd may be -1 then */
	bool appends;	       /* a filter made each write an append; the kernel does not know */
	_Atomic bool is_closing; /* counts among its inode's n_closing */
	_Atomic bool is_copied; /* a copy was made of the file: who does that by the kernel does not read it himself */
	bool leaves_data;      /* and leaves reads and writes to the backing file */
	uint64_t daemon_fh;
	struct inode *inode;
	uint32_t n_borrowed; /* ops that use fd beside those that the kernel sent for it; under the inode's fd stripe */
	/* Directories: what getdents64 gave and no listing has taken yet. */
	pthread_mutex_t dir_lock;
	char *dir_buffer;
	uint32_t dir_at, dir_end;
	int64_t dir_offset; /* the offset of the entry at dir_at */
	int64_t listed_ms; /* when its listing began, and what dirent hooks said of how long it may be kept: cache.c */
	uint64_t listed_ttl_ns, listed_all;
	struct daemon_entry *daemon_entries; /* what the daemon listed before it */
	uint32_t n_daemon_entries;
	struct handle *next_free;
};

enum { MAX_OWN_HANDLES = 2 }; /* of one request, where the kernel opens nothing */

#define HANDLES_PER_CHUNK 256
#define MAX_HANDLE_CHUNKS 4096

/* Backing ids of inodes that nobody has open any more, kept for the next open. Lock order: an inode's fd stripe, then
 * lock, then other stripes by trylock. */
#define MAX_IDLE_BACKING_IDS 1024

struct backing_ids {
	pthread_mutex_t lock;
	struct inode *idle[MAX_IDLE_BACKING_IDS];
	_Atomic int64_t since_ms[MAX_IDLE_BACKING_IDS];
	uint32_t hand;
};

enum { N_HANDLE_LISTS = 8 };

/* Free handles, for the cores that have the same remainder: each has its own list as good as alone. */
struct handle_list {
	pthread_mutex_t lock;
	struct handle *free;
	_Atomic uint32_t n_open; /* opened on these cores, less those closed on them: only the sum of all lists says something */
	uint64_t padding[2];
};

struct handles {
	struct handle_list lists[N_HANDLE_LISTS];
	struct handle *_Atomic chunks[MAX_HANDLE_CHUNKS];
	_Atomic uint32_t n_chunks;
	pthread_cond_t returned[N_SHARDS]; /* a handle's n_borrowed came to 0; by its inode's fd stripe */
};

/* handles.c */
void handles_init(struct mount *m);
void handles_deinit(struct mount *m);
struct handle *handle_create(struct mount *m, struct inode *inode, int fd, bool is_dir);
void handle_destroy(struct mount *m, struct handle *h);
struct handle *handle_find(struct mount *m, uint64_t fh, bool is_dir);
struct handle *opened_get(struct mount *m, struct inode *inode);
void opened_put(struct mount *m, struct handle *h);
void opened_wait(struct mount *m, struct handle *h);
bool handle_has_file(struct mount *m, struct handle *h);
struct handle *handle_get(struct mount *m, uint64_t fh, bool is_dir);
struct handle *handle_of(struct request *rq, struct inode *inode, uint64_t fh, int flags);
int handles_end(struct request *rq);
uint32_t handles_n_open(const struct mount *m);
uint64_t handle_number(const struct handle *h);

/* backing_id.c */
int32_t backing_id_get(const struct request *rq, struct inode *inode, int fd, bool writes);
void backing_id_rest(struct mount *m, struct inode *inode, int fd);
void backing_ids_sweep(struct mount *m);
void backing_id_unlinked(struct mount *m, struct inode *inode);
void backing_id_forget(struct mount *m, struct inode *inode);
void backing_ids_deinit(struct mount *m);

/* passthrough.c */
int passthrough_open(struct request *rq, struct handle *h, struct fb_fuse_open_out *out);
bool passthrough_share(struct request *rq, int flags, struct fb_fuse_open_out *out);
int passthrough_ask(struct request *rq);
void passthrough_none(struct request *rq);
int passthrough_reopen(struct request *rq);
int passthrough_refuse(struct request *rq, struct handle *h);
void passthrough_close(struct mount *m, struct handle *h);

#endif
