/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Tags, stored sparsely: the table holds only what hooks have set and what is mixed. What an inode inherits is derived
 * from its parents when it is asked for; directories remember it, bounded, until the epoch counts on. Any worker.
 * Locks: a shard's lock is the innermost; an inode's name lock is never held with one.
 */
#include "core.h"

void tags_init(struct tags *t)
{
	for (int i = 0; i < N_SHARDS; i++)
		pthread_mutex_init(&t->shards[i].lock, NULL);
}

void tags_deinit(struct tags *t)
{
	for (int i = 0; i < N_SHARDS; i++) {
		struct tag_shard *s = &t->shards[i];
		for (uint32_t b = 0; b < s->n_buckets; b++) {
			for (struct tag *tag = s->buckets[b], *next; tag; tag = next) {
				next = tag->next;
				free(tag);
			}
		}
		free(s->buckets);
		free(s->derived);
		s->buckets = NULL;
		s->derived = NULL;
		s->n_buckets = s->n = 0;
	}
	atomic_store(&t->n, 0);
}

static struct tag_shard *shard_of(struct mount *m, uint64_t nodeid)
{
	return &m->tags.shards[nodeid % N_SHARDS];
}

/* --------------------------------------------------- the table; each called with the shard's lock held */

static struct tag **bucket_of(struct tag_shard *s, uint64_t nodeid)
{
	return &s->buckets[nodeid / N_SHARDS & (s->n_buckets - 1)];
}

/* Where the tag of an inode is, or would be put. */
static struct tag **find(struct tag_shard *s, uint64_t nodeid, uint32_t owner)
{
	struct tag **at = bucket_of(s, nodeid);

	while (*at && ((*at)->nodeid != nodeid || (*at)->owner != owner))
		at = &(*at)->next;
	return at;
}

static bool grow(struct tag_shard *s)
{
	struct tag_shard bigger = { .n_buckets = s->n_buckets ? s->n_buckets * 2 : 16 };

	if (s->n < s->n_buckets)
		return true;
	bigger.buckets = calloc(bigger.n_buckets, sizeof(*bigger.buckets));
	if (!bigger.buckets)
		return s->n_buckets; // longer chains will do
	for (uint32_t b = 0; b < s->n_buckets; b++) {
		for (struct tag *tag = s->buckets[b], *next; tag; tag = next) {
			struct tag **bucket = bucket_of(&bigger, tag->nodeid);
			next = tag->next;
			tag->next = *bucket;
			*bucket = tag;
		}
	}
	free(s->buckets);
	s->buckets = bigger.buckets;
	s->n_buckets = bigger.n_buckets;
	return true;
}

static struct tag *find_or_make(struct mount *m, struct tag_shard *s, struct inode *inode, uint32_t owner)
{
	if (!grow(s))
		return NULL;
	struct tag **at = find(s, inode->nodeid, owner);
	if (!*at && (*at = calloc(1, sizeof(**at)))) {
		(*at)->nodeid = inode->nodeid;
		(*at)->owner = owner;
		s->n++;
		atomic_fetch_or(&inode->tags, INODE_TAGGED);
		atomic_fetch_add(&m->tags.n, 1);
	}
	return *at;
}

static void remove_at(struct mount *m, struct tag_shard *s, struct tag **at)
{
	struct tag *tag = *at;

	*at = tag->next;
	free(tag);
	s->n--;
	atomic_fetch_sub(&m->tags.n, 1);
}

/* ------------------------------------------------------------------------------------ deriving */

static bool recall(struct mount *m, uint64_t nodeid, uint32_t owner, uint64_t epoch, uint64_t *value)
{
	struct tag_shard *s = shard_of(m, nodeid);
	bool is_known = false;

	pthread_mutex_lock(&s->lock);
	if (s->derived) {
		const struct derived_tag *d = &s->derived[(nodeid / N_SHARDS + owner) % N_DERIVED];
		is_known = d->nodeid == nodeid && d->owner == owner && d->epoch == epoch;
		*value = d->value;
	}
	pthread_mutex_unlock(&s->lock);
	return is_known;
}

static void remember(struct mount *m, uint64_t nodeid, uint32_t owner, uint64_t epoch, uint64_t value)
{
	struct tag_shard *s = shard_of(m, nodeid);

	pthread_mutex_lock(&s->lock);
	if (!s->derived)
		s->derived = calloc(N_DERIVED, sizeof(*s->derived));
	if (s->derived)
		s->derived[(nodeid / N_SHARDS + owner) % N_DERIVED] =
			(struct derived_tag){ .nodeid = nodeid, .epoch = epoch, .value = value, .owner = owner };
	pthread_mutex_unlock(&s->lock);
}

/* Has the inode a tag that does not come from its parent as it is now? */
static bool is_settled(struct mount *m, struct inode *inode, uint32_t owner, uint64_t *value, bool *is_mixed)
{
	struct tag_shard *s = shard_of(m, inode->nodeid);
	struct tag found = { 0 };

	*is_mixed = false;
	if (!atomic_load(&inode->tags))
		return false;
	pthread_mutex_lock(&s->lock);
	if (s->n_buckets && *find(s, inode->nodeid, owner))
		found = **find(s, inode->nodeid, owner);
	pthread_mutex_unlock(&s->lock);
	*is_mixed = found.is_mixed;
	*value = found.own ? found.own : found.kept;
	return found.own || found.is_mixed;
}

/** The tag that an inode has for a filter: its own, else that of the nearest directory above that has one. Where nobody knows
 * what is above, it is mixed. */
uint64_t tag_of(struct mount *m, struct inode *inode, uint32_t owner, bool *is_mixed)
{
	uint64_t epoch = atomic_load(&m->tags.epoch); // before anything is looked at: what changes meanwhile counts it on
	uint64_t value = 0, first_directory = 0;
	bool ignored;

	if (is_settled(m, inode, owner, &value, is_mixed))
		return value;
	inode_hold(inode);
	while (inode) {
		if (is_settled(m, inode, owner, &value, &ignored))
			break;
		if (inode->type == S_IFDIR && recall(m, inode->nodeid, owner, epoch, &value))
			break;
		if (inode->type == S_IFDIR && !first_directory)
			first_directory = inode->nodeid;
		value = 0;
		struct inode *parent = inode_parent_hold(m, inode);
		*is_mixed = !parent && atomic_load(&inode->is_lost);
		inode_release(m, inode);
		inode = parent;
	}
	inode_release(m, inode);
	if (first_directory && !*is_mixed)
		remember(m, first_directory, owner, epoch, value);
	return value;
}

/* ------------------------------------------------------------------------------------- changes */

/** Something moved or was tagged: what is below a directory derives again. */
void tags_moved(struct mount *m, const struct inode *inode)
{
	if (inode->type == S_IFDIR)
		atomic_fetch_add(&m->tags.epoch, 1);
}

/** Set an inode's own tag; 0 takes it away. Returns 0 or -ENOMEM. */
int tag_set(struct mount *m, struct inode *inode, uint32_t owner, uint64_t value)
{
	struct tag_shard *s = shard_of(m, inode->nodeid);
	int e = 0;

	pthread_mutex_lock(&s->lock);
	if (value) {
		struct tag *tag = find_or_make(m, s, inode, owner);
		if (tag)
			tag->own = value;
		else
			e = -ENOMEM;
	} else if (s->n_buckets) {
		struct tag **at = find(s, inode->nodeid, owner);
		if (*at && (*at)->is_mixed)
			(*at)->own = 0;
		else if (*at)
			remove_at(m, s, at);
	}
	pthread_mutex_unlock(&s->lock);
	if (inode->type == S_IFDIR)
		atomic_fetch_add(&m->tags.epoch, 1);
	return e;
}

/** Drop the tags of an inode that is about to be freed. */
void tags_forget(struct mount *m, const struct inode *inode)
{
	struct tag_shard *s = shard_of(m, inode->nodeid);

	if (!inode->tags)
		return;
	pthread_mutex_lock(&s->lock);
	for (struct tag **at = s->n_buckets ? bucket_of(s, inode->nodeid) : NULL; at && *at;) {
		if ((*at)->nodeid == inode->nodeid)
			remove_at(m, s, at);
		else
			at = &(*at)->next;
	}
	pthread_mutex_unlock(&s->lock);
}

/* ---------------------------------------------------------------------------------- hard links */

/** Must tags_reached judge before the inode may be said to be in this directory? Called with its name lock held. */
bool tags_judge_first(const struct mount *m, const struct inode *inode, const struct inode *parent)
{
	return inode->parent && inode->parent != parent && inode->type != S_IFDIR && tags_are_used(&m->tags);
}

static void mix(struct mount *m, struct inode *inode, uint32_t owner, uint64_t had, uint64_t other)
{
	struct tag_shard *s = shard_of(m, inode->nodeid);

	pthread_mutex_lock(&s->lock);
	struct tag *tag = find_or_make(m, s, inode, owner);
	if (tag && !tag->is_mixed) {
		tag->is_mixed = true;
		tag->kept = had ? had : other;
	}
	pthread_mutex_unlock(&s->lock);
	atomic_fetch_or(&inode->tags, INODE_TAG_MIXED);
}

/* Only one link is left: it inherits from that one's directory again. */
static void unmix(struct mount *m, struct inode *inode)
{
	struct tag_shard *s = shard_of(m, inode->nodeid);

	pthread_mutex_lock(&s->lock);
	atomic_fetch_and(&inode->tags, ~INODE_TAG_MIXED);
	for (struct tag **at = bucket_of(s, inode->nodeid); *at;) {
		struct tag *tag = *at;
		if (tag->nodeid == inode->nodeid && tag->is_mixed && !tag->own) {
			remove_at(m, s, at);
			continue;
		}
		if (tag->nodeid == inode->nodeid)
			tag->is_mixed = false;
		at = &tag->next;
	}
	pthread_mutex_unlock(&s->lock);
}

/**
 * A file was reached by a name in a directory: judge whether its parents' tags differ, then note that it is there.
 * A hard link must not launder a tag, so the judgement stands before anybody can see the other parent's.
 */
void tags_reached(struct request *rq, struct inode *inode, struct inode *parent, const char *name, uint32_t n_links)
{
	struct mount *m = rq->mount;
	const struct chain *c = rq->worker->chain;

	if (inode->type == S_IFDIR)
		return;
	if (n_links <= 1) {
		if (atomic_load(&inode->tags) & INODE_TAG_MIXED)
			unmix(m, inode);
		inode_seen(m, inode, parent, name);
		return;
	}
	struct inode *old = inode_parent_hold(m, inode);
	for (uint32_t i = 0; old && old != parent && c && i < c->n_filters; i++) {
		uint32_t owner = c->filters[i].owner;
		bool is_unknown, is_unknown_too;
		uint64_t had = tag_of(m, old, owner, &is_unknown), other = tag_of(m, parent, owner, &is_unknown_too);
		if (had != other || is_unknown || is_unknown_too)
			mix(m, inode, owner, had, other);
	}
	inode_release(m, old);
	inode_seen(m, inode, parent, name);
}

/* ---------------------------------------------------------------------------- whose tags they are */

static uint32_t owner_in(const struct chain *c, const char *name)
{
	for (uint32_t i = 0; c && i < c->n_filters; i++)
		if (!strcmp(c->filters[i].name, name))
			return c->filters[i].owner;
	return 0;
}

/** A filter that was in the chain before, by its name, keeps its tags. Called with chain_lock held. */
void tags_adopt(struct mount *m, struct chain *c, const struct chain *old)
{
	for (uint32_t i = 0; i < c->n_filters; i++) {
		uint32_t owner = owner_in(old, c->filters[i].name);
		c->filters[i].owner = owner ? owner : ++m->tags.n_owners;
	}
}

/** Drop the tags of filters that are no longer in the chain. Called with chain_lock held. */
void tags_drop_gone(struct mount *m, const struct chain *c)
{
	for (int i = 0; i < N_SHARDS; i++) {
		struct tag_shard *s = &m->tags.shards[i];
		pthread_mutex_lock(&s->lock);
		for (uint32_t b = 0; b < s->n_buckets; b++) {
			for (struct tag **at = &s->buckets[b]; *at;) {
				bool is_alive = false;
				for (uint32_t f = 0; f < c->n_filters && !is_alive; f++)
					is_alive = c->filters[f].owner == (*at)->owner;
				if (is_alive)
					at = &(*at)->next;
				else
					remove_at(m, s, at);
			}
		}
		pthread_mutex_unlock(&s->lock);
	}
}
