/* SPDX-License-Identifier: Apache-2.0 OR MIT OR GPL-2.0 */
/*
 * The fusebpf ABI, its one definition. Three readers include or parse this file:
 *   filters   compiled by bcc for the BPF machine: the slot, the verdicts, PRE/POST/FILTER, helpers
 *   the core  compiled by the C compiler: the slot, the records, the op table
 *   Python    sees the same through the core (_core.OPS) and through the BTF of a compiled filter
 *
 * Compatibility: fields are only ever appended where reserved space is, so that a filter built for an
 * older minor version runs on; another major version is refused when a filter is loaded.
 */
#ifndef FUSEBPF_H
#define FUSEBPF_H

#include <linux/types.h>

#define FB_ABI_MAJOR 1
#define FB_ABI_MINOR 0
#define FB_ABI_VERSION (FB_ABI_MAJOR << 16 | FB_ABI_MINOR)

#define FB_NAME_SIZE 256	/* a name of at most 255 bytes, padded with zero bytes */
#define FB_PATH_SIZE 4096	/* a path or a link target of at most 4095 bytes and a zero byte */
#define FB_MAX_FILTERS 32	/* filters in one chain */
#define FB_MAX_ROOTS 8		/* backing roots of one mount */
#define FB_MAX_WORKERS 64	/* threads that serve one mount at a time: one verdict ring each */
#define FB_N_SLOTS 128		/* ops of one mount that can be before filters at the same time */
#define FB_N_PLACES 4096		/* of threads that run hooks, more than FB_MAX_WORKERS so that two seldom want one */
#define FB_N_TRIES 4		/* places that a thread may have: by its number, and each FB_NEXT_PLACE further */
#define FB_NEXT_PLACE 509
#define FB_N_RECENT 1024	/* finished records that `recent` keeps */
#define FB_N_STATS 4096		/* rows that `stats` can hold */
#define FB_N_PATTERNS 64	/* patterns in a struct fb_patterns */
#define FB_DATA_SIZE 65536	/* bytes of a payload that a hook sees at one time: a window */
#define FB_N_WINDOWS 16		/* windows of one mount: more ops with payload wait for one */
#define FB_MAX_DELAY 3600000000000ull /* an hour, in ns: the longest that one op is held up */
#define FB_ANY 0xffffffffu	/* in policy maps: any uid, any op */

#include "fusebpf_ops.h"

/* ------------------------------------------------------------------------------- verdicts */

/* What a hook's body returns: one of these, flags or-ed to it, or -Exxx for FB_REPLY with that errno. Above all errnos, so
 * that one whose minus was forgotten is none of them, and the op fails. */
enum fb_verdict {
	FB_CONTINUE = 0,    /* the next filter below, in the end the backing root */
	FB_BACKING = 0xf1,  /* pre: straight to the backing root, the filters below are not asked */
	FB_DAEMON = 0xf2,   /* the daemon answers (pre) or sees the result (post) */
	FB_REPLY = 0xf3,    /* pre: this is the result, ctx->error or what the hook filled in */
	FB_NEGATIVE = 0xf4, /* pre lookup: a negative entry, "no such name" */
	FB_DROP = 0xf5,	    /* post dirent: the entry is left out */
	FB_BROKEN = 0xff,   /* in stats and recent: the hook broke a rule and its op was failed with EIO */
};

#define FB_REWRITE 0x100 /* what ctx->edits names was edited and is to be used */
#define FB_NOPOST 0x200	 /* pre: this filter's post hook need not run for this op */
#define FB_VERDICT_MASK 0xff

/* What a hook edited: or these into ctx->edits and return FB_REWRITE. docs/abi.md lists what each op takes. */
enum fb_edit {
	FB_EDIT_NAME = 1 << 0,	  /* name, name_len */
	FB_EDIT_NAME2 = 1 << 1,	  /* name2, name2_len */
	FB_EDIT_TEXT = 1 << 2,	  /* text, text_len */
	FB_EDIT_MODE = 1 << 3,	  /* the mode among the arguments, fallocate's too */
	FB_EDIT_FLAGS = 1 << 4,	  /* the flags among the arguments; setattr: valid */
	FB_EDIT_UID = 1 << 5,	  /* setattr: args.setattr.uid; ops that create: the new owner, uid */
	FB_EDIT_GID = 1 << 6,	  /* the same for gid */
	FB_EDIT_SIZE = 1 << 7,	  /* the size among the arguments: setattr's any, the others' never larger than the caller's */
	FB_EDIT_OFFSET = 1 << 8,  /* the offset among the arguments; copy_file_range: in the source */
	FB_EDIT_TIMES = 1 << 9,	  /* setattr: atime and mtime */
	FB_EDIT_RDEV = 1 << 10,	  /* mknod: rdev */
	FB_EDIT_MASK = 1 << 11,	  /* access, statx: mask; poll: events */
	FB_EDIT_ERROR = 1 << 12,  /* error; post: 0 after a failure only where the op has no result but success */
	FB_EDIT_ATTR = 1 << 13,	  /* result.attr, all of it but ino and the file type */
	FB_EDIT_STATFS = 1 << 14, /* result.statfs */
	FB_EDIT_COUNT = 1 << 15,  /* result.count: bytes never more than there were; lseek's offset, poll's events */
	FB_EDIT_TTL = 1 << 16,	  /* ttl_ns */
	FB_EDIT_BACKING = 1 << 17, /* backing */
	FB_EDIT_TAG = 1 << 18,	  /* tag */
	FB_EDIT_VIEW = 1 << 19,	  /* view */
	FB_EDIT_DATA = 1 << 20,	  /* the window, data_len: the payload that fb_data(ctx) shows */
	FB_EDIT_IO = 1 << 21,	  /* open, create, tmpfile: io_mode among the arguments */
	FB_EDIT_LOCK = 1 << 22,	  /* setlk, getlk: start, end, type; flock: type; the answer of getlk: result.lock */
	FB_EDIT_UMASK = 1 << 23,  /* umask, of ops that make files and directories */
	FB_EDIT_DELAY = 1 << 28,  /* delay_ns */
	FB_EDIT_OFFSET2 = 1 << 29, /* copy_file_range: offset_out */
	FB_EDIT_WHENCE = 1 << 30, /* lseek: whence */
};

#define FB_ERRNOS(X)                                                                      \
	X(EPERM, 1) X(ENOENT, 2) X(ESRCH, 3) X(EINTR, 4) X(EIO, 5) X(ENXIO, 6) X(E2BIG, 7)       \
	X(ENOEXEC, 8) X(EBADF, 9) X(ECHILD, 10) X(EAGAIN, 11) X(ENOMEM, 12) X(EACCES, 13)        \
	X(EFAULT, 14) X(ENOTBLK, 15) X(EBUSY, 16) X(EEXIST, 17) X(EXDEV, 18) X(ENODEV, 19)       \
	X(ENOTDIR, 20) X(EISDIR, 21) X(EINVAL, 22) X(ENFILE, 23) X(EMFILE, 24) X(ENOTTY, 25)     \
	X(ETXTBSY, 26) X(EFBIG, 27) X(ENOSPC, 28) X(ESPIPE, 29) X(EROFS, 30) X(EMLINK, 31)       \
	X(EPIPE, 32) X(EDOM, 33) X(ERANGE, 34) X(EDEADLOCK, 35) X(ENAMETOOLONG, 36)              \
	X(ENOLCK, 37) X(ENOSYS, 38) X(ENOTEMPTY, 39) X(ELOOP, 40) X(ENOMSG, 42) X(EIDRM, 43)     \
	X(ECHRNG, 44) X(EL2NSYNC, 45) X(EL3HLT, 46) X(EL3RST, 47) X(ELNRNG, 48) X(EUNATCH, 49)   \
	X(ENOCSI, 50) X(EL2HLT, 51) X(EBADE, 52) X(EBADR, 53) X(EXFULL, 54) X(ENOANO, 55)        \
	X(EBADRQC, 56) X(EBADSLT, 57) X(EBFONT, 59) X(ENOSTR, 60) X(ENODATA, 61) X(ETIME, 62)    \
	X(ENOSR, 63) X(ENONET, 64) X(ENOPKG, 65) X(EREMOTE, 66) X(ENOLINK, 67) X(EADV, 68)       \
	X(ESRMNT, 69) X(ECOMM, 70) X(EPROTO, 71) X(EMULTIHOP, 72) X(EDOTDOT, 73)                 \
	X(EBADMSG, 74) X(EOVERFLOW, 75) X(ENOTUNIQ, 76) X(EBADFD, 77) X(EREMCHG, 78)             \
	X(ELIBACC, 79) X(ELIBBAD, 80) X(ELIBSCN, 81) X(ELIBMAX, 82) X(ELIBEXEC, 83)              \
	X(EILSEQ, 84) X(ERESTART, 85) X(ESTRPIPE, 86) X(EUSERS, 87) X(ENOTSOCK, 88)              \
	X(EDESTADDRREQ, 89) X(EMSGSIZE, 90) X(EPROTOTYPE, 91) X(ENOPROTOOPT, 92)                 \
	X(EPROTONOSUPPORT, 93) X(ESOCKTNOSUPPORT, 94) X(ENOTSUP, 95) X(EPFNOSUPPORT, 96)         \
	X(EAFNOSUPPORT, 97) X(EADDRINUSE, 98) X(EADDRNOTAVAIL, 99) X(ENETDOWN, 100)              \
	X(ENETUNREACH, 101) X(ENETRESET, 102) X(ECONNABORTED, 103) X(ECONNRESET, 104)            \
	X(ENOBUFS, 105) X(EISCONN, 106) X(ENOTCONN, 107) X(ESHUTDOWN, 108)                       \
	X(ETOOMANYREFS, 109) X(ETIMEDOUT, 110) X(ECONNREFUSED, 111) X(EHOSTDOWN, 112)            \
	X(EHOSTUNREACH, 113) X(EALREADY, 114) X(EINPROGRESS, 115) X(ESTALE, 116)                 \
	X(EUCLEAN, 117) X(ENOTNAM, 118) X(ENAVAIL, 119) X(EISNAM, 120) X(EREMOTEIO, 121)         \
	X(EDQUOT, 122) X(ENOMEDIUM, 123) X(EMEDIUMTYPE, 124) X(ECANCELED, 125) X(ENOKEY, 126)    \
	X(EKEYEXPIRED, 127) X(EKEYREVOKED, 128) X(EKEYREJECTED, 129) X(EOWNERDEAD, 130)          \
	X(ENOTRECOVERABLE, 131) X(ERFKILL, 132)

#define FB_ENUM_ERRNO(name, number) FB_##name = number,
enum fb_errno { FB_OK = 0, FB_ERRNOS(FB_ENUM_ERRNO) };

/* ------------------------------------------------------------------------------- the slot */

struct fb_name {
	char text[FB_NAME_SIZE];
};

/* The key of a policy map by op, caller and name; FB_ANY and an empty name stand for any. */
struct fb_key {
	enum fb_op op;
	__u32 uid;
	struct fb_name name;
};

struct fb_attr {
	__u64 ino;
	__u64 size;
	__u64 blocks;
	__u64 atime_ns;
	__u64 mtime_ns;
	__u64 ctime_ns;
	__u32 mode;
	__u32 nlink;
	__u32 uid;
	__u32 gid;
	__u32 rdev;
	__u32 blksize;
	__u64 btime_ns; /* when it was made; 0 where the file system does not say. Only statx tells callers */
	__u64 nodeid;	/* in post: the inode that these are of */
};

struct fb_statfs {
	__u64 blocks;
	__u64 bfree;
	__u64 bavail;
	__u64 files;
	__u64 ffree;
	__u32 bsize;
	__u32 namelen;
	__u32 frsize;
	__u32 reserved0;
};

/* Who called, as the kernel's tracepoint told in the caller's own context. */
struct fb_caller {
	char comm[16];
	__u64 cgroup_id;
	__u32 tgid; /* the process, in the first pid namespace */
	__u32 reserved0;
};

enum fb_slot_flags {
	FB_NO_CALLER = 1 << 0, /* the kernel's own request: uid, gid read -1, pid 0 */
	FB_HAS_PATH = 1 << 1,  /* path is filled in */
	FB_PATH_LOST = 1 << 2, /* the path was asked for and is longer than FB_PATH_SIZE - 1, or not known */
	FB_KNOWN_EXEC = 1 << 3, /* open: the file is opened to be executed */
	FB_TAG_MIXED = 1 << 4,	/* a file with links in directories of different tags: judge it at each lookup */
	FB_CALLER_KNOWN = 1 << 5, /* caller is filled in */
	FB_GONE = 1 << 6, /* the file has no name any more; in post of unlink, rmdir, rename: what lost this one has none */
	FB_HAS_DATA = 1 << 8,	/* window and data_… are filled in */
};

/* getlk: a lock that is in the way; type F_UNLCK: there is none. */
struct fb_lock_found {
	__u64 start;
	__u64 end;
	__u32 type;
	__u32 pid;
};

/* One op as its hooks see it. The core fills it in anew before each hook from its own copy, so an edit that a
 * hook does not declare reaches nobody. `error` is the result so far in post, 0 in pre. */
struct fb_slot {
	__u32 abi;
	enum fb_op op;
	enum fb_phase phase;
	__u32 filter; /* id of the filter that is asked, 0 to FB_MAX_FILTERS - 1 */
	__u64 unique;
	__u64 nodeid;
	__u64 time_ns; /* CLOCK_REALTIME when the op was decoded */
	__u32 uid;
	__u32 gid;
	__u32 pid;
	__u32 umask;
	__u32 flags; /* enum fb_slot_flags */
	__u32 type;  /* file type bits (S_IFMT) of nodeid */
	enum fb_errno error;
	__u32 backing;
	__u64 edits; /* enum fb_edit: what this hook edited */
	__u64 cookie; /* what this filter's pre left here, its post finds */
	__u64 tag;    /* this filter's, of the inode: own or inherited; after an op that answers with an entry, of that */
	__u64 tag2;   /* of the other inode: rename's new directory, what link links, where copy_file_range writes */
	__u64 ttl_ns;
	__u64 delay_ns; /* the op waits for so long before it is done (pre), or answered (post) */
	__u32 view;
	__u32 name_len;
	__u32 name2_len;
	__u32 path_len;
	__u32 path2_len;
	__u32 text_len;
	__u64 zero; /* is 0, and the verifier does not know it */
	union {
		struct fb_nothing nothing;
		struct fb_getattr getattr;
		struct fb_setattr setattr;
		struct fb_mknod mknod;
		struct fb_mkdir mkdir;
		struct fb_rename rename;
		struct fb_link link;
		struct fb_open open;
		struct fb_create create;
		struct fb_rw rw;
		struct fb_release release;
		struct fb_fsync fsync;
		struct fb_flush flush;
		struct fb_xattr xattr;
		struct fb_access access;
		struct fb_statx statx;
		struct fb_fallocate fallocate;
		struct fb_lseek lseek;
		struct fb_copy copy;
		struct fb_lock lock;
		struct fb_ioctl ioctl;
		struct fb_poll poll;
		struct fb_dirent dirent;
		__u64 reserved[8];
	} args;
	union {
		struct fb_attr attr;
		struct fb_statfs statfs;
		struct fb_lock_found lock;
		__u64 count;
		__u64 reserved[12];
	} result;
	union {
		struct {
			__u32 key_op;	/* the same as op, and */
			__u32 key_uid;	/* as uid: so that &ctx->key is a map's key in place */
			struct fb_name name;
		};
		struct fb_key key;
	};
	struct fb_name name2;
	/* Below the mount's root, "" is the root, no slash in front; only for filters that want it. `path` is what the op
	 * is about: nodeid, or where the op has a file name, that entry. `path2` is rename's and link's new entry. */
	char path[FB_PATH_SIZE];
	char path2[FB_PATH_SIZE];
	char text[FB_PATH_SIZE]; /* symlink, readlink: the target; xattr values of up to 4,095 bytes; ioctl: its data */
	/* With FB_HAS_DATA, for filters that want it: a part of the payload, in a window that fb_data(ctx) finds. */
	__u64 data_offset; /* where it begins: in the file, or in the xattr's value or the link's target */
	__u32 data_len;	   /* bytes of it; before the op, where there are none yet: how many an answer may have */
	__u32 data_more;   /* further windows of this payload follow */
	__u32 window;	   /* index of the window */
	__u32 reserved0;
	struct fb_caller caller; /* for filters that want it, and all zeros without FB_CALLER_KNOWN */
	/* For filters that want it, of the file that write, fallocate, copy_file_range, setattr of a size or open with O_TRUNC is
	 * about to change: its bytes, in post after the op; and before it. */
	__u64 size;
	__u64 old_size;
};

/* A payload window: up to FB_DATA_SIZE bytes of what an op moves. */
struct fb_window {
	union {
		__u8 bytes[FB_DATA_SIZE];
		__u64 words[FB_DATA_SIZE / 8];
	};
};

/* Which hook a thread runs just now; its program finds it by the thread's number. A context would be the simpler way, but the
 * kernel allocates and copies it, which takes longer than most hooks (docs/decisions/0012). */
struct fb_hook {
	__u64 unique;
	__u32 slot;
	__u32 ring;
	__u32 filter;
	enum fb_op op;
	enum fb_phase phase;
	__u32 thread;	    /* bpf_get_current_pid_tgid()'s lower half; 0: the place is free */
	__u64 reserved0[4]; /* to the end of the cache line */
};

/* ------------------------------------------------------------------------------- records */

/* What a hook leaves in its thread's verdict ring: exactly one for each run. */
struct fb_verdict_record {
	__u64 unique;
	__u64 edits;
	__u64 cookie;
	__u32 slot;
	__u32 filter;
	enum fb_op op;
	enum fb_phase phase;
	enum fb_verdict verdict;
	__u32 flags; /* FB_REWRITE, FB_NOPOST */
	enum fb_errno error;
	__u32 reserved0;
};

/* The map `stats`: how often each filter said what. */
struct fb_stat_key {
	__u32 filter;
	enum fb_phase phase;
	enum fb_op op;
	enum fb_verdict verdict;
};

struct fb_stat {
	__u64 count;
};

/* The map `filters`: the chain, by filter id. An altitude of 0 is an id that is not taken. */
struct fb_filter_info {
	char name[32];
	__u32 altitude;
	__u32 wants;
};

enum fb_route { FB_ROUTE_BACKING = 0, FB_ROUTE_DAEMON = 1, FB_ROUTE_REPLY = 2 };

/* The map `recent`: one finished op that at least one hook saw. Bits in the four masks are filter ids. */
struct fb_record {
	__u64 sequence; /* counts up from 1; 0: never used, or being written */
	__u64 time_ns;
	__u64 unique;
	__u64 nodeid;
	enum fb_op op;
	enum fb_route route;
	enum fb_errno error;   /* what the caller was told */
	enum fb_verdict verdict; /* of the filter that ended the pre stage, else FB_CONTINUE */
	char filter[32];       /* that filter, else the last one that edited, else "" */
	__u32 uid;
	__u32 gid;
	__u32 pid;
	__u32 backing;
	__u32 pre_ran;
	__u32 pre_edited;
	__u32 post_ran;
	__u32 post_edited;
	__u64 edits;	  /* all edits that were used */
	__u64 result;	  /* bytes moved, entries listed */
	enum fb_io_mode io_mode;     /* open: what the file got */
	enum fb_io_reason io_reason; /* and why that is not what a filter asked for */
	char name[FB_NAME_SIZE]; /* as it was used */
	char name2[FB_NAME_SIZE];
};

/* ----------------------------------------------------------------------- what a filter declares */

enum fb_band { FB_STORE = 100, FB_DATA = 300, FB_VIEW = 500, FB_POLICY = 700, FB_WATCH = 900 };

enum fb_wants {
	FB_WANTS_PATH = 1 << 0,	  /* fill in ctx->path */
	FB_WANTS_DAEMON = 1 << 1, /* it may answer FB_DAEMON */
	FB_WANTS_IDS = 1 << 2,	  /* it reads uid or gid: not beside `-o idmap` */
	FB_WANTS_DATA = 1 << 3,	  /* show its hooks the payload of read, write and xattrs */
	FB_WANTS_CALLER = 1 << 4, /* fill in ctx->caller */
	FB_WANTS_SIZES = 1 << 5,  /* fill in size and old_size, and let no two ops change one file's size at once */
};

struct fb_declaration {
	__u32 abi;
	__u32 altitude;
	__u32 wants;
	__u32 doc_len;
	char doc[240];
};

/* The value of a policy map of patterns: BPF_ARRAY(names, struct fb_patterns, 1). */
struct fb_pattern {
	char text[FB_NAME_SIZE];
};

struct fb_patterns {
	struct fb_pattern list[FB_N_PATTERNS]; /* the last one stays empty */
};

#if defined(__bpf__) || defined(__BPF_TRACING__)
#include "fusebpf_filter.h"
#endif

#endif
