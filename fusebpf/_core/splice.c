/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a large read finds goes to /dev/fuse through a pipe, as pages and not as a copy of ours, where nobody looks at it. Two
 * pipes, since the reply's head comes first and tells how much follows. On the worker's own thread.
 */
#include "core.h"

#define PAGE 4096 /* how much of a pipe each page that is touched takes, and the head of a reply */
/* Below, what two more system calls cost is as much as what the copy does (docs/performance.md). */
#define LEAST (256u * 1024)

/* Returns how much goes into it: without CAP_SYS_RESOURCE no more than /proc/sys/fs/pipe-max-size. */
static int pipe_open(int ends[2])
{
	if (pipe2(ends, O_CLOEXEC) < 0)
		return 0;
	if (fcntl(ends[0], F_SETPIPE_SZ, 2 * MAX_WRITE) < 0)
		fcntl(ends[0], F_SETPIPE_SZ, MAX_WRITE);
	return fcntl(ends[0], F_GETPIPE_SZ);
}

void splice_init(struct splice *s)
{
	for (int i = 0; i < 2; i++)
		s->data[i] = s->reply[i] = -1;
}

/** Give up what is in the pipes, and the pipes. */
void splice_close(struct splice *s)
{
	for (int i = 0; i < 2; i++) {
		if (s->data[i] >= 0)
			close(s->data[i]);
		if (s->reply[i] >= 0)
			close(s->reply[i]);
	}
	splice_init(s);
	s->len = 0;
}

static bool pipes_open(struct splice *s)
{
	creds_lift(); // for pipes of that size
	int data = pipe_open(s->data), reply = pipe_open(s->reply);
	creds_unlift();
	if (data <= 0 || reply <= 0)
		splice_close(s);
	s->size = data < reply ? data : reply;
	return s->data[0] >= 0;
}

/* Move bytes from one end to another. Returns how many: len, or fewer at the end of a file; -1 if that failed half-way. */
static ssize_t move(int from, off_t *at, int to, size_t len)
{
	size_t n = 0;

	while (n < len) {
		ssize_t moved = splice(from, at, to, NULL, len - n, SPLICE_F_MOVE | SPLICE_F_NONBLOCK);
		if (moved < 0)
			return -1;
		if (moved == 0)
			break;
		n += (size_t)moved;
	}
	return (ssize_t)n;
}

/**
 * Read into a pipe what rq is to be answered with. Returns how many bytes; 0 where they are to be read the ordinary way.
 */
size_t splice_read(struct request *rq, int fd, uint64_t offset, uint32_t size)
{
	struct splice *s = &rq->worker->splice;
	off_t at = (off_t)offset;

	if (size < LEAST || rq->worker->queue->transport != &device_transport || rq->chain || rq->mount->daemon || s->is_refused)
		return 0;
	if (s->data[0] < 0 && !pipes_open(s)) {
		s->is_refused = true;
		return 0;
	}
	if (size + 3 * PAGE > (uint32_t)s->size) // the head, and parts of two pages
		return 0;
	ssize_t n = move(fd, &at, s->data[1], size);
	if (n < 0) {
		splice_close(s);
		return 0;
	}
	return s->len = (size_t)n;
}

/** Send a reply whose body splice_read has read. 0 or -errno. */
int splice_reply(struct splice *s, const struct fuse_out_header *header, int device_fd)
{
	size_t len = s->len;
	bool is_ready = write(s->reply[1], header, sizeof(*header)) == sizeof(*header) &&
			move(s->data[0], NULL, s->reply[1], len) == (ssize_t)len;
	int e = !is_ready ? -EIO : splice(s->reply[0], NULL, device_fd, NULL, sizeof(*header) + len, SPLICE_F_MOVE) < 0 ? -errno : 0;

	s->len = 0;
	if (e)
		splice_close(s);
	return e;
}
