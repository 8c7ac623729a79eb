/* SPDX-License-Identifier: Apache-2.0 OR MIT OR GPL-2.0 */
/*
 * The ops of the fusebpf ABI: the one op table, and the arguments of each as hooks see them. Part of fusebpf.h.
 */
#ifndef FUSEBPF_OPS_H
#define FUSEBPF_OPS_H

/* ------------------------------------------------------------------------------------ ops */

/* The one op table. HOOK: an op that filters may hook. ALIAS: another opcode of a hooked op.
 * PLAIN: an op that no filter sees. The opcode is the kernel's (linux/fuse.h); our own pseudo-ops
 * start at 192. `args` names struct fb_<args>, the member of the slot's union; `names` is how many
 * names the request carries; the flags are enum fb_op_flags.
 *
 *           name         opcode args     names flags */
#define FB_OPS(HOOK, ALIAS, PLAIN)                                                             \
	HOOK(lookup,           1, nothing,  1, FB_OP_ENTRY | FB_OP_DAEMON)                     \
	PLAIN(forget,          2, nothing,  0, FB_OP_NO_REPLY | FB_OP_UNREFUSABLE)             \
	HOOK(getattr,          3, getattr,  0, FB_OP_ATTR | FB_OP_DAEMON)                      \
	HOOK(setattr,          4, setattr,  0, FB_OP_ATTR | FB_OP_MUTATES | FB_OP_DAEMON)      \
	HOOK(readlink,         5, nothing,  0, FB_OP_TEXT | FB_OP_DAEMON)                      \
	HOOK(symlink,          6, nothing,  1, FB_OP_ENTRY | FB_OP_CREATES | FB_OP_MUTATES | FB_OP_DAEMON) \
	HOOK(mknod,            8, mknod,    1, FB_OP_ENTRY | FB_OP_CREATES | FB_OP_MUTATES | FB_OP_DAEMON) \
	HOOK(mkdir,            9, mkdir,    1, FB_OP_ENTRY | FB_OP_CREATES | FB_OP_MUTATES | FB_OP_DAEMON) \
	HOOK(unlink,          10, nothing,  1, FB_OP_MUTATES | FB_OP_DAEMON)                   \
	HOOK(rmdir,           11, nothing,  1, FB_OP_MUTATES | FB_OP_DAEMON)                   \
	HOOK(rename,          12, rename,   2, FB_OP_MUTATES | FB_OP_DAEMON)                   \
	HOOK(link,            13, link,     1, FB_OP_ENTRY | FB_OP_MUTATES | FB_OP_DAEMON)     \
	HOOK(open,            14, open,     0, FB_OP_OPENS | FB_OP_DAEMON)                     \
	HOOK(read,            15, rw,       0, FB_OP_COUNT | FB_OP_DAEMON)                     \
	HOOK(write,           16, rw,       0, FB_OP_COUNT | FB_OP_MUTATES | FB_OP_DAEMON)     \
	HOOK(statfs,          17, nothing,  0, FB_OP_STATFS | FB_OP_DAEMON)                    \
	HOOK(release,         18, release,  0, FB_OP_UNREFUSABLE | FB_OP_DAEMON)               \
	HOOK(fsync,           20, fsync,    0, FB_OP_DAEMON)                                   \
	HOOK(setxattr,        21, xattr,    1, FB_OP_XATTR | FB_OP_MUTATES | FB_OP_DAEMON)                   \
	HOOK(getxattr,        22, xattr,    1, FB_OP_XATTR | FB_OP_TEXT | FB_OP_DAEMON)                      \
	HOOK(listxattr,       23, xattr,    0, FB_OP_TEXT | FB_OP_DAEMON)                      \
	HOOK(removexattr,     24, nothing,  1, FB_OP_XATTR | FB_OP_MUTATES | FB_OP_DAEMON)                   \
	HOOK(flush,           25, flush,    0, FB_OP_DAEMON)                                   \
	PLAIN(init,           26, nothing,  0, 0)                                              \
	HOOK(opendir,         27, open,     0, FB_OP_OPENS | FB_OP_DAEMON)                     \
	HOOK(readdir,         28, rw,       0, FB_OP_COUNT | FB_OP_DAEMON)                     \
	HOOK(releasedir,      29, release,  0, FB_OP_UNREFUSABLE | FB_OP_DAEMON)               \
	HOOK(fsyncdir,        30, fsync,    0, FB_OP_DAEMON)                                   \
	HOOK(getlk,           31, lock,     0, 0)                                              \
	HOOK(setlk,           32, lock,     0, 0)                                              \
	HOOK(access,          34, access,   0, FB_OP_DAEMON)                                   \
	HOOK(create,          35, create,   1, FB_OP_ENTRY | FB_OP_OPENS | FB_OP_CREATES | FB_OP_MUTATES | FB_OP_DAEMON) \
	PLAIN(interrupt,      36, nothing,  0, FB_OP_NO_REPLY | FB_OP_UNREFUSABLE)             \
	PLAIN(destroy,        38, nothing,  0, FB_OP_NO_REPLY | FB_OP_UNREFUSABLE)             \
	HOOK(ioctl,           39, ioctl,    0, FB_OP_TEXT)                                     \
	HOOK(poll,            40, poll,     0, FB_OP_COUNT)                                    \
	PLAIN(batch_forget,   42, nothing,  0, FB_OP_NO_REPLY | FB_OP_UNREFUSABLE)             \
	HOOK(fallocate,       43, fallocate, 0, FB_OP_MUTATES)                                 \
	HOOK(lseek,           46, lseek,    0, FB_OP_COUNT)                                    \
	HOOK(copy_file_range, 47, copy,     0, FB_OP_COUNT | FB_OP_MUTATES)                    \
	HOOK(tmpfile,         51, create,   0, FB_OP_ENTRY | FB_OP_OPENS | FB_OP_CREATES | FB_OP_MUTATES) \
	HOOK(statx,           52, statx,    0, FB_OP_ATTR)                                     \
	ALIAS(readdir, readdirplus, 44)                                                        \
	ALIAS(rename, rename2, 45)                                                             \
	ALIAS(setlk, setlkw, 33)                                                               \
	HOOK(flock,          193, lock,     0, 0) /* SETLK and SETLKW for flock(2) */          \
	HOOK(dirent,         192, dirent,   1, FB_OP_POST_ONLY) /* once for each entry of a listing */

enum fb_op_flags {
	FB_OP_ENTRY = 1 << 0,	   /* succeeds with an inode: nodeid and attr */
	FB_OP_ATTR = 1 << 1,	   /* succeeds with attr */
	FB_OP_TEXT = 1 << 2,	   /* succeeds with bytes that the slot shows as text */
	FB_OP_COUNT = 1 << 3,	   /* succeeds with a number of bytes */
	FB_OP_STATFS = 1 << 4,	   /* succeeds with statfs */
	FB_OP_OPENS = 1 << 5,	   /* succeeds with a handle */
	FB_OP_CREATES = 1 << 6,	   /* makes an inode, as the caller */
	FB_OP_MUTATES = 1 << 7,	   /* changes the tree */
	FB_OP_NO_REPLY = 1 << 8,   /* the kernel waits for no answer */
	FB_OP_UNREFUSABLE = 1 << 9, /* always runs to its end; hooks on it only observe */
	FB_OP_POST_ONLY = 1 << 10, /* has no pre stage */
	FB_OP_DAEMON = 1 << 11,	   /* pyfuse3 can express it */
	FB_OP_XATTR = 1 << 12,	   /* its name is an extended attribute's, not a file's */
};

#define FB_ENUM_HOOK(name, opcode, args, names, flags) FB_OP_##name = opcode,
#define FB_ENUM_PLAIN(name, opcode, args, names, flags) FB_OP_##name = opcode,
#define FB_ENUM_ALIAS(name, alias, opcode) FB_OP_##alias = opcode,
enum fb_op { FB_OPS(FB_ENUM_HOOK, FB_ENUM_ALIAS, FB_ENUM_PLAIN) FB_OP_any = (int)FB_ANY };

enum fb_phase { FB_PRE = 0, FB_POST = 1 };

/* ----------------------------------------------------------------------------- arguments */

struct fb_nothing {
	__u64 reserved0;
};

struct fb_getattr {
	__u64 fh; /* 0: by inode */
	__u32 flags;
	__u32 reserved0;
};

/* args.setattr.valid: which fields are to be set, the kernel's FATTR_ bits. */
enum fb_setattr_valid {
	FB_SET_MODE = 1 << 0,
	FB_SET_UID = 1 << 1,
	FB_SET_GID = 1 << 2,
	FB_SET_SIZE = 1 << 3,
	FB_SET_ATIME = 1 << 4,
	FB_SET_MTIME = 1 << 5,
	FB_SET_FH = 1 << 6,
	FB_SET_ATIME_NOW = 1 << 7,
	FB_SET_MTIME_NOW = 1 << 8,
};

struct fb_setattr {
	__u32 valid;
	__u32 mode;
	__u32 uid;
	__u32 gid;
	__u64 size;
	__u64 fh;
	__u64 atime_ns;
	__u64 mtime_ns;
};

struct fb_mknod {
	__u32 mode;
	__u32 rdev;
};

struct fb_mkdir {
	__u32 mode;
	__u32 reserved0;
};

struct fb_rename {
	__u64 newdir; /* nodeid of the new parent; name is the old name, name2 the new one */
	__u32 flags;  /* RENAME_NOREPLACE 1, RENAME_EXCHANGE 2, RENAME_WHITEOUT 4 */
	/* For filters that want paths, S_IFMT bits: of what is moved, and of what has the new name; 0: nothing, or not known. */
	__u16 type;
	__u16 type2;
};

struct fb_link {
	__u64 inode; /* nodeid of what is linked; ctx->nodeid is the new parent */
	__u32 type;  /* and its S_IFMT bits, for filters that want paths */
	__u32 reserved0;
};

/* How the data of a file that is opened goes. Of what the kernel's rules forbid, the open gets what works. */
enum fb_io_mode {
	FB_IO_DEFAULT = 0,     /* passed through where it can and should be; direct where a filter hooks data; else cached */
	FB_IO_PASSTHROUGH = 1, /* the kernel reads and writes the backing file itself */
	FB_IO_DIRECT = 2,      /* each read and write of a program comes to the server */
	FB_IO_CACHE = 3,       /* through the kernel's page cache */
};

enum fb_io_reason {
	FB_IO_AS_ASKED = 0,
	FB_IO_UNSUPPORTED = 1,	 /* the kernel or the mount has no passthrough */
	FB_IO_DATA_HOOKED = 2,	 /* a filter hooks read or write: no file is passed through */
	FB_IO_OTHERS_SERVED = 3, /* another open of the file is not passed through */
	FB_IO_OTHERS_PASSED = 4, /* another open of the file is passed through: it cannot be cached */
	FB_IO_NOT_PLAIN = 5,	 /* opened for writing, and it has a suid or sgid bit, or is append-only */
	FB_IO_REFUSED = 6,	 /* the kernel refused to pass this file through */
	FB_IO_VIEWED = 7,	 /* files of the mount have views, each with pages of its own */
	FB_IO_REWRITTEN = 8,	 /* a filter rewrote flags of the open that the kernel does not know of */
};

struct fb_open {
	__u32 flags;   /* open(2)'s */
	__u32 io_mode; /* enum fb_io_mode: what is asked for; in post what it got */
};

struct fb_create {
	__u32 mode;
	__u32 flags;   /* open(2)'s */
	__u32 io_mode; /* as in struct fb_open */
	__u32 reserved0;
};

struct fb_rw {
	__u64 fh;
	__u64 offset;
	__u32 size;
	__u32 flags; /* of the open file */
};

struct fb_release {
	__u64 fh;
	__u32 flags;
	__u32 reserved0;
};

struct fb_fsync {
	__u64 fh;
	__u32 flags; /* 1: data only */
	__u32 reserved0;
};

struct fb_flush {
	__u64 fh;
	__u64 lock_owner;
};

struct fb_xattr {
	__u32 size;  /* of the value, or of the caller's buffer (0: asks for the size) */
	__u32 flags; /* setxattr: XATTR_CREATE 1, XATTR_REPLACE 2 */
};

struct fb_access {
	__u32 mask; /* R_OK 4, W_OK 2, X_OK 1, F_OK 0 */
	__u32 reserved0;
};

struct fb_statx {
	__u64 fh; /* 0: by inode */
	__u32 flags;
	__u32 mask; /* STATX_ of what the caller wants */
};

struct fb_fallocate {
	__u64 fh;
	__u64 offset;
	__u64 length;
	__u32 mode; /* fallocate(2)'s */
	__u32 reserved0;
};

struct fb_lseek {
	__u64 fh;
	__u64 offset;
	__u32 whence; /* SEEK_DATA 3, SEEK_HOLE 4 */
	__u32 reserved0;
};

struct fb_copy {
	__u64 fh; /* of nodeid, the source */
	__u64 offset;
	__u64 fh_out;
	__u64 nodeid_out;
	__u64 offset_out;
	__u64 length;
};

struct fb_lock {
	__u64 fh;
	__u64 owner;
	__u64 start;
	__u64 end;   /* the last byte */
	__u32 type;  /* F_RDLCK 0, F_WRLCK 1, F_UNLCK 2 */
	__u32 flags; /* enum fb_lock_flags */
};

enum fb_lock_flags { FB_LOCK_WAITS = 1 << 0 };

struct fb_ioctl {
	__u64 fh;
	__u32 command;
	__u32 in_size;
	__u32 out_size;
	__u32 flags;
};

struct fb_poll {
	__u64 fh;
	__u32 events; /* poll(2)'s */
	__u32 reserved0;
};

struct fb_dirent {
	__u64 ino;
	__u32 type; /* DT_ of dirent.h */
	__u32 reserved0;
};

#endif
