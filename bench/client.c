/*
 * The benchmark's client: does one kind of op in a loop and prints nanoseconds per op, elapsed and of its own CPU
 * time, and how many ops it did, those before the clock started too. One run is one sample; bench/run.py alternates runs
 * between the targets.
 *
 *   client stat|open DIR N LOOPS             fstatat, open+close of DIR/f0 … f(N-1)
 *   client getattr DIR N LOOPS               forced getattr of DIR
 *   client missing DIR N LOOPS               fstatat of names that are not there
 *   client refused DIR N LOOPS               fstatat of a name that is too long
 *   client readfile DIR N LOOPS              open, read and close of DIR/f0 … f(N-1)
 *   client create|unlink DIR N               DIR/n0 … n(N-1)
 *   client save DIR N                        create, write of 4 KiB, close
 *   client rename DIR N                      n0 … to r0 …
 *   client mkdir DIR N                       mkdir and rmdir
 *   client list DIR LOOPS                    readdir, and fstatat of each entry
 *   client pingpong . N                      a byte through a pipe to another process, and one back
 *   client apart . N                         the same, with that process on another core, which is awake
 *   client syscall . N                       getppid
 *   client prog . N                          BPF_PROG_RUN of a program that does nothing
 *   client read|write FILE BLOCK N seq|rand buffered|direct|mmap JOBS [shared]
 *                                            N blocks by each of JOBS processes, over and over if its part is shorter: of
 *                                            existing files of their own, FILE, FILE1, …; or of shares of one FILE
 *
 * All but those that change a directory and LOOPS = 0 (which means one cold pass) go once over everything before the clock starts.
 */
#define _GNU_SOURCE
#include "fusebpf.h"

#include <dirent.h>
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/bpf.h>
#include <sched.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define MAX_JOBS 16

static const char *where;

struct moment {
	uint64_t ns;
	uint64_t cpu_ns;
};

static uint64_t read_clock(clockid_t clock)
{
	struct timespec t;

	clock_gettime(clock, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static struct moment now(void)
{
	return (struct moment){ read_clock(CLOCK_MONOTONIC), read_clock(CLOCK_PROCESS_CPUTIME_ID) };
}

static void done(struct moment start, uint64_t n_ops, uint64_t n_before)
{
	struct moment end = now();

	printf("%.1f %.1f %ju\n", (double)(end.ns - start.ns) / (double)n_ops,
	       (double)(end.cpu_ns - start.cpu_ns) / (double)n_ops, (uintmax_t)(n_ops + n_before));
}

static int open_dir(void)
{
	int fd = open(where, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

	if (fd < 0)
		err(1, "%s", where);
	return fd;
}

/* --------------------------------------------------------------------------------- by name */

typedef void by_name(int dir, const char *name);

static void do_stat(int dir, const char *name)
{
	struct stat st;

	if (fstatat(dir, name, &st, AT_SYMLINK_NOFOLLOW) < 0)
		err(1, "stat %s/%s", where, name);
}

static void do_missing(int dir, const char *name)
{
	struct stat st;

	if (fstatat(dir, name, &st, AT_SYMLINK_NOFOLLOW) == 0)
		errx(1, "%s/%s is there", where, name);
}

static void do_refused(int dir, const char *name)
{
	char too_long[NAME_MAX + 2];
	struct stat st;

	(void)name;
	memset(too_long, 'x', NAME_MAX + 1);
	too_long[NAME_MAX + 1] = 0;
	if (fstatat(dir, too_long, &st, AT_SYMLINK_NOFOLLOW) == 0 || errno != ENAMETOOLONG)
		err(1, "%s takes a name of %d bytes", where, NAME_MAX + 1);
}

static void do_open(int dir, const char *name)
{
	int fd = openat(dir, name, O_RDONLY | O_CLOEXEC);

	if (fd < 0)
		err(1, "open %s/%s", where, name);
	close(fd);
}

/* Of the directory itself, so that no lookup comes into it. */
static void do_getattr(int dir, const char *name)
{
	struct statx stx;

	(void)name;
	if (statx(dir, "", AT_EMPTY_PATH | AT_STATX_FORCE_SYNC, STATX_BASIC_STATS, &stx) < 0)
		err(1, "statx %s", where);
}

static void do_create(int dir, const char *name)
{
	int fd = openat(dir, name, O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, 0644);

	if (fd < 0)
		err(1, "create %s/%s", where, name);
	close(fd);
}

static void do_save(int dir, const char *name)
{
	static const char block[4096];
	int fd = openat(dir, name, O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, 0644);

	if (fd < 0 || write(fd, block, sizeof(block)) != (ssize_t)sizeof(block))
		err(1, "write %s/%s", where, name);
	close(fd);
}

static void do_readfile(int dir, const char *name)
{
	char buffer[65536];
	int fd = openat(dir, name, O_RDONLY | O_CLOEXEC);

	if (fd < 0 || read(fd, buffer, sizeof(buffer)) < 0)
		err(1, "read %s/%s", where, name);
	close(fd);
}

static void do_rename(int dir, const char *name)
{
	char to[24];

	snprintf(to, sizeof(to), "r%s", name + 1);
	if (renameat(dir, name, dir, to) < 0)
		err(1, "rename %s/%s", where, name);
}

static void do_mkdir(int dir, const char *name)
{
	if (mkdirat(dir, name, 0755) < 0 || unlinkat(dir, name, AT_REMOVEDIR) < 0)
		err(1, "mkdir %s/%s", where, name);
}

static void do_unlink(int dir, const char *name)
{
	if (unlinkat(dir, name, 0) < 0)
		err(1, "unlink %s/%s", where, name);
}

static const struct {
	const char *name;
	by_name *run;
	char prefix;
	bool repeats;
} by_name_ops[] = {
	{ "stat", do_stat, 'f', true },	      { "missing", do_missing, 'm', true },
	{ "open", do_open, 'f', true },	      { "getattr", do_getattr, 'f', true },
	{ "readfile", do_readfile, 'f', true }, { "save", do_save, 'n', false },
	{ "create", do_create, 'n', false },  { "unlink", do_unlink, 'n', false },
	{ "rename", do_rename, 'n', false },  { "mkdir", do_mkdir, 'n', false },
	{ "refused", do_refused, 'x', true },
};

static void pass(by_name *run, int dir, char (*names)[24], long n)
{
	for (long i = 0; i < n; i++)
		run(dir, names[i]);
}

static bool run_by_name(const char *op, int argc, char **argv)
{
	for (size_t row = 0; row < sizeof(by_name_ops) / sizeof(by_name_ops[0]); row++) {
		if (strcmp(by_name_ops[row].name, op))
			continue;
		long n = argc > 0 ? atol(argv[0]) : 0;
		long loops = argc > 1 ? atol(argv[1]) : 0;
		char(*names)[24] = calloc((size_t)n, sizeof(*names));
		int dir = open_dir();

		if (!names || n < 1)
			errx(2, "%s: how many?", op);
		for (long i = 0; i < n; i++)
			snprintf(names[i], sizeof(names[i]), "%c%ld", by_name_ops[row].prefix, i);
		bool is_warm = by_name_ops[row].repeats && loops > 0;

		if (is_warm)
			pass(by_name_ops[row].run, dir, names, n);

		long passes = loops > 0 ? loops : 1;
		struct moment start = now();

		for (long i = 0; i < passes; i++)
			pass(by_name_ops[row].run, dir, names, n);
		done(start, (uint64_t)n * (uint64_t)passes, is_warm ? (uint64_t)n : 0);
		return true;
	}
	return false;
}

/* --------------------------------------------------------------------------------- listing */

static uint64_t list_once(void)
{
	DIR *dir = opendir(where);
	struct dirent *entry;
	uint64_t n = 0;

	if (!dir)
		err(1, "%s", where);
	while ((entry = readdir(dir))) {
		do_stat(dirfd(dir), entry->d_name);
		n++;
	}
	closedir(dir);
	return n;
}

static void run_list(long loops)
{
	uint64_t n = 0, n_before = loops > 0 ? list_once() : 0;
	struct moment start = now();

	for (long i = 0; i < (loops > 0 ? loops : 1); i++)
		n += list_once();
	done(start, n, n_before);
}

/* ------------------------------------------------------------------------------------ data */

struct data {
	bool writes, is_random, is_direct, is_mapped;
	size_t block;
	long n;
	int fd;
	char *buffer, *map;
	long first, n_blocks; /* this job's part of the file */
};

static void move(const struct data *d, long index)
{
	off_t at = (off_t)(d->first + index) * (off_t)d->block;
	ssize_t moved = (ssize_t)d->block;

	if (d->is_mapped && d->writes)
		memcpy(d->map + at, d->buffer, d->block);
	else if (d->is_mapped)
		memcpy(d->buffer, d->map + at, d->block);
	else
		moved = d->writes ? pwrite(d->fd, d->buffer, d->block, at) : pread(d->fd, d->buffer, d->block, at);
	if (moved != (ssize_t)d->block)
		err(1, "%s: %zd of %zu bytes at %jd", where, moved, d->block, (intmax_t)at);
}

static void open_data(struct data *d, const char *path)
{
	struct stat st;

	d->fd = open(path, (d->writes ? O_RDWR : O_RDONLY) | (d->is_direct ? O_DIRECT : 0) | O_CLOEXEC);
	d->buffer = aligned_alloc(4096, d->block);
	if (d->fd < 0 || fstat(d->fd, &st) < 0 || !d->buffer)
		err(1, "%s", path);
	memset(d->buffer, 'x', d->block);
	d->n_blocks = st.st_size / (off_t)d->block;
	if (!d->is_mapped)
		return;
	d->map = mmap(NULL, (size_t)st.st_size, PROT_READ | (d->writes ? PROT_WRITE : 0), MAP_SHARED, d->fd, 0);
	if (d->map == MAP_FAILED)
		err(1, "mmap %s", path);
}

/* A job's file, and its part of it: FILE for the first job, FILE1 … for the others; or a share of FILE for each. */
static struct data open_job(const struct data *all, long job, long n_jobs, bool is_shared)
{
	struct data d = *all;
	char path[4096];

	if (job && !is_shared)
		snprintf(path, sizeof(path), "%s%ld", where, job);
	else
		snprintf(path, sizeof(path), "%s", where);
	open_data(&d, path);
	if (is_shared || !job)
		d.n_blocks /= n_jobs;
	if (d.n_blocks < 1)
		errx(1, "%s: shorter than a block for each job", path);
	d.first = is_shared ? job * d.n_blocks : 0;
	for (long i = 0; i < d.n_blocks && !d.is_direct; i++)
		move(&d, i);
	return d;
}

static void move_all(const struct data *d)
{
	uint64_t random = 88172645463325252u + (uint64_t)d->first;

	for (long i = 0; i < d->n; i++) {
		random ^= random << 13;
		random ^= random >> 7;
		random ^= random << 17;
		move(d, d->is_random ? (long)(random % (uint64_t)d->n_blocks) : i % d->n_blocks);
	}
}

/* CPU time of the process and of the children that it has waited for. */
static uint64_t all_cpu_ns(void)
{
	struct rusage used;

	getrusage(RUSAGE_CHILDREN, &used);
	return read_clock(CLOCK_PROCESS_CPUTIME_ID) +
	       (uint64_t)(used.ru_utime.tv_sec + used.ru_stime.tv_sec) * 1000000000u +
	       (uint64_t)(used.ru_utime.tv_usec + used.ru_stime.tv_usec) * 1000u;
}

static void run_data(const struct data *d, long n_jobs, bool is_shared)
{
	struct data jobs[MAX_JOBS];
	uint64_t n_ops = (uint64_t)(d->n * n_jobs), n_before = 0;
	int status = 0;

	if (n_jobs < 1 || n_jobs > MAX_JOBS)
		errx(2, "1 to %d jobs", MAX_JOBS);
	for (long job = 0; job < n_jobs; job++) {
		jobs[job] = open_job(d, job, n_jobs, is_shared);
		n_before += d->is_direct ? 0 : (uint64_t)jobs[job].n_blocks;
	}
	uint64_t start_ns = read_clock(CLOCK_MONOTONIC), start_cpu_ns = all_cpu_ns();

	for (long job = 1; job < n_jobs; job++) {
		pid_t child = fork();
		if (child < 0)
			err(1, "fork");
		if (child == 0) {
			move_all(&jobs[job]);
			_exit(0);
		}
	}
	move_all(&jobs[0]);
	while (wait(&status) > 0)
		if (status)
			errx(1, "%s: a job failed", where);
	printf("%.1f %.1f %ju\n", (double)(read_clock(CLOCK_MONOTONIC) - start_ns) / (double)n_ops,
	       (double)(all_cpu_ns() - start_cpu_ns) / (double)n_ops, (uintmax_t)(n_ops + n_before));
}

/* Have this process run anywhere but on that core, and keep cores awake for as long as it lives. */
static void move_away(int core)
{
	int latency = open("/dev/cpu_dma_latency", O_WRONLY | O_CLOEXEC);
	int32_t none = 0;
	cpu_set_t others;

	memset(&others, 0xff, sizeof(others));
	CPU_CLR(core, &others);
	if (latency < 0 || write(latency, &none, sizeof(none)) < 0 || sched_setaffinity(0, sizeof(others), &others) < 0)
		err(1, "keeping another core awake");
}

/* What the machine takes for a round trip between two processes, without any file system. */
static void run_pingpong(long n, bool is_apart)
{
	int core = sched_getcpu();
	int there[2], back[2];
	char byte = 0;

	if (pipe(there) < 0 || pipe(back) < 0)
		err(1, "pipe");
	pid_t child = fork();

	if (child < 0)
		err(1, "fork");
	if (child == 0) {
		close(there[1]);
		if (is_apart)
			move_away(core);
		while (read(there[0], &byte, 1) == 1 && write(back[1], &byte, 1) == 1)
			;
		_exit(0);
	}
	close(back[1]);
	if (write(there[1], &byte, 1) != 1 || read(back[0], &byte, 1) != 1)
		errx(1, "the other process ended");
	struct moment start = now();

	for (long i = 0; i < n; i++)
		if (write(there[1], &byte, 1) != 1 || read(back[0], &byte, 1) != 1)
			err(1, "pipe");
	done(start, (uint64_t)n, 0);
}

static void run_syscall(long n)
{
	struct moment start = now();

	for (long i = 0; i < n; i++)
		syscall(SYS_getppid);
	done(start, (uint64_t)n, 0);
}

static void run_prog(long n)
{
	const struct bpf_insn program[] = { { .code = BPF_ALU64 | BPF_MOV | BPF_K }, { .code = BPF_JMP | BPF_EXIT } };
	union bpf_attr attr = { .prog_type = BPF_PROG_TYPE_SYSCALL, .insns = (uintptr_t)program, .insn_cnt = 2,
				.license = (uintptr_t)"GPL", .prog_flags = BPF_F_SLEEPABLE };
	int fd = (int)syscall(SYS_bpf, BPF_PROG_LOAD, &attr, sizeof(attr));

	if (fd < 0)
		err(1, "BPF_PROG_LOAD");
	struct moment start = now();

	for (long i = 0; i < n; i++) {
		memset(&attr, 0, sizeof(attr));
		attr.test.prog_fd = (uint32_t)fd;
		if (syscall(SYS_bpf, BPF_PROG_RUN, &attr, sizeof(attr.test)) < 0)
			err(1, "BPF_PROG_RUN");
	}
	done(start, (uint64_t)n, 0);
}

int main(int argc, char **argv)
{
	const char *op = argc > 2 ? argv[1] : "";
	bool is_shared = argc == 9 && !strcmp(argv[8], "shared");

	where = argc > 2 ? argv[2] : "";
	if (!strcmp(op, "list") && argc == 4)
		run_list(atol(argv[3]));
	else if (!strcmp(op, "pingpong") && argc == 4)
		run_pingpong(atol(argv[3]), false);
	else if (!strcmp(op, "apart") && argc == 4)
		run_pingpong(atol(argv[3]), true);
	else if (!strcmp(op, "syscall") && argc == 4)
		run_syscall(atol(argv[3]));
	else if (!strcmp(op, "prog") && argc == 4)
		run_prog(atol(argv[3]));
	else if ((!strcmp(op, "read") || !strcmp(op, "write")) && (argc == 8 || is_shared))
		run_data(&(struct data){ .writes = op[0] == 'w',
					 .block = (size_t)atol(argv[3]),
					 .n = atol(argv[4]),
					 .is_random = !strcmp(argv[5], "rand"),
					 .is_direct = !strcmp(argv[6], "direct"),
					 .is_mapped = !strcmp(argv[6], "mmap") },
			 atol(argv[7]), is_shared);
	else if (!run_by_name(op, argc - 3, argv + 3))
		errx(2, "usage: see the head of bench/client.c");
	return 0;
}
