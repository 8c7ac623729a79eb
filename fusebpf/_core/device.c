/* SPDX-License-Identifier: Apache-2.0 */
/*
 * /dev/fuse: mount(2), the INIT handshake, and the transport by reading and writing clones of the descriptor. A reply must
 * go out on the one that its request came from (fs/fuse/dev.c: a clone has its own processing queue).
 */
#include "core.h"

#include <linux/magic.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/vfs.h>
#include <time.h>

/* How long FORGETs gather. */
#define GATHER_NS 1000000

#ifndef OVERLAYFS_SUPER_MAGIC
#define OVERLAYFS_SUPER_MAGIC 0x794c7630
#endif

/** Open /dev/fuse and mount. On error nothing stays mounted. */
int device_mount(struct mount *m)
{
	char options[160];
	int n;

	m->failed_call = "open(\"/dev/fuse\")";
	m->device_fd = open("/dev/fuse", O_RDWR | O_CLOEXEC);
	if (m->device_fd < 0)
		return -errno;
	n = snprintf(options, sizeof(options), "fd=%d,rootmode=%o,user_id=0,group_id=0%s%s", m->device_fd, S_IFDIR,
		     m->allow_other ? ",allow_other" : "",
		     m->default_permissions ? ",default_permissions" : "");
	if (m->max_read)
		snprintf(options + n, sizeof(options) - (size_t)n, ",max_read=%u", m->max_read);
	m->failed_call = "mount(\"fuse.fusebpf\")";
	if (mount(m->source, m->mountpoint, "fuse.fusebpf", m->flags, options) < 0)
		return -errno;
	m->is_mounted = true;
	return 0;
}

/* How many file systems our backing is stacked of: passthrough to it must be allowed that much (the kernel: 2). */
static uint32_t stack_depth(const struct mount *m)
{
	struct statfs fs;

	if (fstatfs(m->root_fd, &fs) < 0)
		return 1;
	return fs.f_type == OVERLAYFS_SUPER_MAGIC || fs.f_type == FUSE_SUPER_MAGIC ? 2 : 1;
}

#define NO_OPENS (FUSE_NO_OPEN_SUPPORT | FUSE_NO_OPENDIR_SUPPORT)

static uint64_t wanted_features(const struct mount *m)
{
	uint64_t wanted = FUSE_ASYNC_READ | FUSE_ATOMIC_O_TRUNC | FUSE_BIG_WRITES | FUSE_DONT_MASK |
			  FUSE_AUTO_INVAL_DATA | FUSE_DO_READDIRPLUS | FUSE_READDIRPLUS_AUTO | FUSE_ASYNC_DIO |
			  FUSE_PARALLEL_DIROPS | FUSE_HANDLE_KILLPRIV_V2 | FUSE_MAX_PAGES | FUSE_SETXATTR_EXT |
			  FUSE_INIT_EXT | FB_FUSE_CREATE_SUPP_GROUP | FB_FUSE_DIRECT_IO_ALLOW_MMAP;

	// Without opens there is nothing to hold locks by, and O_TRUNC must come as a truncate (fs/fuse/file.c: fuse_open).
	if (m->is_small)
		wanted = (wanted & ~(uint64_t)FUSE_ATOMIC_O_TRUNC) | NO_OPENS;
	else
		wanted |= FUSE_FLOCK_LOCKS;
	if (m->keeps_targets)
		wanted |= FUSE_CACHE_SYMLINKS;
	// A daemon that has the data is to truncate as well, and in its turn: while a file is opened others may write.
	if (m->daemon && m->daemon->has_data_routes)
		wanted &= ~(uint64_t)FUSE_ATOMIC_O_TRUNC;
	if (m->wants_backing_locks && !m->is_small)
		wanted |= FUSE_POSIX_LOCKS;
	// With FUSE_POSIX_ACL the kernel judges by ACLs, which only makes sense where it judges at all.
	if (m->default_permissions)
		wanted |= FUSE_POSIX_ACL;
	if (m->wants_idmap)
		wanted |= FB_FUSE_ALLOW_IDMAP;
	if (m->wants_passthrough && !m->is_small)
		wanted |= FB_FUSE_PASSTHROUGH;
	if (m->n_queues > 1)
		wanted |= FB_FUSE_OVER_IO_URING;
	return wanted;
}

/* Read the request that the kernel sends first. */
static int read_init(struct mount *m, struct fuse_in_header *in, struct fuse_init_in *init, size_t *len)
{
	char *buffer = malloc(REQUEST_BUFFER_SIZE);
	ssize_t n;

	if (!buffer)
		return -ENOMEM;
	do {
		n = read(m->device_fd, buffer, REQUEST_BUFFER_SIZE);
	} while (n < 0 && (errno == EINTR || errno == EAGAIN));
	int e = n < 0 ? -errno : 0;
	memset(init, 0, sizeof(*init));
	if (!e && (n < (ssize_t)(sizeof(*in) + FUSE_COMPAT_INIT_OUT_SIZE) ||
		   ((struct fuse_in_header *)buffer)->opcode != FUSE_INIT))
		e = -EPROTO;
	if (!e) {
		*len = (size_t)n - sizeof(*in);
		memcpy(in, buffer, sizeof(*in));
		memcpy(init, buffer + sizeof(*in), *len < sizeof(*init) ? *len : sizeof(*init));
	}
	free(buffer);
	return e;
}

/** Read INIT: what the kernel offers. */
int device_hear(struct mount *m)
{
	struct fuse_in_header in;
	struct fuse_init_in init;
	size_t len;

	m->failed_call = "the FUSE handshake";
	int e = read_init(m, &in, &init, &len);
	if (e)
		return e;
	if (init.major != FUSE_KERNEL_VERSION || init.minor < 28) {
		mount_log(m, "ERROR", "the kernel speaks FUSE %u.%u, and 7.28 or newer is needed", init.major, init.minor);
		return -EPROTO;
	}
	m->kernel_minor = init.minor < FB_FUSE_MINOR ? init.minor : FB_FUSE_MINOR;
	m->offered = init.flags | (init.flags & FUSE_INIT_EXT ? (uint64_t)init.flags2 << 32 : 0);
	m->init_unique = in.unique;
	m->max_readahead = init.max_readahead;
	return 0;
}

/** Answer INIT: agree on the version and the features. */
int device_answer(struct mount *m)
{
	struct fb_fuse_init_out out = { .major = FUSE_KERNEL_VERSION };

	m->failed_call = "the FUSE handshake";
	m->features = m->offered & wanted_features(m);
	m->has_passthrough = m->features & FB_FUSE_PASSTHROUGH;
	if (m->wants_idmap && !(m->features & FB_FUSE_ALLOW_IDMAP)) {
		m->failed_call = "-o idmap: this kernel's FUSE has no id-mapped mounts";
		return -EOPNOTSUPP;
	}
	if (m->is_small && (m->features & NO_OPENS) != NO_OPENS) {
		m->failed_call = "-o profile=small: this kernel's FUSE cannot do without opens";
		return -EOPNOTSUPP;
	}
	out.minor = m->kernel_minor;
	out.max_readahead = m->max_readahead;
	out.flags = (uint32_t)m->features;
	out.flags2 = (uint32_t)(m->features >> 32);
	out.max_background = 64;
	out.congestion_threshold = 48;
	uint32_t most = m->daemon ? DAEMON_MAX_WRITE : MAX_WRITE;
	out.max_write = most;
	out.max_pages = (uint16_t)(most / 4096);
	out.time_gran = 1;
	out.max_stack_depth = m->has_passthrough ? stack_depth(m) : 0;
	struct fuse_out_header header = { .len = sizeof(header) + sizeof(out), .unique = m->init_unique };
	struct iovec iov[] = { { &header, sizeof(header) }, { &out, sizeof(out) } };
	return writev(m->device_fd, iov, 2) < 0 ? -errno : 0;
}

/* A further descriptor of the connection. */
static int clone_open(struct worker *w)
{
	uint32_t source = (uint32_t)w->mount->device_fd;

	w->device_fd = open("/dev/fuse", O_RDWR | O_CLOEXEC);
	if (w->device_fd < 0)
		return -errno;
	return ioctl(w->device_fd, FUSE_DEV_IOC_CLONE, &source) < 0 ? -errno : 0;
}

/* Where requests come over io_uring, mostly FORGETs are left for /dev/fuse, one for each inode that goes. To be woken for
 * each costs its caller more than the op that it comes from, and nobody waits for one: let some gather. */
static void forgets_gather(struct worker *w)
{
	const struct fuse_in_header *in = (const struct fuse_in_header *)w->buffer;
	bool was_forget = in->opcode == FUSE_FORGET || in->opcode == FUSE_BATCH_FORGET;

	if (was_forget)
		idle_forgets(w->mount);
	if (was_forget && transport_is_uring(w->mount))
		nanosleep(&(struct timespec){ .tv_nsec = GATHER_NS }, NULL);
	((struct fuse_in_header *)w->buffer)->opcode = 0;
}

/* Returns its length, or -errno: -ENODEV when the connection has ended. */
static ssize_t clone_receive(struct worker *w)
{
	forgets_gather(w);
	ssize_t n = read(w->device_fd, w->buffer, REQUEST_BUFFER_SIZE);

	if (n < 0)
		return -errno;
	w->request = w->buffer;
	w->payload = w->own_payload;
	return n < (ssize_t)sizeof(struct fuse_in_header) ? -EIO : n;
}

static int clone_reply(struct worker *w, const struct fuse_out_header *header, const struct iovec body[2])
{
	struct iovec iov[] = { { (void *)header, sizeof(*header) }, body[0], body[1] };

	if (w->splice.len && !header->error)
		return splice_reply(&w->splice, header, w->device_fd);
	if (w->splice.len)
		splice_close(&w->splice);
	return writev(w->device_fd, iov, body[1].iov_len ? 3 : body[0].iov_len ? 2 : 1) < 0 ? -errno : 0;
}

static void clone_close(struct worker *w)
{
	splice_close(&w->splice);
	if (w->device_fd >= 0)
		close(w->device_fd);
}

const struct transport device_transport = {
	.open = clone_open, .receive = clone_receive, .reply = clone_reply, .close = clone_close
};

/** Answer a request that came over /dev/fuse with an errno alone. */
void device_reply_raw(int fd, uint64_t unique, int error)
{
	struct fuse_out_header header = { .len = sizeof(header), .error = -error, .unique = unique };

	if (write(fd, &header, sizeof(header)) < 0)
		return; // ENOENT: the request is gone, nobody waits
}
