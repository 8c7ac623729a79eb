/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Directories that the daemon lists, alone or before the backing's own entries. pyfuse3 answers READDIRPLUS; what goes to
 * the kernel is what it asked for. In a directory with a backing the daemon's offsets would be taken for the backing's, so
 * they are kept beside the handle and numbered from the end of what an offset can be.
 */
#include "core.h"

#define FIRST_OFFSET 0x7fffffffffe00000ull /* no file system hands these out; 2^20 of them */
#define MAX_ENTRIES (1u << 20)

/** What the daemon calls an offset of this handle. False: it is in the backing's part. */
bool daemon_offset(const struct handle *h, uint64_t offset, uint64_t *out)
{
	*out = offset;
	if (!h || h->inode->is_virtual || !offset)
		return true;
	if (offset < FIRST_OFFSET || offset - FIRST_OFFSET >= h->n_daemon_entries)
		return false;
	*out = h->daemon_entries[offset - FIRST_OFFSET].next;
	return true;
}

/** Did the daemon list this name? */
bool daemon_listed(const struct handle *h, const char *name)
{
	for (uint32_t i = 0; i < h->n_daemon_entries; i++)
		if (!strcmp(h->daemon_entries[i].name, name))
			return true;
	return false;
}

void daemon_entries_free(struct handle *h)
{
	for (uint32_t i = 0; i < h->n_daemon_entries; i++)
		free(h->daemon_entries[i].name);
	free(h->daemon_entries);
	h->daemon_entries = NULL;
	h->n_daemon_entries = 0;
}

/* Note an entry of a directory with a backing. Returns its offset, 0 if memory is short. */
static uint64_t entry_note(struct handle *h, const char *name, uint32_t len, uint64_t next)
{
	uint32_t n = h->n_daemon_entries;

	if (n == MAX_ENTRIES)
		return 0;
	if (!(n & (n - 1))) {
		struct daemon_entry *more = realloc(h->daemon_entries, (n ? 2 * n : 1) * sizeof(*more));
		if (!more)
			return 0;
		h->daemon_entries = more;
	}
	char *copy = strndup(name, len);
	if (!copy)
		return 0;
	h->daemon_entries[n] = (struct daemon_entry){ .next = next, .name = copy };
	h->n_daemon_entries++;
	return FIRST_OFFSET + n;
}

static bool is_dots(const char *name, uint32_t len)
{
	return name[0] == '.' && (len == 1 || (len == 2 && name[1] == '.'));
}

/* One entry of the daemon's: is it well formed? Returns its length, 0 if not. */
static size_t entry_len(const char *at, size_t left)
{
	const struct fuse_direntplus *plus = (const void *)at;

	if (left < FUSE_NAME_OFFSET_DIRENTPLUS)
		return 0;
	uint32_t n = plus->dirent.namelen;
	size_t len = FUSE_DIRENT_ALIGN(FUSE_NAME_OFFSET_DIRENTPLUS + (size_t)n);
	if (n == 0 || n >= FB_NAME_SIZE || len > left || memchr(plus->dirent.name, '/', n) ||
	    memchr(plus->dirent.name, 0, n))
		return 0;
	return len;
}

struct target {
	struct handle *h;
	char *out;
	size_t len, size;
	uint64_t next; /* behind the last entry that was taken */
	bool is_plus, with_inodes;
};

/* Take one entry: put it into the reply, unless filters drop it. Returns 1, 0 if it does not fit, or -errno. */
static int entry_put(struct request *rq, struct target *t, const struct fuse_direntplus *in)
{
	struct daemon *d = rq->mount->daemon;
	char original[FB_NAME_SIZE];
	uint32_t len = in->dirent.namelen;
	size_t head = t->is_plus ? FUSE_NAME_OFFSET_DIRENTPLUS : FUSE_NAME_OFFSET;
	struct fuse_direntplus *plus = (void *)(t->out + t->len);
	struct fuse_dirent *dirent = t->is_plus ? &plus->dirent : (void *)plus;
	uint64_t id = in->entry_out.nodeid;
	struct inode *inode = NULL;
	int e = 0;

	memcpy(original, in->dirent.name, len);
	original[len] = 0;
	bool dots = is_dots(original, len);
	const char *name = original;
	bool is_listed = dirent_allowed(rq, in->dirent.ino, in->dirent.type, &name, &len);
	size_t size = FUSE_DIRENT_ALIGN(head + len);
	if (is_listed && t->size - t->len < size)
		return 0; // a filter made its name longer
	uint64_t offset = in->dirent.off;
	if (!t->h->inode->is_virtual && !(offset = entry_note(t->h, original, in->dirent.namelen, offset)))
		return -ENOMEM;
	t->next = offset;
	memset(plus, 0, head);
	if (is_listed && id && !dots && t->is_plus && t->with_inodes)
		e = daemon_entry(rq, &in->entry_out, original, &plus->entry_out, &inode);
	else if (id && !dots)
		daemon_forget(d, id, 1); // pyfuse3 counts each entry that it lists
	if (rq->error || e || !is_listed)
		return rq->error ? -rq->error : e ? e : 1;
	dirent->ino = in->dirent.ino;
	if (inode)
		dirent->ino = plus->entry_out.attr.ino;
	dirent->off = offset;
	dirent->type = in->dirent.type;
	dirent->namelen = len;
	memcpy(dirent->name, name, len);
	memset(dirent->name + len, 0, size - head - len);
	t->len += size;
	rq->n_listed++;
	return 1;
}

/* Take the entries of an answer. Returns 0 or -errno. */
static int entries_put(struct request *rq, struct target *t, const char *body, size_t len)
{
	int taken = 1;

	for (size_t at = 0, n; at < len && taken == 1; at += n) {
		n = entry_len(body + at, len - at);
		taken = n ? entry_put(rq, t, (const void *)(body + at)) : -EPROTO;
		if (!taken) {
			daemon_listing_late(rq->mount->daemon, body + at, len - at); // they come again, with the next part
			return t->len ? 0 : -EINVAL; // as getdents(2) says it, and no end
		}
	}
	return taken < 0 ? taken : 0;
}

/* As much memory as a reply may need, where neither the request nor the daemon's answer lies. */
static char *spare_memory(const struct worker *w)
{
	return w->payload == w->own_payload ? w->buffer + 4096 : w->own_payload;
}

/**
 * Take the daemon's listing. Returns 0 or -errno; 1: it listed nothing more, and the backing's entries follow; or
 * DAEMON_ASK_ON: filters dropped all of it, which is no end, so it is to be asked for what follows.
 */
int daemon_listing(struct request *rq, bool goes_on, const char *body, size_t len)
{
	const struct chain *chain = rq->worker->chain;
	struct fb_rw args = rq->image->args.rw;
	struct target t = { .h = handle_find(rq->mount, args.fh, true),
			    .out = spare_memory(rq->worker),
			    .size = args.size,
			    .next = args.offset,
			    .is_plus = rq->op->opcode == FB_OP_readdirplus,
			    .with_inodes = !chain || !chain_hooks(chain, FB_OP_lookup) };

	if (!t.h)
		return -EBADF;
	if (len > args.size)
		return -EPROTO;
	pthread_mutex_lock(&t.h->dir_lock);
	if (!args.offset)
		daemon_entries_free(t.h);
	int e = entries_put(rq, &t, body, len);
	pthread_mutex_unlock(&t.h->dir_lock);
	rq->image->args.rw = args; // dirent hooks saw theirs there
	if (!e && !len && goes_on) {
		rq->image->args.rw.offset = 0;
		return 1;
	}
	if (!e && !t.len && t.next != args.offset) {
		rq->image->args.rw.offset = t.next;
		return DAEMON_ASK_ON;
	}
	rq->payload = t.out;
	rq->payload_len = rq->count = t.len;
	rq->has_plus_entries = t.is_plus && t.with_inodes;
	return e;
}

/** A listing that came when nobody waited any more. */
void daemon_listing_late(struct daemon *d, const char *body, size_t len)
{
	for (size_t at = 0, n; at < len && (n = entry_len(body + at, len - at)); at += n) {
		const struct fuse_direntplus *plus = (const void *)(body + at);
		if (plus->entry_out.nodeid && !is_dots(plus->dirent.name, plus->dirent.namelen))
			daemon_forget(d, plus->entry_out.nodeid, 1);
	}
}
