/* SPDX-License-Identifier: Apache-2.0 */
/* `asynchronous FILE OTHER`: 256 asynchronous writes to one file are under way while it is cut; then the other one is filled. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { N = 256, SIZE = 4096 };

int main(int argc, char **argv)
{
	static struct iocb blocks[N], *all[N];
	static struct io_event events[N];
	aio_context_t context = 0;
	void *data;
	int fd = open(argv[1], O_RDWR | O_CREAT | O_DIRECT, 0644), other = open(argv[2], O_RDWR | O_CREAT, 0644);

	if (argc != 3 || fd < 0 || other < 0 || posix_memalign(&data, SIZE, N * SIZE) || syscall(SYS_io_setup, N, &context))
		return 1;
	for (int i = 0; i < N; i++) {
		blocks[i] = (struct iocb){ .aio_lio_opcode = IOCB_CMD_PWRITE, .aio_fildes = fd, .aio_buf = (unsigned long)data,
					   .aio_nbytes = SIZE, .aio_offset = i * SIZE };
		all[i] = &blocks[i];
	}
	for (int round = 0; round < 100; round++) {
		ftruncate(fd, N * SIZE);
		long n = syscall(SYS_io_submit, context, N, all);
		ftruncate(fd, 0);
		pwrite(other, data, N * SIZE, 0);
		for (long done = 0; done < n;)
			done += syscall(SYS_io_getevents, context, 1, N, events, NULL);
		ftruncate(other, 0);
	}
	return ftruncate(fd, 0);
}
