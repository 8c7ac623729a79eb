/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The payload of an op before the filters that want it. What is to be written lies in the request, what was read in the
 * worker's memory: both are ours alone. A part of it is copied into a window, which the hook's program maps; after
 * the hook, if it declares an edit, the window is copied out once, checked, and becomes the payload. A hook runs once for
 * each window of a payload, and all of them have gone by before the filter that is asked next runs. On a worker's thread.
 */
#include "core.h"

#include <sys/mman.h>

#define WINDOWS_SIZE (sizeof(struct fb_window) * FB_N_WINDOWS)

_Static_assert(sizeof(struct fb_window) == FB_DATA_SIZE, "a window is all payload, and whole pages");
_Static_assert(FB_N_WINDOWS < 32, "a bit for each window");

/* ------------------------------------------------------------------------------- the pool */

/** Map the windows. */
int windows_init(struct windows *w, int map_fd)
{
	void *all = mmap(NULL, WINDOWS_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, map_fd, 0);

	if (all == MAP_FAILED)
		return -errno;
	w->all = all;
	w->free = (1U << FB_N_WINDOWS) - 1;
	pthread_mutex_init(&w->lock, NULL);
	pthread_cond_init(&w->freed, NULL);
	return 0;
}

void windows_deinit(struct windows *w)
{
	if (w->all)
		munmap(w->all, WINDOWS_SIZE);
	w->all = NULL;
}

static void window_acquire(struct request *rq)
{
	struct windows *w = &rq->mount->shared.windows;

	pthread_mutex_lock(&w->lock);
	while (!w->free)
		pthread_cond_wait(&w->freed, &w->lock);
	// The lowest: few are in use at a time, and those stay in the cache.
	int index = __builtin_ctz(w->free);
	w->free &= ~(1U << index);
	pthread_mutex_unlock(&w->lock);
	rq->shown.window = &w->all[index];
	rq->image->flags |= FB_HAS_DATA;
}

static void window_release(struct request *rq)
{
	struct windows *w = &rq->mount->shared.windows;

	pthread_mutex_lock(&w->lock);
	w->free |= 1U << (rq->shown.window - w->all);
	pthread_cond_signal(&w->freed);
	pthread_mutex_unlock(&w->lock);
	rq->shown.window = NULL;
	rq->image->flags &= ~(uint32_t)FB_HAS_DATA;
}

/* ------------------------------------------------------------------------------- the payload */

/** Does the op bring a payload, rather than answer with one? */
bool data_is_brought(const struct op *op)
{
	return op->canonical == FB_OP_write || op->canonical == FB_OP_setxattr;
}

/* Is the payload one value, which an edit may make longer? Those fit into one window (XATTR_SIZE_MAX, PATH_MAX). */
static bool is_value(const struct op *op)
{
	return op->canonical != FB_OP_read && op->canonical != FB_OP_write;
}

/* The most that the payload may become: the caller's buffer, or what the kernel takes. */
static uint64_t capacity(const struct request *rq)
{
	const struct fb_slot *image = rq->image;

	switch (rq->op->canonical) {
	case FB_OP_read:
	case FB_OP_write:
		return image->args.rw.size;
	case FB_OP_readlink:
		return FB_PATH_SIZE - 1;
	case FB_OP_setxattr:
		return FB_DATA_SIZE;
	default:
		return value_room(rq);
	}
}

/* Put `len` bytes of the payload, from `at` on, into the window; without `from` there are none yet, and it is zeros. */
static void window_show(struct request *rq, const char *from, uint64_t at, uint64_t total)
{
	struct shown *shown = &rq->shown;
	struct fb_slot *slot = slot_of(rq);
	uint64_t len = total - at < FB_DATA_SIZE ? total - at : FB_DATA_SIZE;
	uint64_t most = is_value(rq->op) ? capacity(rq) : len;

	shown->at = at;
	shown->len = (uint32_t)len;
	shown->most = (uint32_t)(most < len ? len : most);
	shown->is_last = at + len == total;
	if (from)
		memcpy(shown->window->bytes, from + at, len);
	// Where the hook may put more, it must not find what another op left there.
	memset(shown->window->bytes + (from ? len : 0), 0, shown->most - (from ? len : 0));
	slot->data_offset = at + (is_value(rq->op) ? 0 : rq->image->args.rw.offset);
	slot->data_len = (uint32_t)len;
	slot->data_more = !shown->is_last;
	slot->window = (uint32_t)(shown->window - rq->mount->shared.windows.all);
	slot->reserved0 = 0;
}

/* Show what is to be written, window after window; all of it, unless the hook answers. */
static bool show_input(struct request *rq, const struct chain_hook *hook)
{
	const uint32_t *size = rq->op->canonical == FB_OP_write ? &rq->image->args.rw.size
								: &rq->image->args.xattr.size;
	bool goes_on = true;

	if (!rq->input)
		rq->input = (char *)rq->body + rq->body_at;
	for (uint64_t at = 0; at == 0 || at < *size; at += FB_DATA_SIZE) {
		window_show(rq, rq->input, at, *size);
		// FB_BACKING passes the filters below by, not the rest of the data.
		goes_on &= pre_ask(rq, hook);
		if (rq->route == FB_ROUTE_REPLY)
			return false;
	}
	return goes_on;
}

/* Let the hook fill an answer in, window after window, for as long as it fills each. */
static bool show_room(struct request *rq, const struct chain_hook *hook)
{
	uint64_t room = capacity(rq);

	for (uint64_t at = 0; at == 0 || at < room; at += FB_DATA_SIZE) {
		rq->route = FB_ROUTE_BACKING;
		window_show(rq, NULL, at, room);
		bool goes_on = pre_ask(rq, hook);
		if (rq->route != FB_ROUTE_REPLY && at) {
			fail_closed(rq, rq->op, hook, FB_PRE, "it answered one window of a read, and not the next");
			rq->error = EIO;
			rq->route = FB_ROUTE_REPLY;
			return false;
		}
		if (rq->route != FB_ROUTE_REPLY)
			return goes_on;
		if (rq->error || rq->payload_len < at + FB_DATA_SIZE)
			return false;
	}
	return false;
}

/** Run a pre hook that wants the payload. Returns true if the op goes on to the filter below. */
bool data_before(struct request *rq, const struct chain_hook *hook)
{
	window_acquire(rq);
	bool goes_on = data_is_brought(rq->op) ? show_input(rq, hook) : show_room(rq, hook);
	window_release(rq);
	return goes_on;
}

/** Run a post hook that wants the payload. */
void data_after(struct request *rq, const struct chain_hook *hook)
{
	if (rq->error) {
		post_ask(rq, hook);
		return;
	}
	window_acquire(rq);
	for (uint64_t at = 0; !rq->error && (at == 0 || at < rq->payload_len); at += FB_DATA_SIZE) {
		window_show(rq, rq->payload, at, rq->payload_len);
		post_ask(rq, hook);
	}
	window_release(rq);
	if (rq->shown.is_for_daemon && !rq->error)
		post_look(rq); // at all of it, once; and others do not wait so long for the window
	rq->shown.is_for_daemon = false;
}

/* --------------------------------------------------------------------------------- edits */

/* What was read, or is to be written, is the window's content now. */
static void stream_take(struct request *rq, char *to, uint32_t len)
{
	const struct shown *shown = &rq->shown;
	uint64_t end = shown->at + len;

	memcpy(to + shown->at, shown->window->bytes, len);
	if (rq->op->canonical == FB_OP_write) {
		if (len < shown->len)
			rq->image->args.rw.size = (uint32_t)end;
		return;
	}
	rq->payload = to;
	if (len < shown->len || rq->image->phase == FB_PRE)
		rq->payload_len = rq->count = rq->image->result.count = end;
}

/* Where a value that was edited lies. What is to be set stays in the request, as long as it may be there: the daemon's answer, which
 * may be that the op goes on, comes to where replies are put together. A rehearsal has no request. */
static char *value_place(const struct request *rq)
{
	bool is_in_request = rq->op->canonical == FB_OP_setxattr && rq->body;

	return is_in_request ? (char *)rq->body + rq->body_at : rq->worker->payload;
}

/** Take the window over as the payload. Returns NULL, or why it is refused; then the op must fail. */
const char *data_edit(struct request *rq, enum fb_phase phase)
{
	const struct shown *shown = &rq->shown;
	char *own = is_value(rq->op) ? value_place(rq) : rq->worker->payload;

	if (!shown->window)
		return "it edited data, and was shown none: say .wants = FB_WANTS_DATA";
	uint32_t len = __atomic_load_n(&slot_of(rq)->data_len, __ATOMIC_RELAXED);
	bool is_answer = phase == FB_PRE && !data_is_brought(rq->op);
	if (len > shown->most)
		return "rewritten data is longer than what there was, or than the caller's buffer";
	if (len < shown->len && !shown->is_last && !is_answer)
		return "it shortened a window of data that is not the last";
	if (!is_value(rq->op)) {
		stream_take(rq, rq->op->canonical == FB_OP_write ? rq->input : own, len);
		return NULL;
	}
	memcpy(own, shown->window->bytes, len);
	const char *why = value_check(rq->op, own, len);
	if (why)
		return why;
	if (rq->op->canonical == FB_OP_setxattr) {
		rq->input = own;
		rq->image->args.xattr.size = len;
	} else {
		rq->payload = own;
		rq->payload_len = rq->image->result.count = len;
	}
	text_show(rq, own, len);
	return NULL;
}
