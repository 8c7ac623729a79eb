/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Entries: what a lookup, a listing with attributes and every op that makes a name answer with. Any worker.
 */
#include "core.h"

/* Coarser than any clock that a local file system stamps its inodes with, and than what two calls take. */
#define JUST_NOW_NS 50000000LL

void ttl_set(uint64_t ttl_ns, uint64_t *seconds, uint32_t *nanoseconds)
{
	*seconds = ttl_ns / 1000000000u;
	*nanoseconds = (uint32_t)(ttl_ns % 1000000000u);
}

uint64_t ttl_ns(uint64_t seconds, uint32_t nanoseconds)
{
	return seconds >= UINT64_MAX / 1000000000u ? UINT64_MAX : seconds * 1000000000u + nanoseconds;
}

/** Did a filter go on with another name than the kernel asked for? */
bool name_is_rewritten(const char *asked, const char *used)
{
	return asked && used && asked != used && strcmp(asked, used);
}

/** How long the kernel may keep a name of this inode: not at all where it depends on who looks, or from where, whatever a filter
 * says. */
uint64_t entry_ttl_ns(const struct request *rq, const struct inode *inode)
{
	bool depends = rq->mount->inodes.has_views || inode->tags & INODE_TAG_MIXED || !rq->mount->default_permissions;

	if (depends || !rq->entry_ttl_ns || !name_is_rewritten(rq->asked, rq->name))
		return depends ? 0 : rq->entry_ttl_ns;
	notify_unknown(rq->mount); // the table has the name that is used, not the one that the kernel knows
	return rq->entry_ttl_ns < NOTIFY_UNKNOWN_NS ? rq->entry_ttl_ns : NOTIFY_UNKNOWN_NS;
}

/** How long it may keep the inode's attributes: not at all where they change through another view. */
uint64_t attr_ttl_ns(const struct request *rq, const struct inode *inode)
{
	return inode->is_viewed ? 0 : rq->attr_ttl_ns;
}

/* Fill the rest of an entry in, whose attributes are there and whose inode is counted. */
static void entry_finish(struct request *rq, const char *name, struct inode *inode, struct fuse_entry_out *out)
{
	if (tags_are_used(&rq->mount->tags))
		tags_reached(rq, inode, rq->inode, name, out->attr.nlink);
	if (inode->root != entry_root(rq))
		inode->root = (uint8_t)entry_root(rq);
	out->nodeid = inode->nodeid;
	// As the backing says, not as a filter may.
	atomic_store_explicit(&inode->is_linked, out->attr.nlink > 1 && inode->type != S_IFDIR, memory_order_relaxed);
	cache_entry(rq, inode, out);
}

/** Fill an entry in from an open file; the inode is counted once. With adopt_fd, fd is O_PATH and given away. */
int entry_of_fd(struct request *rq, int fd, const char *name, bool adopt_fd, struct fuse_entry_out *out,
		struct inode **inode)
{
	memset(out, 0, sizeof(*out));
	int e = attr_of_fd(rq, fd, &out->attr);
	if (e) {
		if (adopt_fd)
			close(fd);
		return e;
	}
	e = inodes_enter(rq->mount, fd, out->attr.mode & S_IFMT, entry_view(rq), rq->inode, name, adopt_fd, inode);
	if (!e)
		entry_finish(rq, name, *inode, out);
	return e;
}

static int64_t now_coarse_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_REALTIME_COARSE, &now);
	return now.tv_sec * 1000000000LL + now.tv_nsec;
}

/*
 * An entry without opening the file: its handle by name, then its attributes by name. Another file may have taken the name
 * in between, made or renamed behind the mount; then its ctime is of this moment, so what was changed just now is not
 * judged here. Returns false where it cannot say; *e is 0 or -errno where it can.
 */
static bool entry_by_handle(struct request *rq, int parent_fd, const char *name, struct fuse_entry_out *out,
			    struct inode **inode, int *e)
{
	struct mount *m = rq->mount;
	struct inode_key key;
	int64_t before_ns = now_coarse_ns() - JUST_NOW_NS;
	int id, none = -1;

	*e = inode_key_of(parent_fd, name, &key, &id);
	if (*e)
		return true;
	if (id < 0 || !(key.mnt = backing_mount_find(m, id)) || !key.mnt->can_reopen || key.mnt->is_remote ||
	    key.mnt != rq->inode->mnt)
		return false;
	memset(out, 0, sizeof(*out));
	if (attr_at(rq, parent_fd, name, &out->attr) ||
	    (int64_t)out->attr.ctime * 1000000000LL + out->attr.ctimensec > before_ns)
		return false;
	*inode = inodes_enter_key(m, &key, out->attr.mode & S_IFMT, entry_view(rq), rq->inode, name, &none);
	if (*inode) {
		hint_note(rq, name, *inode, out->attr.ino, before_ns);
		entry_finish(rq, name, *inode, out);
	}
	*e = *inode ? 0 : -ENOMEM;
	return true;
}

/* An entry that leads where it did before, to an inode that is known still: by one call, which tells both. Returns false where it
 * cannot say; *e is 0 or -errno where it can. */
static bool entry_by_hint(struct request *rq, int parent_fd, const char *name, struct fuse_entry_out *out, struct inode **inode,
			  int *e)
{
	struct mount *m = rq->mount;
	struct inode *known = entry_view(rq) || m->inodes.has_views ? NULL : hint_get(m, rq->inode, name);

	if (!known)
		return false;
	memset(out, 0, sizeof(*out));
	*e = attr_at(rq, parent_fd, name, &out->attr);
	bool is_it = !*e && hint_holds(rq, known, out->attr.ino) && inodes_enter_known(m, known, rq->inode, name);
	if (is_it) {
		entry_finish(rq, name, known, out);
		*inode = known;
	}
	inode_release(m, known);
	return *e || is_it;
}

/** Look a name up in rq->inode, whose descriptor is parent_fd; the inode is counted once. */
int entry_at(struct request *rq, int parent_fd, const char *name, struct fuse_entry_out *out, struct inode **inode)
{
	uint32_t n_waits = 0;
	int e, fd;

	if (entry_by_hint(rq, parent_fd, name, out, inode, &e))
		return e;
	// What was made a moment ago it could not judge.
	if (!rq->has_changed && entry_by_handle(rq, parent_fd, name, out, inode, &e))
		return e;
	do {
		fd = openat(parent_fd, name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
	} while (fd < 0 && errno == EMFILE && prune_wait(rq, &n_waits));
	if (fd < 0)
		return -errno;
	return entry_of_fd(rq, fd, name, true, out, inode);
}
