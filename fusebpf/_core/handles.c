/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Open files and directories. Chunks are never moved or freed while the mount lives, so a lookup takes no lock.
 */
#include "core.h"

#include <sched.h>
#include <sys/file.h>

void handles_init(struct mount *m)
{
	for (int i = 0; i < N_HANDLE_LISTS; i++)
		pthread_mutex_init(&m->handles.lists[i].lock, NULL);
	for (int i = 0; i < N_SHARDS; i++)
		pthread_cond_init(&m->handles.returned[i], NULL);
}

/* The list of this core, or of any. */
static struct handle_list *list_here(struct handles *t)
{
	return &t->lists[(uint32_t)sched_getcpu() % N_HANDLE_LISTS];
}

/** How many are open. The lists are not read at one moment: one that is opened on a core and closed on another meanwhile may be
 * taken off alone. */
uint32_t handles_n_open(const struct mount *m)
{
	uint32_t n = 0;

	for (int i = 0; i < N_HANDLE_LISTS; i++)
		n += m->handles.lists[i].n_open;
	return (int32_t)n < 0 ? 0 : n;
}

static void handle_close(struct mount *m, struct handle *h)
{
	passthrough_close(m, h);
	// The kernel's backing id may keep this very open file alive, and its lock with it.
	if (h->has_flock)
		flock(h->fd, LOCK_UN);
	if (h->is_closing)
		atomic_fetch_sub(&h->inode->n_closing, 1);
	if (h->fd >= 0)
		close(h->fd);
	if (h->holds_inode_fd)
		inode_fd_put(m, h->inode);
	daemon_entries_free(h);
	free(h->dir_buffer);
	h->dir_buffer = NULL;
	inode_release(m, h->inode);
	h->inode = NULL;
	atomic_fetch_sub_explicit(&list_here(&m->handles)->n_open, 1, memory_order_relaxed);
}

/** Close what is still open: the connection is gone. Before inodes_deinit. */
void handles_deinit(struct mount *m)
{
	struct handles *t = &m->handles;

	for (uint32_t c = 0; c < t->n_chunks; c++) {
		struct handle *chunk = atomic_load(&t->chunks[c]);
		for (int i = 0; i < HANDLES_PER_CHUNK; i++) {
			if (!chunk[i].is_used)
				continue;
			locks_release_handle(m, chunk[i].inode, handle_number(&chunk[i]));
			handle_close(m, &chunk[i]);
		}
		free(chunk);
		atomic_store(&t->chunks[c], NULL);
	}
	t->n_chunks = 0;
	for (int i = 0; i < N_HANDLE_LISTS; i++)
		t->lists[i].free = NULL;
}

/* More free handles for a list. Called with its lock held. */
static bool list_grow(struct handles *t, struct handle_list *list)
{
	struct handle *chunk = calloc(HANDLES_PER_CHUNK, sizeof(*chunk));
	uint32_t number = atomic_load(&t->n_chunks);

	while (chunk && number < MAX_HANDLE_CHUNKS && !atomic_compare_exchange_weak(&t->n_chunks, &number, number + 1))
		continue;
	if (!chunk || number == MAX_HANDLE_CHUNKS) {
		free(chunk);
		return false;
	}
	for (uint32_t i = 0; i < HANDLES_PER_CHUNK; i++) {
		chunk[i].index = number * HANDLES_PER_CHUNK + i;
		chunk[i].next_free = list->free;
		pthread_mutex_init(&chunk[i].dir_lock, NULL);
		list->free = &chunk[i];
	}
	atomic_store(&t->chunks[number], chunk);
	return true;
}

/* What is opened on one core may be closed on another: take over what gathered there. Called with the list's lock held. */
static bool list_take_over(struct handles *t, struct handle_list *list)
{
	for (int i = 0; i < N_HANDLE_LISTS && !list->free; i++) {
		struct handle_list *other = &t->lists[i];
		if (other == list || pthread_mutex_trylock(&other->lock))
			continue;
		list->free = other->free;
		other->free = NULL;
		pthread_mutex_unlock(&other->lock);
	}
	return list->free;
}

static bool list_fill(struct handles *t, struct handle_list *list)
{
	return list->free || list_take_over(t, list) || list_grow(t, list);
}

/** A handle that owns fd (-1: it is opened when an op needs it) and a reference on the inode. NULL: too many open files;
 * fd stays the caller's. */
struct handle *handle_create(struct mount *m, struct inode *inode, int fd, bool is_dir)
{
	struct handle_list *list = list_here(&m->handles);

	pthread_mutex_lock(&list->lock);
	struct handle *h = list_fill(&m->handles, list) ? list->free : NULL;
	if (h)
		list->free = h->next_free;
	pthread_mutex_unlock(&list->lock);
	if (!h)
		return NULL;
	fds_make_room(m, fd);
	inode_hold(inode);
	h->generation++;
	h->fd = fd;
	h->is_dir = is_dir;
	h->is_passthrough = h->is_served = h->has_flock = h->holds_inode_fd = h->has_daemon = h->appends = h->leaves_data =
		h->is_cached = h->is_copied = h->is_closing = false;
	h->inode = inode;
	h->dir_at = h->dir_end = 0;
	h->dir_offset = 0;
	h->listed_ttl_ns = 0;
	h->is_used = true;
	atomic_fetch_add_explicit(&list->n_open, 1, memory_order_relaxed);
	return h;
}

void handle_destroy(struct mount *m, struct handle *h)
{
	if (m->daemon) // which may ask for the file of a handle whenever it likes: not while the descriptor goes to another
		pthread_mutex_lock(&m->daemon->backing_lock);
	h->is_used = false;
	if (m->daemon)
		pthread_mutex_unlock(&m->daemon->backing_lock);
	handle_close(m, h);
	struct handle_list *list = list_here(&m->handles);
	pthread_mutex_lock(&list->lock);
	h->next_free = list->free;
	list->free = h;
	pthread_mutex_unlock(&list->lock);
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
	int fd = inode_open(m, h->inode, O_RDONLY | O_NOCTTY), none = -1;

	if (fd >= 0 && !atomic_compare_exchange_strong(&h->fd, &none, fd))
		close(fd); // another op was first
	return fd < 0 ? -fd : 0;
}

/** Has it a file of the backing root? One that was handed out without is opened. */
bool handle_has_file(struct mount *m, struct handle *h)
{
	return atomic_load_explicit(&h->fd, memory_order_acquire) >= 0 || (h->holds_inode_fd && !handle_open(m, h));
}

/** One who has the regular file open, whose descriptor stays until opened_put; NULL: nobody is known to. It spares the inode a
 * descriptor of its own, and is one for calls that take no O_PATH. */
struct handle *opened_get(struct mount *m, struct inode *inode)
{
	if (!inode->opened)
		return NULL;
	pthread_mutex_lock(fds_stripe(m, inode));
	struct handle *h = inode->opened;
	if (h)
		h->n_borrowed++;
	pthread_mutex_unlock(fds_stripe(m, inode));
	return h;
}

static pthread_cond_t *returned(struct mount *m, const struct handle *h)
{
	return &m->handles.returned[h->inode->nodeid % N_SHARDS];
}

void opened_put(struct mount *m, struct handle *h)
{
	pthread_mutex_t *stripe = fds_stripe(m, h->inode);

	pthread_mutex_lock(stripe);
	if (!--h->n_borrowed)
		pthread_cond_broadcast(returned(m, h));
	pthread_mutex_unlock(stripe);
}

/** It is about to be closed, and nobody finds it any more: wait for those who did. Called with the inode's stripe held, which is let
 * go meanwhile. */
void opened_wait(struct mount *m, struct handle *h)
{
	while (h->n_borrowed)
		pthread_cond_wait(returned(m, h), fds_stripe(m, h->inode));
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

/* Open the file of an inode for one request. Nobody may write to an append-only one but with O_APPEND. */
static int open_once(struct mount *m, struct inode *inode, int flags)
{
	int fd = inode_open(m, inode, flags);

	if (fd != -EPERM || !(flags & O_WRONLY))
		return fd;
	fd = inode_open(m, inode, flags | O_APPEND);
	atomic_store(&inode->is_append_only, fd >= 0);
	return fd;
}

/* A handle of the request's own, which handles_end closes. */
static struct handle *handle_of_request(struct request *rq, struct inode *inode, int flags)
{
	bool is_dir = flags & O_DIRECTORY;
	int fd = -EBADF;

	if (inode && inode->type == (is_dir ? S_IFDIR : S_IFREG) && rq->n_own < MAX_OWN_HANDLES)
		fd = open_once(rq->mount, inode, flags);
	if (fd < 0) {
		errno = -fd;
		return NULL;
	}
	struct handle *h = &rq->own[rq->n_own++];
	*h = (struct handle){ .fd = fd, .is_used = true, .is_dir = is_dir, .inode = inode };
	pthread_mutex_init(&h->dir_lock, NULL);
	return h;
}

/**
 * The open handle of that number: of a directory with O_DIRECTORY among the flags, else of a file.
 *
 * With profile=small the kernel opens nothing, and its requests have the number 0, which no handle has: then the file of
 * `inode` is opened for this request, with those flags. NULL with errno: EBADF, or why it cannot be opened.
 */
struct handle *handle_of(struct request *rq, struct inode *inode, uint64_t fh, int flags)
{
	if (fh || !rq->mount->is_small)
		return handle_get(rq->mount, fh, flags & O_DIRECTORY);
	return handle_of_request(rq, inode, flags);
}

/**
 * The op ran: close what it opened for itself. Before the reply, so that the caller finds it closed: a program that was
 * written can be run, the space of a file that is removed is free.
 *
 * Returns 0 or -errno: a network file system may tell of a failed write only now, and there is no FLUSH to tell it by.
 */
int handles_end(struct request *rq)
{
	int e = 0;

	while (rq->n_own) {
		struct handle *h = &rq->own[--rq->n_own];
		if (close(h->fd) < 0 && errno != EINTR)
			e = -errno;
		free(h->dir_buffer);
		pthread_mutex_destroy(&h->dir_lock);
	}
	return e;
}
