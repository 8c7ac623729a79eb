/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Locks on the backing root, visible to programs there. flock(2)'s belong to the open file, so to the handle's
 * descriptor. Those of ranges belong to an owner that the kernel names: each owner has one descriptor per inode and holds
 * open-file-description locks on it (fcntl(2), F_OFD_SETLK). They go with FLUSH of that owner, which comes at each
 * close(2), and with RELEASE of the handle that they were taken by: an open file's own (OFD) locks see no FLUSH.
 * Lock: mount.locks_lock guards the lists; nobody blocks while holding it.
 */
#include "core.h"

#include <sys/file.h>

/* For how long a refused lock is tried again that may be on its way: since a close that was told of; else in all. */
#define CLOSE_MS 1000
#define CLOSE_US 20000
#define UNTOLD_US 1000
#define FIRST_US 20
#define PARK_US 160

/* ------------------------------------------------------------------------------- owners */

/* Called with locks_lock held. */
static void owner_put(struct mount *m, struct lock_owner *o)
{
	if (--o->refs)
		return;
	close(o->fd); // its locks go with it
	free(o->ranges);
	free(o);
	atomic_fetch_sub(&m->n_lock_owners, 1);
}

static struct lock_owner *owner_find(struct inode *inode, uint64_t owner)
{
	struct lock_owner *o = atomic_load(&inode->locks);

	while (o && o->owner != owner)
		o = o->next;
	return o;
}

static struct lock_owner *owner_create(struct mount *m, struct inode *inode, uint64_t owner)
{
	char path[PROC_PATH_SIZE];
	struct lock_owner *o = calloc(1, sizeof(*o));
	int fd = inode_fd_get(m, inode);

	if (!o || fd < 0) {
		free(o);
		if (fd >= 0)
			inode_fd_put(m, inode);
		return NULL;
	}
	proc_path(path, fd);
	creds_lift(); // the caller has the file open, whatever he may by now
	// Without O_NONBLOCK a lease would hold us, and with us all who want a lock.
	o->fd = open(path, O_RDWR | O_CLOEXEC | O_NONBLOCK);
	if (o->fd < 0 && errno == EPERM) // it is append-only
		o->fd = open(path, O_RDWR | O_APPEND | O_CLOEXEC | O_NONBLOCK);
	if (o->fd < 0) // a read-only file system, a program that runs: then only read locks
		o->fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	creds_unlift();
	inode_fd_put(m, inode);
	if (o->fd < 0) {
		free(o);
		return NULL;
	}
	o->owner = owner;
	o->refs = 1;
	o->next = atomic_load(&inode->locks);
	atomic_store(&inode->locks, o);
	atomic_fetch_add(&m->n_lock_owners, 1);
	return o;
}

/* The owner's entry with a reference; made if asked for. NULL: there is none, or it cannot be made. */
static struct lock_owner *owner_get(struct mount *m, struct inode *inode, uint64_t owner, bool make)
{
	pthread_mutex_lock(&m->locks_lock);
	struct lock_owner *o = owner_find(inode, owner);
	if (!o && make)
		o = owner_create(m, inode, owner);
	if (o)
		o->refs++;
	pthread_mutex_unlock(&m->locks_lock);
	return o;
}

/* Called with locks_lock held. */
static void owner_unlink(struct mount *m, struct inode *inode, struct lock_owner *o)
{
	struct lock_owner *before = atomic_load(&inode->locks);

	if (before == o) {
		atomic_store(&inode->locks, o->next);
	} else {
		while (before && before->next != o)
			before = before->next;
		if (!before)
			return; // another thread was first
		before->next = o->next;
	}
	owner_put(m, o);
}

static struct flock to_flock(const struct fb_lock *args)
{
	// The kernel's OFFSET_MAX is "to the end", which fcntl(2) writes as length 0.
	return (struct flock){ .l_type = (short)args->type,
			       .l_whence = SEEK_SET,
			       .l_start = (off_t)args->start,
			       .l_len = args->end >= INT64_MAX ? 0 : (off_t)(args->end - args->start + 1) };
}

/* Called with locks_lock held. */
static void owner_unlock(struct lock_owner *o, uint64_t start, uint64_t end)
{
	struct flock lock = to_flock(&(struct fb_lock){ .type = F_UNLCK, .start = start, .end = end });

	fcntl(o->fd, F_OFD_SETLK, &lock);
}

/* Called with locks_lock held. */
static bool has_locks_by(const struct inode *inode, uint64_t fh)
{
	for (struct lock_owner *o = atomic_load(&inode->locks); o; o = o->next)
		for (uint32_t i = 0; i < o->n_ranges; i++)
			if (o->ranges[i].fh == fh)
				return true;
	return false;
}

/** A process closed a descriptor of the file: its locks on it are gone (fcntl(2)), and if it was the last one of an open
 * file, so will be those of that. */
void locks_flush(struct mount *m, struct inode *inode, const struct fb_flush *args)
{
	struct handle *h = handle_find(m, args->fh, false);
	bool has_more = h && h->has_flock;

	if (atomic_load(&inode->locks)) {
		pthread_mutex_lock(&m->locks_lock);
		struct lock_owner *o = owner_find(inode, args->lock_owner);
		if (o && o->refs > 1) { // a thread of it waits for a lock, and is to have that one
			owner_unlock(o, 0, INT64_MAX);
			o->n_ranges = 0;
		} else if (o) {
			owner_unlink(m, inode, o);
		}
		has_more |= has_locks_by(inode, args->fh);
		pthread_mutex_unlock(&m->locks_lock);
	}
	if (!h || !has_more)
		return;
	atomic_store(&inode->closing_ms, now_ms()); // before it counts
	if (!atomic_exchange(&h->is_closing, true))
		atomic_fetch_add(&h->inode->n_closing, 1);
}

/* Called with locks_lock held. */
static void owner_release_handle(struct lock_owner *o, uint64_t fh)
{
	for (uint32_t i = 0; i < o->n_ranges;) {
		if (o->ranges[i].fh != fh) {
			i++;
			continue;
		}
		owner_unlock(o, o->ranges[i].start, o->ranges[i].end);
		o->ranges[i] = o->ranges[--o->n_ranges];
	}
}

/** An open file is gone, and with it the locks that were taken by it; but not those of the next one, which the kernel may
 * have given the same owner before it tells of this. */
void locks_release_handle(struct mount *m, struct inode *inode, uint64_t fh)
{
	if (!atomic_load(&inode->locks))
		return;
	pthread_mutex_lock(&m->locks_lock);
	for (struct lock_owner *o = atomic_load(&inode->locks); o;) {
		struct lock_owner *next = o->next;
		owner_release_handle(o, fh);
		if (!o->n_ranges && o->refs == 1)
			owner_unlink(m, inode, o);
		o = next;
	}
	pthread_mutex_unlock(&m->locks_lock);
}

/* ------------------------------------------------------------------------------- ranges */

/* Make room for what the ops under way may add: each cuts at most one range in two, and adds one. */
static bool ranges_reserve(struct mount *m, struct lock_owner *o)
{
	pthread_mutex_lock(&m->locks_lock);
	uint32_t needed = o->n_ranges + 2 * o->refs;
	if (needed > o->capacity) {
		struct lock_range *bigger = realloc(o->ranges, 2 * needed * sizeof(*bigger));
		if (bigger) {
			o->ranges = bigger;
			o->capacity = 2 * needed;
		}
	}
	bool is_there = needed <= o->capacity;
	pthread_mutex_unlock(&m->locks_lock);
	return is_there;
}

/* Note that the owner locked or unlocked a range: what overlapped is cut. */
static void ranges_note(struct mount *m, struct lock_owner *o, const struct fb_lock *args, uint32_t pid)
{
	pthread_mutex_lock(&m->locks_lock);
	for (uint32_t i = 0; i < o->n_ranges;) {
		struct lock_range old = o->ranges[i];
		if (old.end < args->start || old.start > args->end) {
			i++;
			continue;
		}
		o->ranges[i] = o->ranges[--o->n_ranges];
		if (old.start < args->start)
			o->ranges[o->n_ranges++] =
				(struct lock_range){ old.start, args->start - 1, old.fh, old.type, old.pid };
		if (old.end > args->end)
			o->ranges[o->n_ranges++] =
				(struct lock_range){ args->end + 1, old.end, old.fh, old.type, old.pid };
	}
	if (args->type != F_UNLCK)
		o->ranges[o->n_ranges++] =
			(struct lock_range){ args->start, args->end, args->fh, args->type, pid };
	pthread_mutex_unlock(&m->locks_lock);
}

/* Who of ours holds the lock at `start`? Its pid, or 0. */
static uint32_t holder_at(struct mount *m, struct inode *inode, uint64_t owner, uint64_t start)
{
	uint32_t pid = 0;

	pthread_mutex_lock(&m->locks_lock);
	for (struct lock_owner *o = atomic_load(&inode->locks); o && !pid; o = o->next)
		for (uint32_t i = 0; o->owner != owner && i < o->n_ranges; i++)
			if (o->ranges[i].start <= start && start <= o->ranges[i].end)
				pid = o->ranges[i].pid;
	pthread_mutex_unlock(&m->locks_lock);
	return pid;
}

/* ----------------------------------------------------------------------------------- ops */

int op_getlk(struct request *rq)
{
	struct mount *m = rq->mount;
	const struct fb_lock *args = &rq->image->args.lock;
	struct flock lock = to_flock(args);
	struct lock_owner *o = owner_get(m, rq->inode, args->owner, false);
	struct handle *h = handle_get(m, args->fh, false);

	if (!o && !h)
		return -errno;
	int e = fcntl(o ? o->fd : h->fd, F_OFD_GETLK, &lock) < 0 ? -errno : 0;
	if (o) {
		pthread_mutex_lock(&m->locks_lock);
		owner_put(m, o);
		pthread_mutex_unlock(&m->locks_lock);
	}
	if (e)
		return e;
	memset(&rq->out.lock, 0, sizeof(rq->out.lock));
	rq->out.lock.lk.type = (uint32_t)lock.l_type;
	if (lock.l_type != F_UNLCK) {
		uint64_t start = (uint64_t)lock.l_start;
		rq->out.lock.lk.start = start;
		rq->out.lock.lk.end = lock.l_len ? start + (uint64_t)lock.l_len - 1 : INT64_MAX;
		rq->out.lock.lk.pid = lock.l_pid > 0 ? (uint32_t)lock.l_pid
						     : holder_at(m, rq->inode, args->owner, start);
	}
	rq->reply = &rq->out.lock;
	rq->reply_len = sizeof(rq->out.lock);
	return 0;
}

/** A close(2) closes also where it fails or is cut short: the locks of who closed go, or who waits for them would until all that have
 * the file open are gone. Not where a filter refused it. */
void locks_flush_failed(struct request *rq)
{
	if (rq->op->canonical == FB_OP_flush && rq->error && rq->route != FB_ROUTE_REPLY)
		locks_flush(rq->mount, rq->inode, &rq->image->args.flush);
}

/**
 * The errno in place of an EINTR that no signal of the caller's is the reason of. At the end of the mount programs would try again,
 * and be answered by what lies below it. And of a lock op's EINTR the kernel makes ERESTARTSYS, which without a signal would be what
 * the caller gets: errno 512.
 *
 * Source: fs/fuse/file.c: fuse_setlk.
 */
int eintr_without_signal(const struct request *rq)
{
	bool is_lock = rq->op->canonical == FB_OP_setlk || rq->op->canonical == FB_OP_flock;

	if (atomic_load(&rq->worker->interrupted) == rq->in->unique)
		return EINTR;
	return request_is_interrupted(rq) ? ENOTCONN : is_lock ? EIO : EINTR;
}

typedef int attempt_fn(int fd, const struct fb_lock *args, bool waits);

static bool is_refused(int e)
{
	return e == -EAGAIN || e == -EACCES;
}

/* May the lock that is in the way be one of an open file that is closed? The kernel tells of that (RELEASE) when close(2) has
 * returned. It begins with FLUSH, which does not come where locks of ranges are the kernel's own. */
static bool may_go_now(const struct request *rq, int64_t closing_ms, unsigned int waited_us)
{
	if (!rq->mount->wants_backing_locks)
		return waited_us < UNTOLD_US;
	return waited_us < CLOSE_US && atomic_load(&rq->inode->n_closing) && now_ms() < closing_ms + CLOSE_MS;
}

static int attempt_at_once(struct request *rq, attempt_fn *attempt, int fd)
{
	const struct fb_lock *args = &rq->image->args.lock;
	int64_t closing_ms = atomic_load(&rq->inode->closing_ms);

	for (unsigned int us = FIRST_US, waited_us = 0;; us *= 2) {
		bool may_go = may_go_now(rq, closing_ms, waited_us); // before it is tried, which comes after RELEASE then
		int e = attempt(fd, args, false);
		if (!is_refused(e) || !may_go)
			return e;
		if (us >= PARK_US && !worker_park(rq->worker, MAX_LOCK_WAITERS))
			return e; // nobody else might be there to serve the RELEASE
		usleep(us);
		waited_us += us;
		if (waited_us >= CLOSE_US) // nobody waits for the same close again
			atomic_compare_exchange_strong(&rq->inode->closing_ms, &closing_ms, 0);
	}
}

/* Take a lock with `attempt`; where another holds it and the caller wants to wait, the worker steps aside meanwhile. */
static int lock_or_wait(struct request *rq, attempt_fn *attempt, int fd)
{
	const struct fb_lock *args = &rq->image->args.lock;

	if (!(args->flags & FB_LOCK_WAITS))
		return attempt_at_once(rq, attempt, fd);
	int e = attempt(fd, args, false);
	if (!is_refused(e))
		return e;
	if (!worker_park(rq->worker, MAX_LOCK_WAITERS))
		return -ENOLCK; // it would wait in place of those who can end it
	do {
		e = request_is_interrupted(rq) ? -EINTR : attempt(fd, args, true);
	} while (e == -EINTR && !request_is_interrupted(rq));
	return e;
}

static int attempt_range(int fd, const struct fb_lock *args, bool waits)
{
	struct flock lock = to_flock(args);

	return fcntl(fd, waits ? F_OFD_SETLKW : F_OFD_SETLK, &lock) < 0 ? -errno : 0;
}

int op_setlk(struct request *rq)
{
	struct mount *m = rq->mount;
	const struct fb_lock *args = &rq->image->args.lock;
	struct lock_owner *o = owner_get(m, rq->inode, args->owner, args->type != F_UNLCK);

	if (!o)
		return args->type == F_UNLCK ? 0 : -ENOLCK;
	int e = ranges_reserve(m, o) ? lock_or_wait(rq, attempt_range, o->fd) : -ENOLCK;
	if (!e)
		ranges_note(m, o, args, rq->in->pid);
	pthread_mutex_lock(&m->locks_lock);
	if (!o->n_ranges && o->refs == 2) // in the list, and ours: it holds nothing any more
		owner_unlink(m, rq->inode, o);
	owner_put(m, o);
	pthread_mutex_unlock(&m->locks_lock);
	return e;
}

int op_setlkw(struct request *rq)
{
	return op_setlk(rq);
}

static int attempt_flock(int fd, const struct fb_lock *args, bool waits)
{
	int how = args->type == F_UNLCK ? LOCK_UN : args->type == F_WRLCK ? LOCK_EX : LOCK_SH;

	return flock(fd, how | (waits ? 0 : LOCK_NB)) < 0 ? -errno : 0;
}

int op_flock(struct request *rq)
{
	struct handle *h = handle_get(rq->mount, rq->image->args.lock.fh, false);

	if (!h && errno == EBADF) // else it is one whose file cannot be opened
		h = handle_get(rq->mount, rq->image->args.lock.fh, true);
	if (!h)
		return -errno;
	h->has_flock = true;
	return lock_or_wait(rq, attempt_flock, h->fd);
}
