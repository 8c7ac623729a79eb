/* SPDX-License-Identifier: Apache-2.0 */
/* What the kernel may cache and for how long, and how changes behind the mount are learnt of. */
#ifndef FUSEBPF_WATCH_H
#define FUSEBPF_WATCH_H

#include "core.h"

#define N_DOUBTS 32

/* doubts.c */
struct doubt {
	uint64_t nodeid; /* of a directory */
	int64_t at_ms;	 /* when a name in it changed behind the mount */
};

struct doubts {
	struct doubt dirs[N_DOUBTS];
	int64_t latest_ms; /* of all of them */
	int64_t all_ms;	  /* when they were more, or nobody could say which */
};

struct watch {
	int fd;	     /* fanotify's, -1: nothing is watched */
	int stop_fd; /* eventfd */
	pthread_t thread;
	bool has_thread;
	_Atomic bool has_ended;
	uint64_t mounts; /* what the mounts below the backing root were when they were last looked at */
	_Atomic uint64_t *own_threads; /* a bit for each thread id: whose changes the kernel knows of, since they are its own */
	_Atomic uint64_t n_changes;    /* that may be known to the kernel; counted before it is told */
	_Atomic uint64_t n_overflows;
	struct doubts doubts;	       /* the thread's own */
};

/* watch.c */
void watch_init(struct mount *m);
int watch_open(struct mount *m);
bool watch_add(struct mount *m, int dir_fd);
int watch_start(struct mount *m);
bool watch_stop(struct mount *m);
void watch_deinit(struct mount *m);
void watch_own_thread(struct mount *m, bool is_own);

/* doubts.c: the watch's thread's */
void doubts_init(struct doubts *d);
void doubts_note(struct doubts *d, uint64_t nodeid);
void doubts_note_all(struct doubts *d);
bool doubts_are_any(const struct doubts *d);
bool doubts_has(const struct doubts *d, uint64_t nodeid);
bool doubts_may_know(const struct inodes *inodes);

/* watch_mounts.c */
uint64_t watch_mounts_below(int root_fd);

/* cache.c */
bool cache_may_ask(const struct request *rq);
void cache_begin(struct request *rq);
void cache_entry(struct request *rq, struct inode *inode, struct fuse_entry_out *out);
void cache_attr(struct request *rq);
bool cache_is_outdated(const struct request *rq);
bool cache_has_changed(const struct request *rq);
bool cache_keeps_absent(const struct request *rq, int dir_fd);
bool cache_keeps_targets(const struct mount *m);
void cache_target(struct request *rq);
void cache_settle(struct request *rq);
void cache_finish(struct request *rq);
void cache_nothing(struct request *rq);
void cache_expire_name(struct request *rq, const struct inode *dir, const char *name);
void cache_forget_name(struct request *rq, const struct inode *dir, const char *name);
uint32_t cache_list_flags(const struct request *rq);
void cache_dirent(struct request *rq, uint64_t edits);
void cache_listing_begins(struct request *rq, struct handle *h, bool is_first);
void cache_listing_ends(struct request *rq, struct handle *h, bool is_last);
bool cache_listings_are_hooked(const struct chain *chain);

#endif
