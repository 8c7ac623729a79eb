/* SPDX-License-Identifier: Apache-2.0 */
/* Open files and directories, and kernel passthrough of their data. */
#ifndef FUSEBPF_HANDLES_H
#define FUSEBPF_HANDLES_H

#include "core.h"

/* An open file or directory. Its number is index | generation << 32, so a stale or invented one is refused. The kernel sends
 * RELEASE after the last op that uses it. */
struct handle {
	uint32_t index, generation;
	int fd;
	bool is_used, is_dir, is_passthrough, is_served, has_flock;
	struct inode *inode;
	/* Directories: what getdents64 gave and no listing has taken yet. */
	pthread_mutex_t dir_lock;
	char *dir_buffer;
	uint32_t dir_at, dir_end;
	int64_t dir_offset; /* the offset of the entry at dir_at */
	struct handle *next_free;
};

#define HANDLES_PER_CHUNK 256
#define MAX_HANDLE_CHUNKS 4096

struct handles {
	pthread_mutex_t lock;
	struct handle *_Atomic chunks[MAX_HANDLE_CHUNKS];
	uint32_t n_chunks;
	struct handle *free;
	_Atomic uint32_t n_open;
};

/* handles.c */
void handles_init(struct mount *m);
void handles_deinit(struct mount *m);
struct handle *handle_create(struct mount *m, struct inode *inode, int fd, bool is_dir);
void handle_destroy(struct mount *m, struct handle *h);
struct handle *handle_get(struct mount *m, uint64_t fh, bool is_dir);
uint64_t handle_number(const struct handle *h);

/* backing_id.c */
int passthrough_open(struct request *rq, struct handle *h, uint32_t *flags, int32_t *backing_id);
void passthrough_close(struct mount *m, struct handle *h);

#endif
