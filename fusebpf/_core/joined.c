/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Hooks that stand one after another at an op, joined into one program (fusebpf/joining.py), so that a chain costs one run. Its
 * hooks leave the slot alone, but for the last one, and it stops behind the first that says more than FB_CONTINUE; each leaves
 * its own record, which is acted on as if it had run alone. On a worker's thread; joins are added by the control path.
 * Lock: mount.chain_lock.
 */
#include "core.h"

/** Join n hooks of the mount's chain, from the first-th of an op and phase on. Returns whether they can be, and the chain still has
 * that revision; then the descriptor is duplicated. */
bool chain_join(struct mount *m, uint32_t revision, uint8_t opcode, enum fb_phase phase, uint32_t first, uint32_t n, int fd)
{
	pthread_mutex_lock(&m->chain_lock);
	struct chain *c = atomic_load(&m->chain);
	struct op_hooks *at = c && c->revision == revision ? c->ops[opcode] : NULL;
	uint32_t n_hooks = !at ? 0 : phase == FB_PRE ? at->n_pre : at->n_post;
	bool fits = n >= 2 && first < n_hooks && n <= n_hooks - first;
	struct chain_hook *hook = fits ? (phase == FB_PRE ? at->pre : at->post) + first : NULL;

	for (uint32_t i = 0; i < n && fits; i++)
		fits = !hook[i].sees_data && hook[i].joined_fd < 0;
	int copy = fits ? fcntl(fd, F_DUPFD_CLOEXEC, 0) : -1;
	if (copy >= 0) {
		hook->n_joined = n;
		__atomic_store_n(&hook->joined_fd, copy, __ATOMIC_RELEASE);
	}
	pthread_mutex_unlock(&m->chain_lock);
	return copy >= 0;
}

/** The program that asks this hook and those behind it, or -1: it is asked alone. What a slot shows to one filter and not to the
 * next, its tags, its cookie and the names that it was asked, is what keeps them apart. */
int joined_program(const struct request *rq, enum fb_phase phase, const struct chain_hook *hook)
{
	int fd = __atomic_load_n(&hook->joined_fd, __ATOMIC_ACQUIRE);

	if (fd < 0 || tags_are_used(&rq->mount->tags) || (phase == FB_POST && rq->n_kept))
		return -1;
	for (uint32_t i = 0; i < hook->n_joined && phase == FB_POST; i++) {
		uint32_t position = hook[i].position;
		if (position >= rq->reach || rq->no_post & 1U << position || rq->cookies[position])
			return -1;
	}
	return fd;
}

/* The hook broke a rule. Returns whether the op goes on, since it is one that cannot be refused. */
static bool broken(struct request *rq, enum fb_phase phase, const struct chain_hook *hook, const char *why)
{
	fail_closed(rq, rq->op, hook, phase, why);
	if (rq->op->flags & FB_OP_UNREFUSABLE)
		return true;
	rq->error = EIO;
	return false;
}

/** Ask pre hooks that are joined in the program fd. Returns how many were asked; *stopped is the one behind which the op does not
 * go on to the filter below, or NULL. */
uint32_t pre_ask_joined(struct request *rq, const struct chain_hook *hook, int fd, const struct chain_hook **stopped)
{
	struct fb_verdict_record v[FB_MAX_FILTERS];
	const char *why;
	uint32_t n = hooks_run(rq, rq->op, FB_PRE, hook, fd, hook->n_joined, v, &why);

	*stopped = NULL;
	for (uint32_t i = 0; i < n; i++) {
		rq->image->filter = rq->chain->filters[hook[i].position].id;
		rq->pre_ran |= 1U << rq->image->filter;
		if (!pre_decide(rq, &hook[i], &v[i])) {
			*stopped = &hook[i];
			return i + 1;
		}
	}
	if (!why)
		return n;
	rq->pre_ran |= 1U << rq->chain->filters[hook[n].position].id;
	if (!broken(rq, FB_PRE, &hook[n], why)) {
		rq->route = FB_ROUTE_REPLY;
		*stopped = &hook[n];
	}
	return n + 1;
}

/** Ask post hooks that are joined in the program fd. Returns how many were asked. */
uint32_t post_ask_joined(struct request *rq, const struct chain_hook *hook, int fd)
{
	struct fb_verdict_record v[FB_MAX_FILTERS];
	const char *why;
	uint32_t n = hooks_run(rq, rq->op, FB_POST, hook, fd, hook->n_joined, v, &why);

	for (uint32_t i = 0; i < n; i++) {
		rq->image->filter = rq->chain->filters[hook[i].position].id;
		rq->post_ran |= 1U << rq->image->filter;
		post_decide(rq, &hook[i], &v[i]);
	}
	if (!why)
		return n;
	rq->post_ran |= 1U << rq->chain->filters[hook[n].position].id;
	if (!broken(rq, FB_POST, &hook[n], why))
		result_undo(rq);
	return n + 1;
}
