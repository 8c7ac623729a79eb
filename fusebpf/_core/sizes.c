/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Ops that change the size of one file, or take a name of it, in turns, by whichever of its views they come: what hooks are told of its
 * size before and after, and of what has lost its last name, is what their op did. Any worker. An op has one turn at most.
 */
#include "core.h"

#include <sys/stat.h>

void turns_init(struct turns *t)
{
	for (int i = 0; i < N_SHARDS; i++) {
		pthread_mutex_init(&t->shards[i].lock, NULL);
		clock_cond_init(&t->shards[i].given);
		t->shards[i].taken = NULL;
	}
}

/* ------------------------------------------------------------------------------- turns */

static struct turn_shard *shard_of(struct request *rq, uint32_t hash)
{
	return &rq->mount->turns.shards[hash % N_SHARDS];
}

/* Take the turn if nobody has it. Two files with one hash share theirs. Called with the shard's lock held. */
static bool take(struct turn_shard *s, struct turn *mine)
{
	for (const struct turn *other = s->taken; other; other = other->next)
		if (other->hash == mine->hash)
			return false;
	mine->next = s->taken;
	s->taken = mine;
	return mine->is_taken = true;
}

/** Wait for the turn at a file. Returns 0, or -EINTR. The worker may be one that is in the backing already. */
int turn_take(struct request *rq, const struct inode *inode, bool is_in_backing)
{
	struct turn_shard *s = shard_of(rq, inode->key_hash);

	rq->turn.hash = inode->key_hash;
	pthread_mutex_lock(&s->lock);
	bool is_taken = take(s, &rq->turn);
	pthread_mutex_unlock(&s->lock);
	if (is_taken)
		return 0;
	if (!is_in_backing)
		worker_enter_backing(rq->worker);
	pthread_mutex_lock(&s->lock);
	while (!(is_taken = take(s, &rq->turn)) && !request_is_interrupted(rq))
		clock_wait(&s->given, &s->lock, LOOK_NS);
	pthread_mutex_unlock(&s->lock);
	if (!is_in_backing)
		worker_leave_backing(rq->worker);
	return is_taken ? 0 : -EINTR;
}

/** The op and its post hooks are through. */
void turn_give(struct request *rq)
{
	if (!rq->turn.is_taken)
		return;
	struct turn_shard *s = shard_of(rq, rq->turn.hash);
	pthread_mutex_lock(&s->lock);
	struct turn **at = &s->taken;
	while (*at != &rq->turn)
		at = &(*at)->next;
	*at = rq->turn.next;
	rq->turn.is_taken = false;
	pthread_cond_broadcast(&s->given);
	pthread_mutex_unlock(&s->lock);
}

/* ------------------------------------------------------------------------------- sizes */

/* The file whose size an op may change, or NULL. */
static struct inode *file_of(const struct request *rq)
{
	const struct fb_slot *image = rq->image;
	struct inode *inode = NULL;

	switch (rq->op->canonical) {
	case FB_OP_write:
	case FB_OP_fallocate:
		inode = rq->inode;
		break;
	case FB_OP_setattr:
		inode = image->args.setattr.valid & FB_SET_SIZE ? rq->inode : NULL;
		break;
	case FB_OP_open:
		inode = image->args.open.flags & O_TRUNC ? rq->inode : NULL;
		break;
	case FB_OP_copy_file_range:
		inode = op_other(rq);
		break;
	default:
		break;
	}
	return inode && inode->type == S_IFREG && !inode->is_virtual ? inode : NULL;
}

static bool file_stat(struct request *rq, struct inode *inode, struct stat *st)
{
	int fd = inode_fd_get(rq->mount, inode);

	if (fd < 0)
		return false;
	bool is_known = fstat(fd, st) == 0;
	inode_fd_put(rq->mount, inode);
	return is_known;
}

/** For filters that want it: have the turn at the file whose size the op may change, and show it. Returns 0, or -EINTR. */
int sizes_begin(struct request *rq)
{
	struct fb_slot *image = rq->image;
	struct stat st;

	if (!(rq->chain->wants & FB_WANTS_SIZES))
		return 0;
	image->size = image->old_size = 0;
	rq->sized = file_of(rq);
	if (!rq->sized)
		return 0;
	int e = turn_take(rq, rq->sized, false);
	if (e)
		return e;
	if (!file_stat(rq, rq->sized, &st)) {
		rq->sized = NULL;
		return 0;
	}
	image->size = image->old_size = (uint64_t)st.st_size;
	if (!st.st_nlink)
		image->flags |= FB_GONE;
	return 0;
}

/** The op was done, or failed: what size has the file now? */
void sizes_after(struct request *rq)
{
	struct stat st;

	if (rq->sized && file_stat(rq, rq->sized, &st))
		rq->image->size = (uint64_t)st.st_size;
}
