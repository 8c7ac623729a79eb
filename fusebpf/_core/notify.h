/* SPDX-License-Identifier: Apache-2.0 */
/* Telling the kernel that what it has cached is no longer so. */
#ifndef FUSEBPF_NOTIFY_H
#define FUSEBPF_NOTIFY_H

#include "core.h"

struct notice;

struct notifier {
	pthread_mutex_t lock; /* a leaf: taken under any other lock, nothing is taken under it */
	pthread_cond_t changed;
	pthread_t thread;
	bool has_thread, is_stopping, has_ended;
	bool wants_all;
	struct notice *queue; /* a ring */
	uint32_t first, n_queued;
	uint64_t n_asked, n_done;
	_Atomic uint64_t n_sent;
};

/* notify.c: any thread may call these, with any lock held; they never block. They do nothing for what the kernel has not
 * cached, and before the mount is there or after its end. */
void notify_entry(struct mount *m, uint64_t parent, const char *name);
void notify_deleted(struct mount *m, uint64_t parent, uint64_t child, const char *name);
void notify_inode(struct mount *m, uint64_t nodeid, int64_t offset, int64_t length);
void notify_all(struct mount *m);

/* The control path's. */
bool notify_wait(struct mount *m, int timeout_ms);
void notifier_init(struct mount *m);
int notifier_start(struct mount *m);
void notifier_end(struct mount *m);
bool notifier_join(struct mount *m);
void notifier_deinit(struct mount *m);

#endif
