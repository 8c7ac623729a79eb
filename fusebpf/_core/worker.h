/* SPDX-License-Identifier: Apache-2.0 */
/* The threads that serve a mount. */
#ifndef FUSEBPF_WORKER_H
#define FUSEBPF_WORKER_H

#include "core.h"

#define KICK_SIGNAL SIGURG /* ends a blocking system call; default action: none, so a stray one harms nobody */

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

/* worker.c */
int64_t now_ms(void);
int workers_start(struct mount *m);
void workers_stop(struct mount *m);
void worker_interrupt(struct worker *by, uint64_t unique, uint64_t own_unique);
void worker_park(struct worker *w);
void worker_enter_backing(struct worker *w);
void worker_leave_backing(struct worker *w);
bool request_is_interrupted(const struct request *rq);

#endif
