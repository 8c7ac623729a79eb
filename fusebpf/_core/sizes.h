/* SPDX-License-Identifier: Apache-2.0 */
/* The turns of ops at one file. */
#ifndef FUSEBPF_SIZES_H
#define FUSEBPF_SIZES_H

#include "core.h"

/* One op's, in its request. */
struct turn {
	struct turn *next; /* of those taken, or of those who wait, the first of them first */
	uint32_t hash;	   /* the file's, the same for all its views */
	bool is_taken;
	pthread_cond_t given; /* while it waits */
};

struct turn_shard {
	pthread_mutex_t lock;
	struct turn *taken, *waiting;
};

struct turns {
	_Atomic uint32_t n_waiting;
	struct turn_shard shards[N_SHARDS]; /* by hash */
};

struct request;
void turns_init(struct turns *t);
int turn_take(struct request *rq, const struct inode *inode, bool is_in_backing);
void turn_give(struct request *rq);
int sizes_begin(struct request *rq);
int sizes_delay(struct request *rq);
bool sizes_wait(struct request *rq);
void sizes_after(struct request *rq);
void sizes_end(struct request *rq);

#endif
