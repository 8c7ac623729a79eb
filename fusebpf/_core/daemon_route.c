/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What of an op is the daemon's: whether it is asked, what its answer does to the op, and its look at a result. Any worker,
 * which may be parked while it waits.
 */
#include "core.h"

/* Can the op go to pyfuse3 at all? statx goes as getattr. */
static bool can_express(const struct op *op)
{
	return op->flags & FB_OP_DAEMON || op->canonical == FB_OP_statx;
}

/** May a filter send this op to the daemon? NULL, or why not. */
const char *daemon_refuses(const struct request *rq, const struct chain_filter *filter)
{
	if (!rq->mount->daemon)
		return "it says FB_DAEMON, and the mount has no daemon";
	if (!(filter->wants & FB_WANTS_DAEMON))
		return "it says FB_DAEMON, and does not declare FB_WANTS_DAEMON";
	return can_express(rq->op) ? NULL : "it says FB_DAEMON, and pyfuse3 cannot express this op";
}

static uint8_t routes_of(const struct request *rq)
{
	uint32_t op = rq->op->canonical == FB_OP_statx ? FB_OP_getattr : rq->op->canonical;

	return rq->mount->daemon->routes[op];
}

static bool moves_data(const struct op *op)
{
	return op->canonical == FB_OP_read || op->canonical == FB_OP_write;
}

/** Does the daemon answer this op, or say how it goes on? */
bool daemon_takes(const struct request *rq)
{
	const struct handle *h;
	uint64_t unused;

	if (!can_express(rq->op) || rq->verdict == FB_BACKING)
		return false;
	if (rq->route == FB_ROUTE_REPLY)
		return false;
	h = daemon_handle(rq);
	if (h && h->is_dir && rq->op->canonical == FB_OP_readdir &&
	    !daemon_offset(h, rq->image->args.rw.offset, &unused))
		return false; // the daemon's entries are through: this is in the backing's
	if (rq->route == FB_ROUTE_DAEMON)
		return true;
	if (rq->inode->is_virtual)
		return routes_of(rq) & DAEMON_DEFINES; // what it does not define need not wait for Python to say so
	if (!h || !h->has_daemon || rq->op->canonical == FB_OP_setattr)
		return routes_of(rq) & DAEMON_PRE;
	if (moves_data(rq->op) && h->leaves_data)
		return false;
	return routes_of(rq) & (DAEMON_DEFINES | DAEMON_PRE);
}

/** Must each entry be looked up, since the daemon answers for it or sees the result? Then listings carry names alone. */
bool daemon_judges_entries(const struct mount *m)
{
	return m->daemon && (m->daemon->routes[FB_OP_lookup] | m->daemon->routes[FB_OP_getattr]) & (DAEMON_PRE | DAEMON_POST);
}

/** What the backing root answers is not cached where the daemon is to be asked each time. */
void daemon_ttl(struct request *rq)
{
	const uint8_t *routes = rq->mount->daemon->routes;
	uint8_t asks = DAEMON_PRE | DAEMON_POST;

	if (rq->all_edits & FB_EDIT_TTL)
		return; // a filter has said for how long
	if (routes[FB_OP_lookup] & asks)
		rq->entry_ttl_ns = 0;
	if (routes[FB_OP_getattr] & asks)
		rq->attr_ttl_ns = 0;
}

/** Is this an op on data that only the daemon could do, and cannot express? */
bool daemon_keeps_data(const struct request *rq)
{
	uint32_t op = rq->op->canonical;

	if (op != FB_OP_lseek && op != FB_OP_fallocate && op != FB_OP_copy_file_range)
		return false;
	const struct handle *h = daemon_handle(rq), *to = NULL;
	if (op == FB_OP_copy_file_range)
		to = handle_find(rq->mount, rq->image->args.copy.fh_out, false);
	return rq->mount->daemon->has_data_routes || (h && h->has_daemon && !h->leaves_data) ||
	       (to && to->has_daemon && !to->leaves_data);
}

bool daemon_sees_result(const struct request *rq)
{
	return can_express(rq->op) && routes_of(rq) & DAEMON_POST && !(rq->op->flags & FB_OP_UNREFUSABLE);
}

/* ------------------------------------------------------------------------------- the daemon asked */

/* The daemon is dead: by the mount's policy the op fails, or goes on without it. Returns whether it goes on. */
static bool without_daemon(struct request *rq)
{
	if (rq->op->flags & FB_OP_UNREFUSABLE || rq->mount->daemon->falls_back)
		return true;
	rq->error = ENOTCONN;
	return false;
}

/* A node of the daemon's own, which the daemon does not answer for: what can be said without a backing. */
static int virtual_default(struct request *rq)
{
	struct fb_fuse_open_out *out = &rq->out.open;

	switch (rq->op->canonical) {
	case FB_OP_open:
	case FB_OP_opendir:
		memset(out, 0, sizeof(*out));
		rq->opened = handle_create(rq->mount, rq->inode, -1, rq->op->canonical == FB_OP_opendir);
		if (!rq->opened)
			return -ENFILE;
		out->fh = handle_number(rq->opened);
		out->open_flags = rq->op->canonical == FB_OP_open ? FOPEN_DIRECT_IO : 0; // its size need not be known
		rq->reply = out;
		rq->reply_len = sizeof(*out);
		return 0;
	case FB_OP_flush:
	case FB_OP_release:
	case FB_OP_releasedir:
		return rq->op->run(rq);
	case FB_OP_statfs:
		rq->inode = rq->mount->inodes.root;
		return rq->op->run(rq);
	case FB_OP_fsync:
	case FB_OP_fsyncdir:
	case FB_OP_access:
		return 0;
	case FB_OP_getxattr:
		return -ENODATA; // for ACLs the kernel takes no other "no"
	default:
		return -EOPNOTSUPP;
	}
}

/** An op on a node without a backing that nobody answers. */
void daemon_virtual(struct request *rq)
{
	int e = -virtual_default(rq);

	rq->error = e ? errno_for_kernel((uint32_t)e) : 0;
}

/* A daemon that knows no extended attributes has no ACLs either: by another errno the kernel would refuse access. */
static int without_acl(const struct request *rq, int error)
{
	bool asks_acl = rq->op->canonical == FB_OP_getxattr && !strncmp(rq->name, "system.posix_acl_", 17);

	return asks_acl && error == EOPNOTSUPP ? ENODATA : error;
}

/* What pyfuse3 said. Returns 1: the op goes on; 0 or -errno; or, of a listing, DAEMON_ASK_ON. */
static int take_answer(struct request *rq, struct daemon_call *call, struct daemon_waiter *w)
{
	const struct fuse_out_header *header = (const void *)rq->worker->payload;
	const char *body = rq->worker->payload + sizeof(*header);
	size_t len = w->reply_len - sizeof(*header);

	if (header->error == -DAEMON_CONTINUE)
		return 1;
	if (header->error)
		return -without_acl(rq, errno_for_kernel((uint32_t)-header->error));
	if (rq->op->canonical == FB_OP_readdir)
		return daemon_listing(rq, call->flags & DAEMON_CALL_GOES_ON, body, len);
	return daemon_reply(rq, call, body, len);
}

/* Must the caller's change take the file's set-id bits? The kernel leaves that to us (FUSE_HANDLE_KILLPRIV_V2). */
static bool kills_bits(const struct request *rq)
{
	switch (rq->op->canonical) {
	case FB_OP_write:
		return ((const struct fuse_write_in *)(const void *)rq->body)->write_flags & FUSE_WRITE_KILL_SUIDGID;
	case FB_OP_setattr:
		return rq->image->args.setattr.valid & FATTR_KILL_SUIDGID;
	case FB_OP_open:
		return ((const struct fuse_open_in *)(const void *)rq->body)->open_flags & FUSE_OPEN_KILL_SUIDGID;
	default:
		return false;
	}
}

/* The daemon has changed a file: pyfuse3 could not tell it to take the bits. A chown(2) takes them, also one to nobody new. */
static int kill_bits(struct request *rq)
{
	struct stat st;
	int e = 0, fd = rq->inode->is_virtual ? -1 : inode_fd_get(rq->mount, rq->inode);

	if (fd < 0)
		return 0;
	if (fstat(fd, &st) == 0 && st.st_mode & (S_ISUID | S_ISGID)) {
		struct creds_bits bits = creds_bits_begin(rq, fd, LACKS_FSETID);
		e = fchownat(fd, "", (uid_t)-1, (gid_t)-1, AT_EMPTY_PATH) < 0 ? -errno : 0;
		creds_bits_end(bits);
	}
	inode_fd_put(rq->mount, rq->inode);
	return e;
}

/* Continue with changed arguments: judged as a filter's. */
static int take_changes(struct request *rq, const struct daemon_call *call)
{
	if (!(call->flags & DAEMON_CALL_CHANGED) || !call->edits)
		return 0;
	// It acts for the filter that said FB_DAEMON, or below all.
	names_keep(rq, call->edits, rq->verdict == FB_DAEMON ? rq->reach - 1 : UINT32_MAX);
	const char *why = call->edits & ~verdict_edits(rq, rq->op, FB_PRE, false)
				  ? "it changed what this op does not have"
				  : verdict_edit(rq, &call->slot, rq->op, FB_PRE, false, call->edits);
	if (!why) {
		rq->all_edits |= call->edits;
		return 0;
	}
	mount_log(rq->mount, "ERROR", "the daemon's Continue for %s broke a rule, so the op failed with EIO: %s",
		  rq->op->name, why);
	return -EIO;
}

static void explain(struct request *rq, int e)
{
	struct mount *m = rq->mount;

	if (e == -ETIMEDOUT)
		mount_log(m, "ERROR", "the daemon did not answer %s within %lld ms, so it failed with ETIMEDOUT",
			  rq->op->name, (long long)m->daemon->timeout_ms);
	else if (e == -ENOTCONN)
		mount_log(m, "ERROR", "the daemon has ended, so %s failed with ENOTCONN", rq->op->name);
	else if (e == -EPROTO)
		mount_log(m, "ERROR", "the daemon's answer to %s makes no sense (unknown inode, another file type, more "
			  "bytes than asked for, …), so it failed with EIO", rq->op->name);
	else if (e == -EBUSY)
		mount_log(m, "ERROR", "%d ops wait for the daemon already, so %s failed with EBUSY", DAEMON_N_CALLS,
			  rq->op->name);
}

/* Ask and wait, with the worker out of the way if it takes long. Returns as take_answer. */
static int ask(struct request *rq, struct daemon_call *call, struct daemon_waiter *w, bool by_socket)
{
	struct mount *m = rq->mount;

	worker_enter_backing(rq->worker);
	// So many wait that the rest would have none left: this one no longer counts.
	if (atomic_load(&m->daemon->n_waiting) * 2 >= m->workers.limit)
		worker_park(rq->worker, MAX_PARKED);
	int e = 0;
	if (by_socket)
		e = daemon_request(rq, call, w);
	else
		daemon_tell(m->daemon, DAEMON_EVENT_POST, call->token);
	if (!e)
		e = daemon_await(rq, call, w);
	if (!e && by_socket)
		e = take_answer(rq, call, w);
	worker_leave_backing(rq->worker);
	return e;
}

/* Call the handler. Returns as take_answer. */
static int handler_call(struct request *rq)
{
	struct daemon_waiter *w;
	struct daemon_call *call = daemon_call_begin(rq, FB_PRE, &w);

	if (!call)
		return -EBUSY;
	int e = ask(rq, call, w, true);
	if (e == 1 && take_changes(rq, call))
		e = -EIO;
	daemon_call_end(rq, w);
	return e;
}

/* Call it for the part of a listing that is asked for, and on, as long as filters drop all that it says. */
static int listing_call(struct request *rq)
{
	uint64_t offset = rq->image->args.rw.offset;
	int e;

	do {
		e = handler_call(rq);
	} while (e == DAEMON_ASK_ON);
	if (e != 1)
		rq->image->args.rw.offset = offset; // as post hooks are to see it
	return e;
}

/**
 * Let the daemon answer the op. Returns 0: rq has the result; 1: it goes on to the backing root.
 */
int daemon_op(struct request *rq)
{
	struct daemon *d = rq->mount->daemon;

	rq->route = FB_ROUTE_DAEMON;
	if (atomic_load(&d->is_dead))
		return without_daemon(rq);
	int killed, e = rq->op->canonical == FB_OP_readdir ? listing_call(rq) : handler_call(rq);
	if ((e == 0 || (e == 1 && rq->op->canonical == FB_OP_setattr)) && kills_bits(rq) && (killed = kill_bits(rq)))
		e = killed;
	if (e == 1)
		return 1;
	explain(rq, e);
	if (rq->op->flags & FB_OP_UNREFUSABLE)
		return 1;
	if (!rq->error) // a listing fails where a dirent hook broke a rule
		rq->error = e == -EPROTO ? EIO : e ? errno_for_kernel((uint32_t)-e) : 0;
	return rq->op->canonical == FB_OP_flush && !rq->error; // locks are let go of there
}

/* --------------------------------------------------------------------------- the daemon looks */

/* Show a copy of the bytes that the op answers with, and say how many they may become. A copy, since a handler that comes too late may
 * still write there. 0 or -errno. */
static int show_data(struct request *rq, struct daemon_call *call, struct daemon_waiter *w)
{
	bool is_read = rq->op->canonical == FB_OP_read, is_text = rq->op->flags & FB_OP_TEXT;

	if (rq->error || !(is_read || is_text) || rq->reply_len)
		return 0;
	uint64_t most = is_read ? rq->image->args.rw.size
			: rq->op->canonical == FB_OP_readlink ? FB_PATH_SIZE - 1
							      : value_room(rq);
	w->data = malloc((most > rq->payload_len ? most : rq->payload_len) + 1);
	if (!w->data) {
		w->state = CALL_DONE; // nobody is asked
		return -ENOMEM;
	}
	if (rq->payload_len)
		memcpy(w->data, rq->payload, rq->payload_len);
	call->data = (uint64_t)(uintptr_t)w->data;
	call->data_len = rq->payload_len;
	call->data_capacity = most;
	return 0;
}

static void show_names(const struct request *rq, struct fb_slot *slot)
{
	const char *names[] = { rq->name, rq->name2, rq->text };
	uint32_t *lens[] = { &slot->name_len, &slot->name2_len, &slot->text_len };
	char *texts[] = { slot->name.text, slot->name2.text, slot->text };

	for (int i = 0; i < 3; i++) {
		*lens[i] = names[i] ? (uint32_t)strlen(names[i]) : 0;
		if (names[i])
			memcpy(texts[i], names[i], *lens[i] + 1);
	}
}

/* What the handler made of the result. NULL, or why it is refused. */
static const char *take_result(struct request *rq, const struct daemon_call *call, const struct daemon_waiter *w)
{
	static const uint32_t with_result =
		FB_OP_ENTRY | FB_OP_ATTR | FB_OP_TEXT | FB_OP_COUNT | FB_OP_STATFS | FB_OP_OPENS;
	uint64_t edits = call->edits;

	if (rq->error && !call->error && rq->op->flags & with_result)
		return "it made a failed op a success that has no result";
	rq->error = call->error ? errno_for_kernel(call->error) : 0;
	if (rq->error)
		return NULL;
	if (edits & ~verdict_edits(rq, rq->op, FB_POST, false))
		return "it changed what this op does not have";
	rq->image->phase = FB_POST;
	const char *why = edits ? verdict_edit(rq, &call->slot, rq->op, FB_POST, false, edits) : NULL;
	if (why)
		return why;
	rq->all_edits |= edits;
	result_from_slot(rq, edits);
	if (w->data) {
		if (call->data_len > call->data_capacity)
			return "there are more bytes than the caller asked for";
		if (!call->data_len && rq->op->canonical == FB_OP_readlink)
			return "a link's target is empty";
		rq->payload = memcpy(rq->worker->payload, w->data, call->data_len);
		rq->payload_len = call->data_len;
		if (rq->op->canonical == FB_OP_read)
			rq->count = rq->payload_len;
	}
	return NULL;
}

/* Has the op changed something, and tells its caller nothing that the daemon might have kept from him? */
static bool stays_done(const struct op *op)
{
	switch (op->canonical) {
	case FB_OP_flush:
	case FB_OP_fsync:
	case FB_OP_fsyncdir:
		return true;
	default:
		return op->flags & FB_OP_MUTATES && !(op->flags & FB_OP_OPENS);
	}
}

/* Was the look at a success cut short by the caller, while nothing was said of the op? What is done is answered as done; what has
 * not been seen by the daemon, the attributes, the kernel may not keep. */
static bool is_cut_short(struct request *rq, const struct daemon_call *call, const struct daemon_waiter *w, int e)
{
	bool is_cut = e == -EINTR || (!e && w->is_cancelled && call->error == EINTR);

	if (!is_cut || rq->error || !stays_done(rq->op))
		return false;
	rq->entry_ttl_ns = rq->attr_ttl_ns = 0;
	cache_nothing(rq);
	return true;
}

/** Show the result to the daemon, which may change it. */
void daemon_see_result(struct request *rq)
{
	struct daemon *d = rq->mount->daemon;
	struct daemon_waiter *w;

	if (atomic_load(&d->is_dead)) {
		if (without_daemon(rq))
			return;
		result_undo(rq);
		return;
	}
	struct daemon_call *call = daemon_call_begin(rq, FB_POST, &w);
	int e = call ? 0 : -EBUSY;
	if (call) {
		if (!rq->error)
			result_to_slot(rq);
		memcpy(&call->slot, rq->image, offsetof(struct fb_slot, key_op));
		show_names(rq, &call->slot);
		e = show_data(rq, call, w);
		if (!e)
			e = ask(rq, call, w, false);
		bool is_unseen = is_cut_short(rq, call, w, e);
		const char *why = e || is_unseen ? NULL : take_result(rq, call, w);
		if (is_unseen)
			e = 0;
		if (why) {
			mount_log(rq->mount, "ERROR", "the daemon's look at %s broke a rule, so the op failed with EIO: %s",
				  rq->op->name, why);
			e = -EIO;
		}
		daemon_call_end(rq, w);
	}
	explain(rq, e);
	if (e)
		rq->error = errno_for_kernel((uint32_t)-e);
	if (rq->error)
		result_undo(rq);
}
