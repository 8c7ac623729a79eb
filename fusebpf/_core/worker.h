/* SPDX-License-Identifier: Apache-2.0 */
/* The threads that serve a mount. */
#ifndef FUSEBPF_WORKER_H
#define FUSEBPF_WORKER_H

#include "core.h"
#include "uring_ring.h"

#define KICK_SIGNAL SIGURG /* default action: none; so a stray one harms nobody */
#define KEEP_IDLE 2
#define MAX_PARKED (1024 + MAX_CORES)
#define MAX_LOCK_WAITERS 1024 /* the rest is for what would end their waiting, and for other slow ops */
#define INTERRUPT_PERIOD_NS 10000000L

/* A worker that is idle, in the backing file system, or waits for a slot, may be parked by another thread: it no longer
 * counts against the limit, and has no verdict ring until it comes back. */
enum worker_state { WORKER_IDLE, WORKER_RUNS, WORKER_IN_BACKING, WORKER_PARKED };

/* What an op was about before the filter at this position rewrote it. */
struct kept_names {
	uint32_t position, name_len, name2_len;
	uint16_t type, type2; /* a rename's */
	bool is_lost;	      /* the path */
	struct fb_name name, name2;
};

struct worker {
	struct mount *mount;
	struct worker *next;
	pthread_t thread;
	uint32_t index; /* of its verdict ring */
	struct queue *queue;
	char *buffer;	      /* REQUEST_BUFFER_SIZE, what comes */
	char *own_payload;    /* REQUEST_BUFFER_SIZE, for a reply's bytes */
	const char *request;  /* what was received last: a fuse_in_header and what follows it */
	char *payload;	      /* where the bytes of its reply are to be put */
	int device_fd;	      /* its clone of the connection's descriptor, or: */
	struct uring uring;
	struct iovec entry[2]; /* the buffers that the kernel was given */
	bool is_registered, is_unanswered;
	_Atomic bool is_placed;	    /* placement.c chooses how it is scheduled; it may be SCHED_IDLE */
	bool can_yield;
	_Atomic int policy;	    /* and what it is */
	_Atomic bool is_away;	    /* it was sent to other cores than its callers' */
	struct splice splice;
	struct fb_slot *image;
	struct kept_names *kept_names; /* FB_MAX_FILTERS of them */
	struct kept_names used_names;
	struct known_path directory; /* the last one whose path a filter wanted */
	struct chain *chain; /* the snapshot that it holds */
	_Atomic uint64_t unique; /* of the request that it serves, 0: none */
	_Atomic uint64_t nodeid; /* that it is about */
	_Atomic uint32_t pid;	 /* the thread that waits for its answer, 0: none */
	_Atomic uint64_t interrupted; /* the request that the kernel wants interrupted, 0: none */
	_Atomic bool is_retiring;
	_Atomic int state;	 /* enum worker_state */
	_Atomic int64_t since_ms; /* when it entered the state */
	/* When it first runs a hook: its place among those that do, */
	struct fb_hook *hook;
	uint32_t hook_thread; /* whose it is, as the hooks know the thread */
	/* and its verdict ring, mapped. */
	_Atomic unsigned long *ring_consumer;
	const _Atomic unsigned long *ring_producer;
	const unsigned char *ring_data;
	unsigned long ring_mask;
};

/* An interrupt of a request that no worker has taken up yet. */
struct early_interrupt {
	uint64_t unique; /* 0: none */
	int64_t since_ms;
};

enum { N_EARLY = 16 };

struct workers {
	pthread_mutex_t lock;
	pthread_cond_t changed;
	struct worker *all;
	uint64_t rings_taken; /* a bit for each index */
	uint32_t n, limit;
	int policy; /* of scheduling, of who started the mount */
	int load_fd; /* /proc/loadavg */
	_Atomic bool is_quiet; /* little else wants to run */
	bool has_deadline; /* the kernel's, for answers: a worker must not leave one unanswered */
	_Atomic uint32_t n_returning; /* parked ones that wait for a ring */
	uint32_t n_parked; /* of n: blocked for as long as it takes; not counted against the limit */
	bool is_open; /* requests may come */
	_Atomic bool is_stopping;
	struct early_interrupt early[N_EARLY];
	uint32_t next_early;
	_Atomic bool has_early;
	_Atomic uint32_t n_interrupted;
	pthread_t janitor;
	uint64_t n_served; /* requests until the last round of the janitor */
	int64_t looked_ms; /* when it last looked for interrupts that were lost */
	bool has_janitor;
};

/* pool.c */
int workers_start(struct mount *m);
void workers_open(struct mount *m);
bool workers_stop(struct mount *m);

/* worker.c */
int worker_create(struct mount *m, struct queue *q, struct worker **out);
int worker_begin(struct worker *w);
void worker_destroy(struct worker *w);
bool workers_are_full(const struct workers *p);
int worker_start(struct mount *m, struct queue *q);
bool worker_park_locked(struct worker *w, int expected);
bool worker_park(struct worker *w, uint32_t most);
void worker_enter_backing(struct worker *w);
void worker_leave_backing(struct worker *w);

/* janitor.c */
int janitor_start(struct mount *m);
void janitor_stop(struct mount *m);
void workers_kick(struct workers *p, bool all);
void worker_interrupt(struct worker *by, uint64_t unique);
bool request_is_interrupted(const struct request *rq);

#endif
