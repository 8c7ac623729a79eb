/* SPDX-License-Identifier: Apache-2.0 */
/* The inode table: inodes by nodeid and by file handle, their cached descriptors, the mounts of the backing tree. */
#ifndef FUSEBPF_INODES_H
#define FUSEBPF_INODES_H

#include "core.h"

/* Are names that differ in case alone the same on a file system? */
enum case_folding { FOLDS_NOT, FOLDS_BY_DIRECTORY, FOLDS_PERHAPS };

/* A mount of the backing tree that inodes were found on. Never freed before the fusebpf mount is. */
struct backing_mount {
	struct backing_mount *next;
	int id;		 /* as name_to_handle_at(2) gives it; not reused while fd is open */
	int fd;		 /* a real descriptor on it, for open_by_handle_at(2) */
	bool can_reopen; /* its file handles can be opened again */
	bool is_remote;	 /* close(2) may report errors of earlier writes */
	bool is_made_up; /* the kernel makes its files up as they are read: their sizes say nothing */
	bool are_births_own; /* no two files have the same number and birth time: see hints.c */
	bool is_watched; /* the kernel is told of changes behind the mount */
	enum case_folding folding;
	uint64_t fsid;	 /* statfs(2)'s, as fanotify names its file system */
};

struct lock_range {
	uint64_t start, end; /* the last byte */
	uint64_t fh;	     /* the handle that it was taken by */
	uint32_t type, pid;
};

/* What one lock owner (a process's files, or an open file) holds on one inode: OFD locks of a descriptor of its own. */
struct lock_owner {
	struct lock_owner *next; /* of the same inode */
	uint64_t owner;
	int fd;
	uint32_t refs; /* 1 for being in the list; uses under way */
	uint32_t n_ranges, capacity;
	struct lock_range *ranges; /* whose lock it is, and what goes with a handle: the backing file system decides */
};

struct inode {
	uint64_t nodeid;
	uint64_t n_lookup;	    /* the kernel's references; under the lock of the key's shard */
	_Atomic uint32_t refs;	    /* 1 for n_lookup > 0, children's parent pointers, open handles */
	uint32_t type;		    /* S_IFMT bits */
	_Atomic uint8_t tags;	    /* enum inode_tags */
	_Atomic bool is_viewed;	    /* the file is known under several views, or under one that is not shared */
	_Atomic bool is_linked;	    /* a file that had several names when it was last looked up */
	_Atomic bool is_lost;	    /* a directory; while it has no parent, it is not known where it is */
	_Atomic bool is_gone;	    /* the mount took its last name away; it gets no other */
	uint32_t view;		    /* part of the key; 0 is the shared one */
	_Atomic uint8_t root;	    /* the backing root that it is below */
	struct inode *next_by_id;   /* under the id shard's lock */
	struct inode *next_by_key;  /* under the key shard's lock, as are parent and name */
	struct inode *parent;	    /* holds a reference; NULL for the root */
	char *name;
	bool is_virtual;	    /* the daemon's own: it has no backing */
	uint64_t daemon_id;	    /* what the daemon calls a virtual one */
	uint64_t n_daemon;	    /* how often the daemon handed it out, as n_lookup */
	struct backing_mount *mnt; /* NULL where the file system has no handles */
	/* By which it is found again without its handle (hints.c), immutable once born_ns is there: */
	_Atomic int64_t born_ns;    /* when the file was made; 0: not to be gone by */
	uint64_t number;	    /* its inode number in the mount */
	/* The cached descriptor, under the fd stripe's lock: */
	int fd;			    /* O_PATH, -1: closed, open again by handle */
	uint32_t fd_users;	    /* uses under way; it is not closed meanwhile */
	_Atomic int32_t clock_index; /* in fds.clock, -1: not in it; written under clock_lock */
	bool fd_referenced;	    /* used since the clock's hand last passed */
	_Atomic bool is_append_only; /* chattr +a was seen on it when it was opened to append */
	bool fd_pinned;		    /* must stay open: the last link is gone, or there is no way to reopen it */
	struct handle *_Atomic opened; /* one of those that have the regular file open, with a descriptor; NULL: none is known */
	/* Kernel passthrough, under the fd stripe's lock: */
	_Atomic int32_t backing_id; /* kept for a while after the last close; read without to see that there is none */
	bool id_writes;		    /* the file that the kernel keeps for it is open to write */
	bool id_is_makers;	    /* writes by it act in the group that the file was made in, */
	uint32_t id_gid;	    /* which its maker's requests had */
	int32_t idle_index;	    /* in backing_ids.idle, -1: not in it */
	_Atomic uint32_t n_passthrough; /* open handles that are passed through */
	uint32_t n_served;	    /* open handles of the regular file that are not */
	_Atomic(struct lock_owner *) locks; /* under mount.locks_lock; read without to see that there is none */
	_Atomic uint32_t n_closing; /* handles that hold locks and of which a descriptor was closed, before their RELEASE */
	_Atomic int64_t closing_ms; /* when the last one was */
	/* A directory whose listing filters let the kernel keep: until when, and as of which notifier.n_all. */
	_Atomic int64_t listed_until_ms;
	_Atomic uint32_t listed_all;
	/* A directory: of its entries (known.c). */
	_Atomic int64_t known_until_ms; /* the kernel knows all of them, as of the notifier.n_all in known_all */
	_Atomic uint32_t known_all, n_known, n_stale;
	_Atomic bool is_stale; /* a file that counts among its parent's n_stale */
	/* The key: the file handle, or where the file system has none, device and inode number. */
	uint32_t key_hash;
	int32_t handle_type;
	uint8_t handle_bytes;
	unsigned char handle[];
};

enum { DAEMON_HANDLE_TYPE = -3 }; /* the key is the daemon's number: there is no backing */

struct inode_key {
	struct backing_mount *mnt;
	uint32_t hash; /* the same for all views of a file */
	union {
		struct file_handle handle;
		char bytes[sizeof(struct file_handle) + MAX_HANDLE_SIZE];
	};
};

#define N_SHARDS 64

struct inode_shard {
	pthread_mutex_t lock;
	struct inode **buckets;
	uint32_t n_buckets; /* a power of two */
	uint32_t n_inodes;
};

struct inodes {
	struct inode_shard by_id[N_SHARDS];
	struct inode_shard by_key[N_SHARDS];
	_Atomic uint64_t next_nodeid;
	_Atomic uint64_t n_inodes;
	_Atomic bool has_views; /* some file is, or was, viewed */
	_Atomic int64_t dir_gone_ms; /* when the mount last removed a directory */
	_Atomic uint64_t n_moved; /* how often a directory came to another place or name */
	pthread_mutex_t mounts_lock;
	struct backing_mount *_Atomic mounts;
	struct backing_device *_Atomic devices; /* but the root's */
	dev_t root_dev;
	struct inode *root;
	_Atomic uint64_t *hints; /* nodeids, by directory and name */
};

/* The path of a directory, as of an inodes.n_moved. */
struct known_path {
	uint64_t nodeid; /* 0: of none */
	uint64_t n_moved;
	char text[240]; /* longer ones are put together each time */
};

/* The clock of cached descriptors. Lock order: an inode's stripe, then clock_lock, then other stripes by trylock. */
struct fds {
	pthread_mutex_t stripes[N_SHARDS];
	pthread_mutex_t clock_lock;
	struct inode **clock;
	uint32_t n_clock, limit, hand;
	int nearly_all; /* a descriptor of that number says that the process has hardly any left: the lowest free one is given */
	_Atomic uint32_t n_open;
};

/* fds.c */
void fds_init(struct mount *m);
int fds_limit(struct mount *m, uint32_t limit);
void fds_make_room(struct mount *m, int fd);
void fds_deinit(struct mount *m);
pthread_mutex_t *fds_stripe(struct mount *m, const struct inode *inode);
int inode_fd_get(struct mount *m, struct inode *inode);
int inode_open(struct mount *m, struct inode *inode, int flags);
void inode_fd_put(struct mount *m, struct inode *inode);
void inode_fd_adopt(struct mount *m, struct inode *inode, int fd);
void inode_fd_drop(struct mount *m, struct inode *inode);
void inode_fd_renew(struct mount *m, struct inode *inode);
void inode_fd_pin(struct mount *m, struct inode *inode);
void inode_fd_unpin(struct mount *m, struct inode *inode);
int reopen_as_path(int fd);
void proc_path(char out[PROC_PATH_SIZE], int fd);

/* backing_mounts.c */
struct backing_mount *backing_mount_find(struct mount *m, int id);
bool inode_is_made_up(const struct inode *inode, int fd);
bool backing_folds_case(const struct backing_mount *b, int dir_fd);
struct backing_mount *backing_mount_get(struct mount *m, int id, int fd, uint32_t type);
void backing_mounts_deinit(struct mount *m);

/* inode_numbers.c */
uint64_t inode_number(struct mount *m, dev_t dev, uint64_t ino);
void inode_numbers_deinit(struct mount *m);

/* inode_keys.c */
int inode_key_of(int fd, const char *name, struct inode_key *key, int *mount_id);
bool inode_is_of(const struct inode *inode, const struct inode_key *key);
void inode_key_again(const struct inode *inode, struct inode_key *key);
bool inode_key_of_handle(struct backing_mount *b, const struct file_handle *handle, struct inode_key *key);

/* inodes.c */
int inodes_init(struct mount *m);
void inodes_deinit(struct mount *m);
struct inode *inodes_get(struct mount *m, uint64_t nodeid);
int inodes_enter(struct mount *m, int fd, uint32_t type, uint32_t view, struct inode *parent, const char *name,
		 bool adopt_fd, struct inode **out);
struct inode *inodes_enter_key(struct mount *m, const struct inode_key *key, uint32_t type, uint32_t view,
			       struct inode *parent, const char *name, int *fd);
bool inodes_enter_known(struct mount *m, struct inode *inode, struct inode *parent, const char *name);
int inodes_enter_view(struct mount *m, struct inode *like, uint32_t view, struct inode **out);
struct inode *inodes_view_from(struct mount *m, const struct inode *like, uint32_t view);
struct inode *inodes_find_handle(struct mount *m, struct backing_mount *b, const struct file_handle *handle,
				 uint32_t view);
struct inode *inodes_find_at(struct mount *m, int parent_fd, const char *name);
void inodes_forget(struct mount *m, struct inode *inode, uint64_t n_lookup);
void inode_hold(struct inode *inode);
void inode_release(struct mount *m, struct inode *inode);
void inode_moved(struct mount *m, struct inode *inode, struct inode *parent, const char *name);
void inode_seen(struct mount *m, struct inode *inode, struct inode *parent, const char *name);
pthread_mutex_t *inode_name_lock(struct mount *m, const struct inode *inode);

/* hints.c */
int hints_init(struct mount *m);
void hints_deinit(struct mount *m);
void hint_note(const struct request *rq, const char *name, struct inode *inode, uint64_t number, int64_t before_ns);
struct inode *hint_get(struct mount *m, const struct inode *dir, const char *name);
bool hint_holds(const struct request *rq, const struct inode *inode, uint64_t number);

/* inodes_walk.c */
struct inode *inodes_get_held(struct mount *m, uint64_t nodeid);
uint64_t *inodes_of_shard(struct mount *m, uint32_t shard, uint32_t *n);
ssize_t inodes_passed_through(struct mount *m, struct inode ***out);

/* daemon_inodes.c */
int inodes_enter_virtual(struct mount *m, uint64_t daemon_id, uint32_t type, struct inode *parent, const char *name,
			 struct inode **out);
int inodes_count(struct mount *m, struct inode *inode);
void inodes_pair(struct mount *m, struct inode *inode, uint64_t daemon_id);
void inodes_moved_child(struct mount *m, struct inode *parent, const char *name, struct inode *to, const char *to_name,
			bool is_exchange);

/* paths.c */
struct inode *inode_parent_hold(struct mount *m, struct inode *inode);
void inode_cut_loop(struct mount *m, struct inode *inode);
uint64_t inode_place(struct mount *m, uint64_t nodeid, char name[FB_NAME_SIZE]);
int inode_path(struct mount *m, struct inode *inode, const char *name, struct known_path *known, char out[FB_PATH_SIZE]);

/* known.c */
void known_stale(struct mount *m, struct inode *inode);
void known_fresh(struct mount *m, struct inode *inode);
void known_forgotten(struct inode *inode);
void known_no_longer(struct inode *dir);
bool known_is_stale(const struct inode *dir);
bool known_all(const struct request *rq);
void known_listed(const struct request *rq, uint32_t n, uint64_t ttl_ns);
void known_in_part(struct inode *dir);

/* locks.c */
void locks_flush(struct mount *m, struct inode *inode, const struct fb_flush *args);
void locks_release_handle(struct mount *m, struct inode *inode, uint64_t fh);

#endif
