/* SPDX-License-Identifier: Apache-2.0 */
/* What Python sees of the ABI: the op table with its flags, and sizes as the C compiler has them. */
#include "module.h"

/* The op table: a row for each op and alias. */
static PyObject *op_table(void)
{
	size_t n = n_op_rows;
	PyObject *result = PyTuple_New((Py_ssize_t)n);

	for (size_t i = 0; result && i < n; i++) {
		const struct op_row *r = &op_rows[i];
		PyObject *row = Py_BuildValue("(siiIss)", r->name, r->opcode, r->n_names, r->flags, r->kind, r->of);
		if (!row)
			Py_CLEAR(result);
		else
			PyTuple_SET_ITEM(result, (Py_ssize_t)i, row);
	}
	return result;
}

#define ARGS_HOOK(name, opcode, args, names, flags) { #name, #args },
#define ARGS_NONE(...)

/* Which member of the slot's union of arguments each op has. */
static PyObject *op_args(void)
{
	static const char *const args[][2] = { FB_OPS(ARGS_HOOK, ARGS_NONE, ARGS_NONE) };
	PyObject *result = PyDict_New();

	for (size_t i = 0; result && i < sizeof(args) / sizeof(*args); i++) {
		PyObject *name = PyUnicode_FromString(args[i][1]);
		if (!name || PyDict_SetItemString(result, args[i][0], name) < 0)
			Py_CLEAR(result);
		Py_XDECREF(name);
	}
	return result;
}

#define OP_FLAG(name) #name, (int)FB_OP_##name
#define WANT(name) #name, (int)FB_WANTS_##name

/* Bits of enum fb_op_flags. */
static PyObject *op_flags(void)
{
	return Py_BuildValue("{s:i,s:i,s:i,s:i,s:i,s:i,s:i,s:i,s:i,s:i,s:i,s:i,s:i}", OP_FLAG(ENTRY), OP_FLAG(ATTR),
			     OP_FLAG(TEXT), OP_FLAG(COUNT), OP_FLAG(STATFS), OP_FLAG(OPENS), OP_FLAG(CREATES),
			     OP_FLAG(MUTATES), OP_FLAG(NO_REPLY), OP_FLAG(UNREFUSABLE), OP_FLAG(POST_ONLY),
			     OP_FLAG(DAEMON), OP_FLAG(XATTR));
}

/* Bits of enum fb_wants. */
static PyObject *filter_wants(void)
{
	return Py_BuildValue("{s:i,s:i,s:i,s:i,s:i}", WANT(PATH), WANT(DAEMON), WANT(IDS), WANT(DATA), WANT(CALLER));
}

/* What a hook can say, and what stats and recent call it. */
static PyObject *verdicts(void)
{
	return Py_BuildValue("{i:s,i:s,i:s,i:s,i:s,i:s,i:s}", FB_CONTINUE, "continue", FB_BACKING, "backing", FB_DAEMON, "daemon",
			     FB_REPLY, "reply", FB_NEGATIVE, "negative", FB_DROP, "drop", FB_BROKEN, "broken");
}

/* The sizes and counts of the ABI. */
static PyObject *abi_sizes(void)
{
	return Py_BuildValue("{s:n,s:n,s:n,s:n,s:n,s:n,s:n,s:n,s:n,s:n,s:n,s:n,s:n,s:i,s:i,s:i,s:i,s:i,s:i,s:i,s:i,s:i,s:i,s:i,s:n}",
			     "hook_slot_at", offsetof(struct fb_hook, slot), "hook_filter_at", offsetof(struct fb_hook, filter),
			     "slot_filter_at", offsetof(struct fb_slot, filter), "daemon_call", sizeof(struct daemon_call),
			     "slot", sizeof(struct fb_slot), "record", sizeof(struct fb_record),
			     "stat_key", sizeof(struct fb_stat_key), "stat", sizeof(struct fb_stat),
			     "filter_info", sizeof(struct fb_filter_info),
			     "verdict_record", sizeof(struct fb_verdict_record), "hook", sizeof(struct fb_hook),
			     "declaration", sizeof(struct fb_declaration),
			     "window", sizeof(struct fb_window), "n_slots", FB_N_SLOTS,
			     "n_recent", FB_N_RECENT, "n_stats", FB_N_STATS, "max_filters", FB_MAX_FILTERS,
			     "max_roots", FB_MAX_ROOTS, "max_workers", FB_MAX_WORKERS, "n_patterns", FB_N_PATTERNS, "n_windows",
			     FB_N_WINDOWS, "n_places", FB_N_PLACES, "n_tries", FB_N_TRIES, "next_place", FB_NEXT_PLACE,
			     "hook_thread_at", offsetof(struct fb_hook, thread));
}

/* Add a table, whose reference is taken over; NULL: it could not be made. */
static int add(PyObject *module, const char *name, PyObject *table)
{
	int e = table ? PyModule_AddObjectRef(module, name, table) : -1;

	Py_XDECREF(table);
	return e;
}

/** Add the tables. Returns 0, or -1 with an exception set. */
int add_tables(PyObject *module)
{
	bool is_added = !add(module, "OPS", op_table()) && !add(module, "OP_FLAGS", op_flags()) &&
			!add(module, "ARGS", op_args()) && !add(module, "WANTS", filter_wants()) && !add(module, "VERDICTS", verdicts()) &&
			!add(module, "SIZES", abi_sizes());

	return is_added ? 0 : -1;
}
