/* SPDX-License-Identifier: Apache-2.0 */
/* Telling the kernel that what it has cached is no longer so. */
#ifndef FUSEBPF_NOTIFY_H
#define FUSEBPF_NOTIFY_H

#include "core.h"

#define NOTIFY_QUEUE_SIZE 1024

/* One notification. */
struct notice {
	int code; /* enum fuse_notify_code */
	uint32_t flags;	 /* of an entry: FUSE_EXPIRE_ONLY */
	uint64_t nodeid; /* of an entry: its directory */
	int64_t offset, length;
	char name[FB_NAME_SIZE];
};

/* One that is to be sent again. */
struct again {
	struct notice notice;
	bool was_there; /* the kernel had it cached when it was sent first */
	int64_t due_ms;
	uint32_t n_told; /* again */
};

/* Until when the kernel may keep what it has of an inode without a time of its own. */
struct lease {
	int64_t until_ms;
	uint64_t nodeid;
};

#define NOTIFY_UNKNOWN_NS 1000000000u /* the most that an entry may be cached which notify_all does not find */

struct notifier {
	pthread_mutex_t lock; /* a leaf: taken under any other lock, nothing is taken under it */
	pthread_cond_t changed;
	pthread_t thread;
	bool has_thread, is_stopping, has_ended;
	bool wants_all;
	_Atomic bool wants_prune;
	struct notice *queue; /* a ring */
	uint32_t first, n_queued;
	uint64_t n_asked, n_done;
	_Atomic uint64_t n_all; /* times that everything was to be invalidated */
	_Atomic int64_t unknown_ms; /* when notify_unknown was last called */
	/* The thread's own: */
	struct again *again; /* the oldest first */
	uint32_t n_again;
	int64_t again_ms;   /* when again_send is to be called next; INT64_MAX: not as things are */
	int64_t all_due_ms; /* when all entries are to expire again; INT64_MAX: not */
	uint32_t n_all_told;
	uint64_t n_heeded; /* of what was asked; */
	uint64_t n_held;   /* and what of that is done from held_ms on, the rest from next_ms on */
	int64_t held_ms, next_ms;
	struct lease *leases; /* in no order */
	uint32_t n_leases, leases_size;
	int64_t lease_ms; /* when the first of them ends */
	uint32_t next_pruned; /* shard of the inode table */
	_Atomic uint64_t n_sent;
};

/* A name that the kernel was told is absent. */
struct negative {
	uint64_t parent;
	int64_t until_ms; /* the kernel keeps it no longer */
	char *name;
};

struct negatives {
	pthread_mutex_t lock; /* a leaf */
	struct negative *list;
	uint32_t n;
	int64_t swept_ms; /* when those that are over were last dropped */
};

/* negatives.c */
bool negative_reply(struct request *rq);
uint32_t negatives_take(struct mount *m, struct negative **out);
void negatives_deinit(struct mount *m);

/* notify.c: any thread may call these, with any lock held; they never block. They do nothing for what the kernel has not
 * cached, and before the mount is there or after its end. */
void notify_entry(struct mount *m, uint64_t parent, const char *name);
void notify_deleted(struct mount *m, uint64_t parent, const char *name);
void notify_inode(struct mount *m, uint64_t nodeid, int64_t offset, int64_t length);
void notify_inode_at(struct mount *m, uint64_t nodeid, int64_t at_ms);
void notify_all(struct mount *m, bool by_filters);
void notify_unknown(struct mount *m);
void notify_prune(struct mount *m);

/* On the notifier's thread. */
void notifier_drop(struct mount *m, uint64_t parent, const char *name);
bool notice_send(struct mount *m, const struct notice *n);
void notifier_send_handed_out(struct mount *m, bool with_inodes);

/* notify_again.c: on the notifier's thread. */
int again_init(struct notifier *n);
void again_note(struct mount *m, const struct notice *notice, bool was_there);
void again_note_all(struct mount *m);
void again_send(struct mount *m);
void again_deinit(struct notifier *n);

/* prune.c: the notifier's, and a worker's. */
void prune(struct mount *m);
bool prune_wait(struct request *rq, uint32_t *n_waits);

/* notify.c: the control path's. */
bool notify_wait(struct mount *m, int timeout_ms);
void notifier_init(struct mount *m);
int notifier_start(struct mount *m);
void notifier_end(struct mount *m);
bool notifier_join(struct mount *m);
void notifier_deinit(struct mount *m);

#endif
