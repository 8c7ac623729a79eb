/* SPDX-License-Identifier: Apache-2.0 */
/* One operation from its decoding to its reply. */
#ifndef FUSEBPF_REQUEST_H
#define FUSEBPF_REQUEST_H

#include "core.h"

enum { NO_SLOT = UINT32_MAX };

#define FB_O_EXEC 0x20 /* fs/open.c: FMODE_EXEC, the kernel's own bit among OPEN's flags */
/* The kernel sets it in every OPEN of a program of 64 bits, for which the C library has it as 0. */
#ifdef __aarch64__
#define FB_O_LARGEFILE 0400000
#else
#define FB_O_LARGEFILE 0100000
#endif

struct request {
	struct mount *mount;
	struct worker *worker;
	const struct op *op;
	const struct fuse_in_header *in;
	const char *body; /* behind the header */
	size_t body_len;
	size_t body_at; /* how much of it is decoded */
	const char *name, *name2, *text; /* what the op is to use; in the request, or in image after an edit */
	const char *asked, *asked2; /* the names as the kernel has them */
	uint32_t n_kept;	    /* of worker.kept_names */
	bool has_used;		    /* worker.used_names has those of the op, since the image may have others */
	bool is_rehearsed;	    /* it is described, and there is no mount */
	struct inode *inode;
	bool has_view; /* a hook said which view the entry has */
	uint32_t view;
	bool has_root; /* a filter said which root its names are in */
	uint32_t root;
	bool has_supplementary_group;
	uint32_t supplementary_group;
	uint32_t create_uid, create_gid; /* owner of what is created */

	/* The result. reply and payload are sent after the header. */
	const void *reply;
	size_t reply_len;
	const void *payload;
	size_t payload_len;
	uint64_t entry_ttl_ns, attr_ttl_ns;
	bool is_absent;	       /* lookup: the backing has no such name, and the kernel may take that as told */
	bool has_changed;      /* the backing's names were changed as asked, whatever the answer will be */
	bool is_made;	       /* create: the file is new, not one that was there */
	uint64_t list_ttl_ns; /* of this part of a listing: the least that a dirent hook gave */
	uint64_t n_changes; /* watch.n_changes when it began, */
	uint64_t n_all;	    /* and notifier.n_all */
	uint32_t n_own;	       /* handles of its own that are open */
	struct turn turn;      /* at the file whose size it may change, or of which it takes a name */
	struct inode *sized;   /* that file, if a filter wants sizes, */
	int sized_fd;	       /* and a descriptor of it: */
	bool has_sized_fd;     /* the inode's, */
	struct handle *sized_by; /* or that of another who has it open, or else the op's own */
	struct inode *removed; /* for post hooks: what lost its name, with a reference */
	struct inode *entry;   /* the inode that the reply counts once; taken back if the reply does not arrive */
	struct handle *opened; /* the handle that the reply hands out; closed if it does not arrive */
	uint64_t count;	       /* FB_OP_COUNT: bytes moved, or lseek's offset */
	int64_t mnt_id;	       /* of the file whose attributes were last read; -1: the kernel does not say */
	struct timespec btime; /* statx: when the inode was made; tv_nsec -1: the file system does not say */
	uint64_t n_listed;     /* entries */
	char *input;	       /* what write, setxattr and ioctl take; NULL: what the request brought, behind its arguments */
	struct shown shown;    /* what of the payload the hook that runs is shown */
	bool has_plus_entries; /* the payload counts inodes: taken back if it does not arrive */
	union {
		struct {
			struct fuse_entry_out entry;
			struct fb_fuse_open_out open;
		} create; /* entry is first in it, so it serves for all ops with an entry */
		struct fb_fuse_open_out open;
		struct fuse_attr_out attr;
		struct fuse_statfs_out statfs;
		struct fuse_write_out write;
		struct fuse_getxattr_out xattr;
		struct fuse_lseek_out lseek;
		struct fuse_lk_out lock;
		struct fuse_ioctl_out ioctl;
		struct fuse_poll_out poll;
	} out;

	struct handle own[MAX_OWN_HANDLES]; /* what handle_of opened for this request alone */
	struct fb_fuse_statx_out statx;	    /* composed from out.attr when the post hooks have run */

	/* The filters' part, where the op is hooked: */
	struct chain *chain;
	const struct op_hooks *hooks;
	uint32_t slot;
	uint64_t delay_ns; /* to be waited for, 0: nothing */
	enum fb_route route;
	uint32_t reach;		   /* filters at positions below this one get their post hooks */
	uint32_t no_post;	   /* by position: said FB_NOPOST */
	uint32_t pre_ran, pre_edited, post_ran, post_edited, gave_ttl; /* by filter id */
	uint64_t all_edits;
	enum fb_verdict verdict;
	const char *decider;
	const char *io_asker; /* the filter that asked for an I/O mode */
	enum fb_io_mode io_mode;
	enum fb_io_reason io_reason;
	uint64_t cookies[FB_MAX_FILTERS]; /* by position */
	uint64_t ttls_ns[FB_MAX_FILTERS]; /* by filter id: what those in gave_ttl have said last */
	int error;		  /* 0 or a positive errno: the result so far */

	/* Must be last, since it is cleared only as far as it is used. The hot part of a slot, our own copy: */
	struct fb_slot *image; /* in the worker's memory */
};

/* ops.c: decode */
int request_decode(struct request *rq);
const void *request_take(struct request *rq, size_t size);
/* ops_*.c share these */
void names_expire(struct request *rq);
int entry_of_fd(struct request *rq, int fd, const char *name, bool adopt_fd, struct fuse_entry_out *out,
		struct inode **inode);
void statx_finish(struct request *rq);
void attr_number(struct request *rq);
struct timespec time_of_ns(uint64_t ns);
int entry_at(struct request *rq, int parent_fd, const char *name, struct fuse_entry_out *out, struct inode **inode);
int attr_at(struct request *rq, int fd, const char *name, struct fuse_attr *out);
int attr_of_fd(struct request *rq, int fd, struct fuse_attr *out);
uint64_t attr_ttl_ns(const struct request *rq, const struct inode *inode);
bool name_is_rewritten(const char *asked, const char *used);
uint64_t entry_ttl_ns(const struct request *rq, const struct inode *inode);
void ttl_set(uint64_t ttl_ns, uint64_t *seconds, uint32_t *nanoseconds);
uint64_t ttl_ns(uint64_t seconds, uint32_t nanoseconds);
int reply_opened(struct request *rq, struct inode *inode, int fd, bool is_dir, struct fb_fuse_open_out *out);
int backing_open_flags(uint32_t flags);
void listing_undo(struct request *rq);

/* roots.c */
int roots_meet(struct mount *m);
uint32_t entry_root(const struct request *rq);
int directory_fd_get(struct mount *m, struct inode *directory, uint32_t root);
void directory_fd_put(struct mount *m, struct inode *directory, int fd);
int parent_fd_get(struct request *rq, struct inode *directory);
void parent_fd_put(struct request *rq, struct inode *directory, int fd);
const char *root_edit(struct request *rq, uint32_t root);

/* delay.c */
int request_delay(struct request *rq);
void answer_delay(struct request *rq);

/* verdict.c */
void fail_closed(struct request *rq, const struct op *op, const struct chain_hook *hook, enum fb_phase phase,
		 const char *why);
uint64_t verdict_edits(const struct request *rq, const struct op *op, enum fb_phase phase, bool is_reply);
int errno_for_kernel(uint32_t error);
bool data_is_seen(const struct op *op, enum fb_phase phase, uint32_t wants);

/* state.c */
struct inode *op_other(const struct request *rq);
void tags_to_slot(struct request *rq, const struct op *op, enum fb_phase phase, uint32_t owner);
const char *tag_edit(struct request *rq, uint64_t tag, const struct op *op, enum fb_phase phase);

/* callers.c */
int callers_set(struct mount *m, int map_fd);
void caller_to_slot(struct request *rq);

/* result.c */
void text_show(struct request *rq, const char *text, size_t len);
uint32_t value_room(const struct request *rq);
void value_finish(struct request *rq);
const char *result_missing(const struct request *rq, uint64_t edits);
void result_to_slot(struct request *rq);
void result_from_slot(struct request *rq, uint64_t edits);
void result_undo(struct request *rq);

/* locks.c */
int eintr_without_signal(const struct request *rq);
void locks_flush_failed(struct request *rq);

/* image.c */
void image_fill(struct request *rq);
void paths_fill(struct request *rq);
void paths_follow(struct request *rq, bool is_name, bool is_name2);
void types_fill(struct request *rq);

/* names.c */
void names_keep(struct request *rq, uint64_t edits, uint32_t position);
void names_restore(struct request *rq, uint32_t position);
void names_end(struct request *rq);

/* ops_name.c */
void removed_release(struct request *rq);

/* route.c */
void request_run(struct request *rq);
void request_route(struct request *rq);
void request_ask(struct request *rq);
bool pre_decide(struct request *rq, const struct chain_hook *hook, const struct fb_verdict_record *v);
void post_decide(struct request *rq, const struct chain_hook *hook, const struct fb_verdict_record *v);
bool pre_ask(struct request *rq, const struct chain_hook *hook);
void post_ask(struct request *rq, const struct chain_hook *hook);
void post_look(struct request *rq);
bool dirent_allowed(struct request *rq, uint64_t ino, uint32_t type, const char **name, uint32_t *name_len);

/* rehearse.c */
struct rehearsal {
	/* What the op is: the slot as pre hooks find it; then as the last hook left it, of what was declared. */
	struct fb_slot slot;
	/* What the backing root would answer; then what the caller would be told. The slot has the result. */
	uint32_t error;
	uint32_t skips; /* 1 << enum fb_phase: hooks that are not to run */
	/* The payload, or NULL; then what became of it, the caller's to free. */
	char *data;
	size_t data_len;
	/* What came of it. */
	enum fb_route route;
	bool is_listed; /* dirent: the entry stays in the listing */
	uint32_t pre_ran, pre_edited, post_ran, post_edited, no_post; /* by filter id */
	uint64_t edits;
	const char *decider;
};
int rehearse(struct mount *m, struct rehearsal *r);

#endif
