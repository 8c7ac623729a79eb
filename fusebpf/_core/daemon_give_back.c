/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the daemon is given back: inodes that the kernel has forgotten, handles that it never got. Nobody waits for that, nor does
 * who sends it: while a daemon that hangs leaves the socket full, such messages are kept, and go when there is room again.
 * Any worker, the janitor, and Python's thread, which would wait for itself. Lock: daemon.kept_lock, inside of all others.
 */
#include "core.h"

#include <sys/socket.h>

struct kept_message {
	struct kept_message *next;
	size_t len;
	char bytes[];
};

/* Returns false if there is no room. What a dead daemon cannot be told is done with. */
static bool send_now(struct daemon *d, const void *message, size_t len)
{
	while (send(d->fd, message, len, MSG_NOSIGNAL | MSG_DONTWAIT) < 0)
		if (errno != EINTR)
			return errno != EAGAIN;
	return true;
}

static void pop(struct daemon *d)
{
	struct kept_message *first = d->kept;

	d->kept = first->next;
	free(first);
}

/* Called with the lock held. */
static void send_kept_locked(struct daemon *d)
{
	while (d->kept && send_now(d, d->kept->bytes, d->kept->len))
		pop(d);
}

/** Send what there was no room for. */
void daemon_send_kept(struct daemon *d)
{
	pthread_mutex_lock(&d->kept_lock);
	send_kept_locked(d);
	pthread_mutex_unlock(&d->kept_lock);
}

/** The daemon is gone: nobody is to be told any more. */
void daemon_drop_kept(struct daemon *d)
{
	while (d->kept)
		pop(d);
}

static void keep(struct daemon *d, const void *message, size_t len)
{
	struct kept_message *kept = malloc(sizeof(*kept) + len);

	if (!kept)
		return; // the daemon counts one too many
	kept->next = NULL;
	kept->len = len;
	memcpy(kept->bytes, message, len);
	if (d->kept)
		d->last_kept->next = kept;
	else
		d->kept = kept;
	d->last_kept = kept;
}

static void give_back(struct daemon *d, const void *message, size_t len)
{
	if (atomic_load(&d->is_dead))
		return;
	pthread_mutex_lock(&d->kept_lock);
	send_kept_locked(d);
	if (d->kept || !send_now(d, message, len))
		keep(d, message, len);
	pthread_mutex_unlock(&d->kept_lock);
}

/** The kernel has forgotten an inode: the daemon gets its share back. No answer comes. */
void daemon_forget(struct daemon *d, uint64_t id, uint64_t n)
{
	struct {
		struct fuse_in_header header;
		struct fuse_forget_in forget;
	} message = { .header = { .len = sizeof(message), .opcode = FUSE_FORGET, .nodeid = id },
		      .forget = { .nlookup = n } };

	give_back(d, &message, sizeof(message));
}

/** A handle of the daemon's that the kernel never got: nobody waits for the answer. */
void daemon_release(struct daemon *d, uint64_t fh, bool is_dir)
{
	const struct op *op = &ops[is_dir ? FB_OP_releasedir : FB_OP_release];
	struct {
		struct fuse_in_header header;
		struct fuse_release_in release;
	} message = { .header = { .len = sizeof(message), .opcode = op->opcode } };
	struct daemon_call *call = daemon_call_unawaited(d, op);

	if (!call)
		return;
	call->fh = fh;
	message.header.unique = message.release.fh = call->token;
	give_back(d, &message, sizeof(message));
}
