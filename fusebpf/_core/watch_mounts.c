/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The mount table as far as it matters to a watch: fanotify does not tell of mounts, and a directory on which something is
 * mounted leads elsewhere from then on.
 */
#include "core.h"

#include <stdio.h>

/* Undo the octal escapes of proc_pid_mountinfo(5), in place. */
static void unescape(char *text)
{
	char *out = text;

	for (; *text; text++) {
		if (text[0] == '\\' && text[1] && text[2] && text[3]) {
			*out++ = (char)((text[1] - '0') << 6 | (text[2] - '0') << 3 | (text[3] - '0'));
			text += 3;
		} else {
			*out++ = *text;
		}
	}
	*out = 0;
}

static uint64_t add(uint64_t sum, const char *text)
{
	for (; *text; text++)
		sum = (sum ^ (unsigned char)*text) * 1099511628211u; // FNV-1a
	return sum;
}

/* The mount point in a line of the table, which is its fifth word; cut out of the line. NULL: it has none. */
static char *point_of(char *line)
{
	char *rest = NULL, *word = strtok_r(line, " ", &rest);

	for (int i = 1; word && i < 5; i++)
		word = strtok_r(NULL, " ", &rest);
	if (word)
		unescape(word);
	return word;
}

/** A number for what is mounted below the backing root in this mount namespace: another one when that has changed. */
uint64_t watch_mounts_below(int root_fd)
{
	char link[PROC_PATH_SIZE], root[FB_PATH_SIZE], *line = NULL;
	uint64_t sum = 14695981039346656037u;
	size_t size = 0;
	FILE *table = fopen("/proc/self/mountinfo", "re");

	proc_path(link, root_fd);
	ssize_t len = readlink(link, root, sizeof(root) - 1);
	if (len < 0)
		len = 0; // then all mounts count
	while (len > 0 && root[len - 1] == '/')
		len--;
	while (table && getline(&line, &size, table) >= 0) {
		long id = strtol(line, NULL, 10);
		const char *point = point_of(line);
		if (point && !strncmp(point, root, (size_t)len) && point[len] == '/')
			sum = add(sum, point) + (uint64_t)id;
	}
	free(line);
	if (table)
		fclose(table);
	return sum;
}
