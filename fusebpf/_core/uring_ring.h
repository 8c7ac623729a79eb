/* SPDX-License-Identifier: Apache-2.0 */
/* An io_uring for one command at a time, by its system calls alone. */
#ifndef FUSEBPF_URING_RING_H
#define FUSEBPF_URING_RING_H

#include <linux/io_uring.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct uring {
	int fd;
	uint32_t enter_flags; /* of each io_uring_enter(2) */
	uint32_t n_prepared; /* submission entries that the kernel has not been told of */
	void *memory;	     /* both rings' indexes and the completion entries */
	size_t memory_size;
	struct io_uring_sqe *sqe; /* 128 bytes */
	size_t sqe_size;
	_Atomic uint32_t *sq_tail, *cq_head, *cq_tail;
	uint32_t *sq_array;
	const struct io_uring_cqe *cqes;
	uint32_t sq_mask, cq_mask;
};

int uring_open(struct uring *r, int file_fd);
int uring_enable(struct uring *r);
void uring_close(struct uring *r);
struct io_uring_sqe *uring_prepare(struct uring *r);
int uring_submit(struct uring *r, bool waits);
bool uring_take(struct uring *r, int *result);

#endif
