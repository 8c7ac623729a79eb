/* SPDX-License-Identifier: Apache-2.0 */
/* Tags: a number per inode and filter, set by its hooks or inherited from the directory above. */
#ifndef FUSEBPF_TAGS_H
#define FUSEBPF_TAGS_H

#include "core.h"

enum inode_tags { INODE_TAGGED = 1 << 0, INODE_TAG_MIXED = 1 << 1 }; /* inode.tags: what the table may know of it */

struct tag {
	struct tag *next;
	uint64_t nodeid;
	uint32_t owner; /* chain_filter.owner */
	bool is_mixed;	/* it is reached through parents of different tags */
	uint64_t own;	/* set by a hook, 0: not set */
	uint64_t kept;	/* while mixed: what it had, so that no other parent's tag takes its place */
};

/* What a directory inherited when the table's epoch was this. */
struct derived_tag {
	uint64_t nodeid, epoch, value;
	uint32_t owner;
};

#define N_DERIVED 64 /* directories that a shard remembers */

struct tag_shard {
	pthread_mutex_t lock;
	struct tag **buckets; /* NULL until it has a tag */
	uint32_t n_buckets;   /* a power of two */
	uint32_t n;
	struct derived_tag *derived;
};

struct tags {
	struct tag_shard shards[N_SHARDS]; /* by nodeid */
	_Atomic uint64_t n;		   /* tags in all: with 0 no op looks further */
	_Atomic uint64_t epoch;		   /* counts what changes the tag of all that is below a directory */
	uint32_t n_owners;		   /* under mount.chain_lock; owners are never used again */
};

static inline bool tags_are_used(const struct tags *t)
{
	return atomic_load_explicit(&t->n, memory_order_acquire) > 0;
}

void tags_init(struct tags *t);
void tags_deinit(struct tags *t);
uint64_t tag_of(struct mount *m, struct inode *inode, uint32_t owner, bool *is_mixed);
int tag_set(struct mount *m, struct inode *inode, uint32_t owner, uint64_t value);
void tags_forget(struct mount *m, const struct inode *inode);
bool tags_judge_first(const struct mount *m, const struct inode *inode, const struct inode *parent);
void tags_reached(struct request *rq, struct inode *inode, struct inode *parent, const char *name, uint32_t n_links);
void tags_moved(struct mount *m, const struct inode *inode);
void tags_adopt(struct mount *m, struct chain *c, const struct chain *old);
void tags_drop_gone(struct mount *m, const struct chain *c);

#endif
