/* SPDX-License-Identifier: Apache-2.0 */
/* How requests come and how replies go: over /dev/fuse (device.c), or over an io_uring (uring.c). */
#ifndef FUSEBPF_TRANSPORT_H
#define FUSEBPF_TRANSPORT_H

#include "core.h"

#include <sched.h>

#define MAX_CORES 1024 /* that FUSE over io_uring is used on */

/* The pipes of a worker that has sent what a large read found; -1 before. */
struct splice {
	int data[2], reply[2];
	int size;   /* what goes into one */
	size_t len; /* bytes in `data`, the body of the next reply */
	bool is_refused;
};

/* splice.c */
void splice_init(struct splice *s);
void splice_close(struct splice *s);
size_t splice_read(struct request *rq, int fd, uint64_t offset, uint32_t size);
int splice_reply(struct splice *s, const struct fuse_out_header *header, int device_fd);

/* What was asked for. */
enum transport_choice { TRANSPORT_AUTO, TRANSPORT_URING, TRANSPORT_DEV };

struct transport {
	/* What a worker needs, made by the thread that starts it: whatever may fail, fails here. 0 or -errno. */
	int (*open)(struct worker *w);
	/* Wait for a request: sets w->request and w->payload, returns the length; or -errno. On the worker's thread. */
	ssize_t (*receive)(struct worker *w);
	/* Answer the request that was received last: header, then two parts. 0 or -errno. On the worker's thread. */
	int (*reply)(struct worker *w, const struct fuse_out_header *header, const struct iovec body[2]);
	/* Undo open, and send what reply left to be sent. On the worker's thread, if it has started. */
	void (*close)(struct worker *w);
};

/* Where requests of certain callers wait, and who serves them: all at /dev/fuse, or those on one core. Its workers run
 * one request each; the last idle one that takes a request starts another, so that none waits behind one that blocks. */
struct queue {
	const struct transport *transport;
	int core; /* that its workers are pinned to, but while they are away; -1: none */
	_Atomic uint32_t n_idle, least_idle; /* the second: since the janitor looked last */
	_Atomic uint32_t n_surplus; /* how many of those that get a message of ours may leave: uring.c */
	struct spare *spares;	    /* under workers.lock */
	/* placement.c: how many of the next answers are given as SCHED_IDLE, */
	_Atomic uint32_t n_yielding;
	_Atomic int64_t looked_ms; /* when it was last looked at how busy the machine is */
	uint32_t n_seen; /* and what that was when the janitor looked */
	_Atomic uint64_t n_requests, n_hook_runs, n_program_runs;
	_Atomic bool is_in_use; /* has a worker that was registered */
	_Atomic bool is_closed; /* the kernel wants nothing to do with it */
	uint64_t padding[7];	/* so that cores do not share cache lines */
};

/* An entry whose worker has left, and that the next one of the core goes on with. */
struct spare {
	struct spare *next;
	char *buffer;
};

extern const struct transport device_transport; /* device.c */
extern const struct transport uring_transport;	/* uring.c */

/* Where a caller was seen last: a row for several, each in a cache line of its own. */
struct placement {
	_Atomic uint64_t tid_and_core;
	uint64_t padding[7];
};

enum { N_PLACEMENTS = 64 };

/* What comes after a reply sees what was done before it: so it is by the kernel, which the thread sanitizer cannot see. */
#ifdef __SANITIZE_THREAD__
void __tsan_acquire(void *address);
void __tsan_release(void *address);
#define KERNEL_IS_TOLD(m) __tsan_release(m)
#define KERNEL_HAS_TOLD(m) __tsan_acquire(m)
#else
#define KERNEL_IS_TOLD(m) ((void)0)
#define KERNEL_HAS_TOLD(m) ((void)0)
#endif

/* idle=, and what is done for it: idle.c */
enum idle_choice { IDLE_AUTO, IDLE_POLL, IDLE_LEAVE };

struct idle {
	enum idle_choice choice;
	cpu_set_t cores;	 /* that the process may run on */
	int latency_fd;		 /* /dev/cpu_dma_latency, -1: cores idle as they like */
	bool can_tell;		 /* the kernel says how long cores look for work */
	int wake_fd;		 /* eventfd: the thread has something to do */
	_Atomic bool is_awake;	 /* idle cores are kept awake, */
	_Atomic bool has_room;	 /* and have time for workers of others */
	_Atomic int64_t tick_ms; /* when requests were counted last, */
	_Atomic uint64_t n_at_tick; /* and how many there had been */
	_Atomic int64_t forgets_ms; /* when the last FORGETs came */
	/* The thread's: */
	pthread_t thread;
	bool has_thread;
	_Atomic bool is_stopping;
	uint64_t n_at_look, awake_us; /* when it looked last, */
	int64_t looked_ns;	      /* which was then */
	uint32_t n_lean;	      /* looks in which there were few requests, */
	uint32_t n_roomy;	      /* and in which cores had time, one after the other */
};

enum idle_choice idle_named(const char *name);
int idle_start(struct mount *m);
void idle_stop(struct mount *m, bool have_ended);
void idle_note(struct mount *m);
void idle_forgets(struct mount *m);
void idle_place(struct worker *w, bool is_away);

/* away.c */
bool away_is_quicker(const cpu_set_t *cores);

/* placement.c */
void placement_start(struct worker *w);
bool placement_look(struct mount *m);
void placement_note(struct worker *w, uint32_t tid);
void placement_begin(struct worker *w);
void placement_choose(struct worker *w);

/* uring.c */
void uring_let_leave(struct mount *m, struct queue *q, uint32_t n);
void uring_free_spares(struct queue *q);

/* transport.c */
void text_in(const char *path, char *out, size_t size);
uint64_t number_in(const char *path);
bool transport_has_deadline(void);
enum transport_choice transport_named(const char *name);
void transport_enable_uring(struct mount *m);
const char *transport_why_no_uring(void);
uint32_t transport_n_cores(void);
bool transport_is_uring(const struct mount *m);
int transport_refuse_uring(struct mount *m, const char *why);
int reply_send(struct request *rq, int error);
void reply_error(struct request *rq, int error);

#endif
