/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Who sent a request, as the program on the kernel's tracepoint has noted it (bpf/caller.c): taken when the op is decoded
 * for filters that want it. What was not noted is unknown, and never asked of /proc, where it may have changed. Any worker.
 */
#include "core.h"

#include <linux/bpf.h>
#include <sys/syscall.h>

#define THREAD_KEY (1ULL << 63) /* FB_THREAD_KEY of bpf/caller.c */

static bool take(int map_fd, uint64_t key, struct fb_caller *out)
{
	union bpf_attr attr;

	memset(&attr, 0, sizeof(attr));
	attr.map_fd = (uint32_t)map_fd;
	attr.key = (uint64_t)(uintptr_t)&key;
	attr.value = (uint64_t)(uintptr_t)out;
	return syscall(SYS_bpf, BPF_MAP_LOOKUP_AND_DELETE_ELEM, &attr, sizeof(attr)) == 0;
}

/** Take callers from this map from now on; it is duplicated. -EALREADY: one is taken already. */
int callers_set(struct mount *m, int map_fd)
{
	int none = -1, fd = fcntl(map_fd, F_DUPFD_CLOEXEC, 0);

	if (fd < 0)
		return -errno;
	if (atomic_compare_exchange_strong(&m->callers_fd, &none, fd))
		return 0;
	close(fd);
	return -EALREADY;
}

/** Fill in who the caller is, where that is known. */
void caller_to_slot(struct request *rq)
{
	struct fb_slot *image = rq->image;
	int fd = atomic_load_explicit(&rq->mount->callers_fd, memory_order_acquire);

	memset(&image->caller, 0, sizeof(image->caller));
	if (fd < 0 || image->flags & FB_NO_CALLER)
		return;
	if (take(fd, rq->in->unique, &image->caller) || take(fd, THREAD_KEY | rq->in->pid, &image->caller))
		image->flags |= FB_CALLER_KNOWN;
}
