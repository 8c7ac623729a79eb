/* SPDX-License-Identifier: Apache-2.0 */
/* What Python sees of the ABI: the op table, and sizes as the C compiler has them. */
#include "module.h"

/** The op table: a row for each op and alias. */
PyObject *module_ops(void)
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

/** Which member of the slot's union of arguments each op has. */
PyObject *module_args(void)
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

/** The sizes and counts of the ABI. */
PyObject *module_sizes(void)
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
