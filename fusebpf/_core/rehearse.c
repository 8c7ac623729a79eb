/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One op before the chain of a mount that need not be there: what the op is, and what the backing root would answer,
 * is described; hooks, verdicts and checks are the real ones. For unit tests of filters. One thread at a time for each
 * mount, and none of its workers: the first verdict ring is used.
 */
#include "core.h"

struct rehearsed {
	struct request rq; // first, so that the op's run finds the rest
	const struct rehearsal *described;
	struct op op; // a row of the table, with another run
	struct op_hooks hooks;
	struct worker worker;
	struct fuse_in_header in;
	struct fb_slot image;
	struct inode inode;
	struct kept_names names[FB_MAX_FILTERS];
	char *memory; // of a worker: the request's bytes, and the reply's
};

static uint32_t at_most(uint32_t len, size_t size)
{
	return len < size ? len : (uint32_t)size - 1;
}

/* The backing route: the described answer. */
static int answer(struct request *rq)
{
	const struct rehearsal *described = ((struct rehearsed *)rq)->described;
	struct fb_slot *image = rq->image;
	uint64_t results = 0;

	if (described->error)
		return -(int)described->error;
	image->result = described->slot.result;
	image->size = described->slot.size;
	if (rq->op->flags & (FB_OP_ENTRY | FB_OP_ATTR))
		results |= FB_EDIT_ATTR;
	if (rq->op->flags & FB_OP_STATFS)
		results |= FB_EDIT_STATFS;
	if (rq->op->flags & FB_OP_COUNT)
		results |= FB_EDIT_COUNT;
	if (rq->op->flags & FB_OP_TEXT) {
		results |= FB_EDIT_TEXT;
		memcpy(image->text, described->slot.text, sizeof(image->text));
		image->text_len = at_most(described->slot.text_len, sizeof(image->text));
	}
	result_from_slot(rq, results);
	if (described->data && !data_is_brought(rq->op)) {
		memcpy(rq->worker->payload, described->data, described->data_len);
		rq->count = rq->payload_len = described->data_len;
	}
	if (rq->op->canonical == FB_OP_read && rq->payload_len > MAX_WRITE)
		rq->count = rq->payload_len = MAX_WRITE;
	if (rq->op->canonical == FB_OP_read || described->data)
		rq->payload = rq->worker->payload;
	return 0;
}

/* The payload that the op brings: what is described, or as many zeros as its arguments say. */
static void input_describe(struct rehearsed *run, const struct rehearsal *r)
{
	uint32_t *size = run->op.canonical == FB_OP_write ? &run->image.args.rw.size : &run->image.args.xattr.size;
	uint32_t most = run->op.canonical == FB_OP_write ? MAX_WRITE : FB_DATA_SIZE;

	if (r->data)
		*size = (uint32_t)r->data_len;
	if (*size > most)
		*size = most;
	run->rq.input = run->memory;
	if (r->data)
		memcpy(run->rq.input, r->data, *size);
}

/* The slot as it is before the first hook: the results come when the op has run. */
static void image_describe(struct fb_slot *image, const struct rehearsal *r, const struct op *op)
{
	*image = r->slot;
	image->abi = FB_ABI_VERSION;
	image->error = FB_OK;
	image->flags &= ~(uint32_t)FB_HAS_DATA;
	if (op->canonical == FB_OP_read && image->args.rw.size > MAX_WRITE)
		image->args.rw.size = MAX_WRITE;
	image->edits = image->zero = 0;
	image->name_len = at_most(image->name_len, sizeof(image->name));
	image->name2_len = at_most(image->name2_len, sizeof(image->name2));
	image->path_len = at_most(image->path_len, sizeof(image->path));
	image->path2_len = at_most(image->path2_len, sizeof(image->path2));
	image->text_len = op->flags & FB_OP_TEXT ? 0 : at_most(image->text_len, sizeof(image->text));
	image->text[image->text_len] = 0;
	image->size = image->old_size;
	memset(&image->result, 0, sizeof(image->result));
}

static void hooks_describe(struct rehearsed *run, uint32_t skips)
{
	const struct op_hooks *hooks = run->rq.chain->ops[run->op.canonical];

	if (hooks)
		run->hooks = *hooks;
	if (skips & 1U << FB_PRE)
		run->hooks.n_pre = 0;
	if (skips & 1U << FB_POST)
		run->hooks.n_post = 0;
	run->rq.hooks = &run->hooks;
}

static void request_describe(struct rehearsed *run, struct mount *m, const struct op *op, const struct rehearsal *r)
{
	struct request *rq = &run->rq;

	run->described = r;
	run->op = *op;
	run->op.run = answer;
	run->in = (struct fuse_in_header){ .unique = r->slot.unique, .nodeid = r->slot.nodeid };
	run->inode.type = r->slot.type;
	run->inode.refs = 1;
	run->inode.nodeid = UINT64_MAX; // no real one's: its tags go with it
	run->worker.mount = m;
	run->worker.queue = &m->queues[0];
	run->worker.payload = run->memory + REQUEST_BUFFER_SIZE;
	run->worker.kept_names = run->names;
	// Or an EINTR that is described would be taken for a stray kick, and the op be tried again.
	run->worker.unique = run->worker.interrupted = r->slot.unique;
	image_describe(&run->image, r, op);
	*rq = (struct request){ .mount = m, .worker = &run->worker, .op = &run->op, .in = &run->in,
				.inode = &run->inode, .image = &run->image, .slot = NO_SLOT, .is_rehearsed = true,
				.create_uid = r->slot.uid, .create_gid = r->slot.gid, .chain = atomic_load(&m->chain) };
	for (uint32_t i = 0; r->slot.tag && i < rq->chain->n_filters; i++)
		tag_set(m, &run->inode, rq->chain->filters[i].owner, r->slot.tag);
	rq->name = op->n_names >= 1 ? run->image.name.text : NULL;
	rq->name2 = op->n_names >= 2 ? run->image.name2.text : NULL;
	rq->text = op->canonical == FB_OP_symlink ? run->image.text : NULL;
	if (data_is_brought(op))
		input_describe(run, r);
	hooks_describe(run, r->skips);
	for (uint32_t i = 0; i < FB_MAX_FILTERS && r->skips & 1U << FB_PRE; i++)
		rq->cookies[i] = r->slot.cookie;
}

/* Each filter has its own; the description is of one for all, so the one that somebody changed is told. */
static uint64_t tag_after(const struct rehearsal *r, const struct request *rq)
{
	uint64_t tag = r->slot.tag;
	bool is_mixed;

	for (uint32_t i = 0; i < rq->chain->n_filters && tag == r->slot.tag; i++)
		tag = tag_of(rq->mount, rq->inode, rq->chain->filters[i].owner, &is_mixed);
	return tag;
}

static void outcome(struct rehearsal *r, const struct request *rq)
{
	uint64_t tag = tag_after(r, rq);

	r->slot = *rq->image;
	r->slot.tag = tag;
	if (rq->op->flags & FB_OP_CREATES) {
		r->slot.uid = rq->create_uid;
		r->slot.gid = rq->create_gid;
	}
	r->error = (uint32_t)rq->error;
	r->route = rq->route;
	r->pre_ran = rq->pre_ran;
	r->pre_edited = rq->pre_edited;
	r->post_ran = rq->post_ran;
	r->post_edited = rq->post_edited;
	r->edits = rq->all_edits;
	r->decider = rq->decider ? rq->decider : "";
	for (uint32_t i = 0; i < rq->chain->n_filters; i++)
		r->no_post |= rq->no_post & 1U << i ? 1U << rq->chain->filters[i].id : 0;
}

/* What became of the payload. */
static int data_outcome(struct rehearsal *r, const struct request *rq)
{
	const struct fb_slot *image = rq->image;
	const char *data = data_is_brought(rq->op) ? rq->input : rq->payload;
	size_t len = rq->payload_len;

	if (data_is_brought(rq->op))
		len = rq->op->canonical == FB_OP_write ? image->args.rw.size : image->args.xattr.size;
	if (rq->error || !data)
		len = 0;
	r->data = malloc(len + 1);
	r->data_len = len;
	if (r->data && len)
		memcpy(r->data, data, len);
	return r->data ? 0 : -ENOMEM;
}

static void listing_ask(struct request *rq, struct rehearsal *r)
{
	struct fb_dirent entry = rq->image->args.dirent;
	struct fb_name given = rq->image->name;
	const char *name = given.text;
	uint32_t name_len = rq->image->name_len;

	// What is described is the entry's path; dirent_allowed wants the directory's, and puts the name behind it.
	const char *slash = memrchr(rq->image->path, '/', rq->image->path_len);
	rq->image->path_len = slash ? (uint32_t)(slash - rq->image->path) : 0;
	rq->reach = rq->chain->n_filters;
	worker_enter_backing(rq->worker);
	r->is_listed = dirent_allowed(rq, entry.ino, entry.type, &name, &name_len);
	worker_leave_backing(rq->worker);
}

/** Run the mount's chain on what `r` describes, and put what came of it there. -EINVAL: no op that filters see, or
 * more data than one can have. */
int rehearse(struct mount *m, struct rehearsal *r)
{
	const struct op *op = (uint32_t)r->slot.op < 256 ? &ops[r->slot.op] : NULL;

	if (!op || !op->is_hook || r->data_len > (op->canonical == FB_OP_setxattr ? FB_DATA_SIZE : MAX_WRITE) ||
	    !m->has_shared || !atomic_load(&m->chain))
		return -EINVAL;
	struct rehearsed *run = calloc(1, sizeof(*run));
	if (!run || !(run->memory = calloc(2, REQUEST_BUFFER_SIZE))) {
		free(run);
		return -ENOMEM;
	}
	request_describe(run, m, op, r);
	int e = slot_acquire(&run->rq, true);
	if (!e && op->flags & FB_OP_POST_ONLY)
		listing_ask(&run->rq, r);
	else if (!e)
		request_route(&run->rq);
	names_end(&run->rq);
	if (!e)
		outcome(r, &run->rq);
	if (!e)
		e = data_outcome(r, &run->rq);
	slot_release(&run->rq);
	tags_forget(m, &run->inode);
	hook_leave(&run->worker);
	free(run->memory);
	free(run);
	return e;
}
