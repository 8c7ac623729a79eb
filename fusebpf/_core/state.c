/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What is kept between ops, as the hooks of one op see it: tags of the inodes that the op is about. On a worker's thread.
 */
#include "core.h"

/* The inode whose tag a hook sees and sets: the entry that the op answers with, else what it was asked of. */
static struct inode *op_subject(const struct request *rq, const struct op *op, enum fb_phase phase)
{
	bool is_entry = phase == FB_POST && op == rq->op && !rq->error && rq->entry;

	return is_entry ? rq->entry : rq->inode;
}

/** The second inode of an op that has one, or NULL. */
struct inode *op_other(const struct request *rq)
{
	switch (rq->op->canonical) {
	case FB_OP_rename:
		return inodes_get(rq->mount, rq->image->args.rename.newdir);
	case FB_OP_link:
		return inodes_get(rq->mount, rq->image->args.link.inode);
	case FB_OP_copy_file_range:
		return inodes_get(rq->mount, rq->image->args.copy.nodeid_out);
	default:
		return NULL;
	}
}

/** Show one filter its tags. */
void tags_to_slot(struct request *rq, const struct op *op, enum fb_phase phase, uint32_t owner)
{
	struct fb_slot *image = rq->image;
	bool is_mixed = false, ignored;

	image->tag = image->tag2 = 0;
	image->flags &= ~(uint32_t)FB_TAG_MIXED;
	if (!tags_are_used(&rq->mount->tags))
		return;
	image->tag = tag_of(rq->mount, op_subject(rq, op, phase), owner, &is_mixed);
	if (is_mixed)
		image->flags |= FB_TAG_MIXED;
	struct inode *other = phase == FB_POST && rq->removed ? rq->removed : op_other(rq);
	if (other)
		image->tag2 = tag_of(rq->mount, other, owner, &ignored);
}

/** The filter that is being asked set a tag. Returns NULL, or why the op must fail. */
const char *tag_edit(struct request *rq, uint64_t tag, const struct op *op, enum fb_phase phase)
{
	for (uint32_t i = 0; i < rq->chain->n_filters; i++) {
		const struct chain_filter *filter = &rq->chain->filters[i];
		if (filter->id == rq->image->filter &&
		    tag_set(rq->mount, op_subject(rq, op, phase), filter->owner, tag))
			return "there is no memory for its tag";
	}
	return NULL;
}
