/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The daemon leg: ops that the user's pyfuse3.Operations answers, or sees the result of. pyfuse3 has the other end of a
 * socket pair and takes it for /dev/fuse; what FUSE cannot say lies in a table of calls that both sides see.
 */
#ifndef FUSEBPF_DAEMON_H
#define FUSEBPF_DAEMON_H

#include "core.h"

#define DAEMON_N_CALLS 1024		/* a power of two */
#define DAEMON_MAX_WRITE (128 * 1024)	/* a message has to fit into the socket */
#define DAEMON_CONTINUE 600		/* the private errno by which a handler lets the op go on */

/* Numbers that the daemon is shown for what it has not numbered itself; its own are below all of them. */
#define DAEMON_OURS (1ULL << 62)
#define DAEMON_OUR_HANDLE (3ULL << 61)

enum daemon_call_flags {
	DAEMON_CALL_CHANGED = 1 << 0, /* Continue has arguments: `edits` of `slot` */
	DAEMON_CALL_GOES_ON = 1 << 1, /* readdir: the backing's entries follow */
	DAEMON_CALL_LEAVES_DATA = 1 << 2, /* open, create: reads and writes are the backing root's */
};

/* One call of a handler, as Python sees it: fusebpf/daemon_calls.py has the same layout. */
struct daemon_call {
	uint32_t token; /* index | generation << 10; 0: free */
	uint32_t op, phase, flags;
	uint64_t unique, nodeid, fh; /* the inode and handle by the numbers that the daemon knows, */
	uint64_t our_nodeid, our_fh; /* and by those that lead to the backing; 0: they have none */
	uint64_t other, our_other; /* likewise rename's new directory, and the inode that link is to link */
	uint32_t uid, gid, pid, umask;
	uint32_t error, reserved0; /* post: the result so far, and what it becomes */
	uint64_t edits;		   /* enum fb_edit: what the handler changed in slot */
	uint64_t data;		   /* post: address of a copy of the payload, which may be rewritten */
	uint64_t data_len, data_capacity;
	struct fb_slot slot;
};

enum daemon_wait { CALL_FREE, CALL_WAITING, CALL_DONE, CALL_ABANDONED };

/* The core's side of a call. Under daemon.lock, but for what the waiter alone uses. */
struct daemon_waiter {
	enum daemon_wait state;
	uint32_t generation;
	const struct op *op;
	struct worker *worker; /* whose payload buffer takes the reply */
	uint32_t root;	       /* the backing root that the op's names are in */
	size_t reply_len;
	_Atomic bool by_socket; /* its answer comes over the socket */
	bool is_cancelled;
	int64_t deadline_ms;
	pthread_cond_t cond;
	char *data; /* post: what the handler sees of the payload, its own even when it comes too late */
	struct inode **held; /* looked up by the handler; let go of when the call ends */
	uint32_t n_held;
	int next_free;
};

enum daemon_event_kind { DAEMON_EVENT_POST = 1, DAEMON_EVENT_CANCEL = 2 };

struct daemon {
	int fd;	      /* our end of the socket pair */
	int event_fd; /* tells Python that `events` has some */
	int64_t timeout_ms;
	bool falls_back; /* what a dead daemon's ops get: the backing root, else ENOTCONN */
	_Atomic bool is_dead;
	uint8_t routes[256]; /* by canonical opcode: enum daemon_route_bits */
	bool has_data_routes;
	pthread_mutex_t backing_lock; /* held by Python's thread while it looks at inodes and handles; guards is_stopped */
	bool is_stopped;
	pthread_mutex_t lock;
	bool has_reader;
	uint32_t n_spins_left_out, n_spins_to_leave_out; /* Python's thread's */
	_Atomic uint32_t n_waiting;
	pthread_mutex_t kept_lock;
	struct kept_message *kept, *last_kept; /* what is to be sent when there is room */
	int first_free;
	struct daemon_waiter waiters[DAEMON_N_CALLS];
	struct daemon_call *calls; /* DAEMON_N_CALLS, mapped */
	uint64_t events[2 * DAEMON_N_CALLS]; /* kind << 32 | token, a ring: at most one of each kind for each call */
	uint32_t events_at, events_end;
};

enum daemon_route_bits { DAEMON_PRE = 1, DAEMON_POST = 2, DAEMON_DEFINES = 4 };

/* An entry that the daemon listed before the backing's: what it said comes next, and the name that it stands before. */
struct daemon_entry {
	uint64_t next;
	char *name;
};

/* daemon.c */
int daemon_start(struct mount *m, const uint8_t routes[256], int64_t timeout_ms, bool falls_back, int *peer_fd);
void daemon_end(struct daemon *d);
void daemon_stop(struct mount *m);
void daemon_destroy(struct mount *m);
void daemon_drain(struct mount *m);
uint64_t daemon_next_event(struct daemon *d);
bool daemon_finish(struct daemon *d, uint32_t token);
struct daemon_call *daemon_call_begin(struct request *rq, enum fb_phase phase, struct daemon_waiter **waiter);
void daemon_call_end(struct request *rq, struct daemon_waiter *waiter);
int daemon_await(struct request *rq, struct daemon_call *call, struct daemon_waiter *waiter);
int daemon_send(struct request *rq, struct daemon_waiter *waiter, const struct iovec *iov, int n);
void daemon_tell(struct daemon *d, enum daemon_event_kind kind, uint32_t token);
struct daemon_call *daemon_call_unawaited(struct daemon *d, const struct op *op);

/* daemon_give_back.c */
void daemon_send_kept(struct daemon *d);
void daemon_drop_kept(struct daemon *d);
void daemon_forget(struct daemon *d, uint64_t id, uint64_t n);
void daemon_release(struct daemon *d, uint64_t fh, bool is_dir);

/* daemon_notice.c */
void daemon_notice(struct mount *m, int code, const char *body, size_t len);

/* daemon_spin.c */
bool is_readable(int fd);
bool daemon_spin(struct daemon *d, int fd);

/* daemon_route.c: what of an op is the daemon's */
bool daemon_takes(const struct request *rq);
bool daemon_judges_entries(const struct mount *m);
void daemon_ttl(struct request *rq);
bool daemon_keeps_data(const struct request *rq);
bool daemon_sees_result(const struct request *rq);
int daemon_op(struct request *rq);
void daemon_see_result(struct request *rq);
void daemon_virtual(struct request *rq);
const char *daemon_refuses(const struct request *rq, const struct chain_filter *filter);

/* daemon_request.c */
int daemon_request(struct request *rq, struct daemon_call *call, struct daemon_waiter *waiter);
struct handle *daemon_handle(const struct request *rq);

/* daemon_reply.c */
int daemon_reply(struct request *rq, const struct daemon_call *call, const char *body, size_t len);
int daemon_entry(struct request *rq, const struct fuse_entry_out *in, const char *name, struct fuse_entry_out *out,
		 struct inode **inode);
void daemon_late_reply(struct daemon *d, const struct op *op, const char *body, size_t len);

/* daemon_dir.c */
enum { DAEMON_ASK_ON = 2 };
int daemon_listing(struct request *rq, bool goes_on, const char *body, size_t len);
void daemon_listing_late(struct daemon *d, const char *body, size_t len);
bool daemon_listed(const struct handle *h, const char *name);
bool daemon_offset(const struct handle *h, uint64_t offset, uint64_t *out);
void daemon_entries_free(struct handle *h);

/* daemon_ids.c: numbers, both ways */
uint64_t daemon_id_of(const struct inode *inode);
uint64_t daemon_fh_of(const struct handle *h);
uint64_t daemon_number_of(const struct inode *inode);
uint64_t daemon_handle_number(const struct handle *h);
int daemon_inode_of(struct request *rq, uint64_t id, uint32_t mode, const char *name, struct inode **out);
int daemon_backing_fd(struct mount *m, uint64_t number);
int daemon_hold(struct mount *m, uint32_t token, uint64_t parent, const char *name, uint64_t *id);

#endif
