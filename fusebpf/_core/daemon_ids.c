/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The numbers of inodes and handles, both ways. A daemon numbers its own inodes as it likes; what it has not numbered it
 * is shown with a high bit, so that neither can be taken for the other. Any worker, and Python's thread.
 */
#include "core.h"

#define GENERATION_MASK 0x1fffffffu

/** Our number for an inode with a backing, 0 for one without. */
uint64_t daemon_number_of(const struct inode *inode)
{
	if (inode->nodeid == ROOT_NODEID)
		return ROOT_NODEID;
	return inode->is_virtual ? 0 : DAEMON_OURS | inode->nodeid;
}

/** What the daemon knows an inode by: its own number, if it gave it one. */
uint64_t daemon_id_of(const struct inode *inode)
{
	uint64_t own = __atomic_load_n(&inode->daemon_id, __ATOMIC_RELAXED);

	return own ? own : daemon_number_of(inode);
}

/** Our number for a handle. */
uint64_t daemon_handle_number(const struct handle *h)
{
	return DAEMON_OUR_HANDLE | h->index | (uint64_t)(h->generation & GENERATION_MASK) << 32;
}

/** What the daemon knows a handle by: what it opened itself by its own number. */
uint64_t daemon_fh_of(const struct handle *h)
{
	return h->has_daemon ? h->daemon_fh : daemon_handle_number(h);
}

/* The inode by a number that we gave out, with a reference. */
static struct inode *inode_of_ours(struct mount *m, uint64_t id)
{
	if (id != ROOT_NODEID && id >> 61 != DAEMON_OURS >> 61)
		return NULL;
	struct inode *inode = inodes_get_held(m, id & ~DAEMON_OURS);
	if (inode && inode->is_virtual) {
		inode_release(m, inode);
		return NULL;
	}
	return inode;
}

static int enter_at(struct mount *m, struct inode *dir, uint32_t root, const char *name, struct inode **inode);

/* A daemon that numbers its inodes as the backing file system does means the backing's. NULL: there is no such entry. */
static struct inode *backing_namesake(struct request *rq, uint64_t id, uint32_t type, const char *name)
{
	struct inode *inode;
	struct stat st;
	int dir_fd = rq->inode->is_virtual ? -1 : parent_fd_get(rq, rq->inode);

	if (dir_fd < 0)
		return NULL;
	bool is_same = !fstatat(dir_fd, name, &st, AT_SYMLINK_NOFOLLOW) && st.st_ino == id && (st.st_mode & S_IFMT) == type;
	parent_fd_put(rq, rq->inode, dir_fd);
	if (!is_same || enter_at(rq->mount, rq->inode, entry_root(rq), name, &inode))
		return NULL;
	inodes_pair(rq->mount, inode, id);
	return inode;
}

/**
 * The inode that the daemon means in an answer, counted once for the kernel and once for the daemon's share. A number of
 * its own that is new becomes a node without a backing. Returns 0, or -EPROTO where there can be no such inode.
 */
int daemon_inode_of(struct request *rq, uint64_t id, uint32_t mode, const char *name, struct inode **out)
{
	struct mount *m = rq->mount;
	uint32_t type = mode & S_IFMT;
	struct inode *inode;

	if (id >= DAEMON_OURS) {
		inode = inode_of_ours(m, id);
		int e = inode && inode->type == type ? inodes_count(m, inode) : -EPROTO;
		if (!e)
			inode_moved(m, inode, rq->inode, name);
		inode_release(m, inode);
		*out = inode;
		return e;
	}
	if (id == 0 || id == ROOT_NODEID || !type)
		return -EPROTO;
	if ((*out = backing_namesake(rq, id, type, name)))
		return 0;
	int e = inodes_enter_virtual(m, id, type, rq->inode, name, &inode);
	if (!e && inode->type != type) {
		inodes_forget(m, inode, 1);
		e = -EPROTO;
	}
	*out = inode;
	return e;
}

static struct handle *handle_of_ours(struct mount *m, uint64_t number)
{
	uint32_t index = (uint32_t)number, generation = (uint32_t)(number >> 32) & GENERATION_MASK;

	if (index / HANDLES_PER_CHUNK >= MAX_HANDLE_CHUNKS)
		return NULL;
	struct handle *chunk = atomic_load(&m->handles.chunks[index / HANDLES_PER_CHUNK]);
	struct handle *h = chunk ? &chunk[index % HANDLES_PER_CHUNK] : NULL;
	return h && h->is_used && (h->generation & GENERATION_MASK) == generation ? h : NULL;
}

static int backing_fd(struct mount *m, uint64_t number)
{
	if (number >> 61 == DAEMON_OUR_HANDLE >> 61) {
		struct handle *h = handle_of_ours(m, number);
		int fd = h && h->fd >= 0 ? fcntl(h->fd, F_DUPFD_CLOEXEC, 0) : -1;
		return fd < 0 ? -EBADF : fd;
	}
	struct inode *inode = inode_of_ours(m, number);
	if (!inode)
		return -EBADF;
	int fd = inode_fd_get(m, inode), copy = fd;
	if (fd >= 0) {
		copy = fcntl(fd, F_DUPFD_CLOEXEC, 0);
		copy = copy < 0 ? -errno : copy;
		inode_fd_put(m, inode);
	}
	inode_release(m, inode);
	return copy;
}

/** A descriptor, the caller's own, of the backing file behind a number that we gave out: of an inode O_PATH, of a handle
 * as it was opened. Or -errno: EBADF, there is no backing file behind it; ENOTCONN, the mount has stopped. */
int daemon_backing_fd(struct mount *m, uint64_t number)
{
	pthread_mutex_lock(&m->daemon->backing_lock);
	int fd = m->daemon->is_stopped ? -ENOTCONN : backing_fd(m, number);
	pthread_mutex_unlock(&m->daemon->backing_lock);
	return fd;
}

/* Remember that a call has looked an inode up. */
static bool call_holds(struct daemon *d, uint32_t token, struct inode *inode)
{
	struct daemon_waiter *w = &d->waiters[token & (DAEMON_N_CALLS - 1)];
	bool holds = false;

	pthread_mutex_lock(&d->lock);
	if (d->calls[token & (DAEMON_N_CALLS - 1)].token == token && w->state == CALL_WAITING && w->worker) {
		struct inode **more = realloc(w->held, (w->n_held + 1) * sizeof(*more));
		holds = more;
		if (more) {
			more[w->n_held++] = inode;
			w->held = more;
		}
	}
	pthread_mutex_unlock(&d->lock);
	return holds;
}

static int enter_at(struct mount *m, struct inode *dir, uint32_t root, const char *name, struct inode **inode)
{
	struct stat st;
	int dir_fd = directory_fd_get(m, dir, root);

	if (dir_fd < 0)
		return dir_fd;
	int fd = openat(dir_fd, name, O_PATH | O_NOFOLLOW | O_CLOEXEC), e = fd < 0 ? -errno : 0;
	directory_fd_put(m, dir, dir_fd);
	if (e)
		return e;
	if (fstat(fd, &st) < 0) {
		e = -errno;
		close(fd);
		return e;
	}
	e = inodes_enter(m, fd, st.st_mode & S_IFMT, 0, dir, name, true, inode);
	if (!e)
		(*inode)->root = (uint8_t)root;
	return e;
}

/* The root that names in a directory are in: where a filter has led the call's op, for the op's own directory. */
static uint32_t call_root(struct daemon *d, uint32_t token, uint64_t parent, const struct inode *dir)
{
	const struct daemon_call *call = &d->calls[token & (DAEMON_N_CALLS - 1)];

	pthread_mutex_lock(&d->lock);
	bool is_led = call->token == token && call->our_nodeid == parent;
	uint32_t root = is_led ? d->waiters[token & (DAEMON_N_CALLS - 1)].root : dir->root;
	pthread_mutex_unlock(&d->lock);
	return root;
}

static int hold(struct mount *m, uint32_t token, uint64_t parent, const char *name, uint64_t *id)
{
	struct inode *dir = inode_of_ours(m, parent), *inode;
	int e = dir && dir->type == S_IFDIR ? 0 : -ENOTDIR;

	if (!*name || strchr(name, '/') || !strcmp(name, ".") || !strcmp(name, ".."))
		e = -EINVAL;
	if (!e)
		e = enter_at(m, dir, call_root(m->daemon, token, parent, dir), name, &inode);
	inode_release(m, dir);
	if (e)
		return e;
	*id = daemon_id_of(inode);
	if (call_holds(m->daemon, token, inode))
		return 0;
	inodes_forget(m, inode, 1);
	return -ECANCELED;
}

/** Look a name up on the backing root for a handler: *id is what it may answer with while its call lasts. 0 or -errno. */
int daemon_hold(struct mount *m, uint32_t token, uint64_t parent, const char *name, uint64_t *id)
{
	pthread_mutex_lock(&m->daemon->backing_lock);
	int e = m->daemon->is_stopped ? -ENOTCONN : hold(m, token, parent, name, id);
	pthread_mutex_unlock(&m->daemon->backing_lock);
	return e;
}
