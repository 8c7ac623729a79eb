/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Kernel passthrough of file data: how the data of each open goes. The kernel's rule (fs/fuse/iomode.c): while one
 * passthrough open of an inode lives, every other open of it must be passthrough with the same id; while an open
 * lives that is served, a passthrough open fails. The fields are under the inode's fd stripe.
 */
#include "core.h"

/* How long an open waits for the RELEASE of one that it cannot stand beside. */
#define RELEASE_MS 250

static bool data_is_hooked(const struct chain *c)
{
	return c && (chain_hooks(c, FB_OP_read) || chain_hooks(c, FB_OP_write));
}

/* FLUSH is how the locks of a process that closes a file are let go. */
static uint32_t flush_flag(const struct request *rq)
{
	const struct chain *chain = rq->worker->chain;
	bool wants_flush = rq->mount->features & FUSE_POSIX_LOCKS || (chain && chain_hooks(chain, FB_OP_flush));

	return wants_flush ? 0 : FB_FOPEN_NOFLUSH;
}

/* What a filter asked for in this open, and where it is told what it got. */
static __u32 *io_mode_of(struct request *rq)
{
	return rq->op->canonical == FB_OP_open ? &rq->image->args.open.io_mode : &rq->image->args.create.io_mode;
}

/* The flags that the file is opened with. */
static uint32_t flags_of(const struct request *rq)
{
	return rq->op->canonical == FB_OP_open ? rq->image->args.open.flags : rq->image->args.create.flags;
}

/* Whether a write clears suid and sgid bits depends on who writes, and a backing id has one writer's rights for all. */
static bool has_privilege_bits(const struct request *rq, int fd)
{
	struct stat st;

	if ((flags_of(rq) & O_ACCMODE) == O_RDONLY)
		return false;
	if (rq->op->flags & FB_OP_ENTRY && !(rq->all_edits & FB_EDIT_ATTR)) // as the backing has just said
		return rq->out.create.entry.attr.mode & (S_ISUID | S_ISGID);
	return fstat(fd, &st) < 0 || st.st_mode & (S_ISUID | S_ISGID);
}

/* The flags that the kernel knows of, whatever filters made of them. */
static uint32_t flags_asked(const struct request *rq)
{
	return rq->op->canonical == FB_OP_open ? ((const struct fuse_open_in *)(const void *)rq->body)->flags
					       : ((const struct fuse_create_in *)(const void *)rq->body)->flags;
}

/* Is it opened as by who writes a stream past the cache, and for the last part of a block takes O_DIRECT off by fcntl(2), as dd(1)
 * does? The kernel tells nobody of that: the backing file has the flags of the open for good (fs/fuse/passthrough.c:
 * fuse_passthrough_open), and refuses what is not a whole block. Files that are read as well are left to be fast. */
static bool is_direct_stream(const struct request *rq)
{
	return (flags_asked(rq) & (O_ACCMODE | O_DIRECT)) == (O_WRONLY | O_DIRECT);
}

/* Would the backing file system open the file with O_DIRECT, if that is asked for? The kernel opens what it passes through with the
 * caller's flags, and tells him EIO where that fails; squashfs, isofs and ramfs have no direct I/O. */
static bool takes_flags(const struct request *rq, int fd)
{
	if (!(flags_asked(rq) & O_DIRECT))
		return true;
	int flags = fcntl(fd, F_GETFL);
	return flags >= 0 && !fcntl(fd, F_SETFL, flags | O_DIRECT) && !fcntl(fd, F_SETFL, flags);
}

/* Which flags of this open did filters rewrite that hold for each read and write? The kernel does not know of them, so it cannot
 * move the data itself. Access that is only wider than the caller's it does not need to know. */
static uint32_t flags_rewritten(const struct request *rq)
{
	uint32_t asked = flags_asked(rq), used = flags_of(rq);

	if (!(rq->all_edits & FB_EDIT_FLAGS))
		return 0;
	uint32_t access = (used & O_ACCMODE) == O_RDWR ? 0 : O_ACCMODE;
	return (asked ^ used) & (access | O_APPEND | O_SYNC | O_DSYNC | O_NOATIME);
}

/* A filter asked for what the kernel's rules forbid: the open goes on with what works, and the log says so. */
static void io_tell(struct request *rq, enum fb_io_mode mode, enum fb_io_reason reason)
{
	static const char *const modes[] = { "the default", "passthrough", "direct I/O", "the kernel's cache" };
	static const char *const reasons[] = {
		"as asked",
		"the kernel or the mount has no passthrough",
		"a filter hooks read or write",
		"another open of the file is not passed through",
		"another open of the file is passed through",
		"the file has a suid or sgid bit, or is append-only",
		"the kernel refused to pass this file through",
		"files of this mount have views",
		"a filter rewrote flags of the open",
	};

	rq->io_mode = mode;
	rq->io_reason = reason;
	if (reason)
		mount_log(rq->mount, "WARNING", "filter %s: it asked for %s of a file, and the open got %s: %s",
			  rq->io_asker ? rq->io_asker : "?", modes[*io_mode_of(rq)], modes[mode], reasons[reason]);
	*io_mode_of(rq) = mode;
}

/* Note that a handle's data goes past the server. Called with the stripe held. */
static void passthrough_count(struct request *rq, struct handle *h, struct fb_fuse_open_out *out)
{
	out->open_flags |= FB_FOPEN_PASSTHROUGH;
	out->backing_id = h->inode->backing_id;
	h->inode->n_passthrough++;
	h->is_passthrough = true;
	atomic_fetch_add_explicit(&rq->mount->n_passthrough_opens, 1, memory_order_relaxed);
}

/* Does the daemon read or write for whatever is open? */
static bool daemon_has_data(const struct mount *m)
{
	return m->daemon && m->daemon->has_data_routes;
}

/**
 * Open a file to read that has a backing id already, without opening it: the kernel does it with the id.
 *
 * Returns true and fills *out in, or false where it has to be opened.
 */
bool passthrough_share(struct request *rq, int flags, struct fb_fuse_open_out *out)
{
	static const int harmless = FB_O_LARGEFILE | O_NONBLOCK | O_CLOEXEC | FB_O_EXEC;
	struct mount *m = rq->mount;
	struct inode *inode = rq->inode;

	// Read without the lock, to turn most away: below it is read again.
	if (atomic_load_explicit(&inode->backing_id, memory_order_relaxed) <= 0 || flags & ~harmless || flags_asked(rq) & O_DIRECT ||
	    flags_rewritten(rq) || data_is_hooked(rq->worker->chain) || daemon_has_data(m) ||
	    *io_mode_of(rq) > FB_IO_PASSTHROUGH || !m->default_permissions || !inode->mnt || inode->mnt->is_remote ||
	    inode_fd_get(m, inode) < 0)
		return false;
	struct handle *h = handle_create(m, inode, -1, false);
	if (!h) {
		inode_fd_put(m, inode);
		return false;
	}
	h->holds_inode_fd = true;
	memset(out, 0, sizeof(*out));
	pthread_mutex_lock(fds_stripe(m, inode));
	bool is_free = inode->n_passthrough > 0 || !(m->inodes.has_views || inode->is_append_only); // as obstacle says
	if (inode->backing_id > 0 && inode->n_served == 0 && is_free)
		passthrough_count(rq, h, out);
	pthread_mutex_unlock(fds_stripe(m, inode));
	if (!h->is_passthrough) {
		handle_destroy(m, h);
		return false;
	}
	out->fh = handle_number(h);
	out->open_flags |= flush_flag(rq);
	rq->opened = h;
	io_tell(rq, FB_IO_PASSTHROUGH, FB_IO_AS_ASKED);
	return true;
}

/* A file that is being opened. */
struct opening {
	struct handle *h;
	bool is_hooked, is_plain;
	bool is_stream; /* see is_direct_stream */
	uint32_t rewritten; /* flags that filters did, and the kernel does not know of */
	enum fb_io_reason reason; /* why it does not get what a filter asked for */
};

/* Why can this file not be passed through? Called with the stripe held; gets a backing id if it can. */
static enum fb_io_reason obstacle(struct request *rq, const struct opening *o)
{
	struct inode *inode = o->h->inode;

	if (o->is_hooked)
		return FB_IO_DATA_HOOKED;
	if (o->rewritten)
		return FB_IO_REWRITTEN;
	// Of made-up files the kernel passes on those alone that have read_iter and write_iter, which only a read would tell.
	if (!rq->mount->has_passthrough || inode->type != S_IFREG || inode_is_made_up(inode, o->h->fd))
		return FB_IO_UNSUPPORTED;
	if (inode->n_served)
		return FB_IO_OTHERS_SERVED;
	if (!inode->n_passthrough && !o->is_plain)
		return FB_IO_NOT_PLAIN;
	// What goes to the backing file at once we do not see, and another view would keep what it has cached.
	if (!inode->n_passthrough && rq->mount->inodes.has_views)
		return FB_IO_VIEWED;
	bool writes = (flags_of(rq) & O_ACCMODE) != O_RDONLY;
	return backing_id_get(rq, inode, o->h->fd, writes) > 0 ? FB_IO_AS_ASKED : FB_IO_REFUSED;
}

/* Would it write by the id of who made the file, and be in another group? An id that is in use cannot be another one, so its writes
 * come here: they take the sgid bits that the maker's leave. Called with the stripe held. */
static bool is_strangers(const struct request *rq, const struct inode *inode)
{
	return inode->n_passthrough && inode->id_is_makers && !rq->is_made && (flags_of(rq) & O_ACCMODE) != O_RDONLY &&
	       creds_caller_gid(rq) != inode->id_gid;
}

/* How the data of this open goes, and why not as asked. Called with the stripe held. */
static enum fb_io_mode io_choose(struct request *rq, struct opening *o)
{
	enum fb_io_mode asked = (enum fb_io_mode)*io_mode_of(rq);

	if (o->h->inode->n_passthrough && asked == FB_IO_CACHE && !o->rewritten) {
		o->reason = FB_IO_OTHERS_PASSED;
		return FB_IO_PASSTHROUGH;
	}
	// In the cache a write has an offset, and is there before it fails; and beside an open that is passed through nothing is
	// cached.
	bool is_direct = o->rewritten & (O_ACCMODE | O_APPEND) || (o->rewritten && o->h->inode->n_passthrough);
	if (asked == FB_IO_CACHE && is_direct)
		o->reason = FB_IO_REWRITTEN;
	if (asked == FB_IO_DIRECT || asked == FB_IO_CACHE)
		return is_direct ? FB_IO_DIRECT : asked;
	if (asked == FB_IO_DEFAULT && o->is_stream && !o->is_hooked)
		return is_direct || o->h->inode->n_passthrough ? FB_IO_DIRECT : FB_IO_CACHE;
	enum fb_io_reason why = obstacle(rq, o);
	if (!why && is_strangers(rq, o->h->inode)) {
		is_direct = true;
		why = FB_IO_OTHERS_PASSED;
	}
	if (asked == FB_IO_PASSTHROUGH)
		o->reason = why;
	if (!why)
		return FB_IO_PASSTHROUGH;
	// The kernel would cache no more of a file than its size says.
	return is_direct || o->is_hooked || inode_is_made_up(o->h->inode, o->h->fd) ? FB_IO_DIRECT : FB_IO_CACHE;
}

/* A filter that came later hooks data that the kernel moves alone until the last open of the file is closed. The op need
 * not be hooked, and is recorded all the same. */
static int open_refuse(struct request *rq, const struct chain *chain)
{
	const struct op_hooks *hooks = chain->ops[FB_OP_read] ? chain->ops[FB_OP_read] : chain->ops[FB_OP_write];
	const struct chain_hook *hook = hooks->n_pre ? &hooks->pre[0] : &hooks->post[0];

	rq->decider = chain->filters[hook->position].name;
	rq->io_reason = FB_IO_OTHERS_PASSED;
	if (!rq->chain) {
		rq->chain = rq->worker->chain;
		image_fill(rq);
	}
	mount_log(rq->mount, "WARNING",
		  "filter %s: it hooks the data of inode %llu, and opens from before it came pass that through: "
		  "it cannot be opened until they are closed",
		  rq->decider, (unsigned long long)rq->inode->nodeid);
	return -EBUSY;
}

/* A filter lets the caller do less than he asked for, and the kernel would let him do all. */
static int narrowed_refuse(struct request *rq)
{
	rq->io_reason = FB_IO_OTHERS_PASSED;
	mount_log(rq->mount, "WARNING",
		  "filter %s: it rewrote the access mode of an open of inode %llu, which other opens pass through: it cannot be "
		  "opened so until they are closed",
		  rq->decider ? rq->decider : "?", (unsigned long long)rq->inode->nodeid);
	return -EBUSY;
}

/* Is the file passed through still, and may not be any more? Nobody waits for RELEASE, so the last open may be closed, and we
 * not know it yet: then it comes in a moment. Called with the stripe held, which is let go meanwhile. */
static bool stays_passed(struct request *rq, struct inode *inode)
{
	pthread_mutex_t *stripe = fds_stripe(rq->mount, inode);

	for (int ms = 0; inode->n_passthrough > 0 && ms < RELEASE_MS && !request_is_interrupted(rq); ms++) {
		pthread_mutex_unlock(stripe);
		usleep(1000);
		pthread_mutex_lock(stripe);
	}
	return inode->n_passthrough > 0;
}

/* Does a later filter hook the data, which goes on past it where the file is open already unless the chain says otherwise? */
static bool filters_refuse(const struct chain *chain)
{
	return data_is_hooked(chain) && !chain->keeps_open_files;
}

/* May the file not be opened beside opens that pass it through, and are there such? Called with the stripe held. */
static bool is_beside_passed(struct request *rq, struct inode *inode, bool by_daemon)
{
	bool is_narrowed = flags_rewritten(rq) & O_ACCMODE; // a mapping would have the access that the caller asked for

	return (by_daemon || is_narrowed || filters_refuse(rq->worker->chain)) && stays_passed(rq, inode);
}

static int beside_refuse(struct request *rq)
{
	if (filters_refuse(rq->worker->chain))
		return open_refuse(rq, rq->worker->chain);
	return flags_rewritten(rq) & O_ACCMODE ? narrowed_refuse(rq) : -EBUSY;
}

/** Would passthrough_open refuse this open of rq->inode? To be asked before its file is opened with O_TRUNC, which nothing takes back.
 * Returns 0 or -EBUSY. */
int passthrough_ask(struct request *rq)
{
	struct mount *m = rq->mount;

	pthread_mutex_lock(fds_stripe(m, rq->inode));
	bool is_refused = is_beside_passed(rq, rq->inode, daemon_has_data(m));
	pthread_mutex_unlock(fds_stripe(m, rq->inode));
	return is_refused ? beside_refuse(rq) : 0;
}

/**
 * Decide how the data of a regular file that is being opened goes, as a filter asked if it did, and count it.
 *
 * Fills in the FOPEN_ flags of the reply, and its backing_id if FOPEN_PASSTHROUGH is among them. Returns 0; -EBUSY where
 * a filter wants to see data of a file that other opens still pass through, since the kernel cannot mix the two; -EINVAL where
 * the file cannot be opened with O_DIRECT.
 */
int passthrough_open(struct request *rq, struct handle *h, struct fb_fuse_open_out *out)
{
	struct mount *m = rq->mount;
	struct inode *inode = h->inode;
	bool by_filter = data_is_hooked(rq->worker->chain), by_daemon = daemon_has_data(m) && !h->leaves_data;
	struct opening o = { .h = h, .is_hooked = by_filter || by_daemon, .is_stream = is_direct_stream(rq),
			     .rewritten = flags_rewritten(rq) };

	o.is_plain = !inode->is_append_only && !has_privilege_bits(rq, h->fd);
	out->open_flags = flush_flag(rq);
	pthread_mutex_lock(fds_stripe(m, inode));
	if (is_beside_passed(rq, inode, by_daemon)) {
		pthread_mutex_unlock(fds_stripe(m, inode));
		return beside_refuse(rq);
	}
	h->appends = o.rewritten & O_APPEND && flags_of(rq) & O_APPEND;
	o.is_hooked &= inode->n_passthrough == 0; // else it goes on as it did before there were such hooks
	enum fb_io_mode mode = io_choose(rq, &o);
	// While the inode is passed through every open of it must be; DIRECT_IO beside it has its calls come here all the same.
	bool is_passed = mode == FB_IO_PASSTHROUGH || inode->n_passthrough;
	if (is_passed && !takes_flags(rq, h->fd)) {
		if (!inode->n_passthrough)
			backing_id_rest(m, inode, h->fd); // it was got for this open, and nobody closes that
		pthread_mutex_unlock(fds_stripe(m, inode));
		return -EINVAL;
	}
	if (is_passed) {
		passthrough_count(rq, h, out);
		// What is cached of it for ever is to be asked for anew while it is written (cache.c); a reply that brings
		// its attributes says so itself.
		if (!(rq->op->flags & FB_OP_ENTRY) && inode->mnt && inode->mnt->is_watched && (flags_of(rq) & O_ACCMODE) != O_RDONLY)
			notify_inode(m, inode->nodeid, -1, 0);
	} else {
		inode->n_served++;
		h->is_served = true;
	}
	inode->opened = h;
	if (mode == FB_IO_DIRECT)
		out->open_flags |= FOPEN_DIRECT_IO | FB_FOPEN_PARALLEL_DIRECT_WRITES;
	pthread_mutex_unlock(fds_stripe(m, inode));
	io_tell(rq, mode, o.reason);
	return 0;
}

/** With profile=small a file that was made is not open: it is read and written through the cache, whatever a filter asked for. */
void passthrough_none(struct request *rq)
{
	bool is_as_asked = *io_mode_of(rq) == FB_IO_DEFAULT || *io_mode_of(rq) == FB_IO_CACHE;

	io_tell(rq, FB_IO_CACHE, is_as_asked ? FB_IO_AS_ASKED : FB_IO_UNSUPPORTED);
}

/** A post hook asked for another I/O mode of what was opened. Returns 0 or -errno. */
int passthrough_reopen(struct request *rq)
{
	struct fb_fuse_open_out *out = rq->op->canonical == FB_OP_open ? &rq->out.open : &rq->out.create.open;

	if (rq->mount->is_small) {
		passthrough_none(rq);
		return 0;
	}
	struct handle *h = handle_get(rq->mount, out->fh, false); // with a descriptor, which a shared one lacks

	if (!h)
		return -errno;
	passthrough_close(rq->mount, h);
	out->backing_id = 0;
	return passthrough_open(rq, h, out);
}

/** Count a handle whose data the daemon serves. -EBUSY where other opens pass the file through. */
int passthrough_refuse(struct request *rq, struct handle *h)
{
	struct mount *m = rq->mount;
	struct inode *inode = h->inode;

	pthread_mutex_lock(fds_stripe(m, inode));
	bool is_free = !stays_passed(rq, inode);
	inode->n_served += is_free;
	h->is_served = is_free;
	pthread_mutex_unlock(fds_stripe(m, inode));
	return is_free ? 0 : -EBUSY;
}

void passthrough_close(struct mount *m, struct handle *h)
{
	struct inode *inode = h->inode;

	pthread_mutex_lock(fds_stripe(m, inode));
	if (inode->opened == h)
		inode->opened = NULL;
	opened_wait(m, h);
	if (h->is_passthrough && --inode->n_passthrough == 0)
		backing_id_rest(m, inode, h->fd);
	else if (h->is_served)
		inode->n_served--;
	pthread_mutex_unlock(fds_stripe(m, inode));
	if ((h->is_passthrough || h->is_served) && !h->is_copied)
		known_stale(m, inode);
	h->is_passthrough = h->is_served = false;
}
