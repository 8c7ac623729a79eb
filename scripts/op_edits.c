/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Prints which edits each op takes, a line "op before reply after" with masks in hexadecimal. scripts/docs.py builds it
 * together with fusebpf/_core/verdict.c, whose function answers; what that file needs besides is empty here.
 */
#include "core.h"

#include <stdio.h>

#define ROW(op_name, number, args, names, op_flags)                                            \
	[number] = { .name = #op_name, .opcode = number, .canonical = number, .n_names = names, \
		     .flags = op_flags, .is_hook = true },
#define SKIP(...)
const struct op ops[256] = { FB_OPS(ROW, SKIP, SKIP) };

void mount_log(struct mount *m, const char *level, const char *format, ...)
{
	(void)m, (void)level, (void)format;
}

int main(void)
{
	static struct request rq;

	for (int opcode = 0; opcode < 256; opcode++) {
		const struct op *op = &ops[opcode];
		if (!op->name)
			continue;
		unsigned long long before = op->flags & FB_OP_POST_ONLY ? 0 : verdict_edits(&rq, op, FB_PRE, false);
		unsigned long long reply = op->flags & FB_OP_POST_ONLY ? 0 : verdict_edits(&rq, op, FB_PRE, true);
		unsigned long long after = verdict_edits(&rq, op, FB_POST, false);
		printf("%s %llx %llx %llx\n", op->name, before, reply, after);
	}
	return 0;
}
