/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a hook may say of an op: the errnos that go to the kernel, the edits that each op takes (edits.c takes them over),
 * and the one way to fail an op whose hook broke a rule.
 */
#include "core.h"

#include <linux/bpf.h>
#include <sys/syscall.h>

/** An errno that the kernel takes: 1 to 511, else EIO; ENOSYS would switch the op off for the life of the mount. */
int errno_for_kernel(uint32_t error)
{
	if (error == ENOSYS)
		return EOPNOTSUPP;
	return error <= 511 ? (int)error : EIO;
}

/* Count it in `stats`, where the hooks count their own verdicts. */
static void count_broken(struct mount *m, uint32_t filter, const struct op *op, enum fb_phase phase)
{
	struct fb_stat_key key = { .filter = filter,
				   .phase = phase,
				   .op = (enum fb_op)op->canonical,
				   .verdict = FB_BROKEN };
	struct fb_stat stat = { 0 };
	union bpf_attr attr;

	memset(&attr, 0, sizeof(attr));
	attr.map_fd = (uint32_t)m->shared.stats_fd;
	attr.key = (uint64_t)(uintptr_t)&key;
	attr.value = (uint64_t)(uintptr_t)&stat;
	pthread_mutex_lock(&m->chain_lock); // only the core writes these rows
	syscall(SYS_bpf, BPF_MAP_LOOKUP_ELEM, &attr, sizeof(attr));
	stat.count++;
	syscall(SYS_bpf, BPF_MAP_UPDATE_ELEM, &attr, sizeof(attr));
	pthread_mutex_unlock(&m->chain_lock);
}

/** A hook broke a rule: its op fails with EIO, is counted and logged. The only place that does so. */
void fail_closed(struct request *rq, const struct op *op, const struct chain_hook *hook, enum fb_phase phase,
		 const char *why)
{
	struct mount *m = rq->mount;
	const struct chain_filter *filter = &rq->chain->filters[hook->position];

	atomic_fetch_add(&m->n_failed_closed, 1);
	count_broken(m, filter->id, op, phase);
	rq->verdict = FB_BROKEN;
	rq->decider = filter->name;
	mount_log(m, "ERROR", "filter %s: its %s hook on %s broke a rule, so the op %s: %s", filter->name,
		  phase == FB_PRE ? "pre" : "post", ops[op->canonical].name,
		  op->flags & FB_OP_UNREFUSABLE ? "goes on (it cannot be refused)" : "failed with EIO", why);
}

/* ------------------------------------------------------------------------------- which edits */

/** Is a hook there shown the payload, if its filter wants it? */
bool data_is_seen(const struct op *op, enum fb_phase phase, uint32_t wants)
{
	if (!(wants & FB_WANTS_DATA))
		return false;
	switch (op->canonical) {
	case FB_OP_write:
	case FB_OP_setxattr:
		return phase == FB_PRE;
	case FB_OP_read:
	case FB_OP_getxattr:
	case FB_OP_listxattr:
	case FB_OP_readlink:
		return true;
	default:
		return false;
	}
}

static uint64_t edits_before(const struct op *op)
{
	uint64_t edits = FB_EDIT_BACKING | FB_EDIT_TAG | FB_EDIT_DELAY;

	if (op->flags & (FB_OP_ENTRY | FB_OP_ATTR))
		edits |= FB_EDIT_TTL;
	if (op->flags & FB_OP_ENTRY)
		edits |= FB_EDIT_VIEW;
	if (op->flags & FB_OP_CREATES)
		edits |= FB_EDIT_UID | FB_EDIT_GID;
	if (op->n_names >= 1)
		edits |= FB_EDIT_NAME;
	if (op->n_names >= 2)
		edits |= FB_EDIT_NAME2;
	switch (op->canonical) {
	case FB_OP_setattr:
		return edits | FB_EDIT_MODE | FB_EDIT_UID | FB_EDIT_GID | FB_EDIT_SIZE | FB_EDIT_TIMES | FB_EDIT_FLAGS;
	case FB_OP_symlink:
		return edits | FB_EDIT_TEXT;
	case FB_OP_mknod:
		return edits | FB_EDIT_MODE | FB_EDIT_RDEV | FB_EDIT_UMASK;
	case FB_OP_mkdir:
		return edits | FB_EDIT_MODE | FB_EDIT_UMASK;
	case FB_OP_create:
	case FB_OP_tmpfile:
		return edits | FB_EDIT_MODE | FB_EDIT_FLAGS | FB_EDIT_UMASK | FB_EDIT_IO;
	case FB_OP_open:
		return edits | FB_EDIT_FLAGS | FB_EDIT_IO;
	case FB_OP_opendir:
	case FB_OP_rename:
	case FB_OP_fsync:
	case FB_OP_fsyncdir:
		return edits | FB_EDIT_FLAGS;
	case FB_OP_setxattr:
		return edits | FB_EDIT_FLAGS | FB_EDIT_SIZE | FB_EDIT_TEXT | FB_EDIT_DATA;
	case FB_OP_getxattr:
	case FB_OP_listxattr:
		return edits | FB_EDIT_SIZE;
	case FB_OP_read:
	case FB_OP_readdir:
		return edits | FB_EDIT_SIZE | FB_EDIT_OFFSET;
	case FB_OP_write:
		return edits | FB_EDIT_SIZE | FB_EDIT_OFFSET | FB_EDIT_FLAGS | FB_EDIT_DATA;
	case FB_OP_fallocate:
		return edits | FB_EDIT_SIZE | FB_EDIT_OFFSET | FB_EDIT_MODE;
	case FB_OP_lseek:
		return edits | FB_EDIT_OFFSET | FB_EDIT_WHENCE;
	case FB_OP_copy_file_range:
		return edits | FB_EDIT_SIZE | FB_EDIT_OFFSET | FB_EDIT_OFFSET2;
	case FB_OP_getlk:
		return edits | FB_EDIT_LOCK;
	case FB_OP_setlk:
	case FB_OP_flock:
		return edits | FB_EDIT_LOCK | FB_EDIT_FLAGS;
	case FB_OP_ioctl:
		return edits | FB_EDIT_FLAGS | FB_EDIT_TEXT;
	case FB_OP_access:
	case FB_OP_statx:
	case FB_OP_poll:
		return edits | FB_EDIT_MASK;
	case FB_OP_release:
	case FB_OP_releasedir:
		return 0;
	default:
		return edits;
	}
}

/* What an op answers with but for inodes, handles and the attributes that come with those. */
static uint64_t results(const struct op *op)
{
	uint64_t edits = 0;

	if (op->flags & FB_OP_STATFS)
		edits |= FB_EDIT_STATFS;
	if (op->flags & FB_OP_TEXT)
		edits |= FB_EDIT_TEXT;
	if (data_is_seen(op, FB_POST, FB_WANTS_DATA))
		edits |= FB_EDIT_DATA;
	if (op->flags & FB_OP_COUNT && op->canonical != FB_OP_read && op->canonical != FB_OP_readdir)
		edits |= FB_EDIT_COUNT;
	if (op->canonical == FB_OP_getlk)
		edits |= FB_EDIT_LOCK;
	return edits;
}

static uint64_t edits_after(const struct request *rq, const struct op *op)
{
	uint64_t edits = FB_EDIT_ERROR | FB_EDIT_DELAY;

	if (op->canonical == FB_OP_dirent)
		return FB_EDIT_NAME | FB_EDIT_TTL;
	if (op->flags & FB_OP_UNREFUSABLE)
		return 0;
	if (rq->error)
		return edits;
	if (op->flags & (FB_OP_ENTRY | FB_OP_ATTR))
		edits |= FB_EDIT_ATTR | FB_EDIT_TTL;
	if (op->flags & FB_OP_ENTRY && !(op->flags & FB_OP_OPENS))
		edits |= FB_EDIT_VIEW;
	if (op->flags & FB_OP_OPENS && op->canonical != FB_OP_opendir)
		edits |= FB_EDIT_IO;
	if (op->canonical == FB_OP_read)
		edits |= FB_EDIT_COUNT;
	return edits | FB_EDIT_TAG | results(op);
}

/** Which edits may a hook of this op and phase make? With `is_reply` the results of an op that has not run. */
uint64_t verdict_edits(const struct request *rq, const struct op *op, enum fb_phase phase, bool is_reply)
{
	if (phase == FB_POST)
		return edits_after(rq, op);
	if (!is_reply)
		return edits_before(op);
	return FB_EDIT_ERROR | FB_EDIT_DELAY | results(op) | (op->flags & FB_OP_ATTR ? FB_EDIT_ATTR | FB_EDIT_TTL : 0);
}
