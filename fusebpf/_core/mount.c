/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A mount's life, on the control path: made, started, stopped. The caller serialises these calls.
 */
#include "core.h"

#include <sys/eventfd.h>
#include <sys/mount.h>

/** An empty mount. NULL: memory is short. Undone by mount_destroy, at any point of its life. */
struct mount *mount_create(void)
{
	struct mount *m = calloc(1, sizeof(*m));
	int pipe_fds[2];

	if (!m)
		return NULL;
	m->callers_fd = -1;
	memset(m->roots, -1, sizeof(m->roots));
	m->root_fd = m->device_fd = m->ended_fd = m->log_read_fd = m->log_write_fd = -1;
	m->workers.limit = FB_MAX_WORKERS;
	m->workers.load_fd = m->idle.latency_fd = m->idle.wake_fd = -1;
	pthread_mutex_init(&m->chain_lock, NULL);
	pthread_mutex_init(&m->locks_lock, NULL);
	pthread_mutex_init(&m->backing_ids.lock, NULL);
	pthread_mutex_init(&m->workers.lock, NULL);
	clock_cond_init(&m->workers.changed);
	fds_init(m);
	handles_init(m);
	notifier_init(m);
	pthread_mutex_init(&m->negatives.lock, NULL);
	tags_init(&m->tags);
	turns_init(&m->turns);
	watch_init(m);
	m->ended_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (!pipe2(pipe_fds, O_CLOEXEC | O_NONBLOCK)) {
		m->log_read_fd = pipe_fds[0];
		m->log_write_fd = pipe_fds[1];
	}
	if (m->ended_fd < 0 || m->log_read_fd < 0) {
		mount_destroy(m);
		return NULL;
	}
	return m;
}

/* Take the mount of the backing root alone: a clone of it, in which nothing is mounted below. */
static int leave_mounts_out(int *root)
{
	static const struct mount_attr is_private = { .propagation = MS_PRIVATE };
	int fd = open_tree(*root, "", AT_EMPTY_PATH | OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC);

	if (fd < 0)
		return -errno;
	close(*root);
	*root = fd;
	return mount_setattr(fd, "", AT_EMPTY_PATH, (void *)&is_private, sizeof(is_private)) < 0 ? -errno : 0;
}

/* Learn of changes behind the mount from here on, if that is wanted: before the kernel can have cached anything. */
static int open_root(struct mount *m)
{
	static const char cannot[] = "fanotify cannot watch the backing root, so use --cache normal";

	m->failed_call = cannot;
	int e = m->wants_watch ? watch_open(m) : 0;
	if (!e && m->is_one_file_system)
		m->failed_call = "--one-file-system: cloning the mount of the backing root";
	for (uint32_t i = 0; !e && m->is_one_file_system && i < m->n_roots; i++)
		e = leave_mounts_out(&m->roots[i]);
	m->root_fd = m->roots[0];
	if (e)
		return e;
	m->failed_call = "opening the backing root";
	e = inodes_init(m);
	if (!e)
		e = roots_meet(m);
	if (e || !m->wants_watch)
		return e;
	m->failed_call = cannot;
	return m->inodes.root->mnt && m->inodes.root->mnt->is_watched ? 0 : -EOPNOTSUPP;
}

/** Mount and serve. On error nothing stays mounted, and m->failed_call says what failed. */
int mount_start(struct mount *m)
{
	m->failed_call = "starting";
	int e = m->is_started ? -EALREADY : open_root(m);
	if (e)
		return e;
	m->is_started = true;
	m->keeps_listings = m->is_small && m->wants_watch && !cache_listings_are_hooked(atomic_load(&m->chain));
	m->keeps_targets = cache_keeps_targets(m);
	if (m->transport != TRANSPORT_DEV)
		transport_enable_uring(m);
	e = device_mount(m);
	if (!e)
		e = device_hear(m);
	if (!e)
		e = workers_start(m);
	if (!e)
		e = device_answer(m);
	if (!e)
		e = notifier_start(m);
	if (!e)
		e = watch_start(m);
	if (!e)
		workers_open(m);
	if (e) {
		if (m->is_mounted)
			umount2(m->mountpoint, MNT_DETACH | UMOUNT_NOFOLLOW);
		m->is_mounted = false;
		mount_stop(m);
	}
	return e;
}

static void close_fd(int *fd)
{
	if (*fd >= 0)
		close(*fd);
	*fd = -1;
}

/** End the threads and the connection, and free what they held. Idempotent. */
void mount_stop(struct mount *m)
{
	uint64_t one = 1;

	if (m->is_stopped)
		return;
	m->is_stopped = true;
	notifier_end(m);
	bool has_ended = watch_stop(m);
	has_ended = workers_stop(m) && has_ended;
	daemon_stop(m);
	m->is_left = !has_ended || !notifier_join(m);
	if (m->is_left)
		return; // what a stuck thread may still touch stays; the process's end frees it
	notifier_deinit(m);
	negatives_deinit(m);
	handles_deinit(m);
	backing_ids_deinit(m);
	close_fd(&m->device_fd); // the last descriptor: callers that wait get ENOTCONN
	inodes_deinit(m);
	tags_deinit(&m->tags);
	watch_deinit(m);
	fds_deinit(m);
	chain_release(atomic_exchange(&m->chain, NULL));
	shared_deinit(m);
	m->root_fd = -1;
	for (uint32_t i = 0; i < FB_MAX_ROOTS; i++)
		close_fd(&m->roots[i]);
	int callers_fd = atomic_exchange(&m->callers_fd, -1);
	close_fd(&callers_fd);
	if (m->ended_fd >= 0 && write(m->ended_fd, &one, sizeof(one)) < 0)
		return;
}

void mount_destroy(struct mount *m)
{
	mount_stop(m);
	if (m->is_left)
		return;
	daemon_destroy(m);
	close_fd(&m->ended_fd);
	close_fd(&m->log_read_fd);
	close_fd(&m->log_write_fd);
	free(m->mountpoint);
	free(m->source);
	free(m);
}

/** What a mount counts, by name. Returns how many there are; the values need not be of one moment. */
size_t mount_counters(struct mount *m, struct counter out[MAX_COUNTERS])
{
	uint64_t n_requests = 0, n_hook_runs = 0, n_program_runs = 0;

	pthread_mutex_lock(&m->workers.lock);
	uint32_t n_workers = m->workers.n, n_parked = m->workers.n_parked;
	pthread_mutex_unlock(&m->workers.lock);
	for (uint32_t i = 0; i < m->n_queues; i++) {
		n_requests += m->queues[i].n_requests;
		n_hook_runs += m->queues[i].n_hook_runs;
		n_program_runs += m->queues[i].n_program_runs;
	}
	const struct counter rows[] = {
		{ "inodes", m->inodes.n_inodes },
		{ "descriptors", m->fds.n_open },
		{ "handles", handles_n_open(m) },
		{ "workers", n_workers },
		{ "workers_parked", n_parked },
		{ "queues", m->n_queues },
		{ "lock_owners", m->n_lock_owners },
		{ "slots_in_use", m->has_shared ? FB_N_SLOTS - slots_n_free(m) : 0 },
		{ "requests", n_requests },
		{ "hook_runs", n_hook_runs },
		{ "program_runs", n_program_runs },
		{ "filter_ttls", m->n_filter_ttls },
		{ "failed_closed", m->n_failed_closed },
		{ "interrupts", m->n_interrupts },
		{ "notifications", m->notifier.n_sent },
		{ "changes_behind", m->watch.n_changes },
		{ "watch_overflows", m->watch.n_overflows },
		{ "passthrough", m->has_passthrough },
		{ "passthrough_opens", m->n_passthrough_opens },
		{ "keeps_listings", m->keeps_listings },
		{ "keeps_targets", m->keeps_targets },
		{ "protocol_minor", m->kernel_minor },
	};
	_Static_assert(sizeof(rows) <= MAX_COUNTERS * sizeof(*rows), "MAX_COUNTERS");

	memcpy(out, rows, sizeof(rows));
	return sizeof(rows) / sizeof(*rows);
}
