/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Ops that change the size of one file, or take a name of it, in turns, by whichever of its views they come: what hooks are told of its
 * size before and after, and of what has lost its last name, is what their op did. Any worker. An op has one turn at most.
 */
#include "core.h"

#include <sys/stat.h>

#define MAX_TURN_WAITERS 1024
#define SOON_NS 50000000 /* for so long a worker waits in its place, since most turns are short, and is then parked */

void turns_init(struct turns *t)
{
	for (int i = 0; i < N_SHARDS; i++)
		pthread_mutex_init(&t->shards[i].lock, NULL);
}

/* ------------------------------------------------------------------------------- turns */

static struct turn_shard *shard_of(struct request *rq, uint32_t hash)
{
	return &rq->mount->turns.shards[hash % N_SHARDS];
}

/* The one in a list that is about a file, or NULL; two files with one hash share their turns. The three: called with the shard's lock. */
static struct turn **find(struct turn **list, uint32_t hash)
{
	while (*list && (*list)->hash != hash)
		list = &(*list)->next;
	return *list ? list : NULL;
}

static void give_to(struct turn_shard *s, struct turn *turn)
{
	turn->next = s->taken;
	s->taken = turn;
	turn->is_taken = true;
}

static void take_out(struct turn **list, struct turn *turn)
{
	while (*list != turn)
		list = &(*list)->next;
	*list = turn->next;
}

/* In the order in which they came. A worker is parked meanwhile, so that those who have turns find rings. */
static int turn_wait(struct request *rq, struct turn_shard *s)
{
	struct turn *mine = &rq->turn, **last = &s->waiting;
	bool is_parked = false;

	if (atomic_fetch_add(&rq->mount->turns.n_waiting, 1) >= MAX_TURN_WAITERS) {
		atomic_fetch_sub(&rq->mount->turns.n_waiting, 1);
		return -EBUSY;
	}
	clock_cond_init(&mine->given);
	mine->next = NULL;
	while (*last)
		last = &(*last)->next;
	*last = mine;
	while (!mine->is_taken && !request_is_interrupted(rq)) {
		clock_wait(&mine->given, &s->lock, is_parked ? LOOK_NS : SOON_NS);
		if (mine->is_taken || is_parked)
			continue;
		pthread_mutex_unlock(&s->lock);
		is_parked = worker_park(rq->worker, MAX_PARKED);
		pthread_mutex_lock(&s->lock);
	}
	if (!mine->is_taken)
		take_out(&s->waiting, mine);
	pthread_cond_destroy(&mine->given);
	atomic_fetch_sub(&rq->mount->turns.n_waiting, 1);
	return mine->is_taken ? 0 : -EINTR;
}

/** Wait for the turn at a file. Returns 0, -EINTR, or -EBUSY: too many wait. The worker may be one that is in the backing already. */
int turn_take(struct request *rq, const struct inode *inode, bool is_in_backing)
{
	struct turn_shard *s = shard_of(rq, inode->key_hash);
	int e = 0;

	rq->turn.hash = inode->key_hash;
	pthread_mutex_lock(&s->lock);
	bool is_free = !find(&s->taken, rq->turn.hash);
	if (is_free)
		give_to(s, &rq->turn);
	pthread_mutex_unlock(&s->lock);
	if (is_free)
		return 0;
	if (!is_in_backing)
		worker_enter_backing(rq->worker);
	pthread_mutex_lock(&s->lock);
	if (!find(&s->taken, rq->turn.hash))
		give_to(s, &rq->turn);
	else
		e = turn_wait(rq, s);
	pthread_mutex_unlock(&s->lock);
	if (!is_in_backing)
		worker_leave_backing(rq->worker);
	return e;
}

/** Let the next one have it. */
void turn_give(struct request *rq)
{
	if (!rq->turn.is_taken)
		return;
	struct turn_shard *s = shard_of(rq, rq->turn.hash);
	pthread_mutex_lock(&s->lock);
	take_out(&s->taken, &rq->turn);
	rq->turn.is_taken = false;
	struct turn **next = find(&s->waiting, rq->turn.hash);
	if (next) {
		struct turn *turn = *next;
		*next = turn->next;
		give_to(s, turn);
		pthread_cond_signal(&turn->given);
	}
	pthread_mutex_unlock(&s->lock);
}

/* ------------------------------------------------------------------------------- sizes */

/* The file whose size an op may change, or NULL; *fh is the handle that the op has, 0: none. */
static struct inode *file_of(const struct request *rq, uint64_t *fh)
{
	const struct fb_slot *image = rq->image;
	struct inode *inode = NULL;

	*fh = 0;
	switch (rq->op->canonical) {
	case FB_OP_write:
		inode = rq->inode;
		*fh = image->args.rw.fh;
		break;
	case FB_OP_fallocate:
		inode = rq->inode;
		*fh = image->args.fallocate.fh;
		break;
	case FB_OP_setattr:
		inode = image->args.setattr.valid & FB_SET_SIZE ? rq->inode : NULL;
		*fh = image->args.setattr.valid & FB_SET_FH ? image->args.setattr.fh : 0;
		break;
	case FB_OP_open:
		inode = image->args.open.flags & O_TRUNC ? rq->inode : NULL;
		break;
	case FB_OP_copy_file_range:
		inode = op_other(rq);
		*fh = image->args.copy.fh_out;
		break;
	default:
		break;
	}
	return inode && inode->type == S_IFREG && !inode->is_virtual ? inode : NULL;
}

/* A descriptor of the file for as long as the op takes: its own, the inode's, or where there can be none another's who has it open. */
static int sized_open(struct request *rq, uint64_t fh)
{
	const struct handle *own = fh ? handle_get(rq->mount, fh, false) : NULL;

	if (own)
		return atomic_load_explicit(&own->fd, memory_order_acquire);
	int fd = inode_fd_get(rq->mount, rq->sized);
	rq->has_sized_fd = fd >= 0;
	if (fd < 0)
		rq->sized_by = opened_get(rq->mount, rq->sized);
	return rq->sized_by ? atomic_load_explicit(&rq->sized_by->fd, memory_order_acquire) : fd;
}

/* Before the op: how large it is, and whether it has a name. */
static int size_read(struct request *rq)
{
	struct fb_slot *image = rq->image;
	struct stat st;

	if (fstat(rq->sized_fd, &st) < 0)
		return -errno;
	image->size = image->old_size = (__u64)st.st_size;
	if (!st.st_nlink && rq->sized == rq->inode)
		image->flags |= FB_GONE;
	return 0;
}

/** For filters that want it: have the turn at the file whose size the op may change, and show it. Returns 0 or -errno, since what is not
 * known cannot be judged; sizes_end is to follow. */
int sizes_begin(struct request *rq)
{
	struct fb_slot *image = rq->image;
	uint64_t fh;

	if (!(rq->chain->wants & FB_WANTS_SIZES))
		return 0;
	image->size = image->old_size = 0;
	rq->sized = file_of(rq, &fh);
	int e = rq->sized ? turn_take(rq, rq->sized, false) : 0;
	if (!rq->sized || e)
		return e;
	rq->sized_fd = sized_open(rq, fh);
	return rq->sized_fd < 0 ? rq->sized_fd : size_read(rq);
}

/* Was a filter asked that wants sizes? */
static bool size_is_judged(const struct request *rq)
{
	for (uint32_t i = 0; i < rq->chain->n_filters; i++)
		if (rq->chain->filters[i].wants & FB_WANTS_SIZES && rq->pre_ran & 1U << rq->chain->filters[i].id)
			return true;
	return false;
}

/** Wait for as long as filters ordered. Others have the turn meanwhile, unless a filter has judged the size. Between worker_enter_backing
 * and worker_leave_backing. Returns 0 or -errno. */
int sizes_delay(struct request *rq)
{
	if (!rq->sized || size_is_judged(rq))
		return request_delay(rq);
	turn_give(rq);
	int e = request_delay(rq);
	if (!e)
		e = turn_take(rq, rq->sized, true);
	return e ? e : size_read(rq);
}

/** Before a pre hook is asked: wait for what those above ordered, so that a size that is judged stays so until the op is done. Returns
 * whether the op goes on. */
bool sizes_wait(struct request *rq)
{
	if (!rq->sized || !rq->delay_ns || size_is_judged(rq))
		return true;
	slot_release(rq);
	worker_enter_backing(rq->worker);
	int e = sizes_delay(rq);
	worker_leave_backing(rq->worker);
	slot_acquire(rq, false);
	if (!e)
		return true;
	rq->error = -e;
	rq->route = FB_ROUTE_REPLY;
	return false;
}

/** The op was done, or failed: what size has the file now? */
void sizes_after(struct request *rq)
{
	struct stat st;

	if (rq->sized && rq->turn.is_taken && fstat(rq->sized_fd, &st) == 0)
		rq->image->size = (__u64)st.st_size;
}

/** The post hooks are through. */
void sizes_end(struct request *rq)
{
	if (rq->has_sized_fd)
		inode_fd_put(rq->mount, rq->sized);
	if (rq->sized_by)
		opened_put(rq->mount, rq->sized_by);
	rq->has_sized_fd = false;
	rq->sized_by = NULL;
	turn_give(rq);
}
