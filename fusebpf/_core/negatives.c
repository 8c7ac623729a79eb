/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Names that filters have called absent, and that the kernel may take as absent for a while: no inode stands for them, so
 * they are noted here, to be invalidated with everything else. Any worker; one lock, held for some instructions.
 */
#include "core.h"

#define MAX_NEGATIVES 16384

/* Forget those that the kernel has forgotten. Called with the lock held. */
static void drop_expired(struct negatives *t)
{
	int64_t now = now_ms();
	uint32_t n = 0;

	for (uint32_t i = 0; i < t->n; i++) {
		if (t->list[i].until_ms < now)
			free(t->list[i].name);
		else
			t->list[n++] = t->list[i];
	}
	t->n = n;
}

/** Note that the kernel is told so. Returns false if there is no room: then it may not keep it. */
bool negatives_note(struct mount *m, uint64_t parent, const char *name, uint64_t ttl_ns)
{
	struct negatives *t = &m->negatives;
	uint64_t ttl_ms = ttl_ns / 1000000;
	bool is_noted = false;

	pthread_mutex_lock(&t->lock);
	if (!t->list)
		t->list = calloc(MAX_NEGATIVES, sizeof(*t->list));
	if (t->list && t->n == MAX_NEGATIVES)
		drop_expired(t);
	if (t->list && t->n < MAX_NEGATIVES) {
		struct negative *negative = &t->list[t->n];
		negative->parent = parent;
		negative->until_ms = ttl_ms > INT64_MAX / 2 ? INT64_MAX : now_ms() + (int64_t)ttl_ms + 1000;
		negative->name = strdup(name);
		is_noted = negative->name;
		t->n += is_noted;
	}
	pthread_mutex_unlock(&t->lock);
	return is_noted;
}

/** Take all of them, to invalidate them. Returns how many there are; list and names are the caller's to free. */
uint32_t negatives_take(struct mount *m, struct negative **out)
{
	struct negatives *t = &m->negatives;

	pthread_mutex_lock(&t->lock);
	uint32_t n = t->n;
	*out = t->list;
	t->list = NULL;
	t->n = 0;
	pthread_mutex_unlock(&t->lock);
	return n;
}

void negatives_deinit(struct mount *m)
{
	struct negative *list;
	uint32_t n = negatives_take(m, &list);

	while (n)
		free(list[--n].name);
	free(list);
}
