/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What both transports share: which one it is to be, and the composing of replies. The choice is made by the control
 * path, replies are sent by the worker that serves the request.
 */
#include "core.h"

#include <stdio.h>

#define URING_SWITCH "/sys/module/fuse/parameters/enable_uring"
#define POSSIBLE_CORES "/sys/devices/system/cpu/possible"

enum transport_choice transport_named(const char *name)
{
	return !strcmp(name, "dev") ? TRANSPORT_DEV : !strcmp(name, "uring") ? TRANSPORT_URING : TRANSPORT_AUTO;
}

/** Turn FUSE over io_uring on for this machine, where the kernel has it and it is off. It heeds this at INIT. */
void transport_enable_uring(struct mount *m)
{
	int fd = open(URING_SWITCH, O_RDWR | O_CLOEXEC);
	char is_on = 'Y';

	if (fd < 0)
		return; // then INIT does not offer it, and that is said there
	if (read(fd, &is_on, 1) == 1 && is_on == 'N' && pwrite(fd, "Y", 1, 0) == 1)
		mount_log(m, "WARNING", "FUSE over io_uring was off on this machine and is on now (" URING_SWITCH ")");
	close(fd);
}

/** Read a small file of the kernel's into size bytes; what cannot be read is empty. */
void text_in(const char *path, char *out, size_t size)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? -1 : read(fd, out, size - 1);

	if (fd >= 0)
		close(fd);
	out[n < 0 ? 0 : n] = 0;
}

/** The number in such a file; 0 if it cannot be read. */
uint64_t number_in(const char *path)
{
	char text[32];

	text_in(path, text, sizeof(text));
	return strtoull(text, NULL, 10);
}

/** Why the kernel does not offer FUSE over io_uring, after transport_enable_uring. */
const char *transport_why_no_uring(void)
{
	char text[8];

	text_in(URING_SWITCH, text, sizeof(text));
	return text[0] == 'N' ? "it is off in " URING_SWITCH ", which we cannot write" : "the kernel does not offer it";
}

/** Does the kernel end connections that leave a request unanswered for some time? (Documentation/admin-guide/sysctl/fs.rst) */
bool transport_has_deadline(void)
{
	return number_in("/proc/sys/fs/fuse/default_request_timeout") || number_in("/proc/sys/fs/fuse/max_request_timeout");
}

/** How many queues the kernel has: one for each core that there may be (num_possible_cpus). 0: it cannot be found out. */
uint32_t transport_n_cores(void)
{
	char text[256];
	unsigned int first = 0, last = 0;

	text_in(POSSIBLE_CORES, text, sizeof(text));
	// With gaps between them the kernel counts fewer queues than the highest core's number says.
	int fields = strchr(text, ',') ? 0 : sscanf(text, "%u-%u", &first, &last);
	return fields < 1 || first ? 0 : last + 1;
}

/** Do the callers' requests come over io_uring? */
bool transport_is_uring(const struct mount *m)
{
	for (uint32_t i = 1; i < m->n_queues; i++)
		if (atomic_load_explicit(&m->queues[i].is_closed, memory_order_relaxed))
			return false; // the kernel went over to /dev/fuse
	return m->n_queues > 1;
}

/** FUSE over io_uring cannot be had: an error where nothing else will do, else a line in the log. */
int transport_refuse_uring(struct mount *m, const char *why)
{
	if (m->transport != TRANSPORT_URING) {
		mount_log(m, "WARNING", "served over /dev/fuse, not over io_uring: %s", why);
		return 0;
	}
	mount_log(m, "ERROR", "FUSE over io_uring: %s", why);
	snprintf(m->failed_text, sizeof(m->failed_text), "FUSE over io_uring: %s (transport=auto does without)", why);
	m->failed_call = m->failed_text;
	return -EOPNOTSUPP;
}

/** Answer a request with an errno alone. */
void reply_error(struct request *rq, int error)
{
	static const struct iovec nothing[2];
	struct worker *w = rq->worker;
	struct fuse_out_header header = { .len = sizeof(header), .error = -error, .unique = rq->in->unique };

	KERNEL_IS_TOLD(w->mount);
	w->queue->transport->reply(w, &header, nothing);
}

/**
 * Send the reply: error, a positive errno, or 0 and what rq->reply and rq->payload say.
 *
 * Returns 0, or -ENOENT if nobody waits for it any more (an interrupted or aborted request). A reply that the kernel
 * refuses for another reason is sent again as EIO, since the caller would wait for ever.
 */
int reply_send(struct request *rq, int error)
{
	struct worker *w = rq->worker;
	struct iovec body[2] = { { (void *)rq->reply, error ? 0 : rq->reply_len },
				 { (void *)rq->payload, error ? 0 : rq->payload_len } };
	struct fuse_out_header header = { .error = -error, .unique = rq->in->unique };

	header.len = (uint32_t)(sizeof(header) + body[0].iov_len + body[1].iov_len);
	KERNEL_IS_TOLD(w->mount);
	int e = w->queue->transport->reply(w, &header, body);
	if (!e || e == -ENOENT || e == -ENODEV)
		return e ? -ENOENT : 0;
	mount_log(rq->mount, "ERROR", "the kernel refused the reply to %s (%s); it was failed with EIO",
		  rq->op ? rq->op->name : "a request", strerror(-e));
	reply_error(rq, EIO);
	return -ENOENT; // what the reply handed out did not arrive
}
