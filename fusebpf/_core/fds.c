/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The bounded cache of O_PATH descriptors over file handles: an inode is known by its handle, and has a descriptor
 * while it is used. Past the limit the clock's hand closes one that was not used since it last passed. Any worker.
 * Locks: an inode's stripe guards its fd fields; clock_lock the clock; a third party's stripe is only ever tried.
 */
#include "core.h"

#define MOST_AT_ONCE 65536
#define MOST_EVICTED 1024
#define FOR_A_MOMENT 32 /* what workers and their ops hold beside what is open or known */

void fds_init(struct mount *m)
{
	for (int i = 0; i < N_SHARDS; i++)
		pthread_mutex_init(&m->fds.stripes[i], NULL);
	pthread_mutex_init(&m->fds.clock_lock, NULL);
}

/* Give the process's table of descriptors its size now: where threads share it, it waits for a grace period of RCU, 10 ms and
 * more, each time that it grows (fs/file.c: expand_fdtable). It takes 8 bytes for each descriptor. */
static void table_grow(const struct mount *m, long most)
{
	int last = (int)(most < MOST_AT_ONCE ? most : MOST_AT_ONCE) - 1, fd = fcntl(m->ended_fd, F_DUPFD_CLOEXEC, last);

	if (fd >= 0)
		close(fd);
}

/** Bound the cache: limit descriptors, or with 0 half of what the process may have. Once, before the first inode. */
int fds_limit(struct mount *m, uint32_t limit)
{
	long most = sysconf(_SC_OPEN_MAX);

	table_grow(m, most);
	m->fds.limit = limit ? limit : most > 64 ? (uint32_t)most / 2 : 32;
	long left = most / 16 > FOR_A_MOMENT ? most / 16 : most / 4 < FOR_A_MOMENT ? most / 4 : FOR_A_MOMENT;
	m->fds.nearly_all = (int)(most - left);
	m->fds.clock = calloc(m->fds.limit, sizeof(*m->fds.clock));
	return m->fds.clock ? 0 : -ENOMEM;
}

void fds_deinit(struct mount *m)
{
	free(m->fds.clock);
	m->fds.clock = NULL;
}

pthread_mutex_t *fds_stripe(struct mount *m, const struct inode *inode)
{
	return &m->fds.stripes[inode->nodeid % N_SHARDS];
}

/** The path by which an O_PATH descriptor's file can be opened again or changed. */
void proc_path(char out[PROC_PATH_SIZE], int fd)
{
	static const char prefix[] = "/proc/self/fd/";
	char digits[12];
	int n = 0;

	do {
		digits[n++] = (char)('0' + fd % 10);
		fd /= 10;
	} while (fd);
	memcpy(out, prefix, sizeof(prefix) - 1);
	out += sizeof(prefix) - 1;
	while (n)
		*out++ = digits[--n];
	*out = 0;
}

/** Another O_PATH descriptor of an open file, or -errno. */
int reopen_as_path(int fd)
{
	char path[PROC_PATH_SIZE];

	proc_path(path, fd);
	fd = open(path, O_PATH | O_CLOEXEC);
	return fd < 0 ? -errno : fd;
}

/* Close an inode's descriptor. It has none before the number is free for others, whom directory_fd_put would take for it (roots.c).
 * Called with its stripe held. */
static void fd_close(struct fds *f, struct inode *inode)
{
	int fd = inode->fd;

	__atomic_store_n(&inode->fd, -1, __ATOMIC_RELEASE);
	close(fd);
	atomic_fetch_sub(&f->n_open, 1);
}

static void clock_remove(struct fds *f, struct inode *inode)
{
	if (inode->clock_index < 0)
		return;
	struct inode *last = f->clock[--f->n_clock];
	f->clock[inode->clock_index] = last;
	last->clock_index = inode->clock_index;
	inode->clock_index = -1;
}

/* Close one descriptor that nobody uses. Called with clock_lock held; gives up after two rounds. One that is in use, which may be for
 * as long as a file is open, gives its place up, and gets one when it is put (inode_fd_put). */
static void clock_evict(struct mount *m)
{
	struct fds *f = &m->fds;

	for (uint32_t tries = 2 * f->n_clock; tries && f->n_clock; tries--) {
		if (f->hand >= f->n_clock)
			f->hand = 0;
		struct inode *victim = f->clock[f->hand];
		if (pthread_mutex_trylock(fds_stripe(m, victim))) {
			f->hand++;
			continue;
		}
		bool is_used = victim->fd_users > 0, evict = !is_used && !victim->fd_referenced;
		victim->fd_referenced = false;
		if (evict || is_used)
			clock_remove(f, victim);
		else
			f->hand++;
		if (evict)
			fd_close(f, victim);
		pthread_mutex_unlock(fds_stripe(m, victim));
		if (evict)
			return;
	}
}

/* Close a quarter of the descriptors: the numbers that come free are given next, and say nothing. Called with clock_lock held. */
static void clock_evict_many(struct mount *m)
{
	uint32_t n = m->fds.n_clock / 4 + 1;

	for (n = n < MOST_EVICTED ? n : MOST_EVICTED; n; n--)
		clock_evict(m);
}

/** A file was opened, with that descriptor: where hardly any are left, those of what is only known make room. Called with no
 * stripe held. */
void fds_make_room(struct mount *m, int fd)
{
	if (fd < m->fds.nearly_all)
		return;
	pthread_mutex_lock(&m->fds.clock_lock);
	clock_evict_many(m);
	pthread_mutex_unlock(&m->fds.clock_lock);
}

/* Let the clock's hand find a descriptor, closing another one for it past the limit. Called with the inode's stripe held. */
static void clock_insert(struct mount *m, struct inode *inode)
{
	struct fds *f = &m->fds;

	pthread_mutex_lock(&f->clock_lock);
	if (inode->fd >= f->nearly_all)
		clock_evict_many(m);
	else if (atomic_load(&f->n_open) > f->limit || f->n_clock == f->limit)
		clock_evict(m);
	if (f->n_clock < f->limit) {
		inode->clock_index = (int32_t)f->n_clock;
		f->clock[f->n_clock++] = inode;
	}
	pthread_mutex_unlock(&f->clock_lock);
}

/* Put a freshly opened descriptor in. Called with the inode's stripe held. One that cannot be opened again stays open
 * outside of the clock. */
static void fd_insert(struct mount *m, struct inode *inode, int fd)
{
	inode->fd = fd;
	inode->fd_referenced = true;
	atomic_fetch_add(&m->fds.n_open, 1);
	if (!inode->fd_pinned)
		clock_insert(m, inode);
	else if (atomic_load(&m->fds.n_open) > m->fds.limit)
		notify_prune(m);
}

/* Open a file by its handle. Returns the descriptor or -errno (ESTALE: it is gone, or cannot be opened so). Of an inode that is gone,
 * and whose number another one is just getting, the kernel says ENOMEM (fs/inode.c: iget_locked returns NULL). */
static int open_by_handle(const struct inode *inode, int flags)
{
	union {
		struct file_handle handle;
		char bytes[sizeof(struct file_handle) + MAX_HANDLE_SIZE];
	} h;

	if (inode->is_virtual)
		return -EOPNOTSUPP;
	if (!inode->mnt || !inode->mnt->can_reopen)
		return -ESTALE;
	h.handle.handle_bytes = inode->handle_bytes;
	h.handle.handle_type = inode->handle_type;
	memcpy(h.handle.f_handle, inode->handle, inode->handle_bytes);
	creds_lift(); // it takes CAP_DAC_READ_SEARCH
	int fd = open_by_handle_at(inode->mnt->fd, &h.handle, flags | O_CLOEXEC);
	int e = fd < 0 ? -errno : 0;
	creds_unlift();
	return e == -ENOMEM ? -ESTALE : e ? e : fd;
}

/* As inode_fd_get, by the handle alone. */
static int get_by_handle(struct mount *m, struct inode *inode)
{
	pthread_mutex_t *stripe = fds_stripe(m, inode);

	pthread_mutex_lock(stripe);
	if (inode->fd < 0) {
		int fd = open_by_handle(inode, O_PATH | O_NOFOLLOW);
		if (fd < 0) {
			pthread_mutex_unlock(stripe);
			return fd;
		}
		fd_insert(m, inode, fd);
	}
	inode->fd_referenced = true;
	inode->fd_users++;
	int fd = inode->fd;
	pthread_mutex_unlock(stripe);
	return fd;
}

/* Look the name up where the inode was last seen: a handle may be stale though the file is there. Puts the descriptor in, if it is
 * the same file still. */
static int look_up_anew(struct mount *m, struct inode *inode)
{
	char name[FB_NAME_SIZE];
	struct inode *parent = inodes_get_held(m, inode_place(m, inode->nodeid, name));
	struct inode_key key = { 0 };
	int id, dir_fd = parent ? get_by_handle(m, parent) : -ESTALE;

	int fd = dir_fd < 0 ? -1 : openat(dir_fd, name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
	if (dir_fd >= 0)
		inode_fd_put(m, parent);
	inode_release(m, parent);
	if (fd < 0)
		return -ESTALE;
	if (!inode_key_of(fd, "", &key, &id) && id >= 0)
		key.mnt = backing_mount_find(m, id);
	if (!inode_is_of(inode, &key)) {
		close(fd);
		return -ESTALE;
	}
	inode_fd_adopt(m, inode, fd);
	return 0;
}

/**
 * The inode's O_PATH descriptor, opened again if it was closed; it stays open until inode_fd_put.
 * Returns the descriptor or -errno (ESTALE: the file is gone behind the mount).
 */
int inode_fd_get(struct mount *m, struct inode *inode)
{
	int fd = get_by_handle(m, inode);

	return fd == -ESTALE && !look_up_anew(m, inode) ? get_by_handle(m, inode) : fd;
}

void inode_fd_put(struct mount *m, struct inode *inode)
{
	pthread_mutex_t *stripe = fds_stripe(m, inode);

	pthread_mutex_lock(stripe);
	if (--inode->fd_users == 0 && inode->clock_index < 0 && !inode->fd_pinned)
		clock_insert(m, inode);
	pthread_mutex_unlock(stripe);
}

/**
 * Open a file of the backing root anew. By its handle, which takes half the time of its descriptor's path under /proc,
 * unless the last link may be gone, or the backing file system is to judge the caller.
 * Returns a descriptor that the caller closes, or -errno.
 */
int inode_open(struct mount *m, struct inode *inode, int flags)
{
	char path[PROC_PATH_SIZE];

	if (m->default_permissions) {
		int opened = open_by_handle(inode, flags);
		if (opened != -ESTALE)
			return opened;
	}
	int fd = inode_fd_get(m, inode);
	if (fd < 0)
		return fd;
	proc_path(path, fd);
	int opened = open(path, flags | O_CLOEXEC), e = opened < 0 ? -errno : 0;
	inode_fd_put(m, inode);
	return e ? e : opened;
}

/** Take over an O_PATH descriptor for an inode that has none; closes it if another thread was first. */
void inode_fd_adopt(struct mount *m, struct inode *inode, int fd)
{
	pthread_mutex_t *stripe = fds_stripe(m, inode);

	pthread_mutex_lock(stripe);
	if (inode->fd < 0)
		fd_insert(m, inode, fd);
	else
		close(fd);
	pthread_mutex_unlock(stripe);
}

/* Called with the inode's stripe held. */
static void close_locked(struct mount *m, struct inode *inode)
{
	struct fds *f = &m->fds;

	pthread_mutex_lock(&f->clock_lock);
	clock_remove(f, inode);
	pthread_mutex_unlock(&f->clock_lock);
	if (inode->fd >= 0)
		fd_close(f, inode);
}

/** Close the descriptor of an inode that nobody can reach any more. */
void inode_fd_drop(struct mount *m, struct inode *inode)
{
	pthread_mutex_lock(fds_stripe(m, inode));
	close_locked(m, inode);
	pthread_mutex_unlock(fds_stripe(m, inode));
}

/** The backing file system says that the descriptor is stale (ESTALE): get another one for the next try. */
void inode_fd_renew(struct mount *m, struct inode *inode)
{
	pthread_mutex_lock(fds_stripe(m, inode));
	if (!inode->fd_pinned && !inode->fd_users)
		close_locked(m, inode);
	pthread_mutex_unlock(fds_stripe(m, inode));
}

/** Keep the descriptor open for good: the last link is gone, and with it the way back by handle. Called between
 * inode_fd_get and inode_fd_put. */
void inode_fd_pin(struct mount *m, struct inode *inode)
{
	pthread_mutex_lock(fds_stripe(m, inode));
	inode->fd_pinned = true;
	pthread_mutex_lock(&m->fds.clock_lock);
	clock_remove(&m->fds, inode);
	pthread_mutex_unlock(&m->fds.clock_lock);
	pthread_mutex_unlock(fds_stripe(m, inode));
}

/** The file may have got a name, by link(2): then it is reached by its handle, and its descriptor need not stay. Looked at with
 * the lock held that inode_fd_pin takes, so that who takes the name away again comes before or after. Called between
 * inode_fd_get and inode_fd_put. */
void inode_fd_unpin(struct mount *m, struct inode *inode)
{
	struct stat st;

	pthread_mutex_lock(fds_stripe(m, inode));
	if (inode->fd_pinned && inode->mnt && inode->mnt->can_reopen && !fstat(inode->fd, &st) && st.st_nlink) {
		inode->fd_pinned = false;
		clock_insert(m, inode);
	}
	pthread_mutex_unlock(fds_stripe(m, inode));
}
