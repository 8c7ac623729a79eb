/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Open files and directories. Chunks are never moved or freed while the mount lives, so a lookup takes no lock.
 */
#include "core.h"

#include <sys/file.h>

void handles_init(struct mount *m)
{
	pthread_mutex_init(&m->handles.lock, NULL);
}

static void handle_close(struct mount *m, struct handle *h)
{
	passthrough_close(m, h);
	// The kernel's backing id may keep this very open file alive, and its lock with it.
	if (h->has_flock)
		flock(h->fd, LOCK_UN);
	if (h->fd >= 0)
		close(h->fd);
	if (h->holds_inode_fd)
		inode_fd_put(m, h->inode);
	daemon_entries_free(h);
	free(h->dir_buffer);
	h->dir_buffer = NULL;
	inode_release(m, h->inode);
	h->inode = NULL;
	atomic_fetch_sub(&m->handles.n_open, 1);
}

/** Close what is still open: the connection is gone. Before inodes_deinit. */
void handles_deinit(struct mount *m)
{
	struct handles *t = &m->handles;

	for (uint32_t c = 0; c < t->n_chunks; c++) {
		struct handle *chunk = atomic_load(&t->chunks[c]);
		for (int i = 0; i < HANDLES_PER_CHUNK; i++)
			if (chunk[i].is_used)
				handle_close(m, &chunk[i]);
		free(chunk);
		atomic_store(&t->chunks[c], NULL);
	}
	t->n_chunks = 0;
	t->free = NULL;
}

/* Called with the lock held. */
static bool handles_grow(struct handles *t)
{
	struct handle *chunk;

	if (t->n_chunks == MAX_HANDLE_CHUNKS || !(chunk = calloc(HANDLES_PER_CHUNK, sizeof(*chunk))))
		return false;
	for (uint32_t i = 0; i < HANDLES_PER_CHUNK; i++) {
		chunk[i].index = t->n_chunks * HANDLES_PER_CHUNK + i;
		chunk[i].next_free = t->free;
		pthread_mutex_init(&chunk[i].dir_lock, NULL);
		t->free = &chunk[i];
	}
	atomic_store(&t->chunks[t->n_chunks++], chunk);
	return true;
}

/** A handle that owns fd (-1: it is opened when an op needs it) and a reference on the inode. NULL: too many open files;
 * fd stays the caller's. */
struct handle *handle_create(struct mount *m, struct inode *inode, int fd, bool is_dir)
{
	struct handles *t = &m->handles;

	pthread_mutex_lock(&t->lock);
	struct handle *h = t->free || handles_grow(t) ? t->free : NULL;
	if (h)
		t->free = h->next_free;
	pthread_mutex_unlock(&t->lock);
	if (!h)
		return NULL;
	inode_hold(inode);
	h->generation++;
	h->fd = fd;
	h->is_dir = is_dir;
	h->is_passthrough = h->is_served = h->has_flock = h->holds_inode_fd = h->has_daemon = h->leaves_data = false;
	h->inode = inode;
	h->dir_at = h->dir_end = 0;
	h->dir_offset = 0;
	h->is_used = true;
	atomic_fetch_add(&m->handles.n_open, 1);
	return h;
}

void handle_destroy(struct mount *m, struct handle *h)
{
	struct handles *t = &m->handles;

	h->is_used = false;
	handle_close(m, h);
	pthread_mutex_lock(&t->lock);
	h->next_free = t->free;
	t->free = h;
	pthread_mutex_unlock(&t->lock);
}

uint64_t handle_number(const struct handle *h)
{
	return h->index | (uint64_t)h->generation << 32;
}

/** The handle of that number and kind, or NULL; its descriptor may not be open yet. */
struct handle *handle_find(struct mount *m, uint64_t fh, bool is_dir)
{
	uint32_t index = (uint32_t)fh;

	if (index / HANDLES_PER_CHUNK >= MAX_HANDLE_CHUNKS)
		return NULL;
	struct handle *chunk = atomic_load(&m->handles.chunks[index / HANDLES_PER_CHUNK]);
	if (!chunk)
		return NULL;
	struct handle *h = &chunk[index % HANDLES_PER_CHUNK];
	return h->is_used && h->is_dir == is_dir && h->generation == fh >> 32 ? h : NULL;
}

/* Open the file of a handle that was handed out without: it is read by the kernel, and nothing else asked for it so far. */
static int handle_open(struct mount *m, struct handle *h)
{
	char path[PROC_PATH_SIZE];
	int e = 0;

	pthread_mutex_lock(fds_stripe(m, h->inode));
	if (h->fd < 0) {
		proc_path(path, h->inode->fd);
		int fd = open(path, O_RDONLY | O_NOCTTY | O_CLOEXEC);
		e = fd < 0 ? errno : 0;
		atomic_store(&h->fd, fd);
	}
	pthread_mutex_unlock(fds_stripe(m, h->inode));
	return e;
}

/** The open handle of that number and kind. NULL with errno: EBADF, or why its file cannot be opened. */
struct handle *handle_get(struct mount *m, uint64_t fh, bool is_dir)
{
	struct handle *h = handle_find(m, fh, is_dir);
	int e = h ? 0 : EBADF;

	if (h && atomic_load_explicit(&h->fd, memory_order_acquire) < 0)
		e = h->holds_inode_fd ? handle_open(m, h) : EOPNOTSUPP; // a node of the daemon's has no file
	errno = e;
	return e ? NULL : h;
}

/* ------------------------------------------------------------------------- where opens are not sent */

/* Open a file for one request. Nobody may write to an append-only one but with O_APPEND. */
static int open_once(struct mount *m, struct inode *inode, int access)
{
	int fd = inode_open(m, inode, access | O_NOCTTY | O_CLOEXEC);

	if (fd != -EPERM || access == O_RDONLY)
		return fd;
	fd = inode_open(m, inode, access | O_APPEND | O_CLOEXEC);
	atomic_store(&inode->is_append_only, fd >= 0);
	return fd;
}

/**
 * The open handle of a file by its number. With profile=small there is none where the kernel did not open the file by CREATE: its
 * number is 0, and the request gets one of its own, with that access (O_RDONLY, O_WRONLY).
 *
 * NULL with errno: EBADF, or why the file cannot be opened.
 */
struct handle *handle_of(struct request *rq, struct inode *inode, uint64_t fh, int access)
{
	struct mount *m = rq->mount;

	if (fh || !m->is_small || !inode)
		return handle_get(m, fh, false);
	for (uint32_t i = 0; i < rq->n_own; i++) // the op is tried once more
		if (rq->own[i].h->inode == inode && rq->own[i].access == access)
			return rq->own[i].h;
	int fd = rq->n_own == 2 ? -EIO : open_once(m, inode, access);
	if (fd < 0) {
		errno = -fd;
		return NULL;
	}
	struct handle *h = handle_create(m, inode, fd, false);
	if (!h) {
		close(fd);
		errno = ENFILE;
		return NULL;
	}
	rq->own[rq->n_own].access = access;
	rq->own[rq->n_own++].h = h;
	return h;
}

/** The request is answered: close what it had for itself. */
void handles_end(struct request *rq)
{
	while (rq->n_own)
		handle_destroy(rq->mount, rq->own[--rq->n_own].h);
}
