/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The inode table: nodeid ↔ (backing mount, file handle). Nodeids count up and are never used again. Any worker.
 * Locks: a key shard's lock guards n_lookup, parent and name of its inodes and is taken before an id shard's.
 * An inode that the kernel knows cannot go while an op on it runs, since FORGET comes after.
 */
#include "core.h"

/* --------------------------------------------------------------------------------- shards */

static struct inode_shard *id_shard(struct mount *m, uint64_t nodeid)
{
	return &m->inodes.by_id[nodeid % N_SHARDS];
}

static struct inode_shard *key_shard(struct mount *m, uint32_t hash)
{
	return &m->inodes.by_key[hash % N_SHARDS];
}

/** The lock that guards parent and name of an inode. */
pthread_mutex_t *inode_name_lock(struct mount *m, const struct inode *inode)
{
	return &key_shard(m, inode->key_hash)->lock;
}

static struct inode **id_bucket(struct inode_shard *s, uint64_t nodeid)
{
	return &s->buckets[nodeid / N_SHARDS & (s->n_buckets - 1)];
}

static struct inode **key_bucket(struct inode_shard *s, uint32_t hash)
{
	return &s->buckets[hash / N_SHARDS & (s->n_buckets - 1)];
}

/* Double a shard that is full; where memory is short its chains grow longer instead. */
static void shard_grow(struct inode_shard *s, bool by_id)
{
	struct inode_shard bigger = { .n_buckets = s->n_buckets * 2 };

	if (s->n_inodes < s->n_buckets)
		return;
	bigger.buckets = calloc(bigger.n_buckets, sizeof(*bigger.buckets));
	if (!bigger.buckets)
		return;
	for (uint32_t i = 0; i < s->n_buckets; i++) {
		struct inode *inode = s->buckets[i];
		while (inode) {
			struct inode **next = by_id ? &inode->next_by_id : &inode->next_by_key;
			struct inode **bucket = by_id ? id_bucket(&bigger, inode->nodeid)
						      : key_bucket(&bigger, inode->key_hash);
			struct inode *following = *next;
			*next = *bucket;
			*bucket = inode;
			inode = following;
		}
	}
	free(s->buckets);
	s->buckets = bigger.buckets;
	s->n_buckets = bigger.n_buckets;
}

static void insert_by_id(struct mount *m, struct inode *inode)
{
	struct inode_shard *s = id_shard(m, inode->nodeid);

	pthread_mutex_lock(&s->lock);
	struct inode **bucket = id_bucket(s, inode->nodeid);
	inode->next_by_id = *bucket;
	*bucket = inode;
	s->n_inodes++;
	shard_grow(s, true);
	pthread_mutex_unlock(&s->lock);
}

static void remove_by_id(struct mount *m, struct inode *inode)
{
	struct inode_shard *s = id_shard(m, inode->nodeid);

	pthread_mutex_lock(&s->lock);
	struct inode **at = id_bucket(s, inode->nodeid);
	while (*at && *at != inode)
		at = &(*at)->next_by_id;
	if (*at) {
		*at = inode->next_by_id;
		s->n_inodes--;
	}
	pthread_mutex_unlock(&s->lock);
}

static void remove_by_key(struct inode_shard *s, struct inode *inode)
{
	struct inode **at = key_bucket(s, inode->key_hash);

	while (*at && *at != inode)
		at = &(*at)->next_by_key;
	if (*at) {
		*at = inode->next_by_key;
		s->n_inodes--;
	}
}

/** The inode of a nodeid that the kernel sent, or NULL. */
struct inode *inodes_get(struct mount *m, uint64_t nodeid)
{
	if (nodeid == ROOT_NODEID)
		return m->inodes.root;
	struct inode_shard *s = id_shard(m, nodeid);
	pthread_mutex_lock(&s->lock);
	struct inode *inode = *id_bucket(s, nodeid);
	while (inode && inode->nodeid != nodeid)
		inode = inode->next_by_id;
	pthread_mutex_unlock(&s->lock);
	return inode;
}

/* ------------------------------------------------------------------------- life of an inode */

static struct inode *inode_create(struct mount *m, const struct inode_key *key, uint32_t type, uint32_t view)
{
	struct inode *inode = calloc(1, sizeof(*inode) + key->handle.handle_bytes);

	if (!inode)
		return NULL;
	inode->nodeid = atomic_fetch_add(&m->inodes.next_nodeid, 1);
	inode->refs = 1;
	inode->type = type;
	inode->view = view;
	inode->mnt = key->mnt;
	inode->fd = -1;
	inode->clock_index = -1;
	inode->idle_index = -1;
	inode->fd_pinned = !key->mnt || !key->mnt->can_reopen;
	inode->is_virtual = key->handle.handle_type == DAEMON_HANDLE_TYPE;
	inode->key_hash = key->hash;
	inode->handle_type = key->handle.handle_type;
	inode->handle_bytes = (uint8_t)key->handle.handle_bytes;
	memcpy(inode->handle, key->handle.f_handle, key->handle.handle_bytes);
	atomic_fetch_add(&m->inodes.n_inodes, 1);
	return inode;
}

void inode_hold(struct inode *inode)
{
	atomic_fetch_add_explicit(&inode->refs, 1, memory_order_relaxed);
}

/** Give a reference back; the last one frees the inode, and its reference on the parent with it. */
void inode_release(struct mount *m, struct inode *inode)
{
	while (inode && atomic_fetch_sub(&inode->refs, 1) == 1) {
		struct inode *parent = inode->parent;
		backing_id_forget(m, inode);
		inode_fd_drop(m, inode);
		tags_forget(m, inode);
		free(inode->name);
		free(inode);
		atomic_fetch_sub(&m->inodes.n_inodes, 1);
		inode = parent;
	}
}

/* Called with the key shard's lock held. Returns what the caller releases after it has unlocked. An entry that the kernel may
 * have under the old name is known to nobody from here on, so it goes; unless a rename took it along. */
static struct inode *set_parent(struct mount *m, struct inode *inode, struct inode *parent, const char *name,
				bool is_rename)
{
	struct inode *old = inode->parent;

	if (!parent || inode->nodeid == ROOT_NODEID || parent == inode ||
	    (old == parent && inode->name && !strcmp(inode->name, name)))
		return NULL;
	char *copy = strdup(name);
	if (!copy)
		return NULL;
	if (old && !is_rename && !atomic_load_explicit(&inode->is_linked, memory_order_relaxed))
		notify_entry(m, old->nodeid, inode->name);
	free(inode->name);
	inode->name = copy;
	if (old != parent) {
		inode_hold(parent);
		inode->parent = parent;
	}
	if (old && inode->type == S_IFDIR)
		atomic_fetch_add(&m->inodes.n_moved, 1);
	return old == parent ? NULL : old;
}

/* It has left the directory old, if there is one, or was lost once. Called without locks. */
static void parent_left(struct mount *m, struct inode *inode, struct inode *old)
{
	if (old)
		tags_moved(m, inode);
	if (inode && inode->type == S_IFDIR && (old || atomic_load(&inode->is_lost)))
		inode_cut_loop(m, inode);
	inode_release(m, old);
}

static void note_place(struct mount *m, struct inode *inode, struct inode *parent, const char *name, bool is_rename)
{
	pthread_mutex_lock(inode_name_lock(m, inode));
	struct inode *old = set_parent(m, inode, parent, name, is_rename);
	pthread_mutex_unlock(inode_name_lock(m, inode));
	parent_left(m, inode, old);
}

/** Note where an inode is now, after a rename. */
void inode_moved(struct mount *m, struct inode *inode, struct inode *parent, const char *name)
{
	note_place(m, inode, parent, name, true);
}

/** Note that an inode was looked up, or linked, here. */
void inode_seen(struct mount *m, struct inode *inode, struct inode *parent, const char *name)
{
	note_place(m, inode, parent, name, false);
}

/* The inode of a file that has the smallest view from `view` on. */
static struct inode *find_locked(struct inode_shard *s, const struct inode_key *key, uint32_t view)
{
	struct inode *found = NULL;

	for (struct inode *inode = *key_bucket(s, key->hash); inode; inode = inode->next_by_key) {
		if (inode->view < view || (found && inode->view >= found->view) || !inode_is_of(inode, key))
			continue;
		found = inode;
		if (inode->view == view)
			break;
	}
	return found;
}

/* Is a new inode one of several of its file, or of a view that is not shared? Then all of them are told. */
static void mark_viewed(struct mount *m, struct inode *inode, const struct inode_key *key)
{
	if (inode->view)
		inode->is_viewed = m->inodes.has_views = true;
	for (struct inode *other = *key_bucket(key_shard(m, key->hash), key->hash); other; other = other->next_by_key)
		if (inode_is_of(other, key))
			inode->is_viewed = other->is_viewed = true;
}

/* The inode of a file in one view, made if it is not known. A pinned one takes *fd, which is -1 then. Called with the
 * key shard's lock held. */
static struct inode *find_or_make_locked(struct mount *m, const struct inode_key *key, uint32_t type, uint32_t view,
					 int *fd)
{
	struct inode_shard *s = key_shard(m, key->hash);
	struct inode *inode = find_locked(s, key, view);

	if (inode && inode->view == view)
		return inode;
	if (!(inode = inode_create(m, key, type, view)))
		return NULL;
	if (*fd >= 0 && inode->fd_pinned) {
		inode->fd = *fd; // before anybody finds it
		if (atomic_fetch_add(&m->fds.n_open, 1) >= m->fds.limit)
			notify_prune(m);
		*fd = -1;
	}
	if (view || m->inodes.has_views)
		mark_viewed(m, inode, key);
	struct inode **bucket = key_bucket(s, key->hash);
	inode->next_by_key = *bucket;
	*bucket = inode;
	s->n_inodes++;
	shard_grow(s, false);
	insert_by_id(m, inode);
	return inode;
}

static struct inode *find_held(struct mount *m, const struct inode_key *key, uint32_t view)
{
	struct inode_shard *s = key_shard(m, key->hash);

	pthread_mutex_lock(&s->lock);
	struct inode *inode = find_locked(s, key, view);
	if (inode)
		inode_hold(inode);
	pthread_mutex_unlock(&s->lock);
	return inode;
}

/* Count an inode once more for the kernel, which comes to it by that name. Called with the key shard's lock held; returns what
 * parent_left is to be told. */
static struct inode *count_locked(struct mount *m, struct inode *inode, struct inode *parent, const char *name)
{
	inode->n_lookup++;
	inode->n_daemon += inode->is_virtual;
	return tags_judge_first(m, inode, parent) ? NULL : set_parent(m, inode, parent, name, false);
}

/**
 * The inode of a key, counted once more for the kernel; made if it is not known. *fd is an O_PATH descriptor that an inode
 * without a way back by handle takes (then it is -1), or -1 where there is one. Returns NULL where memory is short.
 */
struct inode *inodes_enter_key(struct mount *m, const struct inode_key *key, uint32_t type, uint32_t view,
			       struct inode *parent, const char *name, int *fd)
{
	struct inode_shard *s = key_shard(m, key->hash);
	struct inode *old_parent = NULL;

	pthread_mutex_lock(&s->lock);
	struct inode *inode = find_or_make_locked(m, key, type, view, fd);
	if (inode)
		old_parent = count_locked(m, inode, parent, name);
	pthread_mutex_unlock(&s->lock);
	parent_left(m, inode, old_parent);
	return inode;
}

/** Count an inode, on which the caller has a reference, once more for the kernel. Returns false if it is being forgotten. */
bool inodes_enter_known(struct mount *m, struct inode *inode, struct inode *parent, const char *name)
{
	struct inode *old_parent = NULL;

	pthread_mutex_lock(inode_name_lock(m, inode));
	bool is_known = inode->n_lookup > 0;
	if (is_known)
		old_parent = count_locked(m, inode, parent, name);
	pthread_mutex_unlock(inode_name_lock(m, inode));
	parent_left(m, inode, old_parent);
	return is_known;
}

/**
 * The inode of an open file, counted once more for the kernel. It is made if it is not known.
 *
 * fd: of the file. With adopt_fd it is an O_PATH descriptor, and this call owns it from here on, whatever it returns.
 */
int inodes_enter(struct mount *m, int fd, uint32_t type, uint32_t view, struct inode *parent, const char *name,
		 bool adopt_fd, struct inode **out)
{
	struct inode_key key;
	int id, e = inode_key_of(fd, "", &key, &id);

	key.mnt = NULL;
	if (!e && id >= 0 && !(key.mnt = backing_mount_get(m, id, fd, type)))
		e = -ENOMEM;
	if (!e && !adopt_fd && !(key.mnt && key.mnt->can_reopen)) {
		fd = reopen_as_path(fd); // no way back by handle: it needs a descriptor of its own
		e = fd < 0 ? fd : 0;
		adopt_fd = !e;
	}
	if (e) {
		if (adopt_fd)
			close(fd);
		return e;
	}
	int given = adopt_fd ? fd : -1;
	*out = inodes_enter_key(m, &key, type, view, parent, name, &given);
	if (*out && given >= 0)
		inode_fd_adopt(m, *out, given);
	else if (given >= 0)
		close(given);
	return *out ? 0 : -ENOMEM;
}

/** The inode that a name leads to, if the kernel knows it; with a reference that the caller releases. */
struct inode *inodes_find_at(struct mount *m, int parent_fd, const char *name)
{
	struct inode_key key;
	int id;

	if (inode_key_of(parent_fd, name, &key, &id))
		return NULL;
	key.mnt = NULL;
	if (id >= 0 && !(key.mnt = backing_mount_find(m, id)))
		return NULL;
	return find_held(m, &key, 0);
}

/** The inode of a file handle on a backing mount with the smallest view from `view` on, with a reference that the caller
 * releases; or NULL. */
struct inode *inodes_find_handle(struct mount *m, struct backing_mount *b, const struct file_handle *handle,
				 uint32_t view)
{
	struct inode_key key;

	return inode_key_of_handle(b, handle, &key) ? find_held(m, &key, view) : NULL;
}

/** The inode of the same file with the smallest view from `view` on, with a reference that the caller releases; or NULL. */
struct inode *inodes_view_from(struct mount *m, const struct inode *like, uint32_t view)
{
	struct inode_key key;

	inode_key_again(like, &key);
	return find_held(m, &key, view);
}

/** The inode of the same file in another view, counted once more for the kernel; made, at the same place, if not known. */
int inodes_enter_view(struct mount *m, struct inode *like, uint32_t view, struct inode **out)
{
	struct inode_shard *s = key_shard(m, like->key_hash);
	struct inode_key key;
	int fd = inode_fd_get(m, like);

	if (fd < 0)
		return fd;
	inode_key_again(like, &key);
	int copy = fcntl(fd, F_DUPFD_CLOEXEC, 0), e = copy < 0 ? -errno : 0;
	inode_fd_put(m, like);
	if (e)
		return e;
	pthread_mutex_lock(&s->lock);
	struct inode *inode = find_or_make_locked(m, &key, like->type, view, &copy);
	if (inode) {
		inode->n_lookup++;
		atomic_store(&inode->is_lost, atomic_load(&inode->is_lost) || atomic_load(&like->is_lost));
		set_parent(m, inode, inode->parent ? NULL : like->parent, like->name, false);
	}
	pthread_mutex_unlock(&s->lock);
	parent_left(m, inode, NULL);
	if (inode && copy >= 0)
		inode_fd_adopt(m, inode, copy);
	else if (copy >= 0)
		close(copy);
	*out = inode;
	return inode ? 0 : -ENOMEM;
}

/** Take back lookups: a FORGET, or a reply that did not arrive. */
void inodes_forget(struct mount *m, struct inode *inode, uint64_t n_lookup)
{
	if (!inode || inode->nodeid == ROOT_NODEID)
		return;
	struct inode_shard *s = key_shard(m, inode->key_hash);
	pthread_mutex_lock(&s->lock);
	inode->n_lookup -= n_lookup < inode->n_lookup ? n_lookup : inode->n_lookup;
	bool is_gone = inode->n_lookup == 0;
	uint64_t n_daemon = is_gone ? inode->n_daemon : 0;
	if (is_gone) {
		known_forgotten(inode);
		remove_by_key(s, inode);
		remove_by_id(m, inode);
	}
	pthread_mutex_unlock(&s->lock);
	if (n_daemon && m->daemon)
		daemon_forget(m->daemon, daemon_id_of(inode), n_daemon);
	if (is_gone)
		inode_release(m, inode);
}

/* ------------------------------------------------------------------------------ life of the table */

static int shards_init(struct inode_shard shards[N_SHARDS])
{
	for (int i = 0; i < N_SHARDS; i++) {
		pthread_mutex_init(&shards[i].lock, NULL);
		shards[i].n_buckets = 16;
		shards[i].buckets = calloc(16, sizeof(struct inode *));
		if (!shards[i].buckets)
			return -ENOMEM;
	}
	return 0;
}

/** Make the table and its root from mount->root_fd. */
int inodes_init(struct mount *m)
{
	struct inodes *t = &m->inodes;

	pthread_mutex_init(&t->mounts_lock, NULL);
	t->next_nodeid = ROOT_NODEID;
	if (shards_init(t->by_id) || shards_init(t->by_key) || hints_init(m))
		return -ENOMEM;
	struct stat st;
	int fd = fstat(m->root_fd, &st) < 0 ? -1 : openat(m->root_fd, ".", O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	t->root_dev = st.st_dev;
	return inodes_enter(m, fd, S_IFDIR, 0, NULL, "", true, &t->root);
}

/** Free every inode, whatever the kernel still counted: the connection is gone. */
void inodes_deinit(struct mount *m)
{
	struct inodes *t = &m->inodes;

	for (int i = 0; i < N_SHARDS; i++) {
		struct inode_shard *s = &t->by_id[i];
		for (uint32_t b = 0; b < s->n_buckets && s->buckets; b++) {
			for (struct inode *inode = s->buckets[b]; inode;) {
				struct inode *next = inode->next_by_id;
				inode_release(m, inode);
				inode = next;
			}
		}
		free(s->buckets);
		free(t->by_key[i].buckets);
		s->buckets = t->by_key[i].buckets = NULL;
	}
	backing_mounts_deinit(m);
	inode_numbers_deinit(m);
	hints_deinit(m);
	t->root = NULL;
}
