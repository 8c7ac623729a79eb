/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How cores idle while a mount is busy. In a virtual machine an idle core halts, and it takes the host some 40 µs to wake it, several
 * times what a request takes. While requests come in numbers, idle cores are to look for work awake (PM QoS: /dev/cpu_dma_latency,
 * which the kernel takes back when the last process that has it open closes it or dies). Then another core answers sooner than the
 * caller's own, which would have to change address spaces twice: workers are away, on the other cores, while these have time, and
 * the caller waits on its own.
 *
 * FORGETs have the backing file system free what was removed, which takes about as long as to remove it. They need the other core
 * for that, so where they come workers stay at home.
 *
 * Threads: workers, at steps of the coarse clock, which say that there is much to do; a thread of its own for the rest, which takes
 * workers.lock to fetch them home.
 * Source: Documentation/power/pm_qos_interface.rst, drivers/cpuidle/governors/haltpoll.c.
 */
#include "core.h"

#include <poll.h>
#include <sched.h>
#include <stdio.h>
#include <sys/eventfd.h>

#define LATENCY_FILE "/dev/cpu_dma_latency"
#define DRIVER_FILE "/sys/devices/system/cpu/cpuidle/current_driver"
#define NAME_FILE "/sys/devices/system/cpu/cpu0/cpuidle/state0/name" /* of the state in which a core looks for work; on ARM it is a halt */
#define TIME_FILE "/sys/devices/system/cpu/cpu%d/cpuidle/state0/time"
#define AWAKE 0			 /* µs that waking up may take: none, so an idle core does not sleep */
#define AS_EVER (2000 * 1000000) /* include/linux/pm_qos.h: PM_QOS_CPU_LATENCY_DEFAULT_VALUE */

#define MOST_CORES 8	   /* more of them would be kept awake for the sake of one; of more, so many are looked at */
#define BURST_PER_MS 4	   /* so many requests in a millisecond keep them awake, */
#define LOOK_MS 10	   /* until there were fewer */
#define LEAST_PER_LOOK 10  /* than this */
#define MOST_LEAN 5	   /* in so many looks one after the other */
#define FORGETS_MS 30	   /* how long workers stay at home after a FORGET */
/* How long cores must have been idle together, of each 10 ms, for workers to leave, and what is too little for them to stay away. */
#define ROOM_TO_LEAVE_US 8500
#define N_ROOMY 2 /* looks one after the other, */
#define ROOM_TO_STAY_US 5500

static bool is_in(const char *path, const char *line)
{
	char text[32];

	text_in(path, text, sizeof(text));
	return !strcmp(text, line);
}

/* Where it is for us to say: a virtual machine that may poll, of not too many cores. */
static bool is_for_us(const struct idle *idle)
{
	return CPU_COUNT(&idle->cores) > 1 && sysconf(_SC_NPROCESSORS_ONLN) <= MOST_CORES && is_in(DRIVER_FILE, "haltpoll\n");
}

enum idle_choice idle_named(const char *name)
{
	return !strcmp(name, "poll") ? IDLE_POLL : !strcmp(name, "leave") ? IDLE_LEAVE : IDLE_AUTO;
}

static void set_latency(const struct idle *idle, int32_t microseconds)
{
	if (write(idle->latency_fd, &microseconds, sizeof(microseconds)) < 0)
		return; // cores idle as they did
}

/* How long have the cores looked for work awake, together, in µs? 0 where the kernel does not say. */
static uint64_t all_awake_us(const struct idle *idle)
{
	char path[sizeof(TIME_FILE) + 12];
	uint64_t us = 0;
	int n = 0;

	for (int core = 0; idle->can_tell && core < CPU_SETSIZE && n < MOST_CORES; core++) {
		if (!CPU_ISSET(core, &idle->cores))
			continue;
		n++;
		snprintf(path, sizeof(path), TIME_FILE, core);
		us += number_in(path);
	}
	return us;
}

/* Go on to count from here. */
static void begin_look(struct idle *idle)
{
	idle->awake_us = all_awake_us(idle);
	idle->looked_ns = now_ns();
}

static uint64_t n_requests(const struct mount *m)
{
	uint64_t n = 0;

	for (uint32_t i = 0; i < m->n_queues; i++)
		n += atomic_load_explicit(&m->queues[i].n_requests, memory_order_relaxed);
	return n;
}

static void keep_awake(struct idle *idle)
{
	uint64_t one = 1;

	if (atomic_exchange(&idle->is_awake, true))
		return;
	if (write(idle->wake_fd, &one, sizeof(one)) < 0)
		return; // the thread is told already
}

/** A request has come: are there many? */
void idle_note(struct mount *m)
{
	struct idle *idle = &m->idle;

	if (idle->latency_fd < 0)
		return;
	int64_t now = now_ms(), was = atomic_load_explicit(&idle->tick_ms, memory_order_relaxed);
	if (now == was || !atomic_compare_exchange_strong(&idle->tick_ms, &was, now))
		return;
	uint64_t n = n_requests(m), before = atomic_exchange(&idle->n_at_tick, n);
	// Another worker may have counted since, and more.
	if ((int64_t)(n - before) >= BURST_PER_MS * (now - was))
		keep_awake(idle);
}

/** FORGETs have come. */
void idle_forgets(struct mount *m)
{
	if (m->idle.latency_fd < 0)
		return;
	atomic_store(&m->idle.forgets_ms, now_ms());
	atomic_store(&m->idle.has_room, false);
}

/** Have a worker run where its callers do, or where they do not. The worker itself; the idle thread fetches it home. */
void idle_place(struct worker *w, bool is_away)
{
	cpu_set_t cores = w->mount->idle.cores;

	if (is_away) {
		CPU_CLR(w->queue->core, &cores);
	} else {
		CPU_ZERO(&cores);
		CPU_SET(w->queue->core, &cores);
	}
	// Where it fails, since a core is off line, it is not tried again.
	pthread_setaffinity_np(w->thread, sizeof(cores), &cores);
	// After it: one that is on its way is not fetched, and would go all the same; it is at the next look.
	atomic_store(&w->is_away, is_away);
}

/* Fetch the workers home that have not come themselves, with an answer. */
static void fetch_home(struct mount *m)
{
	pthread_mutex_lock(&m->workers.lock);
	for (struct worker *w = m->workers.all; w; w = w->next)
		if (atomic_load(&w->is_away))
			idle_place(w, false);
	pthread_mutex_unlock(&m->workers.lock);
}

/* Requests have become few: let cores idle as they do without us. */
static void let_idle(struct idle *idle)
{
	atomic_store(&idle->has_room, false);
	atomic_store(&idle->is_awake, false);
	idle->n_lean = idle->n_roomy = 0;
	set_latency(idle, AS_EVER);
}

/* Have the cores time for workers that are away? */
static void look_for_room(struct idle *idle)
{
	uint64_t before_us = idle->awake_us;
	int64_t before_ns = idle->looked_ns;

	begin_look(idle);
	// Of a core that goes off line the time does, too.
	uint64_t us = idle->awake_us < before_us ? 0 : idle->awake_us - before_us;
	uint64_t room = us * LOOK_MS * 1000 / ((uint64_t)(idle->looked_ns - before_ns) / 1000 + 1);
	bool is_forgetting = now_ms() - atomic_load(&idle->forgets_ms) <= FORGETS_MS;
	idle->n_roomy = room > ROOM_TO_LEAVE_US && !is_forgetting ? idle->n_roomy + 1 : 0;
	if (room < ROOM_TO_STAY_US || is_forgetting)
		atomic_store(&idle->has_room, false);
	else if (idle->n_roomy >= N_ROOMY)
		atomic_store(&idle->has_room, true);
}

/* Cores are kept awake: see whether they still are to be. */
static void look(struct mount *m)
{
	struct idle *idle = &m->idle;
	uint64_t n = n_requests(m);

	idle->n_lean = n - idle->n_at_look < LEAST_PER_LOOK ? idle->n_lean + 1 : 0;
	idle->n_at_look = n;
	look_for_room(idle);
	if (idle->n_lean >= MOST_LEAN)
		let_idle(idle);
	if (!atomic_load(&idle->has_room))
		fetch_home(m);
}

static void *idle_main(void *argument)
{
	struct mount *m = argument;
	struct idle *idle = &m->idle;
	struct pollfd polled = { .fd = idle->wake_fd, .events = POLLIN };
	uint64_t times;

	prctl(PR_SET_NAME, "fusebpf/idle");
	while (!atomic_load(&idle->is_stopping)) {
		poll(&polled, 1, atomic_load(&idle->is_awake) ? LOOK_MS : -1);
		if (read(idle->wake_fd, &times, sizeof(times)) == sizeof(times)) {
			// Who said so may have been so slow that it is over.
			set_latency(idle, atomic_load(&idle->is_awake) ? AWAKE : AS_EVER);
			begin_look(idle);
		} else if (atomic_load(&idle->is_awake)) {
			look(m);
		}
	}
	return NULL;
}

/* Without it a core of a virtual machine halts. Over io_uring only who is served from another core is better off without that; over /dev/fuse
 * the scheduler has another one answer anyway. */
static bool is_worth_it(const struct mount *m)
{
	if (!transport_is_uring(m))
		return true;
	set_latency(&m->idle, AWAKE);
	bool is_quicker = away_is_quicker(&m->idle.cores);
	set_latency(&m->idle, AS_EVER);
	return is_quicker;
}

static int begin(struct mount *m)
{
	struct idle *idle = &m->idle;

	idle->can_tell = is_in(NAME_FILE, "POLL\n");
	m->failed_call = "idle=poll: making an eventfd";
	idle->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (idle->wake_fd < 0)
		return -errno;
	m->failed_call = "idle=poll: opening " LATENCY_FILE;
	idle->latency_fd = open(LATENCY_FILE, O_WRONLY | O_CLOEXEC);
	if (idle->latency_fd < 0)
		return -errno;
	if (idle->choice == IDLE_AUTO && !is_worth_it(m))
		return -ECANCELED;
	m->failed_call = "idle=poll: starting a thread";
	return -pthread_create(&idle->thread, NULL, idle_main, m);
}

/** Begin, before requests come and with signals blocked. 0, or -errno where idle=poll cannot be had. */
int idle_start(struct mount *m)
{
	struct idle *idle = &m->idle;

	if (sched_getaffinity(0, sizeof(idle->cores), &idle->cores) < 0)
		CPU_ZERO(&idle->cores); // there are more than it holds
	if (idle->choice == IDLE_LEAVE || (idle->choice == IDLE_AUTO && !is_for_us(idle)))
		return 0;
	const char *before = m->failed_call;
	int e = begin(m);
	idle->has_thread = !e;
	if (!e || idle->choice == IDLE_AUTO)
		m->failed_call = before;
	if (e)
		idle_stop(m, true);
	return idle->choice == IDLE_AUTO ? 0 : e;
}

/** The workers have ended; or some are left behind, whose descriptors stay theirs. */
void idle_stop(struct mount *m, bool have_ended)
{
	struct idle *idle = &m->idle;
	uint64_t one = 1;

	atomic_store(&idle->is_stopping, true);
	if (idle->has_thread && write(idle->wake_fd, &one, sizeof(one)) == sizeof(one))
		pthread_join(idle->thread, NULL);
	idle->has_thread = false;
	if (idle->latency_fd >= 0)
		set_latency(idle, AS_EVER); // a child of the embedding program's may have it open, too
	if (!have_ended)
		return;
	if (idle->latency_fd >= 0)
		close(idle->latency_fd);
	if (idle->wake_fd >= 0)
		close(idle->wake_fd);
	idle->latency_fd = idle->wake_fd = -1;
}
