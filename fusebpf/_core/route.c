/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The way of one operation: decode → pre hooks, high to low → route → the op → post hooks, low to high → reply.
 * On a worker's thread; a filter that breaks a rule never lets an op through.
 */
#include "core.h"

/* ---------------------------------------------------------------------------- before the op */

/* Is it one that a pre hook may have? An errno whose minus was forgotten is none. */
static bool is_pre_verdict(enum fb_verdict verdict)
{
	return verdict == FB_CONTINUE || verdict == FB_BACKING || verdict == FB_DAEMON || verdict == FB_REPLY ||
	       verdict == FB_NEGATIVE;
}

/** Act on a pre hook's verdict. Returns true if the op goes on to the filter below. */
bool pre_decide(struct request *rq, const struct chain_hook *hook, const struct fb_verdict_record *v)
{
	const struct chain_filter *filter = &rq->chain->filters[hook->position];
	const struct op *op = rq->op;
	bool is_reply = v->verdict == FB_REPLY;
	uint64_t edits = is_reply || v->flags & FB_REWRITE ? v->edits : 0;
	const char *why = NULL;

	if (is_reply && v->error)
		edits &= FB_EDIT_DELAY; // there is nothing left that others could apply to
	if (op->flags & FB_OP_UNREFUSABLE)
		return true; // such hooks observe
	if (v->flags & ~(uint32_t)(FB_REWRITE | FB_NOPOST))
		why = "its verdict has unknown flags";
	else if (v->flags & FB_REWRITE && !v->edits)
		why = "it says FB_REWRITE, and ctx->edits is empty";
	else if (edits && edits & ~verdict_edits(rq, op, FB_PRE, is_reply))
		why = "it edited what this op does not have, or not before it runs";
	else if (edits) {
		names_keep(rq, edits, hook->position);
		why = verdict_edit(rq, slot_of(rq), op, FB_PRE, is_reply, edits);
	}
	if (!why && v->verdict == FB_DAEMON)
		why = daemon_refuses(rq, filter);
	if (!why && v->verdict == FB_NEGATIVE && op->canonical != FB_OP_lookup)
		why = "it says FB_NEGATIVE, which is for lookup";
	if (!why && !is_pre_verdict(v->verdict))
		why = "its verdict is none that a pre hook has (an errno wants a minus)";
	if (!why && is_reply && !v->error)
		why = result_missing(rq, edits);
	if (why) {
		fail_closed(rq, op, hook, FB_PRE, why);
		rq->error = EIO;
		rq->route = FB_ROUTE_REPLY;
		return false;
	}
	if (edits) {
		rq->pre_edited |= 1U << filter->id;
		rq->all_edits |= edits;
		rq->decider = filter->name;
		if (edits & FB_EDIT_IO)
			rq->io_asker = filter->name;
	}
	if (v->flags & FB_NOPOST)
		rq->no_post |= 1U << hook->position;
	if (v->verdict == FB_CONTINUE)
		return true;
	rq->verdict = v->verdict;
	rq->decider = filter->name;
	if (v->verdict == FB_DAEMON)
		rq->route = FB_ROUTE_DAEMON;
	if (v->verdict == FB_BACKING || v->verdict == FB_DAEMON) {
		rq->reach = hook->position + 1; // its own post hook runs, those below were not asked
		return false;
	}
	rq->route = FB_ROUTE_REPLY;
	rq->error = v->verdict == FB_NEGATIVE ? ENOENT : errno_for_kernel(v->error);
	return false;
}

/** Run one pre hook and act on its verdict. Returns true if the op goes on to the filter below. */
bool pre_ask(struct request *rq, const struct chain_hook *hook)
{
	struct fb_verdict_record v;

	if (!hook_run(rq, rq->op, FB_PRE, hook, &v))
		return pre_decide(rq, hook, &v);
	if (rq->op->flags & FB_OP_UNREFUSABLE)
		return true;
	rq->error = EIO;
	rq->route = FB_ROUTE_REPLY;
	return false;
}

static void pre_run(struct request *rq)
{
	const struct chain_hook *stopped = NULL;

	rq->reach = rq->chain->n_filters;
	for (uint32_t i = 0; rq->hooks && i < rq->hooks->n_pre && !stopped;) {
		const struct chain_hook *hook = &rq->hooks->pre[i];
		int joined_fd = joined_program(rq, FB_PRE, hook);

		if (!sizes_wait(rq)) {
			stopped = hook;
			break;
		}
		if (joined_fd >= 0) {
			i += pre_ask_joined(rq, hook, joined_fd, &stopped);
			continue;
		}
		i++;
		rq->pre_ran |= 1U << rq->chain->filters[hook->position].id;
		stopped = (hook->sees_data ? data_before(rq, hook) : pre_ask(rq, hook)) ? NULL : hook;
	}
	if (stopped && rq->route == FB_ROUTE_REPLY)
		rq->reach = stopped->position;
}

/* ---------------------------------------------------------------------------- after the op */

/** Have the daemon look at the result, in the middle of the post hooks. */
void post_look(struct request *rq)
{
	slot_release(rq); // it may take its time
	daemon_see_result(rq);
	slot_acquire(rq, false);
	if (!rq->error)
		result_to_slot(rq); // for the hooks above
}

/** Act on a post hook's verdict: the errno and the results may change. */
void post_decide(struct request *rq, const struct chain_hook *hook, const struct fb_verdict_record *v)
{
	static const uint32_t with_result =
		FB_OP_ENTRY | FB_OP_ATTR | FB_OP_TEXT | FB_OP_COUNT | FB_OP_STATFS | FB_OP_OPENS;
	const struct chain_filter *filter = &rq->chain->filters[hook->position];
	uint64_t edits = v->flags & FB_REWRITE ? v->edits : 0;
	const char *why = NULL;

	if (rq->op->flags & FB_OP_UNREFUSABLE)
		return;
	if (v->verdict == FB_REPLY) // short for an edited errno
		edits = (v->error ? v->edits & FB_EDIT_DELAY : edits) | FB_EDIT_ERROR;
	if (v->flags & ~(uint32_t)(FB_REWRITE | FB_NOPOST))
		why = "its verdict has unknown flags";
	else if (v->flags & FB_REWRITE && !edits)
		why = "it says FB_REWRITE, and ctx->edits is empty";
	else if (edits && edits & ~verdict_edits(rq, rq->op, FB_POST, false))
		why = "it edited what this op does not have, or not after it ran";
	else if (v->verdict == FB_DAEMON)
		why = daemon_refuses(rq, filter);
	else if (v->verdict == FB_NEGATIVE || v->verdict == FB_BACKING)
		why = "it says FB_NEGATIVE or FB_BACKING, which are for pre hooks (-ENOENT is for both)";
	else if (v->verdict != FB_CONTINUE && (v->verdict != FB_REPLY || !v->error))
		why = "its verdict is none that a post hook has (an errno wants a minus)";
	else if (edits & FB_EDIT_ERROR && !v->error && rq->error && rq->op->flags & with_result)
		why = "it made a failed op a success that has no result";
	else if (edits)
		why = verdict_edit(rq, slot_of(rq), rq->op, FB_POST, false, edits);
	if (why) {
		fail_closed(rq, rq->op, hook, FB_POST, why);
		rq->error = EIO;
	} else if (edits) {
		rq->post_edited |= 1U << filter->id;
		rq->all_edits |= edits;
		rq->decider = filter->name;
		if (edits & FB_EDIT_ERROR)
			rq->error = errno_for_kernel(v->error);
		if (!rq->error)
			result_from_slot(rq, edits);
		if (edits & FB_EDIT_IO && !rq->error) {
			rq->io_asker = filter->name;
			rq->error = -passthrough_reopen(rq);
		}
	}
	if (!why && v->verdict == FB_DAEMON && rq->shown.window)
		rq->shown.is_for_daemon = true;
	else if (!why && v->verdict == FB_DAEMON)
		post_look(rq);
	if (rq->error)
		result_undo(rq);
}

/** Run one post hook and act on its verdict. */
void post_ask(struct request *rq, const struct chain_hook *hook)
{
	struct fb_verdict_record v;

	if (!hook_run(rq, rq->op, FB_POST, hook, &v)) {
		post_decide(rq, hook, &v);
	} else if (!(rq->op->flags & FB_OP_UNREFUSABLE)) {
		rq->error = EIO;
		result_undo(rq);
	}
}

static void post_run(struct request *rq)
{
	if (!rq->error)
		result_to_slot(rq);
	for (uint32_t i = 0, n = 1; i < rq->hooks->n_post; i += n, n = 1) {
		const struct chain_hook *hook = &rq->hooks->post[i];
		int joined_fd = joined_program(rq, FB_POST, hook);

		if (joined_fd >= 0) {
			n = post_ask_joined(rq, hook, joined_fd);
			continue;
		}
		if (hook->position >= rq->reach || rq->no_post & 1U << hook->position)
			continue;
		rq->post_ran |= 1U << rq->chain->filters[hook->position].id;
		if (hook->sees_data)
			data_after(rq, hook);
		else
			post_ask(rq, hook);
	}
}

/* The path of the entry that is asked about, for filters that want it: that of the directory is there already. */
static void dirent_path(struct request *rq, uint32_t directory_len)
{
	struct fb_slot *image = rq->image;
	uint32_t slash = directory_len ? 1 : 0;

	if (!(image->flags & FB_HAS_PATH) || image->flags & FB_PATH_LOST)
		return;
	if (directory_len + slash + image->name_len >= FB_PATH_SIZE) {
		image->flags |= FB_PATH_LOST;
		image->path_len = 0;
		return;
	}
	memcpy(image->path + directory_len, "/", slash);
	memcpy(image->path + directory_len + slash, image->name.text, image->name_len);
	image->path_len = directory_len + slash + image->name_len;
}

static bool dirent_ask(struct request *rq, uint64_t ino, uint32_t type, uint32_t directory_len, const char **name,
		       uint32_t *name_len)
{
	const struct op *dirent = &ops[FB_OP_dirent];
	const struct op_hooks *hooks = rq->chain->ops[FB_OP_dirent];
	struct fb_slot *image = rq->image;

	if (*name_len >= FB_NAME_SIZE)
		return false;
	memset(&image->args, 0, sizeof(image->args));
	image->args.dirent = (struct fb_dirent){ .ino = ino, .type = type };
	memset(&image->name, 0, sizeof(image->name));
	memcpy(image->name.text, *name, *name_len);
	image->name_len = *name_len;
	for (uint32_t i = 0; i < hooks->n_post; i++) {
		const struct chain_hook *hook = &hooks->post[i];
		uint32_t bit = 1U << rq->chain->filters[hook->position].id;
		struct fb_verdict_record v;
		const char *why = NULL;

		if (hook->position >= rq->reach)
			continue;
		rq->post_ran |= bit;
		dirent_path(rq, directory_len);
		if (hook_run(rq, dirent, FB_POST, hook, &v)) {
			rq->error = EIO;
			return false;
		}
		uint64_t edits = v.flags & FB_REWRITE ? v.edits : 0;
		cache_dirent(rq, edits);
		if ((v.verdict != FB_CONTINUE && v.verdict != FB_DROP) || v.flags & ~(uint32_t)(FB_REWRITE | FB_NOPOST))
			why = "its verdict is none that a dirent hook has";
		else if (edits & ~verdict_edits(rq, dirent, FB_POST, false) || (v.flags & FB_REWRITE && !edits))
			why = "it edited something else than the name and the ttl";
		if (!why && v.verdict == FB_DROP) {
			rq->post_edited |= bit;
			rq->decider = rq->chain->filters[hook->position].name;
			return false;
		}
		edits &= ~(uint64_t)FB_EDIT_TTL;
		if (!why && edits)
			why = verdict_edit(rq, slot_of(rq), dirent, FB_POST, false, edits);
		if (why) {
			fail_closed(rq, dirent, hook, FB_POST, why);
			rq->error = EIO;
			return false;
		}
		if (edits) {
			rq->post_edited |= bit;
			rq->all_edits |= edits;
		}
	}
	*name = image->name.text;
	*name_len = image->name_len;
	return true;
}

/**
 * Ask the dirent hooks about one entry of a listing.
 *
 * Returns whether it is listed; *name may be another one then, valid until the next call. A hook that breaks a rule
 * sets rq->error to EIO, which fails the listing.
 */
bool dirent_allowed(struct request *rq, uint64_t ino, uint32_t type, const char **name, uint32_t *name_len)
{
	bool is_dots = *name_len <= 2 && (!strcmp(*name, ".") || !strcmp(*name, ".."));

	if (is_dots || !rq->chain || !rq->chain->ops[FB_OP_dirent])
		return true;
	uint32_t directory_len = rq->image->path_len, flags = rq->image->flags;
	worker_leave_backing(rq->worker); // hooks need the thread's ring
	bool is_allowed = dirent_ask(rq, ino, type, directory_len, name, name_len);
	worker_enter_backing(rq->worker);
	rq->image->path_len = directory_len;
	rq->image->flags = flags;
	return is_allowed;
}

/* ------------------------------------------------------------------------------ the whole way */

/* Is the op to be tried once more, since a descriptor that it went by is stale? The kernel does the same with names. */
static bool renews_stale(struct request *rq, int e, bool *was_stale)
{
	if (e != -ESTALE || *was_stale || rq->entry || rq->opened)
		return false;
	inode_fd_renew(rq->mount, rq->inode);
	return *was_stale = true;
}

static int run_once(struct request *rq)
{
	int e = rq->op->run(rq), closed = handles_end(rq);

	return e ? e : closed;
}

static int op_run(struct request *rq)
{
	bool as_caller = acts_as_caller(rq), was_stale = false;
	int e = 0;

	if (as_caller)
		creds_enter(rq, rq->create_uid, rq->create_gid, false);
	worker_enter_backing(rq->worker);
	if (rq->delay_ns)
		e = sizes_delay(rq);
	if (!e)
		e = run_once(rq);
	// A kick that was meant for the op before this one, or for an idle worker, is not the caller's business.
	while ((e == -EINTR && !request_is_interrupted(rq)) || renews_stale(rq, e, &was_stale))
		e = run_once(rq);
	worker_leave_backing(rq->worker);
	if (as_caller)
		creds_leave();
	return e;
}

/* On a mount with a daemon: the op where its route leads, and the daemon's look at the result. */
static void op_do_with_daemon(struct request *rq)
{
	if (daemon_takes(rq) && !daemon_op(rq))
		return;
	if (rq->inode->is_virtual) {
		daemon_virtual(rq);
		return;
	}
	rq->route = FB_ROUTE_BACKING;
	daemon_ttl(rq);
	int e = daemon_keeps_data(rq) ? EOPNOTSUPP : -op_run(rq);
	if (!rq->error) // a listing fails where a dirent hook broke a rule
		rq->error = e ? errno_for_kernel((uint32_t)e) : 0;
	if (daemon_sees_result(rq))
		daemon_see_result(rq);
}

/* The op itself. */
static void op_do(struct request *rq)
{
	if (__builtin_expect(rq->mount->daemon != NULL, 0)) {
		op_do_with_daemon(rq);
		return;
	}
	int e = -op_run(rq);
	if (!rq->error) // a listing fails where a dirent hook broke a rule
		rq->error = e ? errno_for_kernel((uint32_t)e) : 0;
}

static bool has_post(const struct request *rq)
{
	return rq->hooks && rq->hooks->n_post;
}

/* Run the op on the backing root. Where slots are getting short it gives its own back meanwhile, unless entries of a
 * listing need it: ops that block there must not keep others from their hooks. */
static void backing_run(struct request *rq)
{
	bool lists = rq->chain->ops[FB_OP_dirent] && rq->op->canonical == FB_OP_readdir;
	if (!lists && (rq->mount->daemon || slots_are_short(rq->mount)))
		slot_release(rq); // always where a daemon may take its time
	op_do(rq);
	sizes_after(rq);
	if (has_post(rq) && rq->slot == NO_SLOT)
		slot_acquire(rq, false);
}

/** Ask the chain about an op whose slot is taken and filled in, and do what it says. */
void request_route(struct request *rq)
{
	pre_run(rq);
	if (rq->route != FB_ROUTE_REPLY)
		backing_run(rq);
	else if (!rq->error)
		result_from_slot(rq, rq->all_edits);
	if (has_post(rq))
		post_run(rq);
}

/** Run an op that is hooked, in a slot of its own, up to its reply. */
void request_ask(struct request *rq)
{
	int e = sizes_begin(rq);

	if (e || (e = slot_acquire(rq, !(rq->op->flags & FB_OP_UNREFUSABLE)))) {
		sizes_end(rq);
		rq->error = -e;
		rq->chain = NULL; // no hook saw it: there is nothing to record
		return;
	}
	image_fill(rq);
	recent_prepare(rq);
	if (rq->chain->wants & FB_WANTS_PATH) {
		paths_fill(rq);
		types_fill(rq);
	}
	if (rq->chain->wants & FB_WANTS_CALLER)
		caller_to_slot(rq);
	memset(rq->cookies, 0, sizeof(rq->cookies[0]) * rq->chain->n_filters);
	request_route(rq);
	removed_release(rq);
	sizes_end(rq);
	slot_release(rq);
	if (rq->gave_ttl)
		cache_settle(rq);
	if (rq->delay_ns)
		answer_delay(rq);
}

/* Which hooks stand at this op? */
static bool is_hooked(struct request *rq)
{
	struct chain *chain = rq->worker->chain;

	if (!chain)
		return false;
	rq->hooks = chain->ops[rq->op->canonical];
	if (!rq->hooks && !(rq->op->canonical == FB_OP_readdir && chain->ops[FB_OP_dirent]))
		return false;
	rq->chain = chain;
	return true;
}

/** Serve one request from the first byte to the reply. */
void request_run(struct request *rq)
{
	int e = request_decode(rq);

	atomic_fetch_add_explicit(&rq->worker->queue->n_requests, 1, memory_order_relaxed);
	if (e) {
		if (!rq->op || !(rq->op->flags & FB_OP_NO_REPLY))
			reply_error(rq, -e);
		return;
	}
	if (rq->op->flags & FB_OP_NO_REPLY) {
		rq->op->run(rq);
		return;
	}
	if (is_hooked(rq)) {
		request_ask(rq);
	} else {
		op_do(rq);
	}
	locks_flush_failed(rq);
	if (rq->error == EINTR)
		rq->error = eintr_without_signal(rq);
	if (rq->error)
		result_undo(rq);
	if (!rq->error)
		cache_finish(rq);
	if (rq->chain && rq->route == FB_ROUTE_REPLY && rq->op->flags & FB_OP_ATTR && !rq->error)
		attr_number(rq);
	if (rq->op->opcode == FB_OP_statx && !rq->error)
		statx_finish(rq);
	else if (rq->op->flags & FB_OP_TEXT && !rq->error)
		value_finish(rq);
	views_changed(rq);
	if (rq->has_changed && rq->error)
		names_expire(rq);
	bool is_negative = rq->error && negative_reply(rq);
	if (reply_send(rq, is_negative ? 0 : rq->error))
		result_undo(rq);
	if (rq->chain)
		recent_write(rq);
}
