/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Where a name led when it was last looked up: a guess, which one statx(2) confirms, and then the name needs no handle and the file
 * no descriptor. A file is known again by its mount, its number and the time at which it was made, where the file system gives those to one
 * file alone: whatever is made once the inode is in the table has a later time, so what was made just before that is not gone by. Any
 * worker, no lock.
 */
#include "core.h"

#include <sys/mman.h>

#define N_HINTS 65536 /* names that fall on one place take turns */

int hints_init(struct mount *m)
{
	void *memory = mmap(NULL, N_HINTS * sizeof(*m->inodes.hints), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	m->inodes.hints = memory == MAP_FAILED ? NULL : memory;
	return m->inodes.hints ? 0 : -ENOMEM;
}

void hints_deinit(struct mount *m)
{
	if (m->inodes.hints)
		munmap((void *)m->inodes.hints, N_HINTS * sizeof(*m->inodes.hints));
	m->inodes.hints = NULL;
}

static _Atomic uint64_t *place_of(struct mount *m, const struct inode *dir, const char *name)
{
	uint64_t hash = dir->nodeid;

	for (; *name; name++)
		hash = (hash ^ (unsigned char)*name) * 1099511628211u; // FNV-1a
	return &m->inodes.hints[(hash ^ hash >> 32) % N_HINTS];
}

static int64_t born_ns(const struct request *rq)
{
	return rq->btime.tv_nsec < 0 ? 0 : rq->btime.tv_sec * 1000000000LL + rq->btime.tv_nsec;
}

/** A name of rq->inode leads to an inode, whose attributes were just read: number, mount and birth time, which is gone by if it is
 * before `before_ns`. */
void hint_note(const struct request *rq, const char *name, struct inode *inode, uint64_t number, int64_t before_ns)
{
	int64_t born = born_ns(rq);

	if (!inode->mnt->are_births_own || born <= 0 || born >= before_ns || rq->mnt_id != inode->mnt->id)
		return;
	__atomic_store_n(&inode->number, number, __ATOMIC_RELAXED);
	atomic_store_explicit(&inode->born_ns, born, memory_order_release);
	atomic_store_explicit(place_of(rq->mount, rq->inode, name), inode->nodeid, memory_order_relaxed);
}

/** The inode to which a name of a directory may lead, with a reference that the caller releases; or NULL. */
struct inode *hint_get(struct mount *m, const struct inode *dir, const char *name)
{
	uint64_t nodeid = atomic_load_explicit(place_of(m, dir, name), memory_order_relaxed);
	struct inode *inode = nodeid ? inodes_get_held(m, nodeid) : NULL;

	if (inode && atomic_load_explicit(&inode->born_ns, memory_order_acquire) && inode->mnt == dir->mnt)
		return inode;
	inode_release(m, inode);
	return NULL;
}

/** Are the attributes that were just read those of that inode's file? */
bool hint_holds(const struct request *rq, const struct inode *inode, uint64_t number)
{
	return rq->mnt_id == inode->mnt->id && __atomic_load_n(&inode->number, __ATOMIC_RELAXED) == number &&
	       inode->born_ns == born_ns(rq);
}
