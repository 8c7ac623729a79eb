/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Notifications to the kernel, from a thread of their own. In the kernel one waits for the lock of a directory or a page,
 * which an op may hold until it is answered: so no worker sends one, and the thread that does holds no lock of ours.
 * The queue is bounded; where it is full, everything that is cached is invalidated instead.
 */
#include "core.h"

#include <poll.h>
#include <signal.h>

#define MAX_LEASES 65536
#define MAX_IDLE_MS 60000
#define ARRIVAL_MS 20 /* in which an answer that was given is with whom it was given to */
#define END_TIMEOUT_MS 10000
#define END_STEP_MS 20
#define CLOCK_STEP_MS 10 /* of the coarse clock, and of the kernel's timeouts, at most */

static void wait_at_most(struct notifier *n, int64_t ms)
{
	clock_wait(&n->changed, &n->lock, ms * 1000000);
}

/* ------------------------------------------------------------------------------------ sending */

/* Write one notification. Returns false if the kernel has nothing of it cached. After the end nobody needs it. */
static bool send_message(struct mount *m, int code, void *head, size_t head_len, const char *name)
{
	struct fuse_out_header header = { .error = code };
	struct iovec iov[] = { { &header, sizeof(header) },
			       { head, head_len },
			       { (void *)name, name ? strlen(name) + 1 : 0 } };

	header.len = (uint32_t)(iov[0].iov_len + iov[1].iov_len + iov[2].iov_len);
	atomic_fetch_add_explicit(&m->notifier.n_sent, 1, memory_order_relaxed);
	if (writev(m->device_fd, iov, 3) >= 0)
		return true;
	if (errno == EINVAL)
		mount_log(m, "WARNING", "the kernel refused the notification %d", code);
	return errno != ENOENT;
}

/* Kernels before 7.38 do not know FUSE_EXPIRE_ONLY, and drop the entry. */
static bool send_entry(struct mount *m, uint64_t parent, uint32_t flags, const char *name)
{
	struct fuse_notify_inval_entry_out out = { .parent = parent, .namelen = (uint32_t)strlen(name), .flags = flags };

	return send_message(m, FUSE_NOTIFY_INVAL_ENTRY, &out, sizeof(out), name);
}

static bool send_inode(struct mount *m, uint64_t nodeid, int64_t offset, int64_t length)
{
	struct fuse_notify_inval_inode_out out = { .ino = nodeid, .off = offset, .len = length };

	return send_message(m, FUSE_NOTIFY_INVAL_INODE, &out, sizeof(out), NULL);
}

/** The kernel lets go of an entry, at once; on the notifier's thread. */
void notifier_drop(struct mount *m, uint64_t parent, const char *name)
{
	send_entry(m, parent, 0, name);
}

/** Returns false if the kernel has nothing of it cached. On the notifier's thread. */
bool notice_send(struct mount *m, const struct notice *n)
{
	return n->code == FUSE_NOTIFY_INVAL_ENTRY ? send_entry(m, n->nodeid, n->flags, n->name)
						  : send_inode(m, n->nodeid, n->offset, n->length);
}

static bool is_stopping(struct notifier *n)
{
	pthread_mutex_lock(&n->lock);
	bool stops = n->is_stopping;
	pthread_mutex_unlock(&n->lock);
	return stops;
}

/* All is heeded when entries that were handed out before this call under names that nobody knows have timed out. What changes
 * meanwhile is told at once, so nobody waits here. */
static void hold_for_unknown(struct mount *m)
{
	int64_t since = atomic_load(&m->notifier.unknown_ms);

	if (since)
		m->notifier.next_ms = since + NOTIFY_UNKNOWN_NS / 1000000 + 2 * CLOCK_STEP_MS;
}

static void send_negatives(struct mount *m)
{
	struct negative *list;
	uint32_t n = negatives_take(m, &list);

	for (uint32_t i = 0; i < n; i++) {
		if (!is_stopping(&m->notifier))
			send_entry(m, list[i].parent, FUSE_EXPIRE_ONLY, list[i].name);
		free(list[i].name);
	}
	free(list);
}

/** Invalidate the entries of all inodes that were handed out, and with_inodes their attributes and pages. FUSE_NOTIFY_INC_EPOCH would
 * do it for entries at once, but drops them, and with them whatever is mounted below (fs/dcache.c: d_invalidate). */
void notifier_send_handed_out(struct mount *m, bool with_inodes)
{
	for (uint32_t shard = 0; shard < N_SHARDS; shard++) {
		uint32_t n;
		uint64_t *nodeids = inodes_of_shard(m, shard, &n);
		for (uint32_t i = 0; nodeids && i < n && !is_stopping(&m->notifier); i++) {
			char name[FB_NAME_SIZE];
			uint64_t parent = inode_place(m, nodeids[i], name);
			if (parent)
				send_entry(m, parent, FUSE_EXPIRE_ONLY, name);
			if (with_inodes)
				send_inode(m, nodeids[i], 0, 0);
		}
		free(nodeids);
	}
}

static void send_all(struct mount *m)
{
	usleep(ARRIVAL_MS * 1000);
	notifier_send_handed_out(m, true);
	send_negatives(m);
	hold_for_unknown(m);
	again_note_all(m);
}

/* Send one notice, and have it sent again where an answer may be on its way that was given before: of an entry always, else if the
 * kernel had nothing cached of what changed behind the mount. */
static void send_one(struct mount *m, const struct notice *notice)
{
	bool was_there = notice_send(m, notice);

	if (was_there ? notice->flags & FUSE_EXPIRE_ONLY : m->wants_watch)
		again_note(m, notice, was_there);
}

/* Called with the lock held. Returns false if there is no room for it. */
static bool add_lease(struct notifier *n, struct lease lease)
{
	if (n->n_leases == n->leases_size) {
		uint32_t size = n->leases_size ? 2 * n->leases_size : 64;
		struct lease *larger = size > MAX_LEASES ? NULL : realloc(n->leases, size * sizeof(*larger));
		if (!larger)
			return false;
		n->leases = larger;
		n->leases_size = size;
	}
	if (!n->n_leases || lease.until_ms < n->lease_ms)
		n->lease_ms = lease.until_ms;
	n->leases[n->n_leases++] = lease;
	return true;
}

/* The kernel forgets what it may no longer keep. Called with the lock held, which it lets go meanwhile. */
static void end_leases(struct mount *m)
{
	struct notifier *n = &m->notifier;
	struct lease *leases = n->leases;
	uint32_t n_leases = n->n_leases, n_left = 0;
	int64_t now = now_ms();

	n->leases = NULL;
	n->n_leases = n->leases_size = 0;
	pthread_mutex_unlock(&n->lock);
	for (uint32_t i = 0; i < n_leases; i++) {
		if (leases[i].until_ms > now)
			leases[n_left++] = leases[i];
		else
			send_inode(m, leases[i].nodeid, 0, 0);
	}
	for (uint32_t i = 0; i < n_left; i++)
		notify_inode_at(m, leases[i].nodeid, leases[i].until_ms);
	free(leases);
	pthread_mutex_lock(&n->lock);
}

/* Nothing is queued: called with the lock held. */
static void idle(struct mount *m)
{
	struct notifier *n = &m->notifier;
	int64_t now = now_ms(), until = now + MAX_IDLE_MS;

	if (n->again_ms <= now) {
		pthread_mutex_unlock(&n->lock);
		again_send(m);
		pthread_mutex_lock(&n->lock);
		return;
	}
	if (n->n_leases && n->lease_ms < until)
		until = n->lease_ms;
	if (n->again_ms < until)
		until = n->again_ms;
	if (n->n_done != n->n_heeded && n->held_ms < until)
		until = n->held_ms;
	if (until > now)
		wait_at_most(n, until - now);
}

/* What was heeded is done, when its time has come; what comes later does not put that off. Called with the lock held. */
static void tell_done(struct notifier *n)
{
	if (n->n_done == n->n_heeded)
		return;
	if (n->n_done == n->n_held) {
		n->n_held = n->n_heeded;
		n->held_ms = n->next_ms;
	}
	if (now_ms() < n->held_ms)
		return;
	n->n_done = n->n_held;
	pthread_cond_broadcast(&n->changed);
}

static void *notifier_main(void *argument)
{
	struct mount *m = argument;
	struct notifier *n = &m->notifier;

	prctl(PR_SET_NAME, "fusebpf/notify");
	pthread_mutex_lock(&n->lock);
	while (!n->is_stopping) {
		tell_done(n);
		if (atomic_exchange(&n->wants_prune, false)) {
			pthread_mutex_unlock(&n->lock);
			prune(m);
			pthread_mutex_lock(&n->lock);
			continue;
		}
		if (n->n_leases && now_ms() >= n->lease_ms) {
			end_leases(m);
			continue;
		}
		if (!n->wants_all && !n->n_queued) {
			idle(m);
			continue;
		}
		bool all = n->wants_all;
		uint64_t done = all ? n->n_asked : n->n_heeded + 1;
		struct notice notice;
		if (all) {
			n->wants_all = false;
			n->n_queued = 0; // it covers them
		} else {
			notice = n->queue[n->first];
			n->first = (n->first + 1) % NOTIFY_QUEUE_SIZE;
			n->n_queued--;
		}
		pthread_mutex_unlock(&n->lock);
		if (all)
			send_all(m);
		else
			send_one(m, &notice);
		pthread_mutex_lock(&n->lock);
		n->n_heeded = done;
	}
	n->has_ended = true;
	pthread_cond_broadcast(&n->changed);
	pthread_mutex_unlock(&n->lock);
	return NULL;
}

/* ------------------------------------------------------------------------------------- asking */

static bool is_same(const struct notice *a, const struct notice *b)
{
	return a->code == b->code && a->nodeid == b->nodeid && a->flags == b->flags && a->offset == b->offset &&
	       a->length == b->length && !strcmp(a->name, b->name);
}

/* Put a notice into the queue, unless it is there as the last one; NULL is everything. */
static void ask(struct mount *m, const struct notice *notice)
{
	struct notifier *n = &m->notifier;

	pthread_mutex_lock(&n->lock);
	if (!n->has_thread || n->is_stopping) {
		// nothing is cached yet, or nobody will need it
	} else if (n->wants_all) {
		n->n_asked++; // covered by it
	} else if (!notice || n->n_queued == NOTIFY_QUEUE_SIZE) {
		n->wants_all = true;
		n->n_asked++;
		pthread_cond_broadcast(&n->changed);
	} else if (!n->n_queued || !is_same(notice, &n->queue[(n->first + n->n_queued - 1) % NOTIFY_QUEUE_SIZE])) {
		n->queue[(n->first + n->n_queued++) % NOTIFY_QUEUE_SIZE] = *notice;
		n->n_asked++;
		pthread_cond_broadcast(&n->changed);
	}
	pthread_mutex_unlock(&n->lock);
}

static void ask_name(struct mount *m, struct notice *notice, const char *name)
{
	size_t len = strlen(name);

	if (len >= sizeof(notice->name))
		return; // no such entry was ever handed out
	memcpy(notice->name, name, len + 1);
	ask(m, notice);
}

/** An entry may lead to another inode than before, or to none: it expires. The kernel asks again when it next needs it, and keeps
 * what is mounted or stands below if it is the same still. */
void notify_entry(struct mount *m, uint64_t parent, const char *name)
{
	struct notice notice = { .code = FUSE_NOTIFY_INVAL_ENTRY, .flags = FUSE_EXPIRE_ONLY, .nodeid = parent };

	ask_name(m, &notice, name);
}

/** An entry is gone: the kernel lets go of it at once, and, if nobody uses it, of the inode, so that the file's space is free.
 * Not by FUSE_NOTIFY_DELETE, which says that the last link is gone. */
void notify_deleted(struct mount *m, uint64_t parent, const char *name)
{
	struct notice notice = { .code = FUSE_NOTIFY_INVAL_ENTRY, .nodeid = parent };

	ask_name(m, &notice, name);
}

/** The attributes of an inode have changed, and its data: length bytes from offset on, or with 0 up to the end; with a
 * negative offset no data. */
void notify_inode(struct mount *m, uint64_t nodeid, int64_t offset, int64_t length)
{
	struct notice notice = { .code = FUSE_NOTIFY_INVAL_INODE, .nodeid = nodeid, .offset = offset, .length = length };

	ask(m, &notice);
}

/** What the kernel has of an inode it is to forget at that time (now_ms), or some steps of the clock later. What is too much to
 * be kept in mind is forgotten at once, and everything else with it. */
void notify_inode_at(struct mount *m, uint64_t nodeid, int64_t at_ms)
{
	struct notifier *n = &m->notifier;
	struct lease lease = { .until_ms = (at_ms / CLOCK_STEP_MS + 1) * CLOCK_STEP_MS, .nodeid = nodeid };

	pthread_mutex_lock(&n->lock);
	bool is_first = !n->n_leases || lease.until_ms < n->lease_ms;
	bool has_room = add_lease(n, lease);
	if (is_first)
		pthread_cond_broadcast(&n->changed);
	pthread_mutex_unlock(&n->lock);
	if (!has_room)
		notify_all(m, false);
}

/** All entries, attributes and pages that were handed out may have changed; or with by_filters what filters let the kernel
 * keep, which may be nothing. What ops in flight hand out is not kept (cache_finish). */
void notify_all(struct mount *m, bool by_filters)
{
	atomic_fetch_add(&m->notifier.n_all, 1);
	if (by_filters && !atomic_load(&m->n_filter_ttls))
		return;
	ask(m, NULL);
}

/** An entry is handed out that the table does not lead to, for NOTIFY_UNKNOWN_NS at most. */
void notify_unknown(struct mount *m)
{
	atomic_store_explicit(&m->notifier.unknown_ms, now_ms(), memory_order_relaxed);
}

/** Too many inodes hold a descriptor: the kernel is to let go of those that nobody uses. */
void notify_prune(struct mount *m)
{
	struct notifier *n = &m->notifier;

	if (atomic_load(&n->wants_prune) || atomic_exchange(&n->wants_prune, true))
		return;
	pthread_mutex_lock(&n->lock);
	pthread_cond_broadcast(&n->changed);
	pthread_mutex_unlock(&n->lock);
}

/** Wait until the kernel has heeded all that was asked before this call. Returns false if it took too long. Never on a worker:
 * the kernel may be waiting for one. */
bool notify_wait(struct mount *m, int timeout_ms)
{
	struct notifier *n = &m->notifier;

	pthread_mutex_lock(&n->lock);
	uint64_t wanted = n->n_asked;
	for (int left = timeout_ms; n->n_done < wanted && !n->is_stopping && left > 0; left -= END_STEP_MS)
		wait_at_most(n, END_STEP_MS);
	bool is_done = n->n_done >= wanted;
	pthread_mutex_unlock(&n->lock);
	return is_done;
}

/* ------------------------------------------------------------------------------ start and stop */

void notifier_init(struct mount *m)
{
	pthread_mutex_init(&m->notifier.lock, NULL);
	clock_cond_init(&m->notifier.changed);
}

/** Start the thread. After the handshake. */
int notifier_start(struct mount *m)
{
	struct notifier *n = &m->notifier;
	pthread_attr_t attr;
	sigset_t all, old;

	m->failed_call = "starting the notifier";
	n->queue = calloc(NOTIFY_QUEUE_SIZE, sizeof(*n->queue));
	if (!n->queue || again_init(n))
		return -ENOMEM;
	sigfillset(&all); // signals are the embedding program's
	pthread_sigmask(SIG_SETMASK, &all, &old);
	pthread_attr_init(&attr);
	pthread_attr_setstacksize(&attr, 128 * 1024);
	int e = -pthread_create(&n->thread, &attr, notifier_main, m);
	pthread_attr_destroy(&attr);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	pthread_mutex_lock(&n->lock);
	n->has_thread = !e;
	pthread_mutex_unlock(&n->lock);
	return e;
}

/** Ask the thread to end; what is queued is dropped. Before the workers end, since it may wait for one. */
void notifier_end(struct mount *m)
{
	struct notifier *n = &m->notifier;

	pthread_mutex_lock(&n->lock);
	n->is_stopping = true;
	pthread_cond_broadcast(&n->changed);
	pthread_mutex_unlock(&n->lock);
}

/* Refuse the requests that nobody will serve any more: an op that waits in the kernel may hold the lock that the thread wants. */
static void refuse_requests(struct mount *m, char *buffer)
{
	struct pollfd readable = { .fd = m->device_fd, .events = POLLIN };

	while (poll(&readable, 1, 0) > 0 && readable.revents & POLLIN) {
		const struct fuse_in_header *in = (const void *)buffer;
		ssize_t n = read(m->device_fd, buffer, REQUEST_BUFFER_SIZE);
		if (n < (ssize_t)sizeof(*in))
			return;
		if (in->opcode >= 256 || !(ops[in->opcode].flags & FB_OP_NO_REPLY))
			device_reply_raw(m->device_fd, in->unique, ENOTCONN);
	}
}

/** Wait for the thread's end, when the workers have gone. Returns false if it does not come: then what it uses must stay. */
bool notifier_join(struct mount *m)
{
	struct notifier *n = &m->notifier;
	char *buffer = NULL;

	if (!n->has_thread)
		return true;
	pthread_mutex_lock(&n->lock);
	for (int left = END_TIMEOUT_MS; !n->has_ended && left > 0; left -= END_STEP_MS) {
		wait_at_most(n, END_STEP_MS);
		if (n->has_ended || (!buffer && !(buffer = malloc(REQUEST_BUFFER_SIZE))))
			continue;
		pthread_mutex_unlock(&n->lock);
		fcntl(m->device_fd, F_SETFL, O_RDWR | O_NONBLOCK);
		refuse_requests(m, buffer);
		pthread_mutex_lock(&n->lock);
	}
	bool has_ended = n->has_ended;
	pthread_mutex_unlock(&n->lock);
	free(buffer);
	if (!has_ended) {
		mount_log(m, "ERROR", "a notification is held by the kernel and was left behind");
		return false;
	}
	pthread_join(n->thread, NULL);
	n->has_thread = false;
	return true;
}

void notifier_deinit(struct mount *m)
{
	free(m->notifier.queue);
	again_deinit(&m->notifier);
	free(m->notifier.leases);
	m->notifier.queue = NULL;
	m->notifier.leases = NULL;
}
