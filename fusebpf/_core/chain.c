/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The chain: an immutable snapshot of filters and their hooks, in order. It is built by the control path, published
 * whole, and freed when the last worker that used it has let it go.
 */
#include "core.h"

struct chain *chain_create(void)
{
	struct chain *c = calloc(1, sizeof(*c));

	if (c)
		c->refs = 1;
	return c;
}

void chain_hold(struct chain *c)
{
	atomic_fetch_add(&c->refs, 1);
}

/* No op uses it any more. Whoever drains waits for that. */
static void forget_old(struct mount *m, const struct chain *c)
{
	pthread_mutex_lock(&m->chain_lock);
	for (struct chain **at = &m->old_chains; *at; at = &(*at)->next_old) {
		if (*at == c) {
			*at = c->next_old;
			break;
		}
	}
	const struct chain *now = atomic_load(&m->chain);
	if (now)
		tags_drop_gone(m, now); // until now its ops could set more
	pthread_mutex_unlock(&m->chain_lock);
}

static void hook_close(const struct chain_hook *hook)
{
	close(hook->program_fd);
	if (hook->joined_fd >= 0)
		close(hook->joined_fd);
}

void chain_release(struct chain *c)
{
	if (!c || atomic_fetch_sub(&c->refs, 1) != 1)
		return;
	if (c->mount)
		forget_old(c->mount, c);
	for (int opcode = 0; opcode < 256; opcode++) {
		struct op_hooks *hooks = c->ops[opcode];
		for (uint32_t i = 0; hooks && i < hooks->n_pre; i++)
			hook_close(&hooks->pre[i]);
		for (uint32_t i = 0; hooks && i < hooks->n_post; i++)
			hook_close(&hooks->post[i]);
		free(hooks);
	}
	free(c);
}

/** Add a filter. Filters come from high to low. -EEXIST: the id is taken; -EINVAL: out of order or range; -E2BIG. */
int chain_add_filter(struct chain *c, uint32_t id, const char *name, uint32_t altitude, uint32_t wants)
{
	if (c->n_filters == FB_MAX_FILTERS)
		return -E2BIG;
	if (id >= FB_MAX_FILTERS || altitude < 1 || altitude > 999 || strlen(name) >= sizeof(c->filters[0].name))
		return -EINVAL;
	for (uint32_t i = 0; i < c->n_filters; i++)
		if (c->filters[i].id == id || !strcmp(c->filters[i].name, name))
			return -EEXIST;
	if (c->n_filters && c->filters[c->n_filters - 1].altitude <= altitude)
		return -EINVAL;
	struct chain_filter *f = &c->filters[c->n_filters++];
	f->id = id;
	f->altitude = altitude;
	f->wants = wants;
	strcpy(f->name, name);
	c->wants |= wants;
	return 0;
}

/** Add a hook of the filter that was added last; program_fd is duplicated. */
int chain_add_hook(struct chain *c, uint32_t id, uint8_t opcode, enum fb_phase phase, int program_fd)
{
	if (!c->n_filters || c->filters[c->n_filters - 1].id != id || !ops[opcode].is_hook ||
	    (phase != FB_PRE && phase != FB_POST) || (phase == FB_PRE && ops[opcode].flags & FB_OP_POST_ONLY))
		return -EINVAL;
	if (!c->ops[opcode] && !(c->ops[opcode] = calloc(1, sizeof(*c->ops[opcode]))))
		return -ENOMEM;
	int fd = fcntl(program_fd, F_DUPFD_CLOEXEC, 0);
	if (fd < 0)
		return -errno;
	struct op_hooks *hooks = c->ops[opcode];
	hooks->filters |= 1U << id;
	struct chain_hook hook = { .position = c->n_filters - 1,
				   .program_fd = fd,
				   .joined_fd = -1,
				   .sees_data = data_is_seen(&ops[opcode], phase, c->filters[c->n_filters - 1].wants) };
	if (phase == FB_PRE) {
		hooks->pre[hooks->n_pre++] = hook;
		return 0;
	}
	memmove(&hooks->post[1], &hooks->post[0], hooks->n_post * sizeof(hook));
	hooks->post[0] = hook;
	hooks->n_post++;
	return 0;
}

bool chain_hooks(const struct chain *c, uint8_t opcode)
{
	return c->ops[opcode];
}

/** Make c, whose reference is taken over, the mount's chain from the next op on. Returns its revision. */
uint32_t chain_publish(struct mount *m, struct chain *c)
{
	pthread_mutex_lock(&m->chain_lock);
	struct chain *old = atomic_load(&m->chain);
	c->revision = (old ? old->revision : 0) + 1;
	tags_adopt(m, c, old);
	c->mount = m;
	if (old) {
		old->next_old = m->old_chains;
		m->old_chains = old;
	}
	atomic_store(&m->chain, c);
	uint32_t revision = c->revision;
	pthread_mutex_unlock(&m->chain_lock);
	chain_release(old);
	return revision;
}
