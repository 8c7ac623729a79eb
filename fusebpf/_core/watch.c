/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Learning of changes behind the mount: fanotify marks the backing file systems, and one thread turns its events into
 * notifications to the kernel. What the mount's own workers change the kernel knows already. Changes of the mount
 * table are learnt of too. No lock is held; the thread makes no call on the backing root that could block.
 */
#include "core.h"

#include <poll.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/fanotify.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/vfs.h>

#define NAMES_CHANGED (FAN_CREATE | FAN_DELETE | FAN_RENAME)
#define DATA_CHANGED (FAN_MODIFY | FAN_CLOSE_WRITE)
#define WATCHED (NAMES_CHANGED | DATA_CHANGED | FAN_ATTRIB | FAN_ONDIR)
#define EVENTS_SIZE 65536
#define N_THREAD_IDS (4u << 20) /* PID_MAX_LIMIT of include/linux/threads.h */
/* Our own ops are events too. Each would wake this thread, which costs the op more than the rest of it. */
#define PAUSE_MS 1
#define END_TIMEOUT_MS 10000
#define END_STEP_MS 5

/* One event, its parts found. */
struct event {
	uint64_t mask, fsid;
	const struct file_handle *dir, *object; /* or NULL */
	const char *name;			/* of the object in dir, or NULL */
	const struct file_handle *new_dir;	/* of a move, or NULL, */
	const char *new_name;			/* and the name there */
	bool is_own;				/* a change of the mount's */
};

/* ------------------------------------------------------------------------------ whose changes */

/** Note that the calling thread serves the mount, or no longer does. */
void watch_own_thread(struct mount *m, bool is_own)
{
	uint32_t id = (uint32_t)gettid();

	if (!m->watch.own_threads || id >= N_THREAD_IDS)
		return;
	if (is_own)
		atomic_fetch_or(&m->watch.own_threads[id / 64], 1ULL << id % 64);
	else
		atomic_fetch_and(&m->watch.own_threads[id / 64], ~(1ULL << id % 64));
}

static bool is_own(const struct mount *m, uint32_t id)
{
	return id < N_THREAD_IDS && atomic_load(&m->watch.own_threads[id / 64]) >> id % 64 & 1;
}

/* ------------------------------------------------------------------------------------- events */

/* A name of a directory leads elsewhere now. */
static void name_changed(struct mount *m, struct inode *dir, const struct event *e, const char *name)
{
	if ((e->mask & NAMES_CHANGED) == FAN_DELETE)
		notify_deleted(m, dir->nodeid, name);
	else
		notify_entry(m, dir->nodeid, name);
	notify_inode(m, dir->nodeid, 0, 0); // its attributes and its listing
	known_no_longer(dir);
	if (!e->is_own)
		doubts_note(&m->watch.doubts, dir->nodeid);
}

static void object_changed(struct mount *m, struct inode *object, const struct event *e)
{
	bool has_data = e->mask & DATA_CHANGED && object->type == S_IFREG;

	notify_inode(m, object->nodeid, has_data ? 0 : -1, 0);
	known_stale(m, object);
}

static void dir_changed(struct mount *m, struct inode *dir, const struct event *e)
{
	if (e->name && e->mask & NAMES_CHANGED)
		name_changed(m, dir, e, e->name);
	else if (!e->object)
		object_changed(m, dir, e); // of which no more is said than its own handle
}

static void new_dir_changed(struct mount *m, struct inode *dir, const struct event *e)
{
	name_changed(m, dir, e, e->new_name);
}

/* Call `changed` for each view of a file that the kernel knows. Returns whether it knows one. */
static bool heed_file(struct mount *m, struct backing_mount *b, const struct event *e, const struct file_handle *file,
		      void (*changed)(struct mount *m, struct inode *inode, const struct event *e))
{
	struct inode *inode = file ? inodes_find_handle(m, b, file, 0) : NULL;
	bool is_known = inode;

	while (inode) {
		uint32_t view = inode->view;
		atomic_fetch_add(&m->watch.n_changes, 1); // before the kernel is told: see cache_finish
		changed(m, inode, e);
		inode_release(m, inode);
		inode = view < UINT32_MAX ? inodes_find_handle(m, b, file, view + 1) : NULL;
	}
	return is_known;
}

/* Returns whether the kernel knows the directories that the event names. */
static bool heed(struct mount *m, const struct event *e)
{
	bool knows = false, knows_new = !e->new_dir;

	for (struct backing_mount *b = atomic_load(&m->inodes.mounts); b; b = b->next) {
		if (b->is_watched && b->fsid == e->fsid) {
			knows |= heed_file(m, b, e, e->dir, dir_changed);
			knows_new |= heed_file(m, b, e, e->new_dir, new_dir_changed);
			heed_file(m, b, e, e->object, object_changed);
		}
	}
	return knows && knows_new;
}

/* A change behind the mount. In a directory that the kernel does not know, but may have known when it happened, it is doubted
 * everywhere what the mount has moved since. */
static void heed_behind(struct mount *m, const struct event *e)
{
	uint64_t before = atomic_load(&m->watch.n_changes);
	bool knows_dirs = heed(m, e);

	if (e->mask & NAMES_CHANGED && !knows_dirs &&
	    (atomic_load(&m->watch.n_changes) != before || doubts_may_know(&m->inodes)))
		doubts_note_all(&m->watch.doubts);
}

/* Do several mounts of the backing tree show this file system? Then one file is several inodes, and what the mount itself
 * changes by one of them the kernel does not know of the others. */
static bool is_aliased(const struct mount *m, uint64_t fsid)
{
	int n = 0;

	for (const struct backing_mount *b = atomic_load(&m->inodes.mounts); b && n < 2; b = b->next)
		n += b->fsid == fsid;
	return n > 1;
}

static void all_changed(struct mount *m)
{
	atomic_fetch_add(&m->watch.n_changes, 1);
	notify_all(m, false);
}

/* Take the head of an event, which is aligned to 4 bytes and has members of 8. False: there is none any more. */
static bool head_take(const char *at, const char *end, struct fanotify_event_metadata *head)
{
	if (end - at < (ssize_t)sizeof(*head))
		return false;
	memcpy(head, at, sizeof(*head));
	return head->event_len >= sizeof(*head) && head->event_len <= end - at;
}

/* Find the parts of an event. The records behind its head: a handle, and after that of a directory a name. */
static struct event parse(const struct fanotify_event_metadata *head, const char *start)
{
	struct event e = { .mask = head->mask };
	const char *at = start + head->metadata_len, *end = start + head->event_len;

	while ((size_t)(end - at) >= sizeof(struct fanotify_event_info_fid) + sizeof(struct file_handle)) {
		const struct fanotify_event_info_fid *info = (const void *)at;
		const struct file_handle *handle = (const void *)info->handle;
		if (info->hdr.len < sizeof(*info) + sizeof(*handle) || info->hdr.len > end - at)
			break;
		memcpy(&e.fsid, &info->fsid, sizeof(e.fsid));
		if (info->hdr.info_type == FAN_EVENT_INFO_TYPE_FID)
			e.object = handle;
		else if (info->hdr.info_type == FAN_EVENT_INFO_TYPE_DFID)
			e.dir = handle;
		const char *name = (const char *)handle->f_handle + handle->handle_bytes;
		if (info->hdr.info_type == FAN_EVENT_INFO_TYPE_DFID_NAME ||
		    info->hdr.info_type == FAN_EVENT_INFO_TYPE_OLD_DFID_NAME) {
			e.dir = handle;
			e.name = name;
		}
		if (info->hdr.info_type == FAN_EVENT_INFO_TYPE_NEW_DFID_NAME) {
			e.new_dir = handle;
			e.new_name = name;
		}
		at += info->hdr.len;
	}
	return e;
}

/* Did names change a moment ago in the directory that an event of the mount's own is of, or may they have, since the kernel knows it no
 * longer? */
static bool is_dir_doubtful(struct mount *m, const struct event *e)
{
	bool is_doubtful = false, is_known = false;

	for (struct backing_mount *b = atomic_load(&m->inodes.mounts); b && !is_doubtful; b = b->next) {
		struct inode *dir =
			e->dir && b->is_watched && b->fsid == e->fsid ? inodes_find_handle(m, b, e->dir, 0) : NULL;
		if (!dir)
			continue;
		is_known = true;
		is_doubtful = doubts_has(&m->watch.doubts, dir->nodeid);
		inode_release(m, dir);
	}
	return is_doubtful || !is_known;
}

/* The mount itself gave something another name: if names had changed behind it just before where that was, it may be another thing than
 * the kernel, which had not been told yet, has taken along. Moves are not merged with what came before them. */
static void heed_own(struct mount *m, struct event *e)
{
	if (!e->new_dir || !doubts_are_any(&m->watch.doubts) || !is_dir_doubtful(m, e))
		return;
	e->dir = e->new_dir;
	e->name = e->new_name;
	e->new_dir = NULL;
	heed(m, e);
}

static void read_events(struct mount *m, char *buffer)
{
	ssize_t len = read(m->watch.fd, buffer, EVENTS_SIZE);
	const char *at = buffer, *end = buffer + (len > 0 ? len : 0);
	struct fanotify_event_metadata head;

	for (; head_take(at, end, &head); at += head.event_len) {
		if (head.mask & FAN_Q_OVERFLOW) {
			atomic_fetch_add(&m->watch.n_overflows, 1);
			all_changed(m);
			doubts_note_all(&m->watch.doubts);
			continue;
		}
		struct event e = parse(&head, at);
		e.is_own = is_own(m, (uint32_t)head.pid) && !is_aliased(m, e.fsid);
		if (e.is_own)
			heed_own(m, &e);
		else
			heed_behind(m, &e);
	}
}

/* Something was mounted or unmounted: was it below the backing root? */
static void look_at_mounts(struct mount *m)
{
	uint64_t mounts = watch_mounts_below(m->root_fd);

	if (mounts != m->watch.mounts)
		all_changed(m);
	m->watch.mounts = mounts;
}

static void *watch_main(void *argument)
{
	struct mount *m = argument;
	char *buffer = malloc(EVENTS_SIZE);
	int table_fd = open("/proc/self/mountinfo", O_RDONLY | O_CLOEXEC);
	struct pollfd polled[] = { { .fd = m->watch.stop_fd, .events = POLLIN },
				   { .fd = m->watch.fd, .events = POLLIN },
				   { .fd = m->is_one_file_system ? -1 : table_fd, .events = POLLPRI } };

	prctl(PR_SET_NAME, "fusebpf/watch");
	while (buffer) {
		if (poll(polled, 3, -1) < 0 && errno != EINTR)
			break;
		if (polled[0].revents)
			break;
		if (polled[2].revents)
			look_at_mounts(m);
		if (polled[1].revents) {
			read_events(m, buffer);
			poll(polled, 1, PAUSE_MS);
		}
	}
	if (table_fd >= 0)
		close(table_fd);
	free(buffer);
	atomic_store(&m->watch.has_ended, true);
	return NULL;
}

/* ------------------------------------------------------------------------------ start and stop */

void watch_init(struct mount *m)
{
	m->watch.fd = m->watch.stop_fd = -1;
	doubts_init(&m->watch.doubts);
}

/** Get ready to watch, before the first inode is known. */
int watch_open(struct mount *m)
{
	struct watch *w = &m->watch;
	unsigned int flags = FAN_CLOEXEC | FAN_NONBLOCK | FAN_REPORT_TID | FAN_REPORT_FID | FAN_REPORT_DFID_NAME |
			     FAN_REPORT_TARGET_FID;

	// Of the process that embeds the mount only the workers are ours, so events must say which thread.
	w->own_threads = mmap(NULL, N_THREAD_IDS / 8, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (w->own_threads == MAP_FAILED) {
		w->own_threads = NULL;
		return -errno;
	}
	w->fd = fanotify_init(flags, O_RDONLY | O_LARGEFILE);
	w->stop_fd = eventfd(0, EFD_CLOEXEC);
	return w->fd < 0 || w->stop_fd < 0 ? -errno : 0;
}

/** Watch the file system of a backing mount that was just met. Returns whether it can be. */
bool watch_add(struct mount *m, int dir_fd)
{
	return m->watch.fd >= 0 &&
	       !fanotify_mark(m->watch.fd, FAN_MARK_ADD | FAN_MARK_FILESYSTEM, WATCHED, dir_fd, NULL);
}

/** Start the thread. After the notifier, before the workers. */
int watch_start(struct mount *m)
{
	sigset_t all, old;

	if (m->watch.fd < 0)
		return 0;
	m->failed_call = "starting the watch";
	m->watch.mounts = watch_mounts_below(m->root_fd);
	sigfillset(&all); // signals are the embedding program's
	pthread_sigmask(SIG_SETMASK, &all, &old);
	int e = -pthread_create(&m->watch.thread, NULL, watch_main, m);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	m->watch.has_thread = !e;
	return e;
}

/** End the thread. Returns false if it does not come: then what it uses must stay. */
bool watch_stop(struct mount *m)
{
	struct watch *w = &m->watch;
	uint64_t one = 1;

	if (!w->has_thread)
		return true;
	if (write(w->stop_fd, &one, sizeof(one)) < 0)
		return false;
	for (int left = END_TIMEOUT_MS; !atomic_load(&w->has_ended) && left > 0; left -= END_STEP_MS)
		usleep(END_STEP_MS * 1000);
	if (!atomic_load(&w->has_ended))
		return false;
	pthread_join(w->thread, NULL);
	w->has_thread = false;
	return true;
}

/** After the workers and the inodes. */
void watch_deinit(struct mount *m)
{
	struct watch *w = &m->watch;

	if (w->fd >= 0)
		close(w->fd);
	if (w->stop_fd >= 0)
		close(w->stop_fd);
	if (w->own_threads)
		munmap((void *)w->own_threads, N_THREAD_IDS / 8);
	w->own_threads = NULL;
	watch_init(m);
}
