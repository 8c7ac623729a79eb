/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The maps that all filters of a mount share, as the core sees them: the slot pool, whose size is the limit of ops that
 * can be before filters at the same time, and `recent`, the last finished records. Any worker.
 */
#include "core.h"

#include <sys/mman.h>


static size_t round_up_8(size_t n)
{
	return (n + 7) & ~(size_t)7; // the stride of an array map's values (kernel/bpf/arraymap.c)
}

static size_t map_length(size_t stride, size_t n)
{
	size_t page = (size_t)sysconf(_SC_PAGESIZE);

	return (stride * n + page - 1) / page * page;
}

/* NULL: errno says why. */
static void *map_whole(int fd, size_t stride, size_t n)
{
	void *mapped = mmap(NULL, map_length(stride, n), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

	return mapped == MAP_FAILED ? NULL : mapped;
}

static void unmap_whole(void *mapped, size_t stride, size_t n)
{
	if (mapped)
		munmap(mapped, map_length(stride, n));
}

static int maps_map(struct shared_maps *s, const struct shared_fds *fds)
{
	s->slot_stride = round_up_8(sizeof(struct fb_slot));
	s->record_stride = round_up_8(sizeof(struct fb_record));
	s->slots = map_whole(fds->slots, s->slot_stride, FB_N_SLOTS);
	s->recent = s->slots ? map_whole(fds->recent, s->record_stride, FB_N_RECENT) : NULL;
	s->hooks = s->recent ? map_whole(fds->hooks, sizeof(struct fb_hook), FB_N_PLACES) : NULL;
	return s->hooks ? windows_init(&s->windows, fds->windows) : -errno;
}

static int duplicate(int fd)
{
	return fcntl(fd, F_DUPFD_CLOEXEC, 0);
}

static int fds_copy(struct shared_maps *s, const struct shared_fds *fds)
{
	s->stats_fd = duplicate(fds->stats);
	s->thread_fd = s->stats_fd < 0 ? -1 : duplicate(fds->thread);
	if (s->thread_fd < 0)
		return -errno;
	for (; s->n_rings < fds->n_rings; s->n_rings++) {
		s->ring_fds[s->n_rings] = duplicate(fds->rings[s->n_rings]);
		if (s->ring_fds[s->n_rings] < 0)
			return -errno;
	}
	return 0;
}

/** Map the shared maps; the descriptors are duplicated. */
int shared_init(struct mount *m, const struct shared_fds *fds)
{
	struct shared_maps *s = &m->shared;

	if (m->has_shared)
		return -EALREADY;
	if (fds->n_rings == 0 || fds->n_rings > FB_MAX_WORKERS)
		return -EINVAL;
	memset(s, 0, sizeof(*s));
	s->stats_fd = s->thread_fd = -1;
	pthread_mutex_init(&s->slots_lock, NULL);
	clock_cond_init(&s->slot_freed);
	for (uint32_t i = 0; i < N_SLOT_SETS; i++)
		atomic_init(&s->free_slots[i].free, UINT64_MAX);
	m->has_shared = true;
	int e = maps_map(s, fds);
	if (!e)
		e = fds_copy(s, fds);
	if (e)
		shared_deinit(m);
	return e;
}

void shared_deinit(struct mount *m)
{
	struct shared_maps *s = &m->shared;

	if (!m->has_shared)
		return;
	unmap_whole(s->slots, s->slot_stride, FB_N_SLOTS);
	unmap_whole(s->recent, s->record_stride, FB_N_RECENT);
	unmap_whole(s->hooks, sizeof(struct fb_hook), FB_N_PLACES);
	windows_deinit(&s->windows);
	if (s->stats_fd >= 0)
		close(s->stats_fd);
	if (s->thread_fd >= 0)
		close(s->thread_fd);
	for (uint32_t i = 0; i < s->n_rings; i++)
		close(s->ring_fds[i]);
	memset(s, 0, sizeof(*s));
	m->has_shared = false;
}

struct fb_slot *slot_of(const struct request *rq)
{
	const struct shared_maps *s = &rq->mount->shared;

	return (struct fb_slot *)(s->slots + s->slot_stride * rq->slot);
}

/* Take a free slot, the lowest one: few are in use at a time, and those stay in the cache. Returns whether there was one. */
static bool slot_take(struct request *rq)
{
	struct shared_maps *s = &rq->mount->shared;
	int core = rq->worker->queue->core;

	for (uint32_t i = 0; i < N_SLOT_SETS; i++) {
		uint32_t set = ((core < 0 ? 0 : (uint32_t)core) + i) % N_SLOT_SETS;
		uint64_t free = atomic_load(&s->free_slots[set].free); // in one order with n_waiting: see slot_release
		while (free) {
			uint32_t slot = set * 64 + (uint32_t)__builtin_ctzll(free);
			if (atomic_compare_exchange_weak(&s->free_slots[set].free, &free, free & (free - 1))) {
				rq->slot = slot;
				return true;
			}
		}
	}
	return false;
}

/* Wait for a slot. Returns 0, or -EINTR: no signal ends this wait, so it looks itself. */
static int slot_wait(struct request *rq, bool may_fail)
{
	struct shared_maps *s = &rq->mount->shared;
	bool is_taken;

	worker_enter_backing(rq->worker);
	pthread_mutex_lock(&s->slots_lock);
	atomic_fetch_add(&s->n_waiting, 1); // before it looks: see slot_release
	while (!(is_taken = slot_take(rq)) && !(may_fail && request_is_interrupted(rq)))
		clock_wait(&s->slot_freed, &s->slots_lock, LOOK_NS);
	atomic_fetch_sub(&s->n_waiting, 1);
	pthread_mutex_unlock(&s->slots_lock);
	worker_leave_backing(rq->worker);
	return is_taken ? 0 : -EINTR;
}

/**
 * Give the op a slot of its own until slot_release; waits while all are taken. Returns 0, or with may_fail -EINTR. An op
 * holds its slot only while its hooks run, so that those that block in the backing file system starve nobody.
 */
int slot_acquire(struct request *rq, bool may_fail)
{
	return slot_take(rq) ? 0 : slot_wait(rq, may_fail);
}

/** How many slots are free at this moment. */
uint32_t slots_n_free(const struct mount *m)
{
	uint32_t n = 0;

	for (uint32_t i = 0; i < N_SLOT_SETS; i++)
		n += (uint32_t)__builtin_popcountll(atomic_load_explicit(&m->shared.free_slots[i].free, memory_order_relaxed));
	return n;
}

/** Are more than half of the slots taken? A hint. */
bool slots_are_short(const struct mount *m)
{
	return slots_n_free(m) < FB_N_SLOTS / 2;
}

void slot_release(struct request *rq)
{
	struct shared_maps *s = &rq->mount->shared;

	if (rq->slot == NO_SLOT)
		return;
	atomic_fetch_or(&s->free_slots[rq->slot / 64].free, 1ULL << rq->slot % 64);
	rq->slot = NO_SLOT;
	if (!atomic_load(&s->n_waiting))
		return;
	pthread_mutex_lock(&s->slots_lock); // so that who has looked waits already
	pthread_cond_signal(&s->slot_freed);
	pthread_mutex_unlock(&s->slots_lock);
}
