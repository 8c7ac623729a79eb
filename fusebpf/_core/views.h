/* SPDX-License-Identifier: Apache-2.0 */
/* Views: one file under several nodeids, so that callers see it differently and share nothing that the kernel keeps. */
#ifndef FUSEBPF_VIEWS_H
#define FUSEBPF_VIEWS_H

#include "core.h"

/* All inodes of one file, each with a reference; almost always one. */
struct views {
	uint32_t n;
	struct inode *one;
	struct inode **all; /* &one, or allocated */
};

void views_at(struct mount *m, int parent_fd, const char *name, struct views *out);
void views_release(struct mount *m, struct views *v);
uint32_t entry_view(const struct request *rq);
const char *view_edit(struct request *rq, uint32_t view, enum fb_phase phase);
void views_forget(struct mount *m, const struct views *v);
void views_changed(struct request *rq);

#endif
