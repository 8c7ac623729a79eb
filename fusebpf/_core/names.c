/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The names of an op as each filter sees them: a filter below one that leads the op elsewhere sees what it goes on with, before the
 * op and after it, and those above see what they were asked, as they judged it. On a worker's thread.
 */
#include "core.h"

static uint32_t position_of(const struct chain *c, uint32_t id)
{
	uint32_t position = 0;

	while (position < c->n_filters && c->filters[position].id != id)
		position++;
	return position;
}

/** The filter that is asked before the op rewrites a name: keep what those above it see. */
void names_keep(struct request *rq)
{
	const struct fb_slot *image = rq->image;

	// Without a chain the daemon rewrites it, and there are no post hooks; with one it does so for the last filter that was asked.
	if (!rq->chain || rq->n_kept == FB_MAX_FILTERS)
		return;
	rq->worker->kept_names[rq->n_kept++] = (struct kept_names){ .position = position_of(rq->chain, image->filter),
								      .name = image->name,
								      .name_len = image->name_len,
								      .name2 = image->name2,
								      .name2_len = image->name2_len };
}

/* What the op has used stays, for the core's own use. */
static void used_keep(struct request *rq)
{
	struct kept_names *used = &rq->worker->used_names;
	const struct fb_slot *image = rq->image;

	if (rq->has_used)
		return;
	rq->has_used = true;
	*used = (struct kept_names){ .name = image->name, .name_len = image->name_len, .name2 = image->name2, .name2_len = image->name2_len };
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
