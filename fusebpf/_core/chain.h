/* SPDX-License-Identifier: Apache-2.0 */
/* The filters of a mount, what they share, and what one run of a hook is. */
#ifndef FUSEBPF_CHAIN_H
#define FUSEBPF_CHAIN_H

#include "core.h"

struct chain_filter {
	uint32_t id;
	uint32_t altitude;
	uint32_t wants;
	uint32_t owner; /* of its tags: the same filter has the same in every snapshot */
	char name[32];
};

struct chain_hook {
	uint32_t position; /* in chain.filters */
	int program_fd;
	bool sees_data; /* its filter wants the payload, and this op has one */
	uint32_t n_joined; /* hooks from this one on that the program joined_fd asks */
	int joined_fd;	   /* -1: none; set once, when the chain is the mount's already */
};

struct op_hooks {
	uint32_t n_pre, n_post;
	uint32_t filters; /* whose hooks these are, by filter id */
	struct chain_hook pre[FB_MAX_FILTERS];	/* from high to low */
	struct chain_hook post[FB_MAX_FILTERS]; /* from low to high */
};

/* An immutable snapshot, but for what is atomic and that hooks may be joined later on. A worker holds a reference while it
 * serves an op with it. */
struct chain {
	_Atomic uint32_t refs;
	uint32_t revision;
	struct mount *mount;	 /* once it is published */
	struct chain *next_old; /* of those that are no longer the mount's and still used */
	uint32_t n_filters;
	uint32_t wants; /* of all filters */
	_Atomic bool keeps_entries; /* its hooks gave a ttl to the last lookup that found something (cache.c) */
	_Atomic bool keeps_listings; /* and those on dirent to all entries of the last listing that ended */
	bool keeps_open_files; /* what is passed through may be opened anew in spite of hooks on its data */
	struct chain_filter filters[FB_MAX_FILTERS]; /* from high to low */
	struct op_hooks *ops[256];
};

enum { N_SLOT_SETS = FB_N_SLOTS / 64 };

/* Free slots, a bit for each; the workers of a core take from the same set, in a cache line of its own. */
struct slot_set {
	_Atomic uint64_t free;
	uint64_t padding[7];
};

/* Descriptors of what all filters of the mount share, and of a program that returns its thread's number. */
struct shared_fds {
	int slots, windows, hooks, stats, recent, thread;
	const int *rings;
	uint32_t n_rings;
};

/* What all filters of the mount share, mapped. */
struct shared_maps {
	unsigned char *slots; /* FB_N_SLOTS × slot_stride */
	size_t slot_stride;
	struct fb_record *recent;
	size_t record_stride;
	struct fb_hook *hooks; /* FB_N_PLACES */
	_Atomic bool place_is_taken[FB_N_PLACES]; /* of those: filters can write there, and not here */
	int stats_fd, thread_fd;
	int ring_fds[FB_MAX_WORKERS];
	uint32_t n_rings;
	_Atomic uint64_t sequence;
	_Atomic uint64_t recent_places[FB_N_RECENT]; /* 0, or the number of whoever writes there; or of who wants it since */
	struct slot_set free_slots[N_SLOT_SETS];
	/* Whoever finds none waits. */
	pthread_mutex_t slots_lock;
	pthread_cond_t slot_freed;
	_Atomic uint32_t n_waiting;
	bool has_extents[FB_N_SLOTS]; /* path, path2 or text of an op are in it; of the slot's owner */
	struct windows windows;
};

/* recent.c */
void recent_prepare(const struct request *rq);
void recent_write(struct request *rq);

/* slots.c */
int shared_init(struct mount *m, const struct shared_fds *fds);
void shared_deinit(struct mount *m);
int slot_acquire(struct request *rq, bool may_fail);
void slot_release(struct request *rq);
uint32_t slots_n_free(const struct mount *m);
bool slots_are_short(const struct mount *m);
struct fb_slot *slot_of(const struct request *rq);

/* chain.c */
struct chain *chain_create(void);
int chain_add_filter(struct chain *c, uint32_t id, const char *name, uint32_t altitude, uint32_t wants);
int chain_add_hook(struct chain *c, uint32_t id, uint8_t opcode, enum fb_phase phase, int program_fd);
void chain_hold(struct chain *c);
void chain_release(struct chain *c);
uint32_t chain_publish(struct mount *m, struct chain *c);
bool chain_hooks(const struct chain *c, uint8_t opcode);

/* live.c */
uint32_t chain_drain(struct mount *m, uint32_t revision, uint32_t timeout_ms);
uint32_t chain_oldest(struct mount *m);

/* joined.c */
bool chain_join(struct mount *m, uint32_t revision, uint8_t opcode, enum fb_phase phase, uint32_t first, uint32_t n, int fd);
int joined_program(const struct request *rq, enum fb_phase phase, const struct chain_hook *hook);
uint32_t pre_ask_joined(struct request *rq, const struct chain_hook *hook, int fd, const struct chain_hook **stopped);
uint32_t post_ask_joined(struct request *rq, const struct chain_hook *hook, int fd);

/* hook.c */
uint32_t hooks_run(struct request *rq, const struct op *op, enum fb_phase phase, const struct chain_hook *hook, int fd,
		   uint32_t n_hooks, struct fb_verdict_record *out, const char **why);
int hook_run(struct request *rq, const struct op *op, enum fb_phase phase, const struct chain_hook *hook,
	     struct fb_verdict_record *out);
void hook_leave(struct worker *w);

#endif
