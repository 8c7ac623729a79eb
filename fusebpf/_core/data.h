/* SPDX-License-Identifier: Apache-2.0 */
/* The payload of reads, writes and extended attributes, as hooks see it: window after window. */
#ifndef FUSEBPF_DATA_H
#define FUSEBPF_DATA_H

#include "core.h"

struct chain_hook;

/* The pool of windows, mapped; whoever finds none waits. An op holds one only while hooks run, and hooks do not wait. */
struct windows {
	struct fb_window *all; /* FB_N_WINDOWS */
	pthread_mutex_t lock;
	pthread_cond_t freed;
	uint32_t free; /* a bit for each */
};

/* What of the payload the hook that runs now is shown. */
struct shown {
	struct fb_window *window; /* NULL: nothing */
	uint64_t at;		  /* where in the payload it begins */
	uint32_t len;
	uint32_t most; /* bytes that an edit may leave there */
	bool is_last;
	bool is_for_daemon; /* the hook wants the daemon to look at the result, when it has seen all of it */
};

/* data.c */
int windows_init(struct windows *w, int map_fd);
void windows_deinit(struct windows *w);
bool data_is_brought(const struct op *op);
bool data_before(struct request *rq, const struct chain_hook *hook);
void data_after(struct request *rq, const struct chain_hook *hook);
const char *data_edit(struct request *rq, enum fb_phase phase);

#endif
