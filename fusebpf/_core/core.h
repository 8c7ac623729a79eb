/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The engine's types and the functions that its files offer one another, in the order in which they may use each
 * other: what stands below may use what stands above. Nothing here knows Python; module.c is the border.
 *
 * Threads: the thread that calls mount_* (control path), the workers (op path), one janitor (worker.c).
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
#define HOT_SLOT_SIZE offsetof(struct fb_slot, path) /* what every hook gets; path, path2 and text lie behind it */
#define MAX_HANDLE_SIZE 128			      /* MAX_HANDLE_SZ of exportfs */
#define PROC_PATH_SIZE 32			      /* "/proc/self/fd/" and a number */

struct mount;
struct worker;
struct chain;
struct request;

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

extern const struct op ops[256]; /* by opcode; name is NULL where there is none */

/* ----------------------------------------------------------------------------------- inodes */

/* A mount of the backing tree that inodes were found on. Never freed before the fusebpf mount is. */
struct backing_mount {
	struct backing_mount *next;
	int id;		 /* as name_to_handle_at(2) gives it; not reused while fd is open */
	int fd;		 /* a real descriptor on it, for open_by_handle_at(2) */
	bool can_reopen; /* its file handles can be opened again */
	bool is_remote;	 /* close(2) may report errors of earlier writes */
};

/* What one lock owner (a process's files, or an open file) holds on one inode: OFD locks of a descriptor of its own. */
struct lock_range {
	uint64_t start, end;
	uint32_t type, pid;
};

struct lock_owner {
	struct lock_owner *next; /* of the same inode */
	uint64_t owner;
	uint64_t fh; /* the handle that it last locked by */
	int fd;
	uint32_t refs; /* 1 for being in the list; uses under way */
	uint32_t n_ranges, capacity;
	struct lock_range *ranges; /* only to tell others whose lock it is: the backing file system decides */
};

struct inode {
	uint64_t nodeid;
	uint64_t n_lookup;	    /* the kernel's references; under the lock of the key's shard */
	_Atomic uint32_t refs;	    /* 1 for n_lookup > 0, children's parent pointers, open handles */
	uint32_t type;		    /* S_IFMT bits */
	struct inode *next_by_id;   /* under the id shard's lock */
	struct inode *next_by_key;  /* under the key shard's lock, as are parent and name */
	struct inode *parent;	    /* holds a reference; NULL for the root */
	char *name;
	struct backing_mount *mnt; /* NULL where the file system has no handles */
	/* The cached descriptor, under the fd stripe's lock: */
	int fd;			    /* O_PATH, -1: closed, open again by handle */
	uint32_t fd_users;	    /* uses under way; it is not closed meanwhile */
	int32_t clock_index;	    /* in fds.clock, -1: not in it */
	bool fd_referenced;	    /* used since the clock's hand last passed */
	bool fd_pinned;		    /* must stay open: the last link is gone, or there is no way to reopen it */
	/* Kernel passthrough, under the fd stripe's lock: */
	int32_t backing_id;
	uint32_t n_passthrough;	    /* open handles that are passed through */
	uint32_t n_served;	    /* open handles of the regular file that are not */
	_Atomic(struct lock_owner *) locks; /* under mount.locks_lock; read without to see that there is none */
	/* The key: the file handle, or where the file system has none, device and inode number. */
	uint32_t key_hash;
	int32_t handle_type;
	uint8_t handle_bytes;
	unsigned char handle[];
};

#define N_SHARDS 64

struct inode_shard {
	pthread_mutex_t lock;
	struct inode **buckets;
	uint32_t n_buckets; /* a power of two */
	uint32_t n_inodes;
};

struct inodes {
	struct inode_shard by_id[N_SHARDS];
	struct inode_shard by_key[N_SHARDS];
	_Atomic uint64_t next_nodeid;
	_Atomic uint64_t n_inodes;
	pthread_mutex_t mounts_lock;
	struct backing_mount *_Atomic mounts;
	struct inode *root;
};

/* The clock of cached descriptors. Lock order: an inode's stripe, then clock_lock, then other stripes by trylock. */
struct fds {
	pthread_mutex_t stripes[N_SHARDS];
	pthread_mutex_t clock_lock;
	struct inode **clock;
	uint32_t n_clock, limit, hand;
	_Atomic uint32_t n_open;
};

/* ---------------------------------------------------------------------------------- handles */

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

/* ------------------------------------------------------------------------------------ chain */

struct chain_filter {
	uint32_t id;
	uint32_t altitude;
	uint32_t wants;
	char name[32];
};

struct chain_hook {
	uint32_t position; /* in chain.filters */
	int program_fd;
};

struct op_hooks {
	uint32_t n_pre, n_post;
	struct chain_hook pre[FB_MAX_FILTERS];	/* from high to low */
	struct chain_hook post[FB_MAX_FILTERS]; /* from low to high */
};

/* An immutable snapshot. A worker holds a reference while it serves an op with it. */
struct chain {
	_Atomic uint32_t refs;
	uint32_t revision;
	uint32_t n_filters;
	uint32_t wants; /* of all filters */
	struct chain_filter filters[FB_MAX_FILTERS]; /* from high to low */
	struct op_hooks *ops[256];
};

/* What all filters of the mount share, mapped. */
struct shared_maps {
	unsigned char *slots; /* FB_N_SLOTS × slot_stride */
	size_t slot_stride;
	struct fb_record *recent;
	size_t record_stride;
	int stats_fd;
	int ring_fds[FB_MAX_WORKERS];
	uint32_t n_rings;
	_Atomic uint64_t sequence;
	/* The free slots; whoever finds none waits. */
	pthread_mutex_t slots_lock;
	pthread_cond_t slot_freed;
	uint32_t free_slots[FB_N_SLOTS];
	uint32_t n_free_slots;
};

/* ---------------------------------------------------------------------------------- requests */

enum { NO_SLOT = UINT32_MAX };

struct request {
	struct mount *mount;
	struct worker *worker;
	const struct op *op;
	const struct fuse_in_header *in;
	const char *body; /* behind the header */
	size_t body_len;
	size_t body_at; /* how much of it is decoded */
	const char *name, *name2, *text; /* what the op is to use; in the request, or in image after an edit */
	struct inode *inode;
	bool has_supplementary_group;
	uint32_t supplementary_group;
	uint32_t create_uid, create_gid; /* owner of what is created */

	/* The result. reply and payload are sent after the header. */
	const void *reply;
	size_t reply_len;
	const void *payload;
	size_t payload_len;
	uint64_t entry_ttl_ns, attr_ttl_ns;
	struct inode *entry;   /* the inode that the reply counts once; taken back if the reply does not arrive */
	struct handle *opened; /* the handle that the reply hands out; closed if it does not arrive */
	uint64_t count;	       /* FB_OP_COUNT: bytes moved, or lseek's offset */
	struct timespec btime; /* statx: when the inode was made; tv_nsec -1: the file system does not say */
	uint64_t n_listed;     /* entries */
	bool has_plus_entries; /* the payload counts inodes: taken back if it does not arrive */
	union {
		struct {
			struct fuse_entry_out entry;
			struct fb_fuse_open_out open;
		} create; /* entry is first in it, so it serves for all ops with an entry */
		struct fb_fuse_open_out open;
		struct fuse_attr_out attr;
		struct fuse_statfs_out statfs;
		struct fuse_write_out write;
		struct fuse_getxattr_out xattr;
		struct fuse_lseek_out lseek;
		struct fuse_lk_out lock;
		struct fuse_ioctl_out ioctl;
		struct fuse_poll_out poll;
	} out;

	struct fb_fuse_statx_out statx; /* composed from out.attr when the post hooks have run */

	/* The filters' part, where the op is hooked: */
	struct chain *chain;
	const struct op_hooks *hooks;
	uint32_t slot;
	bool has_path;
	enum fb_route route;
	uint32_t reach;		   /* filters at positions below this one get their post hooks */
	uint32_t no_post;	   /* by position: said FB_NOPOST */
	uint32_t pre_ran, pre_edited, post_ran, post_edited; /* by filter id */
	uint64_t all_edits;
	enum fb_verdict verdict;
	const char *decider;
	uint64_t cookies[FB_MAX_FILTERS]; /* by position */
	int error;		  /* 0 or a positive errno: the result so far */

	/* Must be last, since it is cleared only as far as it is used. The hot part of a slot, our own copy: */
	struct fb_slot *image; /* in the worker's memory */
};

/* ----------------------------------------------------------------------------------- workers */

/* A worker that is in the backing file system, or waits for a slot, may be parked by another thread: it no longer counts
 * against the limit, and has no verdict ring until it comes back. */
enum worker_state { WORKER_RUNS, WORKER_IN_BACKING, WORKER_PARKED };

struct worker {
	struct mount *mount;
	struct worker *next;
	pthread_t thread;
	uint32_t index; /* of its verdict ring */
	int device_fd;	/* a clone of the connection's descriptor */
	char *buffer;	/* REQUEST_BUFFER_SIZE, a request */
	char *payload;	/* REQUEST_BUFFER_SIZE, a reply's bytes */
	struct fb_slot *image;
	struct chain *chain; /* the snapshot that it holds */
	_Atomic uint64_t unique; /* of the request that it serves, 0: none */
	_Atomic uint64_t interrupted; /* the request that the kernel wants interrupted, 0: none */
	_Atomic bool is_retiring, is_idle;
	_Atomic int state;	 /* enum worker_state */
	_Atomic int64_t since_ms; /* when it entered the state */
	/* Its verdict ring, mapped when it first runs a hook: */
	_Atomic unsigned long *ring_consumer;
	const _Atomic unsigned long *ring_producer;
	const unsigned char *ring_data;
	unsigned long ring_mask;
};

struct workers {
	pthread_mutex_t lock;
	pthread_cond_t changed;
	struct worker *all;
	uint64_t rings_taken; /* a bit for each index */
	uint32_t n, limit;
	_Atomic uint32_t n_returning; /* parked ones that wait for a ring: whoever is done leaves his */
	uint32_t n_parked; /* of n: blocked for as long as it takes; not counted against the limit */
	_Atomic uint32_t n_idle;
	_Atomic bool is_stopping;
	_Atomic uint32_t n_interrupted;
	pthread_t janitor;
	bool has_janitor;
};

struct mount {
	/* What was asked for. */
	char *mountpoint, *source;
	unsigned long flags;
	bool allow_other, default_permissions, wants_passthrough, wants_backing_locks;
	uint32_t max_read;
	uint64_t ttl_ns;
	/* The connection. */
	int root_fd, device_fd;
	uint32_t kernel_minor;
	uint64_t features; /* FUSE_ init flags that both sides have */
	bool has_passthrough, is_started, is_stopped, is_mounted;
	int ended_fd; /* eventfd */
	int log_read_fd, log_write_fd;
	_Atomic uint64_t log_window; /* rate limit: the second << 32 | lines in it */
	const char *failed_call;
	/* What it holds. */
	struct inodes inodes;
	struct fds fds;
	struct handles handles;
	bool has_shared;
	struct shared_maps shared;
	pthread_mutex_t chain_lock;
	struct chain *_Atomic chain;
	struct workers workers;
	pthread_mutex_t locks_lock;
	_Atomic uint32_t n_lock_owners;
	/* What it counts. */
	_Atomic uint64_t n_requests, n_failed_closed, n_hook_runs, n_interrupts, n_passthrough_opens;
};

/* log.c */
void mount_log(struct mount *m, const char *level, const char *format, ...)
	__attribute__((format(printf, 3, 4)));

/* creds.c: the identity of the calling thread */
int creds_init_thread(void);
void creds_enter(const struct request *rq, uint32_t uid, uint32_t gid, bool keep_rights);
void creds_leave(void);
void creds_lift(void);
void creds_unlift(void);
void creds_drop_fsetid(void);
void creds_raise_fsetid(void);

/* fds.c */
int fds_init(struct mount *m);
void fds_deinit(struct mount *m);
pthread_mutex_t *fds_stripe(struct mount *m, const struct inode *inode);
int inode_fd_get(struct mount *m, struct inode *inode);
void inode_fd_put(struct mount *m, struct inode *inode);
void inode_fd_adopt(struct mount *m, struct inode *inode, int fd);
void inode_fd_drop(struct mount *m, struct inode *inode);
void inode_fd_pin(struct mount *m, struct inode *inode);
void proc_path(char out[PROC_PATH_SIZE], int fd);

/* backing_mounts.c */
struct backing_mount *backing_mount_find(struct mount *m, int id);
struct backing_mount *backing_mount_get(struct mount *m, int id, int fd, uint32_t type);
void backing_mounts_deinit(struct mount *m);

/* inodes.c */
int inodes_init(struct mount *m);
void inodes_deinit(struct mount *m);
struct inode *inodes_get(struct mount *m, uint64_t nodeid);
int inodes_enter(struct mount *m, int fd, uint32_t type, struct inode *parent, const char *name,
		 bool adopt_fd, struct inode **out);
struct inode *inodes_find_at(struct mount *m, int parent_fd, const char *name);
void inodes_forget(struct mount *m, struct inode *inode, uint64_t n_lookup);
void inode_hold(struct inode *inode);
void inode_release(struct mount *m, struct inode *inode);
void inode_moved(struct mount *m, struct inode *inode, struct inode *parent, const char *name);
pthread_mutex_t *inode_name_lock(struct mount *m, const struct inode *inode);

/* paths.c */
int inode_path(struct mount *m, struct inode *inode, const char *name, char out[FB_PATH_SIZE]);

/* handles.c */
void handles_init(struct mount *m);
void handles_deinit(struct mount *m);
struct handle *handle_create(struct mount *m, struct inode *inode, int fd, bool is_dir);
void handle_destroy(struct mount *m, struct handle *h);
struct handle *handle_get(struct mount *m, uint64_t fh, bool is_dir);
uint64_t handle_number(const struct handle *h);

/* locks.c */
void locks_flush(struct mount *m, struct inode *inode, uint64_t owner);
void locks_release_handle(struct mount *m, struct inode *inode, uint64_t fh);

/* backing_id.c */
int passthrough_open(struct request *rq, struct handle *h, uint32_t *flags, int32_t *backing_id);
void passthrough_close(struct mount *m, struct handle *h);

/* device.c */
int device_mount(struct mount *m);
int device_handshake(struct mount *m);
int device_clone(struct mount *m);
int device_reply(struct request *rq, int error);
void device_reply_raw(int fd, uint64_t unique, int error);

/* slots.c */
int shared_init(struct mount *m, int slots_fd, int stats_fd, int recent_fd, const int *ring_fds, uint32_t n);
void shared_deinit(struct mount *m);
int slot_acquire(struct request *rq, bool may_fail);
void slot_release(struct request *rq);
bool slots_are_short(const struct mount *m);
struct fb_slot *slot_of(const struct request *rq);
void watch_record(const struct request *rq);

/* chain.c */
struct chain *chain_create(void);
int chain_add_filter(struct chain *c, uint32_t id, const char *name, uint32_t altitude, uint32_t wants);
int chain_add_hook(struct chain *c, uint32_t id, uint8_t opcode, enum fb_phase phase, int program_fd);
void chain_hold(struct chain *c);
void chain_release(struct chain *c);
uint32_t chain_publish(struct mount *m, struct chain *c);
bool chain_hooks(const struct chain *c, uint8_t opcode);

/* hook.c */
int hook_run(struct request *rq, const struct op *op, enum fb_phase phase, const struct chain_hook *hook,
	     struct fb_verdict_record *out);
void hook_unmap_ring(struct worker *w);

/* verdict.c */
void fail_closed(struct request *rq, const struct op *op, const struct chain_hook *hook, enum fb_phase phase,
		 const char *why);
const char *verdict_edit(struct request *rq, const struct op *op, enum fb_phase phase, uint64_t edits);
uint64_t verdict_edits(const struct request *rq, const struct op *op, enum fb_phase phase, bool is_reply);
int errno_for_kernel(uint32_t error);

/* ops.c: decode */
int request_decode(struct request *rq);
const void *request_take(struct request *rq, size_t size);
/* ops_*.c share these */
int reply_entry(struct request *rq, int parent_fd, const char *name);
int entry_of_fd(struct request *rq, int fd, const char *name, bool adopt_fd, struct fuse_entry_out *out,
		struct inode **inode);
void statx_finish(struct request *rq);
int entry_at(struct request *rq, int parent_fd, const char *name, struct fuse_entry_out *out, struct inode **inode);
int attr_of_fd(struct request *rq, int fd, struct fuse_attr *out);
void ttl_set(uint64_t ttl_ns, uint64_t *seconds, uint32_t *nanoseconds);
int reply_opened(struct request *rq, struct inode *inode, int fd, bool is_dir, struct fb_fuse_open_out *out);
int backing_open_flags(uint32_t flags);

void listing_undo(struct request *rq);

/* result.c */
const char *result_missing(const struct request *rq, uint64_t edits);
void result_to_slot(struct request *rq);
void result_from_slot(struct request *rq, uint64_t edits);
void result_undo(struct request *rq);
void result_negative(struct request *rq);

/* route.c */
void request_run(struct request *rq);
bool dirent_allowed(struct request *rq, uint64_t ino, uint32_t type, const char **name, uint32_t *name_len);

/* worker.c */
int workers_start(struct mount *m);
void workers_stop(struct mount *m);
void worker_interrupt(struct worker *by, uint64_t unique, uint64_t own_unique);
void worker_park(struct worker *w);
void worker_enter_backing(struct worker *w);
void worker_leave_backing(struct worker *w);
bool request_is_interrupted(const struct request *rq);

/* mount.c: the control path */
struct mount *mount_create(void);
void mount_destroy(struct mount *m);
int mount_start(struct mount *m);
void mount_stop(struct mount *m);

#endif
