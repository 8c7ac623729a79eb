/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which answers sooner: a process on the caller's own core, which has to switch to it and back, or one on another core, which is awake
 * and has to be told? The first takes as long as the machine needs for a change of address space, the second as long as its cores are far
 * from each other, and machines of one kind differ in both by twice. So it is tried: a byte goes to a process of ours and back, on
 * one core and then between two, for a millisecond or so.
 *
 * Threads: the one that mounts, before there are requests: beside a client that keeps its cores busy a round trip says nothing.
 */
#include "core.h"

#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#define N_TRIES 12 /* the best of them counts: what else runs can only take time */
#define N_ROUND_TRIPS 10
#define FAILED_NS INT64_MAX
#define ANSWER_MS 100 /* until when the partner is waited for: it may have been stopped, or something keep its core */

/* How many times longer than on one core a byte may take between two for a request to take less. A request touches more memory than
 * that byte, and where it changes core a close runs beside its caller: at 1.25 times it takes a sixth less, at 1.9 a sixth more, at 2.2 half as
 * much again (docs/decisions/0016-other-cores-stay-awake.md). */
#define MOST_TIMES 1.6

struct partner {
	pid_t pid;
	int to, from; /* pipes */
	int from_us;  /* its end of the first, ours too: without a reader a write would be a signal */
};

/* The partner's whole life: to send each byte back, until there are no more. What else it has of ours, /dev/fuse among it, it lets go of. */
static _Noreturn void echo(pid_t parent, int from, int to)
{
	char byte;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (dup2(from, 0) == 0 && dup2(to, 1) == 1 && getppid() == parent) {
		syscall(SYS_close_range, 2U, ~0U, 0U);
		while (read(0, &byte, 1) == 1 && write(1, &byte, 1) == 1)
			continue;
	}
	_exit(0);
}

/* It is not enough to close the pipes: what another thread has forked meanwhile may have them, too. */
static void partner_end(const struct partner *p)
{
	if (p->pid > 0)
		kill(p->pid, SIGKILL);
	close(p->to);
	close(p->from);
	close(p->from_us);
	while (p->pid > 0 && waitpid(p->pid, NULL, __WALL) < 0 && errno == EINTR)
		continue;
}

/* Without SIGCHLD and the C library's handlers: an embedding program need not know of it. */
static int partner_start(struct partner *p)
{
	int there[2], back[2];
	pid_t us = getpid();

	if (pipe2(there, O_CLOEXEC) < 0)
		return -errno;
	if (pipe2(back, O_CLOEXEC) < 0) {
		int e = -errno;
		close(there[0]);
		close(there[1]);
		return e;
	}
	p->pid = (pid_t)syscall(SYS_clone, 0, NULL, NULL, NULL, NULL);
	int e = p->pid < 0 ? -errno : 0;
	if (!p->pid)
		echo(us, there[0], back[1]);
	close(back[1]);
	*p = (struct partner){ .pid = p->pid, .to = there[1], .from = back[0], .from_us = there[0] };
	if (e)
		partner_end(p);
	return e;
}

static bool is_answered(const struct partner *p)
{
	struct pollfd answer = { .fd = p->from, .events = POLLIN };
	char byte = 0;

	return write(p->to, &byte, 1) == 1 && poll(&answer, 1, ANSWER_MS) == 1 && read(p->from, &byte, 1) == 1;
}

/* Nanoseconds for a byte to the partner, which is to run on these cores, and back. */
static int64_t round_trip_ns(const struct partner *p, const cpu_set_t *cores)
{
	int64_t best = FAILED_NS;

	if (sched_setaffinity(p->pid, sizeof(*cores), cores) < 0)
		return FAILED_NS;
	for (int i = 0; i < N_TRIES; i++) {
		int64_t begin = now_ns();
		for (int n = 0; n < N_ROUND_TRIPS; n++)
			if (!is_answered(p))
				return FAILED_NS;
		int64_t took = (now_ns() - begin) / N_ROUND_TRIPS;
		best = took < best ? took : best;
	}
	return best;
}

static bool try_from(int core, const cpu_set_t *cores)
{
	cpu_set_t here, others = *cores;
	struct partner p;

	CPU_ZERO(&here);
	CPU_SET(core, &here);
	CPU_CLR(core, &others);
	if (sched_setaffinity(0, sizeof(here), &here) < 0)
		return false;
	if (partner_start(&p))
		return false;
	int64_t at_home = round_trip_ns(&p, &here);
	int64_t away = round_trip_ns(&p, &others);
	partner_end(&p);
	return at_home != FAILED_NS && away != FAILED_NS && (double)away < MOST_TIMES * (double)at_home;
}

/** Would another core of these, two or more, answer the calling thread sooner than its own? They are to be awake. False where it cannot be
 * tried. */
bool away_is_quicker(const cpu_set_t *cores)
{
	cpu_set_t before;
	int core = sched_getcpu();

	if (core < 0 || !CPU_ISSET(core, cores) || sched_getaffinity(0, sizeof(before), &before) < 0)
		return false;
	bool is_quicker = try_from(core, cores);
	sched_setaffinity(0, sizeof(before), &before);
	return is_quicker;
}
