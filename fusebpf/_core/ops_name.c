/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Ops on names: lookup, what makes entries and what removes them, readlink; the kernel's forgetting and interrupting.
 * Every backing call is relative to a descriptor of the parent, so a rename race cannot lead out of the backing root.
 */
#include "core.h"

#include <linux/fs.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/syscall.h>

#define CREATE_TRIES 16

/* Make something in the parent, as the caller: return what `call` returned, 0 or -errno. */
#define AS_CREATOR(rq, call)                                                              \
	({                                                                                 \
		bool is_own = (rq)->mount->default_permissions;                            \
		if (is_own)                                                                \
			creds_enter(rq, (rq)->create_uid, (rq)->create_gid, true);         \
		int result = (call);                                                       \
		result = result < 0 ? -errno : result;                                     \
		if (is_own)                                                                \
			creds_leave();                                                     \
		result;                                                                    \
	})

/* Answer with the entry of a name. */
static int reply_entry(struct request *rq, int parent_fd, const char *name)
{
	int e = entry_at(rq, parent_fd, name, &rq->out.create.entry, &rq->entry);

	rq->reply = &rq->out.create.entry;
	rq->reply_len = sizeof(rq->out.create.entry);
	return e;
}

int op_lookup(struct request *rq)
{
	int fd = parent_fd_get(rq, rq->inode);

	if (fd < 0)
		return fd;
	int e = reply_entry(rq, fd, rq->name);
	rq->is_absent = e == -ENOENT && cache_keeps_absent(rq, fd);
	parent_fd_put(rq, rq->inode, fd);
	return e;
}

/* The name is there. The kernel, which asked for another one, may have taken it for absent. */
static void name_made(struct request *rq)
{
	rq->has_changed = true;
	if (name_is_rewritten(rq->asked, rq->name))
		cache_expire_name(rq, rq->inode, rq->name);
}

/** The op changed names, and its answer does not say so: the kernel is to ask anew for those that it knows. */
void names_expire(struct request *rq)
{
	cache_expire_name(rq, rq->inode, rq->asked);
	if (!rq->asked2)
		return;
	struct inode *newdir = inodes_get(rq->mount, rq->image->args.rename.newdir);
	if (newdir)
		cache_expire_name(rq, newdir, rq->asked2);
}

/* Call `make` with the parent's descriptor, and answer with the new entry. */
static int make_entry(struct request *rq, int (*make)(struct request *rq, int parent_fd))
{
	int fd = parent_fd_get(rq, rq->inode);

	if (fd < 0)
		return fd;
	int e = make(rq, fd);
	if (!e) {
		name_made(rq);
		e = reply_entry(rq, fd, rq->name);
	}
	parent_fd_put(rq, rq->inode, fd);
	return e;
}

static int make_symlink(struct request *rq, int parent_fd)
{
	return AS_CREATOR(rq, symlinkat(rq->text, parent_fd, rq->name));
}

int op_symlink(struct request *rq)
{
	return make_entry(rq, make_symlink);
}

static int make_node(struct request *rq, int parent_fd)
{
	uint32_t rdev = rq->image->args.mknod.rdev; // new_encode_dev of include/linux/kdev_t.h
	dev_t device = makedev(rdev >> 8 & 0xfff, (rdev & 0xff) | (rdev >> 12 & 0xfff00));

	return AS_CREATOR(rq, mknodat(parent_fd, rq->name, rq->image->args.mknod.mode, device));
}

int op_mknod(struct request *rq)
{
	return make_entry(rq, make_node);
}

static int make_directory(struct request *rq, int parent_fd)
{
	return AS_CREATOR(rq, mkdirat(parent_fd, rq->name, rq->image->args.mkdir.mode));
}

int op_mkdir(struct request *rq)
{
	return make_entry(rq, make_directory);
}

int op_link(struct request *rq)
{
	struct mount *m = rq->mount;
	struct inode *linked = inodes_get(m, rq->image->args.link.inode);
	char path[PROC_PATH_SIZE];

	if (!linked)
		return -ESTALE;
	if (linked->root != entry_root(rq))
		return -EXDEV;
	int fd = inode_fd_get(m, linked);
	if (fd < 0)
		return fd;
	int parent_fd = parent_fd_get(rq, rq->inode), e = parent_fd;
	if (parent_fd >= 0) {
		if (!rq->has_view)
			rq->view = linked->view;
		rq->has_view = true;
		proc_path(path, fd); // by an empty path it takes CAP_DAC_READ_SEARCH, which a caller has not
		e = linkat(AT_FDCWD, path, parent_fd, rq->name, AT_SYMLINK_FOLLOW) < 0 ? -errno : 0;
		if (!e) {
			inode_fd_unpin(m, linked);
			name_made(rq);
			e = reply_entry(rq, parent_fd, rq->name);
		}
		parent_fd_put(rq, rq->inode, parent_fd);
	}
	inode_fd_put(m, linked);
	return e;
}

/* ------------------------------------------------------------------------------- removing */

/* The inodes of a file that may be about to lose its last link: hold their descriptors. Returns 0, or -errno: for one there is none. */
static int victims_hold(struct mount *m, int parent_fd, const char *name, struct views *victims)
{
	int e = 0;

	views_at(m, parent_fd, name, victims);
	for (uint32_t i = 0; i < victims->n; i++) {
		int fd = inode_fd_get(m, victims->all[i]);
		if (fd >= 0)
			continue;
		e = fd;
		inode_release(m, victims->all[i]);
		victims->all[i--] = victims->all[--victims->n];
	}
	return e;
}

/* Let go of one; if its last link is gone its descriptor stays, since its handle leads nowhere now. */
static void victim_put(struct mount *m, struct inode *victim, int error)
{
	struct stat st;

	bool is_known = victim->type == S_IFDIR || fstat(victim->fd, &st) == 0;

	if (!error && (!is_known || victim->type == S_IFDIR || st.st_nlink == 0)) {
		inode_fd_pin(m, victim);
		backing_id_unlinked(m, victim);
		atomic_store_explicit(&victim->is_gone, is_known, memory_order_relaxed);
		if (victim->type == S_IFDIR)
			atomic_store_explicit(&m->inodes.dir_gone_ms, now_ms(), memory_order_relaxed);
	}
	inode_fd_put(m, victim);
}

/* Who takes a name of a file has the turn at it until post hooks were told whether it was the last one. `held` is what victims_hold
 * says. Returns 0, -EINTR, -EBUSY, or what is held where filters that want sizes would not be told. */
static int victims_turn(struct request *rq, const struct views *victims, int held)
{
	turn_give(rq); // of another try
	if (!rq->hooks || !rq->hooks->n_post)
		return 0;
	if (held && rq->chain->wants & FB_WANTS_SIZES)
		return held;
	return victims->n ? turn_take(rq, victims->all[0], true) : 0;
}

static void victims_release(struct request *rq, struct views *victims, int error)
{
	struct mount *m = rq->mount;

	// Of several views the shared one, if it is known: by that the file is written.
	if (!error && victims->n && rq->hooks && rq->hooks->n_post) {
		rq->removed = victims->all[0];
		for (uint32_t i = 1; i < victims->n && rq->removed->view; i++)
			rq->removed = victims->all[i]->view ? rq->removed : victims->all[i];
		inode_hold(rq->removed);
	}
	for (uint32_t i = 0; i < victims->n; i++)
		victim_put(m, victims->all[i], error);
	if (!error && victims->n && victims->all[0]->is_viewed)
		views_forget(m, victims);
	views_release(m, victims);
}

/** The post hooks are through. */
void removed_release(struct request *rq)
{
	if (rq->removed)
		inode_release(rq->mount, rq->removed);
	rq->removed = NULL;
}

static int remove_entry(struct request *rq, int flags)
{
	struct mount *m = rq->mount;
	int fd = parent_fd_get(rq, rq->inode);
	struct views victims;

	if (fd < 0)
		return fd;
	int held = victims_hold(m, fd, rq->name, &victims), e = victims_turn(rq, &victims, held);
	if (!e)
		e = unlinkat(fd, rq->name, flags) < 0 ? -errno : 0;
	rq->has_changed = !e;
	if (!e && name_is_rewritten(rq->asked, rq->name))
		cache_forget_name(rq, rq->inode, rq->name);
	victims_release(rq, &victims, e);
	parent_fd_put(rq, rq->inode, fd);
	return e;
}

int op_unlink(struct request *rq)
{
	return remove_entry(rq, 0);
}

int op_rmdir(struct request *rq)
{
	return remove_entry(rq, AT_REMOVEDIR);
}

static void all_moved(struct mount *m, const struct views *moved, struct inode *parent, const char *name)
{
	for (uint32_t i = 0; i < moved->n; i++)
		inode_moved(m, moved->all[i], parent, name);
}

/* The kernel does with the names that it gave what it asked for: takes what it knows along to the new one, or exchanges both.
 * Where filters had other names renamed, or otherwise, it is to ask anew for all of them. */
static void rename_expire(struct request *rq, struct inode *newdir)
{
	bool is_other = name_is_rewritten(rq->asked, rq->name), is_other2 = name_is_rewritten(rq->asked2, rq->name2);

	if (!is_other && !is_other2 && !(rq->all_edits & FB_EDIT_FLAGS))
		return;
	cache_expire_name(rq, rq->inode, rq->asked);
	cache_expire_name(rq, newdir, rq->asked2);
	if (is_other)
		cache_expire_name(rq, rq->inode, rq->name);
	if (is_other2)
		cache_expire_name(rq, newdir, rq->name2);
}

static int rename_between(struct request *rq, struct inode *newdir, int fd, int new_fd)
{
	struct mount *m = rq->mount;
	uint32_t flags = rq->image->args.rename.flags;
	struct views moved, victims;

	views_at(m, fd, rq->name, &moved);
	int held = victims_hold(m, new_fd, rq->name2, &victims), e = victims_turn(rq, &victims, held);
	if (!e)
		e = AS_CREATOR(rq, (int)syscall(SYS_renameat2, fd, rq->name, new_fd, rq->name2, flags));
	if (!e)
		all_moved(m, &moved, newdir, rq->name2);
	if (!e && flags & RENAME_EXCHANGE)
		all_moved(m, &victims, rq->inode, rq->name);
	rq->has_changed = !e;
	if (!e)
		rename_expire(rq, newdir);
	victims_release(rq, &victims, flags & RENAME_EXCHANGE ? -EEXIST : e); // exchanged: it is not gone
	views_release(m, &moved);
	return e;
}

int op_rename2(struct request *rq)
{
	struct mount *m = rq->mount;
	struct inode *newdir = inodes_get(m, rq->image->args.rename.newdir);

	if (!newdir)
		return -ESTALE;
	if (!rq->has_root && newdir->root != rq->inode->root)
		return -EXDEV;
	int fd = parent_fd_get(rq, rq->inode);
	if (fd < 0)
		return fd;
	int new_fd = parent_fd_get(rq, newdir), e = new_fd;
	if (new_fd >= 0) {
		e = rename_between(rq, newdir, fd, new_fd);
		parent_fd_put(rq, newdir, new_fd);
	}
	parent_fd_put(rq, rq->inode, fd);
	return e;
}

int op_rename(struct request *rq)
{
	return op_rename2(rq);
}

int op_readlink(struct request *rq)
{
	int fd = inode_fd_get(rq->mount, rq->inode);

	if (fd < 0)
		return fd;
	ssize_t n = readlinkat(fd, "", rq->worker->payload, FB_PATH_SIZE - 1);
	int e = n < 0 ? -errno : 0;
	inode_fd_put(rq->mount, rq->inode);
	rq->payload = rq->worker->payload;
	rq->payload_len = n < 0 ? 0 : (size_t)n;
	cache_target(rq);
	return e;
}

/* -------------------------------------------------------------------------------- creating */

/* Open a name that O_CREAT found to be there already: only a regular file, since opening others has effects. */
static int open_existing(struct request *rq, int parent_fd, int flags)
{
	const struct fuse_create_in *in = (const void *)rq->body;
	char path[PROC_PATH_SIZE];
	struct stat st;
	int fd = openat(parent_fd, rq->name, O_PATH | O_NOFOLLOW | O_CLOEXEC);

	if (fd < 0)
		return fd;
	int result = -1, e = 0;
	if (fstat(fd, &st) < 0 || !S_ISREG(st.st_mode))
		e = S_ISDIR(st.st_mode) ? EISDIR : S_ISLNK(st.st_mode) ? ELOOP : ENXIO;
	else {
		proc_path(path, fd);
		struct creds_bits bits = creds_bits_begin(rq, fd, in->open_flags & FUSE_OPEN_KILL_SUIDGID ? LACKS_FSETID : HAS_FSETID);
		result = open(path, flags & ~(O_CREAT | O_EXCL));
		e = errno;
		creds_bits_end(bits);
	}
	close(fd);
	errno = e;
	return result;
}

static int create_at(struct request *rq, int parent_fd)
{
	const struct fb_create *args = &rq->image->args.create;
	int flags = backing_open_flags(args->flags);
	int fd = openat(parent_fd, rq->name, flags | O_CREAT | O_EXCL | O_NOFOLLOW, args->mode);

	rq->is_made = fd >= 0;
	if (rq->is_made || errno != EEXIST || args->flags & O_EXCL)
		return fd;
	// The kernel took the name for free, so it has judged the directory and not this file.
	if (rq->mount->default_permissions)
		creds_enter(rq, rq->create_uid, rq->create_gid, false);
	return open_existing(rq, parent_fd, flags);
}

/* The kernel took a name for free, and it is there as something that it opens by itself: it is to look the name up, and to try again
 * (fs/namei.c: do_filp_open). Where a filter led the op to another name that would lead nowhere else. */
static bool is_to_look_again(const struct request *rq, int e)
{
	return (e == -ELOOP || e == -ENXIO) && !rq->has_root && !name_is_rewritten(rq->asked, rq->name);
}

/* Answer with the file that was made and is open by fd, unless `error` says that it has no entry. */
static int reply_created(struct request *rq, int fd, int error)
{
	if (error) {
		close(fd);
		return error;
	}
	rq->reply = &rq->out.create;
	rq->reply_len = sizeof(rq->out.create);
	return reply_opened(rq, rq->entry, fd, false, &rq->out.create.open);
}

int op_create(struct request *rq)
{
	int parent_fd = parent_fd_get(rq, rq->inode);

	if (parent_fd < 0)
		return parent_fd;
	int fd = -ENOENT;
	// A name that is there for O_EXCL may have gone when it is opened.
	for (int tries = CREATE_TRIES; fd == -ENOENT && tries; tries--)
		fd = AS_CREATOR(rq, create_at(rq, parent_fd));
	parent_fd_put(rq, rq->inode, parent_fd);
	if (fd < 0)
		return is_to_look_again(rq, fd) ? -ESTALE : fd;
	name_made(rq);
	return reply_created(rq, fd, entry_of_fd(rq, fd, rq->name, false, &rq->out.create.entry, &rq->entry));
}

/* Keep the descriptor of a file that has no name: its handle leads nowhere. */
static int nameless_pin(struct mount *m, struct inode *inode)
{
	int fd = inode_fd_get(m, inode);

	if (fd < 0)
		return fd;
	inode_fd_pin(m, inode);
	inode_fd_put(m, inode);
	return 0;
}

/* O_TMPFILE. Its path, for filters, is its inode number behind a # in the directory, until it is linked. */
int op_tmpfile(struct request *rq)
{
	const struct fb_create *args = &rq->image->args.create;
	char name[24], path[PROC_PATH_SIZE];
	struct stat st;
	int parent_fd = parent_fd_get(rq, rq->inode);

	if (parent_fd < 0)
		return parent_fd;
	int fd = AS_CREATOR(rq, openat(parent_fd, ".", backing_open_flags(args->flags) | O_TMPFILE |
						       (int)(args->flags & O_EXCL), args->mode));
	parent_fd_put(rq, rq->inode, parent_fd);
	if (fd < 0)
		return fd;
	proc_path(path, fd);
	int path_fd = fstat(fd, &st) < 0 ? -1 : open(path, O_PATH | O_CLOEXEC), e = path_fd < 0 ? -errno : 0;
	if (!e) {
		snprintf(name, sizeof(name), "#%llu", (unsigned long long)st.st_ino);
		e = entry_of_fd(rq, path_fd, name, true, &rq->out.create.entry, &rq->entry);
	}
	if (!e)
		e = nameless_pin(rq->mount, rq->entry);
	return reply_created(rq, fd, e);
}

/* ------------------------------------------------------------------------------ forgetting */

int op_forget(struct request *rq)
{
	const struct fuse_forget_in *in = request_take(rq, sizeof(*in));

	if (in)
		inodes_forget(rq->mount, inodes_get(rq->mount, rq->in->nodeid), in->nlookup);
	return 0;
}

int op_batch_forget(struct request *rq)
{
	const struct fuse_batch_forget_in *in = request_take(rq, sizeof(*in));

	for (uint32_t i = 0; in && i < in->count; i++) {
		const struct fuse_forget_one *one = request_take(rq, sizeof(*one));
		if (!one)
			break;
		inodes_forget(rq->mount, inodes_get(rq->mount, one->nodeid), one->nlookup);
	}
	return 0;
}

int op_interrupt(struct request *rq)
{
	const struct fuse_interrupt_in *in = request_take(rq, sizeof(*in));

	if (in)
		worker_interrupt(rq->worker, in->unique);
	return 0;
}

int op_destroy(struct request *rq)
{
	(void)rq; // the connection ends; mount_stop frees what it held
	return 0;
}
