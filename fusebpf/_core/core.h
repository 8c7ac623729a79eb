/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The engine's types and the functions that its files offer one another: the mount itself and what every file uses
 * are here, the rest in the header of its part. Nothing here knows Python; module.c is the border.
 *
 * Threads: the thread that calls mount_* (control path), the workers (op path), the janitor (janitor.c), the notifier
 * (notify.c), the watch (watch.c); with a daemon Python's, which calls daemon_*.
 * Errors: the op path returns 0 or -errno; the control path returns -errno and puts the failing call into
 * mount->failed_call.
 */
#ifndef FUSEBPF_CORE_H
#define FUSEBPF_CORE_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "fuse_abi.h"
#include "fusebpf.h"

#define ROOT_NODEID 1
#define REQUEST_BUFFER_SIZE (1024 * 1024 + 4096) /* max_write and the headers before it */
#define MAX_WRITE (1024 * 1024)
#define LOOK_NS 50000000 /* how often who waits where no signal comes looks whether it is still to */
#define HOT_SLOT_SIZE offsetof(struct fb_slot, path) /* what every hook gets; path, path2 and text lie behind it */
#define MAX_HANDLE_SIZE 128			      /* MAX_HANDLE_SZ of exportfs */
#define PROC_PATH_SIZE 32			      /* "/proc/self/fd/" and a number */

struct mount;
struct worker;
struct chain;
struct request;
struct inode;

/* ------------------------------------------------------------------------------------ ops */

struct op {
	const char *name;
	uint8_t opcode;
	uint8_t canonical; /* of an alias: the op that it is an alias of; else opcode */
	uint8_t n_names;
	uint32_t flags; /* enum fb_op_flags */
	bool is_hook;
	int (*decode)(struct request *rq);
	int (*run)(struct request *rq); /* the backing route: 0 or -errno */
};

/* The op table as its readers outside of the core see it. */
struct op_row {
	const char *name;
	int opcode, n_names;
	uint32_t flags;
	const char *kind, *of;
};

extern const struct op_row op_rows[];
extern const size_t n_op_rows;
extern const struct op ops[256]; /* by opcode; name is NULL where there is none */

/* Each of these may use what stands above it. */
#include "inodes.h"
#include "tags.h"
#include "views.h"
#include "handles.h"
#include "data.h"
#include "chain.h"
#include "sizes.h"
#include "request.h"
#include "edits.h"
#include "transport.h"
#include "worker.h"
#include "notify.h"
#include "watch.h"
#include "daemon.h"

struct mount {
	/* What was asked for. */
	char *mountpoint, *source;
	unsigned long flags;
	bool allow_other, default_permissions, wants_passthrough, wants_backing_locks, wants_watch;
	bool is_one_file_system, wants_idmap;
	bool is_small;	     /* profile=small: the kernel sends no OPEN, RELEASE and FLUSH of files, and requests with handle 0 */
	bool keeps_listings; /* nor of directories, whose listings it keeps: if they are watched, and no filter looked at them at the start */
	bool keeps_targets;  /* profile=small: nor READLINK twice, if no filter looked at it at the start */
	uint32_t max_read;
	uint64_t ttl_ns;
	enum transport_choice transport;
	struct idle idle;
	/* The connection. */
	int roots[FB_MAX_ROOTS]; /* the first is root_fd; n_roots of them */
	uint32_t n_roots;
	int root_fd, device_fd;
	uint32_t kernel_minor;
	uint64_t offered;  /* FUSE_ init flags of the kernel */
	uint64_t features; /* those that both sides have */
	uint64_t init_unique;
	uint32_t max_readahead;
	bool has_passthrough, is_started, is_stopped, is_mounted;
	bool is_left; /* it was stopped, and threads that something holds still use it */
	int ended_fd; /* eventfd */
	int log_read_fd, log_write_fd;
	_Atomic uint64_t log_window; /* rate limit: the second << 32 | lines in it */
	const char *failed_call;
	char failed_text[256]; /* where failed_call is no constant */
	/* What it holds. */
	struct inodes inodes;
	struct tags tags;
	struct turns turns;
	struct fds fds;
	struct handles handles;
	struct backing_ids backing_ids;
	bool has_shared;
	_Atomic int callers_fd; /* what bpf/caller.c notes, -1: nobody does */
	struct shared_maps shared;
	pthread_mutex_t chain_lock;
	struct chain *_Atomic chain;
	struct chain *old_chains; /* under chain_lock: snapshots that ops in flight still use */
	struct workers workers;
	struct notifier notifier;
	struct negatives negatives;
	struct watch watch;
	struct queue queues[1 + MAX_CORES]; /* /dev/fuse, and of FUSE over io_uring one for each core */
	uint32_t n_queues;
	struct placement placements[N_PLACEMENTS];
	_Atomic uint64_t n_nudges; /* messages of our own to them */
	struct daemon *daemon; /* NULL: the mount has none */
	pthread_mutex_t locks_lock;
	_Atomic uint32_t n_lock_owners;
	/* What it counts. */
	_Atomic uint64_t n_failed_closed, n_filter_ttls, n_interrupts, n_passthrough_opens;
};

/* clock.c */
int64_t now_ms(void);
int64_t now_ns(void);
void clock_cond_init(pthread_cond_t *cond);
void clock_wait(pthread_cond_t *cond, pthread_mutex_t *lock, int64_t ns);

/* log.c */
void mount_log(struct mount *m, const char *level, const char *format, ...)
	__attribute__((format(printf, 3, 4)));

/* creds.c: the identity of the calling thread */
int creds_init_thread(void);
bool creds_have(int cap);
void creds_enter(const struct request *rq, uint32_t uid, uint32_t gid, bool keep_rights);
void creds_leave(void);
bool creds_are_users(void);
uid_t creds_caller_uid(const struct request *rq);
bool creds_caller_is_admin(const struct request *rq);
bool acts_as_caller(const struct request *rq);
gid_t creds_caller_gid(const struct request *rq);
void creds_lift(void);
void creds_unlift(void);
/* Has the caller CAP_FSETID? Where the request does not say so, a root has it whose status says so. */
enum creds_fsetid { HAS_FSETID, LACKS_FSETID, FSETID_IS_ROOTS };
struct creds_bits {
	bool has_raised, has_joined;
	uint32_t group;
};
struct creds_bits creds_bits_begin(const struct request *rq, int fd, enum creds_fsetid fsetid);
void creds_bits_end(struct creds_bits begun);
uint32_t creds_group_leave(void);
void creds_group_restore(uint32_t was);
void creds_raise_fsetid(void);
void creds_drop_fsetid(void);

/* device.c */
int device_mount(struct mount *m);
int device_hear(struct mount *m);
int device_answer(struct mount *m);
void device_reply_raw(int fd, uint64_t unique, int error);

/* mount.c: the control path */
#define MAX_COUNTERS 32
struct counter {
	const char *name;
	uint64_t value;
};

size_t mount_counters(struct mount *m, struct counter out[MAX_COUNTERS]);
struct mount *mount_create(void);
void mount_destroy(struct mount *m);
int mount_start(struct mount *m);
void mount_stop(struct mount *m);

#endif
