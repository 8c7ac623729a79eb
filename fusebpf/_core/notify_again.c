/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the kernel is told again, a while later. An answer that was given before a change may be on its way to its caller still, who
 * waits for a core: when he gets to it, the kernel takes the entry for valid for as long as the answer says, whatever it has been told
 * meanwhile (fs/fuse/dir.c: fuse_change_entry_timeout; of attributes it knows which are older, once it has the inode). On the
 * notifier's thread, without its lock.
 */
#include "core.h"

/* The second time is for who waits behind a program with real-time priority. */
static const int64_t pauses_ms[] = { 50, 1000 };

enum { N_PAUSES = sizeof(pauses_ms) / sizeof(*pauses_ms) };

static int64_t due_after(uint32_t n_told)
{
	return n_told < N_PAUSES ? now_ms() + pauses_ms[n_told] : INT64_MAX;
}

/* When is again_send to be called next? */
static int64_t first_due_ms(const struct notifier *n)
{
	int64_t due = n->all_due_ms;

	for (uint32_t i = 0; i < n->n_again; i++)
		due = n->again[i].due_ms < due ? n->again[i].due_ms : due;
	return due;
}

int again_init(struct notifier *n)
{
	n->again = calloc(NOTIFY_QUEUE_SIZE, sizeof(*n->again));
	n->again_ms = n->all_due_ms = INT64_MAX;
	return n->again ? 0 : -ENOMEM;
}

/** Have something sent again that was sent just now; if the kernel had nothing cached of it (was_there), until it has. Where there are
 * too many, all go out at once, for the last time. */
void again_note(struct mount *m, const struct notice *notice, bool was_there)
{
	struct notifier *n = &m->notifier;

	if (n->n_again == NOTIFY_QUEUE_SIZE) {
		for (uint32_t i = 0; i < n->n_again; i++)
			notice_send(m, &n->again[i].notice);
		n->n_again = 0;
	}
	int64_t due_ms = due_after(0);
	n->again[n->n_again++] = (struct again){ .notice = *notice, .was_there = was_there, .due_ms = due_ms };
	if (due_ms < n->again_ms)
		n->again_ms = due_ms;
}

/** The same for all entries. */
void again_note_all(struct mount *m)
{
	m->notifier.n_all_told = 0;
	m->notifier.all_due_ms = due_after(0);
	m->notifier.again_ms = first_due_ms(&m->notifier);
}

/** Send what is due. */
void again_send(struct mount *m)
{
	struct notifier *n = &m->notifier;
	int64_t now = now_ms();
	uint32_t n_left = 0;

	for (uint32_t i = 0; i < n->n_again; i++) {
		struct again a = n->again[i];
		bool is_done = false;
		if (a.due_ms <= now) {
			is_done = notice_send(m, &a.notice) && !a.was_there;
			a.due_ms = due_after(++a.n_told);
		}
		if (!is_done && a.n_told < N_PAUSES)
			n->again[n_left++] = a;
	}
	n->n_again = n_left;
	if (n->all_due_ms <= now) {
		notifier_send_handed_out(m, false);
		n->all_due_ms = due_after(++n->n_all_told);
	}
	n->again_ms = first_due_ms(n);
}

void again_deinit(struct notifier *n)
{
	free(n->again);
	n->again = NULL;
}
