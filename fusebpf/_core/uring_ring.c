/* SPDX-License-Identifier: Apache-2.0 */
/*
 * An io_uring by its system calls: one command under way at a time, on one file, which is registered with it (so that a
 * command costs no reference count on it). Made by any thread; only the one that enables it may use it then, which
 * lets the kernel finish commands in that thread's own io_uring_enter(2), with no signal and no lock. Needs no library.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "uring_ring.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define N_ENTRIES 1
#define SQE_SIZE 128 /* IORING_SETUP_SQE128 */

/* Of Linux 6.15 (include/uapi/linux/io_uring.h); older headers do not have them. */
#define FEAT_NO_IOWAIT (1U << 17)
#define ENTER_NO_IOWAIT (1U << 7)

static int map(struct uring *r, const struct io_uring_params *p)
{
	size_t sq_size = p->sq_off.array + p->sq_entries * sizeof(uint32_t);
	size_t cq_size = p->cq_off.cqes + p->cq_entries * sizeof(struct io_uring_cqe);

	r->memory_size = sq_size > cq_size ? sq_size : cq_size;
	r->memory = mmap(NULL, r->memory_size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, r->fd,
			 IORING_OFF_SQ_RING);
	if (r->memory == MAP_FAILED)
		return -errno;
	r->sqe_size = (size_t)p->sq_entries * SQE_SIZE;
	r->sqe = mmap(NULL, r->sqe_size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, r->fd, IORING_OFF_SQES);
	if (r->sqe == MAP_FAILED)
		return -errno;
	char *base = r->memory;
	r->sq_tail = (_Atomic uint32_t *)(base + p->sq_off.tail);
	r->sq_array = (uint32_t *)(base + p->sq_off.array);
	r->sq_mask = *(uint32_t *)(base + p->sq_off.ring_mask);
	r->cq_head = (_Atomic uint32_t *)(base + p->cq_off.head);
	r->cq_tail = (_Atomic uint32_t *)(base + p->cq_off.tail);
	r->cq_mask = *(uint32_t *)(base + p->cq_off.ring_mask);
	r->cqes = (const struct io_uring_cqe *)(base + p->cq_off.cqes);
	return 0;
}

/* May this process wait on rings at all? A seccomp profile can refuse this call alone, which would be found out when requests are
 * on their way. A ring that is not enabled says EBADFD itself. */
static int may_enter(const struct uring *r)
{
	long n = syscall(SYS_io_uring_enter, r->fd, 0, 0, 0, NULL, 0);

	return n < 0 && errno != EBADFD ? -errno : 0;
}

/** Make a ring for commands on file_fd, not enabled yet. On error nothing is left to close. */
int uring_open(struct uring *r, int file_fd)
{
	struct io_uring_params p = { .flags = IORING_SETUP_SQE128 | IORING_SETUP_SINGLE_ISSUER |
					      IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_R_DISABLED };

	memset(r, 0, sizeof(*r));
	r->memory = r->sqe = MAP_FAILED;
	r->fd = (int)syscall(SYS_io_uring_setup, N_ENTRIES, &p);
	if (r->fd < 0)
		return -errno;
	// Without GETEVENTS the kernel would not run what completes commands. Waiting for a request is no waiting for a disk: else an
	// idle mount would have the machine at 100% iowait, and at as much I/O pressure.
	r->enter_flags = IORING_ENTER_GETEVENTS | (p.features & FEAT_NO_IOWAIT ? ENTER_NO_IOWAIT : 0);
	int e = p.features & IORING_FEAT_SINGLE_MMAP ? map(r, &p) : -EOPNOTSUPP;
	if (!e && syscall(SYS_io_uring_register, r->fd, IORING_REGISTER_FILES, &file_fd, 1) < 0)
		e = -errno;
	if (!e)
		e = may_enter(r);
	if (e)
		uring_close(r);
	return e;
}

/** Make the ring the calling thread's. */
int uring_enable(struct uring *r)
{
	return syscall(SYS_io_uring_register, r->fd, IORING_REGISTER_ENABLE_RINGS, NULL, 0) < 0 ? -errno : 0;
}

void uring_close(struct uring *r)
{
	if (r->sqe != MAP_FAILED)
		munmap(r->sqe, r->sqe_size);
	if (r->memory != MAP_FAILED)
		munmap(r->memory, r->memory_size);
	if (r->fd >= 0)
		close(r->fd);
	r->fd = -1;
	r->memory = r->sqe = MAP_FAILED;
}

/** The submission entry, zeroed; the next uring_submit sends it. The command before it is finished. */
struct io_uring_sqe *uring_prepare(struct uring *r)
{
	uint32_t tail = atomic_load_explicit(r->sq_tail, memory_order_relaxed);
	struct io_uring_sqe *sqe = r->sqe;

	memset(sqe, 0, SQE_SIZE);
	r->sq_array[tail & r->sq_mask] = 0;
	atomic_store_explicit(r->sq_tail, tail + 1, memory_order_release);
	r->n_prepared++;
	return sqe;
}

/** Send what is prepared and, if wanted, wait for a completion. Returns 0 or -errno; after -EINTR what was prepared may
 * not be sent, and goes with the next call. */
int uring_submit(struct uring *r, bool waits)
{
	long n = syscall(SYS_io_uring_enter, r->fd, r->n_prepared, waits ? 1 : 0, r->enter_flags, NULL, 0);

	if (n < 0)
		return -errno;
	r->n_prepared -= (uint32_t)n;
	return 0;
}

/** Take a completion's result, if there is one. */
bool uring_take(struct uring *r, int *result)
{
	uint32_t head = atomic_load_explicit(r->cq_head, memory_order_relaxed);

	if (head == atomic_load_explicit(r->cq_tail, memory_order_acquire))
		return false;
	*result = r->cqes[head & r->cq_mask].res;
	atomic_store_explicit(r->cq_head, head + 1, memory_order_release);
	return true;
}
