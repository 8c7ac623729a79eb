/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How long the kernel may keep what it is told. What a filter hooks: for the ttl that it gives, else not at all. The rest:
 * for the mount's ttl; or where changes behind the mount are watched, without end. Any worker.
 */
#include "core.h"

#define FOR_EVER_NS ((uint64_t)INT64_MAX)
#define FOR_EVER_SECONDS (FOR_EVER_NS / 1000000000u)
#define SHORTEST_LIST_MS 20 /* in which the last part of a listing is with the kernel */

static bool is_watching(const struct mount *m)
{
	return m->watch.fd >= 0;
}

/** Note what may be cached of an op by default; before it runs. */
void cache_begin(struct request *rq)
{
	struct mount *m = rq->mount;
	const struct chain *chain = rq->worker->chain;
	uint64_t ttl_ns = m->ttl_ns;

	rq->n_all = atomic_load(&m->notifier.n_all);
	if (is_watching(m)) {
		ttl_ns = FOR_EVER_NS;
		rq->n_changes = atomic_load(&m->watch.n_changes);
	}
	// Where the backing file system judges who looks, a name that one caller was led to is not another one's.
	bool is_for_all = m->default_permissions && !(chain && chain_hooks(chain, FB_OP_lookup));
	rq->entry_ttl_ns = is_for_all ? ttl_ns : 0;
	rq->attr_ttl_ns = chain && (chain_hooks(chain, FB_OP_getattr) || chain_hooks(chain, FB_OP_statx)) ? 0 : ttl_ns;
}

/* For ever is only for what we learn of when it changes: not on a mount that cannot be watched, and not while data that
 * is passed through is written, since what is written by mmap is told of when the file is closed. */
static uint64_t ttl_of(const struct mount *m, const struct inode *inode, uint64_t ttl_ns)
{
	bool is_watched = inode->mnt && inode->mnt->is_watched && !inode->n_passthrough;

	return ttl_ns == FOR_EVER_NS && !is_watched ? m->ttl_ns : ttl_ns;
}

/* A write takes suid and sgid from a file, and the kernel does not ask for the mode after one (fs/fuse/file.c:
 * fuse_write_update_attr): the attributes of a file that has them are asked for each time. */
static bool has_bits(const struct fuse_attr *attr)
{
	return S_ISREG(attr->mode) && attr->mode & (S_ISUID | S_ISGID);
}

/** Say how long an entry and its attributes, which are filled in, may be kept. */
void cache_entry(struct request *rq, struct inode *inode, struct fuse_entry_out *out)
{
	struct mount *m = rq->mount;
	uint64_t entry_ns = ttl_of(m, inode, entry_ttl_ns(rq, inode)), attr_ns = ttl_of(m, inode, attr_ttl_ns(rq, inode));

	if (m->has_passthrough && rq->op->flags & FB_OP_OPENS && attr_ns == FOR_EVER_NS)
		attr_ns = m->ttl_ns; // it is about to be passed through
	// Of a file's names the core knows one (notify.c: send_all); and what changes it under another may be missed.
	if (atomic_load_explicit(&inode->is_linked, memory_order_relaxed)) {
		uint64_t most_ns = m->ttl_ns < NOTIFY_UNKNOWN_NS ? m->ttl_ns : NOTIFY_UNKNOWN_NS;
		entry_ns = entry_ns < most_ns ? entry_ns : most_ns;
		attr_ns = attr_ns == FOR_EVER_NS ? m->ttl_ns : attr_ns;
		if (entry_ns)
			notify_unknown(m);
	}
	if (has_bits(&out->attr))
		attr_ns = 0;
	known_fresh(m, inode);
	ttl_set(entry_ns, &out->entry_valid, &out->entry_valid_nsec);
	ttl_set(attr_ns, &out->attr_valid, &out->attr_valid_nsec);
}

/** Say how long the attributes in rq->out.attr, which are filled in, may be kept. */
void cache_attr(struct request *rq)
{
	uint64_t ttl_ns = ttl_of(rq->mount, rq->inode, attr_ttl_ns(rq, rq->inode));

	if (has_bits(&rq->out.attr.attr))
		ttl_ns = 0;
	known_fresh(rq->mount, rq->inode);
	ttl_set(ttl_ns, &rq->out.attr.attr_valid, &rq->out.attr.attr_valid_nsec);
}

/* ------------------------------------------------------------------------- what filters say */

static uint32_t hooked_by(const struct chain *chain, uint8_t opcode)
{
	return chain->ops[opcode] ? chain->ops[opcode]->filters : 0;
}

/* How long do the filters let an answer be kept which these judge, in ops of their own? The least that was said: and if one of them
 * said nothing, its own op must be asked each time. Of such an op, whom a filter above spared being asked has no say: he is
 * spared the next one as well. */
static uint64_t ttl_said(const struct request *rq, uint32_t judges, bool is_own)
{
	uint64_t least_ns = UINT64_MAX;

	if (is_own)
		judges &= ~rq->hooks->filters | rq->pre_ran | rq->post_ran;
	if (judges & ~rq->gave_ttl)
		return 0;
	for (uint32_t left = rq->gave_ttl; left; left &= left - 1) {
		uint64_t ttl_ns = rq->ttls_ns[__builtin_ctz(left)];
		least_ns = ttl_ns < least_ns ? ttl_ns : least_ns;
	}
	return least_ns;
}

static void limit(uint64_t most_ns, uint64_t *seconds, uint32_t *nanoseconds)
{
	if (*seconds > most_ns / 1000000000u ||
	    (*seconds == most_ns / 1000000000u && *nanoseconds > most_ns % 1000000000u))
		ttl_set(most_ns, seconds, nanoseconds);
}

/** All hooks have been asked, and some have said how long the answer may be kept. */
void cache_settle(struct request *rq)
{
	const struct chain *chain = rq->chain;
	uint8_t op = rq->op->canonical;
	uint32_t on_attr = hooked_by(chain, FB_OP_getattr) | hooked_by(chain, FB_OP_statx);
	uint64_t entry_ns = ttl_said(rq, hooked_by(chain, FB_OP_lookup), op == FB_OP_lookup);
	uint64_t attr_ns = ttl_said(rq, on_attr, op == FB_OP_getattr || op == FB_OP_statx);
	struct fuse_entry_out *entry = &rq->out.create.entry;
	struct fuse_attr_out *attr = &rq->out.attr;

	if (entry_ns < rq->entry_ttl_ns)
		rq->entry_ttl_ns = entry_ns;
	if (attr_ns < rq->attr_ttl_ns)
		rq->attr_ttl_ns = attr_ns;
	if (rq->error)
		return;
	if (rq->op->flags & FB_OP_ENTRY) {
		limit(entry_ns, &entry->entry_valid, &entry->entry_valid_nsec);
		limit(attr_ns, &entry->attr_valid, &entry->attr_valid_nsec);
	} else if (rq->op->flags & FB_OP_ATTR) {
		limit(attr_ns, &attr->attr_valid, &attr->attr_valid_nsec);
	}
}

/* ----------------------------------------------------------------------------- before the reply */

static void shorten_entry(uint64_t most_ns, struct fuse_entry_out *entry)
{
	if (!most_ns || entry->entry_valid == FOR_EVER_SECONDS)
		ttl_set(most_ns, &entry->entry_valid, &entry->entry_valid_nsec);
	if (!most_ns || entry->attr_valid == FOR_EVER_SECONDS)
		ttl_set(most_ns, &entry->attr_valid, &entry->attr_valid_nsec);
}

/* What the op found may not be kept for longer than that: 0, or if it was to be for ever, the mount's own time. */
static void shorten(struct request *rq, uint64_t most_ns)
{
	struct fuse_attr_out *attr = &rq->out.attr;

	if (rq->op->flags & FB_OP_ENTRY)
		shorten_entry(most_ns, &rq->out.create.entry);
	else if (rq->op->flags & FB_OP_ATTR && (!most_ns || attr->attr_valid == FOR_EVER_SECONDS))
		ttl_set(most_ns, &attr->attr_valid, &attr->attr_valid_nsec);
	for (size_t at = 0; rq->has_plus_entries && at < rq->payload_len;) {
		struct fuse_direntplus *plus = (void *)((char *)rq->payload + at);
		shorten_entry(most_ns, &plus->entry_out);
		at += FUSE_DIRENT_ALIGN(FUSE_NAME_OFFSET_DIRENTPLUS + plus->dirent.namelen);
	}
}

/** The kernel may keep nothing of what the op is about to answer. */
void cache_nothing(struct request *rq)
{
	shorten(rq, 0);
}

/* Listings go by it: see cache_may_ask. */
static void note_lookup(struct chain *chain, bool is_kept)
{
	if (atomic_load_explicit(&chain->keeps_entries, memory_order_relaxed) != is_kept)
		atomic_store_explicit(&chain->keeps_entries, is_kept, memory_order_relaxed);
}

/** Was everything invalidated since the op began? It may have been judged by a policy that is no longer. */
bool cache_is_outdated(const struct request *rq)
{
	return atomic_load(&rq->mount->notifier.n_all) != rq->n_all;
}

/** Did anything that the kernel may know change behind the mount since the op began? */
bool cache_has_changed(const struct request *rq)
{
	return is_watching(rq->mount) && atomic_load(&rq->mount->watch.n_changes) != rq->n_changes;
}

/** May the kernel take a name that rq->inode, open by dir_fd, has not for absent? If it is told when the name comes, and no other
 * spelling of it is the same; nor if that depends on who looks, or from where. */
bool cache_keeps_absent(const struct request *rq, int dir_fd)
{
	const struct mount *m = rq->mount;
	const struct inode *dir = rq->inode;

	// After an op that failed no hook can give a ttl any more.
	return is_watching(m) && rq->entry_ttl_ns && dir->mnt && dir->mnt->is_watched && !m->daemon &&
	       m->default_permissions && !m->inodes.has_views && !(dir->tags & INODE_TAG_MIXED) &&
	       !name_is_rewritten(rq->asked, rq->name) && !backing_folds_case(dir->mnt, dir_fd);
}

/** Before the reply goes out: if something changed meanwhile, the op may have seen it as it was before, and the kernel, which
 * does not have it yet, cannot be told. */
void cache_finish(struct request *rq)
{
	struct mount *m = rq->mount;

	if (rq->chain && rq->op->canonical == FB_OP_lookup)
		note_lookup(rq->chain, rq->entry_ttl_ns);
	if (cache_is_outdated(rq))
		shorten(rq, 0);
	else if (cache_has_changed(rq))
		shorten(rq, m->ttl_ns);
}

/* May the kernel have kept names? Then an answer that is on its way to it may be older than a change. What a filter lets be kept of
 * this op's answer says nothing of those. */
static bool names_are_kept(struct request *rq)
{
	struct mount *m = rq->mount;
	const struct chain *chain = rq->worker->chain;
	bool by_default = m->default_permissions && (is_watching(m) || m->ttl_ns) &&
			  !(chain && chain_hooks(chain, FB_OP_lookup));

	if (!by_default && !atomic_load_explicit(&m->n_filter_ttls, memory_order_relaxed) && !m->daemon)
		return false;
	atomic_fetch_add(&m->watch.n_changes, 1); // before the kernel is told: see cache_finish
	return true;
}

/** The op had an effect on a name that the kernel does not take for changed, since it asked for another one. */
void cache_expire_name(struct request *rq, const struct inode *dir, const char *name)
{
	if (names_are_kept(rq))
		notify_entry(rq->mount, dir->nodeid, name);
}

/** The same, and the name is gone. */
void cache_forget_name(struct request *rq, const struct inode *dir, const char *name)
{
	if (names_are_kept(rq))
		notify_deleted(rq->mount, dir->nodeid, name);
}

/** Do hooks need to see who lists a directory, or what it has? */
bool cache_listings_are_hooked(const struct chain *chain)
{
	static const uint8_t hooked[] = { FB_OP_readdir, FB_OP_dirent, FB_OP_lookup, FB_OP_opendir, FB_OP_getattr };

	for (size_t i = 0; chain && i < sizeof(hooked); i++)
		if (chain_hooks(chain, hooked[i]))
			return true;
	return false;
}

/** Where lookup is hooked: are its hooks to be asked of each entry of a listing with attributes, so that it brings inodes? While
 * they let entries be kept, and can judge as they do of a lookup: a daemon is asked for one name at a time, and a caller is
 * told once for each request. */
bool cache_may_ask(const struct request *rq)
{
	const struct mount *m = rq->mount;
	const struct chain *chain = rq->worker->chain;

	return atomic_load_explicit(&chain->keeps_entries, memory_order_relaxed) && !m->daemon && m->default_permissions &&
	       !(chain->wants & FB_WANTS_CALLER);
}

/* ------------------------------------------------------------------------------------- targets */

/** May the kernel keep where symbolic links lead, for the life of the mount? A link never leads elsewhere, so that is so under each
 * policy that keeps names; unless a hook is to be asked of each use. */
bool cache_keeps_targets(const struct mount *m)
{
	const struct chain *chain = atomic_load(&m->chain);

	return m->is_small && (m->wants_watch || m->ttl_ns) && !(chain && chain_hooks(chain, FB_OP_readlink));
}

/** READLINK is about to be answered: of links that do lead elsewhere now and then the kernel is to forget it. It has locked the page
 * until the answer is there, and drops it then. */
void cache_target(struct request *rq)
{
	const struct backing_mount *b = rq->inode->mnt;

	if (rq->mount->keeps_targets && (!b || b->is_made_up || b->is_remote))
		notify_inode(rq->mount, rq->inode->nodeid, 0, 0);
}

/* ------------------------------------------------------------------------------------ listings */

/** A dirent hook has judged an entry, with these edits: how long does it let its answer be kept? */
void cache_dirent(struct request *rq, uint64_t edits)
{
	uint64_t ttl_ns = edits & FB_EDIT_TTL ? slot_of(rq)->ttl_ns : 0;

	if (ttl_ns < rq->list_ttl_ns)
		rq->list_ttl_ns = ttl_ns;
}

/** A part of a listing is about to be put together, the first one of it or not. Called with the handle's lock held. */
void cache_listing_begins(struct request *rq, struct handle *h, bool is_first)
{
	rq->list_ttl_ns = UINT64_MAX;
	if (!is_first)
		return;
	h->listed_ms = now_ms();
	h->listed_ttl_ns = UINT64_MAX;
	h->listed_all = rq->n_all;
}

/* May what dirent and lookup hooks make of a listing be kept? While they say how long, and none wants to see who lists. */
static bool hooks_keep_listings(const struct mount *m, const struct chain *chain)
{
	return !m->daemon && !chain_hooks(chain, FB_OP_readdir) && !chain_hooks(chain, FB_OP_opendir) &&
	       !chain_hooks(chain, FB_OP_getattr) && chain_hooks(chain, FB_OP_dirent) &&
	       atomic_load_explicit(&chain->keeps_listings, memory_order_relaxed) &&
	       (!chain_hooks(chain, FB_OP_lookup) || atomic_load_explicit(&chain->keeps_entries, memory_order_relaxed));
}

/* All hooks on dirent have judged a whole listing: directories that are opened from now on go by how long they let it be kept. */
static void note_listing(struct request *rq, struct handle *h, uint64_t ttl_ns)
{
	struct chain *chain = rq->worker->chain;
	bool is_kept = ttl_ns >= SHORTEST_LIST_MS * 1000000u;

	if (atomic_load_explicit(&chain->keeps_listings, memory_order_relaxed) != is_kept)
		atomic_store_explicit(&chain->keeps_listings, is_kept, memory_order_relaxed);
	if (!is_kept)
		return;
	atomic_fetch_add_explicit(&rq->mount->n_filter_ttls, 1, memory_order_relaxed);
	atomic_store(&h->inode->listed_all, (uint32_t)h->listed_all);
	atomic_store(&h->inode->listed_until_ms, h->listed_ms + (int64_t)(ttl_ns / 1000000));
}

/* The kernel now keeps the listing, if it was told to when the directory was opened. Then the hooks may have been others, or have
 * said otherwise; and it has no time of its own for it, so whoever has the directory open would be shown it without end. */
static void limit_listing(struct request *rq, const struct handle *h, uint64_t ttl_ns)
{
	int64_t now = now_ms(), until_ms = h->listed_ms + (int64_t)(ttl_ns / 1000000);

	if (!hooks_keep_listings(rq->mount, rq->worker->chain) || until_ms < now + SHORTEST_LIST_MS)
		until_ms = now + SHORTEST_LIST_MS; // when it has it
	notify_inode_at(rq->mount, h->inode->nodeid, until_ms);
}

/** It was, and if it is the last part, of a listing that was read from its first on, the whole may be kept for as long as all
 * hooks have said. Called with the handle's lock held. */
void cache_listing_ends(struct request *rq, struct handle *h, bool is_last)
{
	const struct chain *chain = rq->worker->chain;
	uint64_t ttl_ns = rq->list_ttl_ns < h->listed_ttl_ns ? rq->list_ttl_ns : h->listed_ttl_ns;

	h->listed_ttl_ns = is_last ? 0 : ttl_ns; // until it begins anew
	if (!is_last || !chain)
		return;
	bool is_judged = chain->ops[FB_OP_dirent] && ttl_ns != UINT64_MAX; // of an empty directory nobody said anything
	if (is_judged)
		note_listing(rq, h, ttl_ns);
	if (h->is_cached && cache_listings_are_hooked(chain))
		limit_listing(rq, h, is_judged ? ttl_ns : 0);
}

/** The FOPEN_ flags of rq->inode, a directory that is being opened: may the kernel keep its listing, where it is told when that
 * changes, and use the one that it has? */
uint32_t cache_list_flags(const struct request *rq)
{
	struct inode *inode = rq->inode;
	const struct chain *chain = rq->worker->chain;

	if (!is_watching(rq->mount) || !inode->mnt || !inode->mnt->is_watched)
		return 0;
	bool is_stale = known_is_stale(inode); // the listing itself is as it was, but brings the attributes anew
	if (!cache_listings_are_hooked(chain))
		return FOPEN_CACHE_DIR | (is_stale ? 0 : FOPEN_KEEP_CACHE);
	if (!hooks_keep_listings(rq->mount, chain))
		return 0;
	bool is_known = now_ms() < atomic_load(&inode->listed_until_ms) &&
			atomic_load(&inode->listed_all) == (uint32_t)atomic_load(&rq->mount->notifier.n_all);
	return FOPEN_CACHE_DIR | (is_known && !is_stale ? FOPEN_KEEP_CACHE : 0);
}
