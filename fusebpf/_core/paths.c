/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Paths below the mount's root, for filters that want them: put together from the names by which the kernel last looked
 * each inode up.
 */
#include "core.h"

/** The directory above, with a reference that the caller releases; NULL where there is none. */
struct inode *inode_parent_hold(struct mount *m, struct inode *inode)
{
	pthread_mutex_t *lock = inode_name_lock(m, inode);

	pthread_mutex_lock(lock);
	struct inode *parent = inode->parent;
	if (parent)
		inode_hold(parent);
	pthread_mutex_unlock(lock);
	return parent;
}

/* `inode` is not in `above`, of which it is not known where it is. */
static void lose(struct mount *m, struct inode *inode, struct inode *above)
{
	pthread_mutex_lock(inode_name_lock(m, inode));
	bool was_there = inode->parent == above;
	if (was_there) {
		inode->parent = NULL;
		atomic_store(&inode->is_lost, true);
		atomic_fetch_add(&m->inodes.n_moved, 1);
	}
	pthread_mutex_unlock(inode_name_lock(m, inode));
	if (!was_there)
		return;
	tags_moved(m, inode);
	notify_all(m, false); // what is old is among what the kernel still goes by: it is to ask for all of it
	inode_release(m, above);
}

/**
 * A directory has come into another. If that seems to be below it, somebody moved that one away behind the mount and nobody has
 * looked it up since. All walks up would go round for ever. Called without locks.
 */
void inode_cut_loop(struct mount *m, struct inode *inode)
{
	struct inode *at = inode, *parent;

	inode_hold(inode);
	while ((parent = inode_parent_hold(m, at)) && parent != inode) {
		inode_release(m, at);
		at = parent;
	}
	if (parent)
		lose(m, at, inode);
	inode_release(m, parent);
	inode_release(m, at);
}

/* Put a name in front of what is there from `at` on. Returns the new start, or -1 if it does not fit. */
static int prepend(char out[FB_PATH_SIZE], int at, const char *name)
{
	size_t len = strlen(name);
	bool slash = out[at];

	if ((size_t)at < len + slash)
		return -1;
	if (slash)
		out[--at] = '/';
	memcpy(out + at - len, name, len);
	return at - (int)len;
}

/* Put the inode's name in front, and go on to its directory. Returns the new start, or -1: *inode is NULL then, or it does not fit. */
static int step_up(struct mount *m, struct inode **inode, char out[FB_PATH_SIZE], int at)
{
	pthread_mutex_t *lock = inode_name_lock(m, *inode);

	pthread_mutex_lock(lock);
	struct inode *parent = (*inode)->parent;
	at = parent ? prepend(out, at, (*inode)->name) : -1;
	if (parent)
		inode_hold(parent);
	pthread_mutex_unlock(lock);
	inode_release(m, *inode);
	*inode = parent;
	return at;
}

static bool is_known(const struct known_path *known, uint64_t nodeid, uint64_t n_moved)
{
	return known && known->nodeid == nodeid && known->n_moved == n_moved;
}

static void remember(struct known_path *known, uint64_t nodeid, uint64_t n_moved, const char *path, size_t len)
{
	if (!known || len >= sizeof(known->text))
		return;
	memcpy(known->text, path, len);
	known->text[len] = 0;
	known->nodeid = nodeid;
	known->n_moved = n_moved;
}

/**
 * The path below the mount's root of an inode, and of the entry `name` in it where that is not NULL, as the kernel
 * last looked it up. `known` is the caller's, of the directory that it asked for last, or NULL. Returns its length, or -1 if it
 * is longer than FB_PATH_SIZE - 1 or not known.
 */
int inode_path(struct mount *m, struct inode *inode, const char *name, struct known_path *known, char out[FB_PATH_SIZE])
{
	uint64_t n_moved = atomic_load(&m->inodes.n_moved); // before it walks: what moves meanwhile is not remembered
	int at = FB_PATH_SIZE - 1;

	out[at] = 0;
	if (name)
		at = prepend(out, at, name);
	inode_hold(inode);
	if (at >= 0 && inode->type != S_IFDIR)
		at = step_up(m, &inode, out, at);
	if (at >= 0 && is_known(known, inode->nodeid, n_moved)) {
		at = prepend(out, at, known->text);
	} else if (at >= 0 && inode->nodeid != ROOT_NODEID) {
		uint64_t nodeid = inode->nodeid;
		int end = at - (out[at] ? 1 : 0);
		while (at >= 0 && inode->nodeid != ROOT_NODEID)
			at = step_up(m, &inode, out, at);
		if (at >= 0)
			remember(known, nodeid, n_moved, out + at, (size_t)(end - at));
	}
	inode_release(m, inode);
	if (at < 0) {
		out[0] = 0;
		return -1;
	}
	memmove(out, out + at, (size_t)(FB_PATH_SIZE - at));
	return FB_PATH_SIZE - 1 - at;
}

/** Where an inode was last seen: its name, and its directory's nodeid; 0 if that is not known, or it is the root. */
uint64_t inode_place(struct mount *m, uint64_t nodeid, char name[FB_NAME_SIZE])
{
	struct inode *inode = inodes_get_held(m, nodeid);
	uint64_t parent = 0;

	if (!inode)
		return 0;
	pthread_mutex_lock(inode_name_lock(m, inode));
	if (inode->parent && strlen(inode->name) < FB_NAME_SIZE) {
		parent = inode->parent->nodeid;
		strcpy(name, inode->name);
	}
	pthread_mutex_unlock(inode_name_lock(m, inode));
	inode_release(m, inode);
	return parent;
}
