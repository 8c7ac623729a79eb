/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The identity under which a thread acts on the backing file system. Raw system calls, since libc's wrappers change
 * all threads of the process; setfsuid(2), setgroups(2) and capset(2) in the kernel are per thread. Each takes more than a
 * microsecond, so a worker is as it is needed nearly always: root without groups and without CAP_FSETID; and in whatever group
 * it was last, since whoever makes something or has a group count says in which.
 */
#include "core.h"

#include <linux/capability.h>
#include <sched.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/syscall.h>

struct caps {
	struct __user_cap_data_struct data[2];
};

static __thread struct caps thread_caps; /* what the thread had when it started */
static __thread uint64_t caps_now;	 /* its effective ones */
static __thread uint32_t gid_now;	 /* its fsgid, */
static __thread bool has_groups;	 /* and supplementary ones */
static __thread bool is_other;		 /* creds_enter is in force, */
static __thread bool is_user;		 /* and not as root */
static __thread uint32_t umask_now;	 /* only what creates looks at it, and that sets it first */

#define NO_GROUP (UINT32_MAX - 1) /* no file's */

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

static uint64_t usual_caps(void)
{
	return all_caps() & ~fsetid_bit;
}

/** Does the calling worker have this capability? */
bool creds_have(int cap)
{
	return all_caps() >> cap & 1;
}

static void fsgid_set(uint32_t gid)
{
	if (gid != gid_now)
		syscall(SYS_setfsgid, gid_now = gid);
}

static void groups_set(size_t n, const gid_t *groups)
{
	if (n || has_groups)
		syscall(SYS_setgroups, n, groups);
	has_groups = n;
}

/** Give the calling thread its own umask, note its capabilities, drop CAP_FSETID, and leave all groups but 0. Once per worker. */
int creds_init_thread(void)
{
	struct __user_cap_header_struct header = { .version = _LINUX_CAPABILITY_VERSION_3 };

	if (syscall(SYS_capget, &header, thread_caps.data) < 0)
		return -errno;
	// Another worker may have started it while it acted as somebody.
	thread_caps.data[0].effective |= thread_caps.data[0].permitted & (uint32_t)fs_bits;
	syscall(SYS_setfsuid, 0);
	syscall(SYS_setfsgid, 0);
	caps_now = usual_caps();
	caps_set_effective(caps_now);
	if (unshare(CLONE_FS) < 0 || syscall(SYS_setgroups, 0, NULL) < 0)
		return -errno;
	umask(0);
	return 0;
}

/* The numbers in a line of proc_pid_status(5); the caller frees them. */
static gid_t *ids_in(const char *line, size_t *n)
{
	size_t most = strlen(line) / 2 + 1; // each is a digit and a blank at least
	gid_t *ids = calloc(most, sizeof(*ids));
	char *end;

	for (const char *at = line; ids && *n < most; at = end) {
		unsigned long each = strtoul(at, &end, 10);
		if (end == at)
			break;
		ids[(*n)++] = (gid_t)each;
	}
	return ids;
}

/* What a thread's status has behind a word, which the caller frees; NULL where it is not known. The thread waits for our answer,
 * so it cannot end or change meanwhile. */
static char *status_of_thread(uint32_t pid, const char *which)
{
	char path[32], *line = NULL;
	size_t size = 0, len = strlen(which);
	bool found = false;

	snprintf(path, sizeof(path), "/proc/%u/status", pid);
	FILE *file = pid ? fopen(path, "re") : NULL;
	while (file && !found && getline(&line, &size, file) > 0)
		found = !strncmp(line, which, len);
	if (file)
		fclose(file);
	if (found)
		return memmove(line, line + len, strlen(line + len) + 1);
	free(line);
	return NULL;
}

/* The ids that a thread's status has in one line, which the caller frees; NULL with *n 0 where they are not known. */
static gid_t *ids_of_thread(uint32_t pid, const char *which, size_t *n)
{
	char *text = status_of_thread(pid, which);
	gid_t *ids;

	*n = 0;
	ids = text ? ids_in(text, n) : NULL;
	free(text);
	return ids;
}

/* The uid or gid by which the caller acts on files: `told` by the request, else the last of four in its status ("Uid:", "Gid:"). */
static uint32_t caller_id(const struct request *rq, uint32_t told, const char *which)
{
	size_t n;

	if (told != UINT32_MAX)
		return told;
	gid_t *ids = ids_of_thread(rq->in->pid, which, &n);
	uint32_t id = n == 4 ? ids[3] : NO_GROUP;
	free(ids);
	return id;
}

/** The uid by which the caller acts on files, also where the request does not tell it. */
uid_t creds_caller_uid(const struct request *rq)
{
	return caller_id(rq, rq->in->uid, "Uid:");
}

/** The gid likewise. */
gid_t creds_caller_gid(const struct request *rq)
{
	return caller_id(rq, rq->in->gid, "Gid:");
}

/* Is the caller a root who has CAP_FSETID? Containers, and a mount that is stacked on this one, have roots without. */
static bool caller_has_fsetid(const struct request *rq)
{
	if (creds_caller_uid(rq))
		return false;
	char *caps = status_of_thread(rq->in->pid, "CapEff:");
	bool has = !caps || strtoull(caps, NULL, 16) & fsetid_bit;
	free(caps);
	return has;
}

/* Is a thread in the user namespace that we are in? */
static bool is_in_our_namespace(uint32_t pid)
{
	char path[32];
	struct stat theirs, ours;

	snprintf(path, sizeof(path), "/proc/%u/ns/user", pid);
	return stat(path, &theirs) == 0 && stat("/proc/self/ns/user", &ours) == 0 && theirs.st_ino == ours.st_ino &&
	       theirs.st_dev == ours.st_dev;
}

/** Has the caller CAP_SYS_ADMIN where we have it? Where his thread is not known, root is taken to. */
bool creds_caller_is_admin(const struct request *rq)
{
	char *caps = status_of_thread(rq->in->pid, "CapEff:");
	bool is_known = caps, has = caps && strtoull(caps, NULL, 16) >> CAP_SYS_ADMIN & 1;

	free(caps);
	return is_known ? has && is_in_our_namespace(rq->in->pid) : creds_caller_uid(rq) == 0;
}

/* Take the caller's groups: all that he has, where the backing file system is to judge him and he is who a filter left him;
 * else the one that the kernel says matters. */
static void groups_enter(const struct request *rq, bool is_judged)
{
	bool is_himself = rq->create_uid == rq->in->uid && rq->create_gid == rq->in->gid;
	size_t n = 0;
	gid_t *groups = is_judged && is_himself ? ids_of_thread(rq->in->pid, "Groups:", &n) : NULL;

	if (groups)
		groups_set(n, groups);
	else
		groups_set(rq->has_supplementary_group ? 1 : 0, &rq->supplementary_group);
	free(groups);
}

/* The mode of what the op makes, 0 if it makes nothing. */
static uint32_t made_mode(const struct request *rq)
{
	switch (rq->op->canonical) {
	case FB_OP_create:
	case FB_OP_tmpfile:
		return rq->image->args.create.mode;
	case FB_OP_mknod:
		return rq->image->args.mknod.mode;
	case FB_OP_mkdir:
		return rq->image->args.mkdir.mode;
	default:
		return 0;
	}
}

/**
 * Act as the caller until creds_leave: fsuid, fsgid, groups, and its umask, so that the backing file system applies
 * default ACLs as it would have. With keep_rights the capabilities that setfsuid(2) drops are kept, but CAP_FSETID: the
 * kernel has judged the caller's permissions already, and says which supplementary group matters
 * (FUSE_CREATE_SUPP_GROUP). Without, the backing file system judges them. The second may follow the first. Root has CAP_FSETID
 * for what he makes with an sgid bit, which the group of its directory may else cost it.
 */
void creds_enter(const struct request *rq, uint32_t uid, uint32_t gid, bool keep_rights)
{
	bool makes_sgid = uid == 0 && made_mode(rq) & S_ISGID;

	if (umask_now != rq->image->umask)
		umask(umask_now = rq->image->umask);
	fsgid_set(uid == UINT32_MAX ? 0 : gid);
	if (uid == UINT32_MAX)
		return; // with -o idmap the kernel names the caller to ops that create alone
	if (uid == 0 && !rq->has_supplementary_group && !makes_sgid)
		return;
	is_other = true;
	is_user = uid != 0;
	groups_enter(rq, !keep_rights && uid);
	syscall(SYS_setfsuid, uid);
	if (uid == 0 && !makes_sgid)
		return;
	caps_now = makes_sgid ? all_caps() : keep_rights ? usual_caps() : all_caps() & ~fs_bits;
	caps_set_effective(caps_now);
}

/** Does the thread act as somebody who is not root? */
bool creds_are_users(void)
{
	return is_user;
}

void creds_leave(void)
{
	if (!is_other)
		return;
	is_other = is_user = false;
	syscall(SYS_setfsuid, 0);
	groups_set(0, NULL);
	caps_now = usual_caps();
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

/* Be in the groups of a caller that acts on a file which has an sgid bit without group-execute: it stays if the file's group is
 * among his (fs/attr.c: setattr_should_drop_sgid), and the one that he gives it to. The request names only his first. */
static void groups_join(const struct request *rq)
{
	size_t n;
	gid_t *groups = ids_of_thread(rq->in->pid, "Groups:", &n);

	fsgid_set(creds_caller_gid(rq));
	groups_set(n, groups);
	free(groups);
}

/** Be in no file's group, so that sgid bits go which one's member would keep. Returns what creds_group_restore takes. */
uint32_t creds_group_leave(void)
{
	uint32_t was = gid_now;

	fsgid_set(NO_GROUP);
	return was;
}

void creds_group_restore(uint32_t was)
{
	if (is_other)
		fsgid_set(was);
}

/** CAP_FSETID for what sets an sgid bit, unless the thread acts as a user; until creds_drop_fsetid. */
void creds_raise_fsetid(void)
{
	if (!is_user)
		caps_set_effective(caps_now | (all_caps() & fsetid_bit));
}

void creds_drop_fsetid(void)
{
	if (!is_user)
		caps_set_effective(caps_now);
}

/**
 * A file that is open by fd is about to be written to, truncated or given away, which takes its suid and sgid bits from it; as
 * `fsetid` says. Files that have such bits are few. Who acts as a user loses them as that one does. Returns what creds_bits_end takes.
 */
struct creds_bits creds_bits_begin(const struct request *rq, int fd, enum creds_fsetid fsetid)
{
	struct creds_bits begun = { .group = gid_now };
	struct stat st;

	if (is_user || fstat(fd, &st) < 0 || !(st.st_mode & (S_ISUID | S_ISGID)))
		return begun;
	if (fsetid == FSETID_IS_ROOTS)
		fsetid = caller_has_fsetid(rq) ? HAS_FSETID : LACKS_FSETID;
	if (fsetid == HAS_FSETID) {
		begun.has_raised = true;
		creds_raise_fsetid();
	} else if ((st.st_mode & (S_ISGID | S_IXGRP)) == S_ISGID) { // else it goes, whoever he is
		begun.has_joined = true;
		groups_join(rq);
	}
	return begun;
}

void creds_bits_end(struct creds_bits begun)
{
	if (begun.has_raised)
		creds_drop_fsetid();
	if (begun.has_joined)
		groups_set(0, NULL);
	creds_group_restore(begun.group);
}

/** Does the backing file system judge the caller, since the kernel was told not to? */
bool acts_as_caller(const struct request *rq)
{
	return !rq->mount->default_permissions && !(rq->image->flags & FB_NO_CALLER);
}
