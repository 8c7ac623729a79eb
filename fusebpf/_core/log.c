/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Log lines of the core: text into a pipe that Python reads. Any thread; never blocks: what does not fit is lost,
 * and more than LINES_PER_SECOND lines are counted instead of written.
 */
#include "core.h"

#include <stdarg.h>
#include <stdio.h>
#include <time.h>

#define LINES_PER_SECOND 20

/* Is one more line in this second's share? */
static bool take_share(struct mount *m)
{
	struct timespec now;
	uint64_t old, new;

	clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
	old = atomic_load(&m->log_window);
	do {
		new = old >> 32 == (uint32_t)now.tv_sec ? old + 1 : (uint64_t)(uint32_t)now.tv_sec << 32 | 1;
	} while (!atomic_compare_exchange_weak(&m->log_window, &old, new));
	return (uint32_t)new <= LINES_PER_SECOND;
}

void mount_log(struct mount *m, const char *level, const char *format, ...)
{
	char line[512]; /* below PIPE_BUF, so lines do not mix */
	va_list args;
	int n;

	if (m->log_write_fd < 0 || !take_share(m))
		return;
	n = snprintf(line, sizeof(line), "%s ", level);
	va_start(args, format);
	n += vsnprintf(line + n, sizeof(line) - (size_t)n, format, args);
	va_end(args);
	if (n > (int)sizeof(line) - 2)
		n = sizeof(line) - 2;
	for (int i = 0; i < n; i++)
		if (line[i] == '\n')
			line[i] = '?';
	line[n++] = '\n';
	if (write(m->log_write_fd, line, (size_t)n) < 0)
		return; // the reader is gone or slow: a log must not stop an op
}
