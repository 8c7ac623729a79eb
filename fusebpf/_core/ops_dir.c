/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Directories: opendir, readdir, readdirplus. getdents64(2) fills the handle's buffer, listings take from it, and the
 * backing's own offsets are the mount's, so telldir and seekdir hold.
 */
#include "core.h"

#include <dirent.h>
#include <sys/syscall.h>

#define DIR_BUFFER_SIZE 32768

struct backing_dirent { /* linux_dirent64, getdents64(2) */
	uint64_t ino;
	int64_t offset; /* of the next entry */
	unsigned short len;
	unsigned char type;
	char name[];
};

/* A listing that is being put together. */
struct listing {
	struct handle *h;
	char *out;
	size_t len, size;
	bool is_plus;	       /* each entry with its attributes */
	bool with_inodes;      /* no: plus entries go out with nodeid 0, since the kernel knows them or would not keep them, or who is to
				  be asked of each cannot be */
	bool is_hooked;	       /* lookup is: its hooks are asked of each entry */
	struct fb_slot *image; /* for that, or NULL */
	int dir_fd;	       /* of the directory, for lookups */
	dev_t dev;	       /* whose inode numbers getdents64 gives */
	bool is_at_end;
	uint32_t n_known;      /* entries whose inodes the kernel is told */
	uint64_t ttl_ns;       /* that all of them, and their attributes, may be kept */
};

/* A caller whom the backing file system judges may list what he may not search, and "." takes a search. */
static int dir_open(struct mount *m, int fd, int flags)
{
	char path[PROC_PATH_SIZE];

	if (m->default_permissions)
		return openat(fd, ".", flags);
	proc_path(path, fd);
	return open(path, flags);
}

int op_opendir(struct request *rq)
{
	int fd = inode_fd_get(rq->mount, rq->inode);

	if (fd < 0)
		return fd;
	int no_atime = (int)(rq->image->args.open.flags & O_NOATIME);
	int opened = dir_open(rq->mount, fd, O_RDONLY | O_DIRECTORY | O_CLOEXEC | no_atime);
	int e = opened < 0 ? -errno : 0;
	inode_fd_put(rq->mount, rq->inode);
	if (e)
		return e;
	rq->reply = &rq->out.open;
	rq->reply_len = sizeof(rq->out.open);
	return reply_opened(rq, rq->inode, opened, true, &rq->out.open);
}

/* Make the entry at `offset` the next of the buffer. Called with the handle's lock held. */
static int dir_seek(struct handle *h, int64_t offset)
{
	if (!h->dir_buffer && !(h->dir_buffer = malloc(DIR_BUFFER_SIZE)))
		return -ENOMEM;
	if (offset == h->dir_offset && (h->dir_at < h->dir_end || offset != 0))
		return 0;
	if (lseek(h->fd, offset, SEEK_SET) < 0)
		return -errno;
	h->dir_at = h->dir_end = 0;
	h->dir_offset = offset;
	return 0;
}

/* The next entry, NULL at the end. */
static int dir_next(struct handle *h, const struct backing_dirent **out)
{
	*out = NULL;
	if (h->dir_at == h->dir_end) {
		long n = syscall(SYS_getdents64, h->fd, h->dir_buffer, DIR_BUFFER_SIZE);
		if (n < 0)
			return -errno;
		h->dir_at = 0;
		h->dir_end = (uint32_t)n;
		if (n == 0)
			return 0;
	}
	*out = (const void *)(h->dir_buffer + h->dir_at);
	return 0;
}

static bool is_dots(const char *name)
{
	return name[0] == '.' && (!name[1] || (name[1] == '.' && !name[2]));
}

/*
 * Look an entry up as a request for it would, hooks and record included. What they do not let the kernel keep is not handed
 * out: nodeid 0, and it asks when the name is used.
 */
static int entry_asked(struct request *rq, struct listing *l, const char *name, uint32_t name_len, struct fuse_entry_out *out,
		       struct inode **inode)
{
	struct chain *chain = rq->worker->chain;
	bool has_slot = rq->slot != NO_SLOT;

	if (name_len >= FB_NAME_SIZE || !cache_may_ask(rq))
		return 0;
	if (!l->image && !(l->image = calloc(1, sizeof(*l->image))))
		return -ENOMEM;
	struct request lookup = { .mount = rq->mount,
				  .worker = rq->worker,
				  .op = &ops[FB_OP_lookup],
				  .in = rq->in,
				  .body = name,
				  .body_len = name_len + 1,
				  .name = name,
				  .asked = name,
				  .inode = rq->inode,
				  .create_uid = rq->create_uid,
				  .create_gid = rq->create_gid,
				  .chain = chain,
				  .hooks = chain->ops[FB_OP_lookup],
				  .image = l->image,
				  .slot = NO_SLOT };
	l->image->unique = rq->image->unique;
	l->image->nodeid = rq->image->nodeid;
	l->image->flags = rq->image->flags & FB_NO_CALLER;
	l->image->uid = rq->image->uid;
	l->image->gid = rq->image->gid;
	l->image->pid = rq->image->pid;
	slot_release(rq); // whoever waits for a slot has none
	worker_leave_backing(rq->worker);
	cache_begin(&lookup);
	request_ask(&lookup);
	if (has_slot)
		slot_acquire(rq, false);
	worker_enter_backing(rq->worker);
	if (!lookup.error)
		cache_finish(&lookup);
	if (!lookup.error && lookup.entry_ttl_ns) {
		*out = lookup.out.create.entry;
		*inode = lookup.entry;
	} else {
		result_undo(&lookup);
	}
	if (lookup.chain)
		recent_write(&lookup);
	return 0;
}

/* The kernel is told of one more entry, or, with nodeid 0, not told of it. One that a hook has led elsewhere than the directory says
 * (`ino`, `type`) every listing is to look up, which else would give what the directory says. */
static void listing_note(struct listing *l, const struct fuse_entry_out *out, uint64_t ino, uint8_t type)
{
	uint64_t entry_ns = ttl_ns(out->entry_valid, out->entry_valid_nsec), attr_ns = ttl_ns(out->attr_valid, out->attr_valid_nsec);
	bool is_there = out->nodeid && out->attr.ino == ino && (out->attr.mode & S_IFMT) >> 12 == type;
	uint64_t least_ns = !is_there ? 0 : entry_ns < attr_ns ? entry_ns : attr_ns;

	l->n_known++;
	l->ttl_ns = least_ns < l->ttl_ns ? least_ns : l->ttl_ns;
}

/* Append one entry. Returns 1, 0 if it does not fit, or -errno. */
static int listing_add(struct request *rq, struct listing *l, const struct backing_dirent *d, uint64_t ino,
		       const char *name, uint32_t name_len)
{
	size_t head = l->is_plus ? FUSE_NAME_OFFSET_DIRENTPLUS : FUSE_NAME_OFFSET;
	size_t size = FUSE_DIRENT_ALIGN(head + name_len);
	struct fuse_direntplus *plus = (void *)(l->out + l->len);
	struct fuse_dirent *dirent = l->is_plus ? &plus->dirent : (void *)plus;
	struct inode *inode = NULL;

	if (l->size - l->len < size)
		return 0;
	memset(plus, 0, head);
	if (l->is_plus && l->with_inodes && !is_dots(name)) {
		int e = l->is_hooked ? entry_asked(rq, l, name, name_len, &plus->entry_out, &inode)
				     : entry_at(rq, l->dir_fd, name, &plus->entry_out, &inode);
		if (e == -ENOENT || e == -ESTALE || e == -EACCES || e == -EPERM)
			memset(&plus->entry_out, 0, sizeof(plus->entry_out)); // gone since, or not ours to see
		else if (e)
			return e;
		listing_note(l, &plus->entry_out, ino, d->type);
	}
	dirent->ino = inode ? plus->entry_out.attr.ino : ino;
	dirent->off = (uint64_t)d->offset;
	dirent->namelen = name_len;
	dirent->type = inode ? inode->type >> 12 : d->type; // a hook may have led the name elsewhere
	memcpy(dirent->name, name, name_len);
	memset(dirent->name + name_len, 0, size - head - name_len);
	l->len += size;
	return 1;
}

/** Take back the lookups of a listing with attributes that does not arrive. */
void listing_undo(struct request *rq)
{
	for (size_t at = 0; at < rq->payload_len;) {
		const struct fuse_direntplus *plus = (const void *)((const char *)rq->payload + at);
		if (plus->entry_out.nodeid)
			inodes_forget(rq->mount, inodes_get(rq->mount, plus->entry_out.nodeid), 1);
		at += FUSE_DIRENT_ALIGN(FUSE_NAME_OFFSET_DIRENTPLUS + plus->dirent.namelen);
	}
}

/* The inode number that the entry has in the mount. For what is mounted on a directory the backing gives the number of what is
 * below it. */
static uint64_t entry_number(struct request *rq, const struct listing *l, const struct backing_dirent *d)
{
	struct mount *m = rq->mount;
	bool crosses = atomic_load(&m->inodes.mounts) && atomic_load(&m->inodes.mounts)->next;
	struct stat st;

	if (crosses && d->type == DT_DIR && !is_dots(d->name) && !fstatat(l->h->fd, d->name, &st, AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT))
		return inode_number(m, st.st_dev, st.st_ino);
	return inode_number(m, l->dev, d->ino);
}

/* Fill the reply. Entries that filters drop do not end it: only a full buffer or the directory's end does. */
static int listing_fill(struct request *rq, struct listing *l)
{
	struct handle *h = l->h;

	for (;;) {
		const struct backing_dirent *d;
		int e = dir_next(h, &d);
		l->is_at_end = !e && !d;
		if (e || !d)
			return e;
		const char *name = d->name;
		uint32_t name_len = (uint32_t)strlen(name);
		uint64_t ino = entry_number(rq, l, d);
		bool is_listed = !daemon_listed(h, d->name) && dirent_allowed(rq, ino, d->type, &name, &name_len);
		if (rq->error)
			return -rq->error;
		int added = is_listed ? listing_add(rq, l, d, ino, name, name_len) : 1;
		if (added == 0 && !l->len)
			return -EINVAL; // a filter left less room than one entry takes: as getdents(2) says it, and no end
		if (added <= 0)
			return added;
		rq->n_listed += is_listed;
		h->dir_at += d->len;
		h->dir_offset = d->offset;
		if (request_is_interrupted(rq))
			return l->len ? 0 : -EINTR;
	}
}

static int list(struct request *rq, bool is_plus)
{
	struct fb_rw args = rq->image->args.rw;
	const struct chain *chain = rq->worker->chain;
	const bool is_hooked = chain && chain_hooks(chain, FB_OP_lookup);
	struct listing l = { .h = handle_of(rq, rq->inode, args.fh, O_RDONLY | O_DIRECTORY),
			     .out = rq->worker->payload,
			     .size = args.size,
			     .is_plus = is_plus,
			     .is_hooked = is_hooked,
			     .with_inodes = is_plus && !daemon_judges_entries(rq->mount) && (is_hooked || rq->entry_ttl_ns) &&
					    (args.offset || !known_all(rq)),
			     .ttl_ns = UINT64_MAX };

	if (!l.h)
		return -errno;
	l.dir_fd = is_plus ? inode_fd_get(rq->mount, rq->inode) : -1;
	if (is_plus && l.dir_fd < 0)
		return l.dir_fd;
	struct stat st;
	l.dev = fstat(l.h->fd, &st) < 0 ? rq->mount->inodes.root_dev : st.st_dev;
	pthread_mutex_lock(&l.h->dir_lock);
	cache_listing_begins(rq, l.h, args.offset == 0);
	int e = dir_seek(l.h, (int64_t)args.offset);
	if (!e)
		e = listing_fill(rq, &l);
	cache_listing_ends(rq, l.h, !e && !l.len);
	if (l.with_inodes && l.is_at_end && !args.offset)
		known_listed(rq, l.n_known, l.ttl_ns);
	else if (!l.is_at_end && !args.offset)
		known_in_part(rq->inode);
	// What was listed before an error arrives; the error comes with the next call.
	if (e && l.len && !rq->error)
		e = 0;
	if (e)
		l.h->dir_offset = -1; // where it is now nobody knows
	pthread_mutex_unlock(&l.h->dir_lock);
	if (is_plus)
		inode_fd_put(rq->mount, rq->inode);
	free(l.image);
	rq->image->args.rw = args; // dirent hooks saw theirs there
	if (rq->chain) {
		memset(&rq->image->name, 0, sizeof(rq->image->name));
		rq->image->name_len = 0;
	}
	rq->payload = l.out;
	rq->payload_len = rq->count = l.len;
	rq->has_plus_entries = is_plus && l.with_inodes;
	return e; // then the lookups are taken back (result.c: result_undo)
}

int op_readdir(struct request *rq)
{
	return list(rq, false);
}

int op_readdirplus(struct request *rq)
{
	return list(rq, true);
}
