/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Views. The kernel keeps one set of pages, attributes and I/O mode per nodeid, so what one caller sees of a file and
 * another does not has a nodeid, and an inode, of its own. The inodes of one file have one key but for the view. Any worker.
 */
#include "core.h"

/* ------------------------------------------------------------------------- all inodes of a file */

/* The inodes of the same file as this one, whose reference is taken over. Where memory is short, that one alone. */
static void views_collect(struct mount *m, struct inode *inode, struct views *out)
{
	uint32_t capacity = 0;

	*out = (struct views){ .n = inode ? 1 : 0, .one = inode, .all = &out->one };
	if (!inode || !inode->is_viewed)
		return;
	struct inode **all = NULL, *next = inodes_view_from(m, inode, 0);
	uint32_t n = 0;
	while (next) {
		if (n == capacity) {
			struct inode **more = realloc(all, (capacity += 8) * sizeof(*more));
			if (!more)
				break;
			all = more;
		}
		all[n++] = next;
		next = next->view == UINT32_MAX ? NULL : inodes_view_from(m, inode, next->view + 1);
	}
	inode_release(m, next);
	if (!n) {
		free(all);
		return; // forgotten meanwhile, or no memory
	}
	inode_release(m, inode);
	out->n = n;
	out->all = all;
}

/** The inodes that a name leads to, as far as the kernel knows them. */
void views_at(struct mount *m, int parent_fd, const char *name, struct views *out)
{
	views_collect(m, inodes_find_at(m, parent_fd, name), out);
}

void views_release(struct mount *m, struct views *v)
{
	for (uint32_t i = 0; i < v->n; i++)
		inode_release(m, v->all[i]);
	if (v->all != &v->one)
		free(v->all);
}

/* ------------------------------------------------------------------------------ views of entries */

/** The view of the entry that the op answers with: what a hook said, else that of the directory (link: of the file). */
uint32_t entry_view(const struct request *rq)
{
	return rq->has_view ? rq->view : rq->inode->view;
}

/* Answer with another view of the entry than the one that was found. */
static int view_switch(struct request *rq, uint32_t view)
{
	struct fuse_entry_out *out = &rq->out.create.entry;
	struct inode *inode;

	if (rq->entry->view == view)
		return 0;
	int e = inodes_enter_view(rq->mount, rq->entry, view, &inode);
	if (e)
		return e;
	inode->root = rq->entry->root;
	if (rq->entry->is_gone)
		inode->is_gone = true;
	if (tags_are_used(&rq->mount->tags))
		tags_reached(rq, inode, rq->inode, rq->name, out->attr.nlink);
	inodes_forget(rq->mount, rq->entry, 1);
	rq->entry = inode;
	rq->image->view = view;
	rq->image->result.attr.nodeid = inode->nodeid;
	out->nodeid = inode->nodeid;
	ttl_set(entry_ttl_ns(rq, inode), &out->entry_valid, &out->entry_valid_nsec);
	return 0;
}

/** A hook says which view the entry has. Returns NULL, or why the op must fail. */
const char *view_edit(struct request *rq, uint32_t view, enum fb_phase phase)
{
	if (phase == FB_POST)
		return view_switch(rq, view) ? "there is no memory for its view" : NULL;
	rq->has_view = true;
	rq->view = view;
	rq->image->view = view;
	return NULL;
}

/* -------------------------------------------------------------------- what the others must forget */

/** All inodes of a file forget what is cached of it. */
void views_forget(struct mount *m, const struct views *v)
{
	for (uint32_t i = 0; i < v->n; i++)
		notify_inode(m, v->all[i]->nodeid, 0, 0);
}

static void others_forget(struct mount *m, struct inode *changed)
{
	struct views v;

	if (!changed || !changed->is_viewed)
		return;
	inode_hold(changed);
	views_collect(m, changed, &v);
	for (uint32_t i = 0; i < v.n; i++)
		if (v.all[i] != changed)
			notify_inode(m, v.all[i]->nodeid, 0, 0);
	views_release(m, &v);
}

/** An op went through: the other views of what it changed forget pages and attributes. */
void views_changed(struct request *rq)
{
	struct mount *m = rq->mount;
	bool truncates = rq->op->canonical == FB_OP_open && rq->image->args.open.flags & O_TRUNC;

	if (!m->inodes.has_views || rq->error || !(truncates || rq->op->flags & FB_OP_MUTATES))
		return;
	others_forget(m, rq->inode);
	others_forget(m, op_other(rq));
}
