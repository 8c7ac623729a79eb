/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The names of an op as each filter sees them: a filter below one that leads the op elsewhere sees what it goes on with, before the
 * op and after it, and those above see what they were asked, as they judged it. On a worker's thread.
 */
#include "core.h"

static struct kept_names names_now(const struct request *rq)
{
	const struct fb_slot *image = rq->image;
	bool is_rename = rq->op->canonical == FB_OP_rename;

	return (struct kept_names){ .name = image->name,
				    .name_len = image->name_len,
				    .name2 = image->name2,
				    .name2_len = image->name2_len,
				    .is_lost = image->flags & FB_PATH_LOST,
				    .type = is_rename ? image->args.rename.type : 0,
				    .type2 = is_rename ? image->args.rename.type2 : 0 };
}

/** Before the op a filter at this position, or the daemon below all, is about to make these edits: keep what the filters above see. */
void names_keep(struct request *rq, uint64_t edits, uint32_t position)
{
	struct kept_names *kept = &rq->worker->kept_names[rq->n_kept];

	// Without a chain there are no post hooks.
	if (!(edits & (FB_EDIT_NAME | FB_EDIT_NAME2 | FB_EDIT_BACKING)) || !rq->chain || rq->n_kept == FB_MAX_FILTERS)
		return;
	rq->n_kept++;
	*kept = names_now(rq);
	kept->position = position;
}

/* What the op has used stays, for the core's own use. */
static void used_keep(struct request *rq)
{
	struct kept_names *used = &rq->worker->used_names;
	const struct fb_slot *image = rq->image;

	if (rq->has_used)
		return;
	rq->has_used = true;
	*used = names_now(rq);
	if (rq->name == image->name.text)
		rq->name = used->name.text;
	if (rq->name2 == image->name2.text)
		rq->name2 = used->name2.text;
}

static void names_show(struct request *rq, const struct kept_names *names)
{
	struct fb_slot *image = rq->image;

	image->name = names->name;
	image->name_len = names->name_len;
	image->name2 = names->name2;
	image->name2_len = names->name2_len;
	if (rq->op->canonical == FB_OP_rename) {
		image->args.rename.type = names->type;
		image->args.rename.type2 = names->type2;
	}
	if (image->flags & FB_PATH_LOST && !names->is_lost)
		paths_fill(rq); // a name that was too long cut them off
	else
		paths_follow(rq, names->name_len, names->name2_len);
}

/** Show a post hook at this position the names that its filter was asked before the op. */
void names_restore(struct request *rq, uint32_t position)
{
	while (rq->n_kept && rq->worker->kept_names[rq->n_kept - 1].position > position) {
		used_keep(rq);
		names_show(rq, &rq->worker->kept_names[--rq->n_kept]);
	}
}

/** The post hooks are through: the record of the op has the names that it used. */
void names_end(struct request *rq)
{
	if (rq->has_used)
		names_show(rq, &rq->worker->used_names);
}
