/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The identity under which a thread acts on the backing file system. Raw system calls, since libc's wrappers change
 * all threads of the process; setfsuid(2), setgroups(2) and capset(2) in the kernel are per thread.
 */
#include "core.h"

#include <linux/capability.h>
#include <sched.h>
#include <sys/syscall.h>

struct caps {
	struct __user_cap_data_struct data[2];
};

static __thread struct caps thread_caps; /* what the thread had when it started */
static __thread uint64_t caps_now;	 /* its effective ones */
static __thread bool is_other;		 /* creds_enter is in force */
static __thread uint32_t umask_now;	 /* only what creates looks at it, and that sets it first */

static const uint64_t fsetid_bit = 1ULL << CAP_FSETID;

/* What setfsuid(2) takes from an fsuid that is not 0 (include/linux/capability.h: CAP_FS_SET). */
static const uint64_t fs_bits = 1ULL << CAP_CHOWN | 1ULL << CAP_DAC_OVERRIDE | 1ULL << CAP_DAC_READ_SEARCH |
				1ULL << CAP_FOWNER | 1ULL << CAP_FSETID | 1ULL << CAP_LINUX_IMMUTABLE |
				1ULL << CAP_MKNOD | 1ULL << CAP_MAC_OVERRIDE;

static void caps_set_effective(uint64_t effective)
{
	struct __user_cap_header_struct header = { .version = _LINUX_CAPABILITY_VERSION_3 };
	struct caps caps = thread_caps;

	caps.data[0].effective = (uint32_t)effective;
	caps.data[1].effective = (uint32_t)(effective >> 32);
	syscall(SYS_capset, &header, caps.data);
}

static uint64_t all_caps(void)
{
	return thread_caps.data[0].effective | (uint64_t)thread_caps.data[1].effective << 32;
}

/** Give the calling thread its own umask and note its capabilities. Once per worker. */
int creds_init_thread(void)
{
	struct __user_cap_header_struct header = { .version = _LINUX_CAPABILITY_VERSION_3 };

	if (syscall(SYS_capget, &header, thread_caps.data) < 0)
		return -errno;
	caps_now = all_caps();
	if (unshare(CLONE_FS) < 0)
		return -errno;
	umask(0);
	return 0;
}

/**
 * Act as the caller until creds_leave: fsuid, fsgid, the one supplementary group that the kernel says matters
 * (FUSE_CREATE_SUPP_GROUP), and its umask, so that the backing file system applies default ACLs as it would have.
 * With keep_rights the capabilities that setfsuid(2) drops are kept, but CAP_FSETID: the kernel has judged the
 * caller's permissions already. Without, the backing file system judges them.
 */
void creds_enter(const struct request *rq, uint32_t uid, uint32_t gid, bool keep_rights)
{
	if (umask_now != rq->image->umask)
		umask(umask_now = rq->image->umask);
	if (uid == 0 && gid == 0 && !rq->has_supplementary_group)
		return;
	is_other = true;
	syscall(SYS_setgroups, rq->has_supplementary_group ? 1 : 0, &rq->supplementary_group);
	syscall(SYS_setfsgid, gid);
	syscall(SYS_setfsuid, uid);
	if (uid == 0)
		return;
	caps_now = all_caps() & ~(keep_rights ? fsetid_bit : fs_bits);
	caps_set_effective(caps_now);
}

void creds_leave(void)
{
	if (!is_other)
		return;
	is_other = false;
	syscall(SYS_setfsuid, 0);
	syscall(SYS_setfsgid, 0);
	syscall(SYS_setgroups, 0, NULL);
	caps_now = all_caps();
	caps_set_effective(caps_now);
}

/** All capabilities for a moment, whoever the thread acts as; undone by creds_unlift. */
void creds_lift(void)
{
	if (is_other)
		caps_set_effective(all_caps());
}

void creds_unlift(void)
{
	if (is_other)
		caps_set_effective(caps_now);
}

/** Without CAP_FSETID a write or truncate clears suid and sgid bits, as it does for a caller that lacks it. */
void creds_drop_fsetid(void)
{
	caps_set_effective(caps_now & ~fsetid_bit);
}

void creds_raise_fsetid(void)
{
	caps_set_effective(caps_now);
}
