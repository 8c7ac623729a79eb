/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The border to Python: the class Mount and the module; module_daemon.c and module_tables.c have the rest of it.
 * The core never calls Python; what it has to say leaves by the event and log descriptors and the shared maps.
 */
#include "module.h"

PyObject *raise_errno(int e, const char *call)
{
	PyObject *args = Py_BuildValue("(is)", e, strerror(e));

	if (args && call) {
		Py_DECREF(args);
		PyObject *text = PyUnicode_FromFormat("%s: %s", call, strerror(e));
		args = text ? Py_BuildValue("(iN)", e, text) : NULL;
	}
	if (!args)
		return NULL;
	PyObject *error = PyObject_Call(PyExc_OSError, args, NULL);
	Py_DECREF(args);
	if (error) {
		PyErr_SetObject((PyObject *)Py_TYPE(error), error);
		Py_DECREF(error);
	}
	return NULL;
}

struct mount *mount_of(MountObject *self)
{
	if (!self->mount)
		PyErr_SetString(PyExc_ValueError, "the mount was not made");
	return self->mount;
}

/* --------------------------------------------------------------------------------- the class */

/* Take the backing roots behind the first. Returns 0 or an errno. */
static int take_roots(struct mount *m, PyObject *more)
{
	PyObject *list = PySequence_Fast(more, "more_roots is a sequence of descriptors");
	int e = list ? 0 : EINVAL;

	for (Py_ssize_t i = 0; !e && i < PySequence_Fast_GET_SIZE(list); i++) {
		int fd = (int)PyLong_AsLong(PySequence_Fast_GET_ITEM(list, i));
		if (m->n_roots == FB_MAX_ROOTS)
			e = E2BIG;
		else if ((m->roots[m->n_roots] = fcntl(fd, F_DUPFD_CLOEXEC, 0)) < 0)
			e = errno;
		else
			m->n_roots++;
	}
	Py_XDECREF(list);
	PyErr_Clear(); // the errno says it
	return e;
}

static int Mount_init(MountObject *self, PyObject *args, PyObject *kwargs)
{
	static char *names[] = { "root_fd", "mountpoint", "source", "flags", "allow_other", "default_permissions", "max_read",
				 "passthrough", "max_workers", "ttl_ns", "backing_locks", "watch", "transport",
				 "max_descriptors", "one_file_system", "idmap", "small", "idle", "more_roots", NULL };
	int root_fd, allow_other = 1, default_permissions = 1, passthrough = 1, backing_locks = 1, watch = 0;
	int one_file_system = 0, idmap = 0, small = 0;
	unsigned int max_read = 0, max_workers = FB_MAX_WORKERS, max_descriptors = 0;
	unsigned long flags = 0;
	unsigned long long ttl_ns = 1000000000;
	const char *transport = "auto", *idle = "auto";
	PyObject *mountpoint = NULL, *source = NULL, *more_roots = NULL;
	struct stat st;

	if (self->mount) {
		PyErr_SetString(PyExc_ValueError, "the mount is made already");
		return -1;
	}
	if (!PyArg_ParseTupleAndKeywords(args, kwargs, "iO&|$O&kppIpIKppsIpppsO", names, &root_fd, PyUnicode_FSConverter,
					 &mountpoint, PyUnicode_FSConverter, &source, &flags, &allow_other,
					 &default_permissions, &max_read, &passthrough, &max_workers, &ttl_ns,
					 &backing_locks, &watch, &transport, &max_descriptors, &one_file_system,
					 &idmap, &small, &idle, &more_roots))
		return -1;
	struct mount *m = mount_create();
	int e = m ? 0 : ENOMEM;
	if (!e) {
		m->root_fd = m->roots[0] = fcntl(root_fd, F_DUPFD_CLOEXEC, 0);
		m->n_roots = 1;
		m->mountpoint = strdup(PyBytes_AS_STRING(mountpoint));
		m->source = strdup(source ? PyBytes_AS_STRING(source) : "fusebpf");
		e = m->root_fd < 0 ? errno : m->mountpoint && m->source ? 0 : ENOMEM;
	}
	Py_XDECREF(mountpoint);
	Py_XDECREF(source);
	if (!e && more_roots)
		e = take_roots(m, more_roots);
	if (!e)
		e = fstat(m->root_fd, &st) < 0 ? errno : S_ISDIR(st.st_mode) ? 0 : ENOTDIR;
	if (!e && (max_workers < 1 || max_workers > FB_MAX_WORKERS))
		e = EINVAL;
	if (!e)
		e = -fds_limit(m, max_descriptors);
	if (e) {
		if (m)
			mount_destroy(m);
		raise_errno(e, "preparing the mount");
		return -1;
	}
	m->flags = flags;
	m->allow_other = allow_other;
	m->default_permissions = default_permissions;
	m->max_read = max_read;
	m->wants_passthrough = passthrough;
	m->workers.limit = max_workers;
	if (max_workers < FB_MAX_WORKERS)
		m->workers.rings_taken = ~0ULL << max_workers; // who comes back from waiting waits for one of those, too
	m->ttl_ns = ttl_ns;
	m->wants_backing_locks = backing_locks;
	m->wants_watch = watch;
	m->transport = transport_named(transport);
	m->idle.choice = idle_named(idle);
	m->is_one_file_system = one_file_system;
	m->wants_idmap = idmap;
	m->is_small = small;
	self->mount = m;
	return 0;
}

static void Mount_dealloc(MountObject *self)
{
	if (self->mount) {
		Py_BEGIN_ALLOW_THREADS
		mount_destroy(self->mount);
		Py_END_ALLOW_THREADS
	}
	PyTypeObject *type = Py_TYPE(self);
	type->tp_free((PyObject *)self);
	Py_DECREF(type);
}

static PyObject *Mount_share(MountObject *self, PyObject *args, PyObject *kwargs)
{
	static char *names[] = { "slots", "windows", "hooks", "stats", "recent", "thread", "rings", NULL };
	struct mount *m = mount_of(self);
	int fds[FB_MAX_WORKERS];
	struct shared_fds shared = { .rings = fds };
	PyObject *rings;

	if (!m || !PyArg_ParseTupleAndKeywords(args, kwargs, "$iiiiiiO", names, &shared.slots, &shared.windows,
						&shared.hooks, &shared.stats, &shared.recent, &shared.thread, &rings))
		return NULL;
	PyObject *list = PySequence_Fast(rings, "rings is a sequence of descriptors");
	if (!list)
		return NULL;
	Py_ssize_t n = PySequence_Fast_GET_SIZE(list);
	for (Py_ssize_t i = 0; i < n && i < FB_MAX_WORKERS; i++) {
		fds[i] = (int)PyLong_AsLong(PySequence_Fast_GET_ITEM(list, i));
		if (PyErr_Occurred()) {
			Py_DECREF(list);
			return NULL;
		}
	}
	Py_DECREF(list);
	shared.n_rings = (uint32_t)n;
	int e = n > FB_MAX_WORKERS ? -EINVAL : shared_init(m, &shared);
	if (e)
		return raise_errno(-e, "mapping the shared maps");
	if (n < FB_MAX_WORKERS)
		m->workers.rings_taken |= ~0ULL << n; // there are no more
	if (m->workers.limit > (uint32_t)n)
		m->workers.limit = (uint32_t)n;
	Py_RETURN_NONE;
}

/* ValueError for what is not a chain, OSError for the rest. */
static PyObject *raise_chain(int e)
{
	if (e == -EINVAL || e == -EEXIST || e == -E2BIG) {
		PyErr_SetString(PyExc_ValueError, e == -EEXIST	? "two filters with one id or name"
						  : e == -E2BIG ? "more filters than a chain can have"
								: "a filter or hook is out of range or order");
		return NULL;
	}
	return raise_errno(-e, "building the chain");
}

static int add_hooks(struct chain *c, uint32_t id, PyObject *hooks)
{
	PyObject *list = PySequence_Fast(hooks, "hooks is a sequence");
	int e = list ? 0 : -ENOEXEC;

	for (Py_ssize_t i = 0; !e && i < PySequence_Fast_GET_SIZE(list); i++) {
		unsigned char opcode;
		int phase, fd;
		if (!PyArg_ParseTuple(PySequence_Fast_GET_ITEM(list, i), "bii", &opcode, &phase, &fd))
			e = -ENOEXEC; // the exception is set
		else
			e = chain_add_hook(c, id, opcode, (enum fb_phase)phase, fd);
	}
	Py_XDECREF(list);
	return e;
}

static PyObject *Mount_set_chain(MountObject *self, PyObject *args, PyObject *kwargs)
{
	static char *names[] = { "filters", "keep_open_files", NULL };
	struct mount *m = mount_of(self);
	int keeps_open_files = 0;
	PyObject *filters;

	if (!m || !PyArg_ParseTupleAndKeywords(args, kwargs, "O|$p", names, &filters, &keeps_open_files))
		return NULL;
	PyObject *list = PySequence_Fast(filters, "filters is a sequence");

	if (!list)
		return NULL;
	struct chain *c = chain_create();
	int e = c ? 0 : -ENOMEM;
	if (c)
		c->keeps_open_files = keeps_open_files;
	for (Py_ssize_t i = 0; !e && i < PySequence_Fast_GET_SIZE(list); i++) {
		unsigned int id, altitude, wants;
		const char *name;
		PyObject *hooks;
		if (!PyArg_ParseTuple(PySequence_Fast_GET_ITEM(list, i), "IsIIO", &id, &name, &altitude, &wants, &hooks))
			e = -ENOEXEC;
		if (!e && m->wants_idmap && wants & FB_WANTS_IDS)
			e = -EINVAL; // it would take everybody for nobody
		if (!e)
			e = chain_add_filter(c, id, name, altitude, wants);
		if (!e)
			e = add_hooks(c, id, hooks);
	}
	if (!e && c->n_filters && !m->has_shared)
		e = -ENXIO;
	Py_DECREF(list);
	if (e) {
		chain_release(c);
		return PyErr_Occurred() ? NULL : raise_chain(e);
	}
	return PyLong_FromUnsignedLong(chain_publish(m, c));
}

static PyObject *Mount_join(MountObject *self, PyObject *args)
{
	struct mount *m = mount_of(self);
	unsigned int revision, first, n;
	unsigned char opcode;
	int phase, fd;

	if (!m || !PyArg_ParseTuple(args, "IbiIIi", &revision, &opcode, &phase, &first, &n, &fd))
		return NULL;
	return PyBool_FromLong(chain_join(m, revision, opcode, (enum fb_phase)phase, first, n, fd));
}

static PyObject *Mount_drain(MountObject *self, PyObject *args)
{
	struct mount *m = mount_of(self);
	unsigned int revision, timeout_ms;
	uint32_t n;

	if (!m || !PyArg_ParseTuple(args, "II", &revision, &timeout_ms))
		return NULL;
	Py_BEGIN_ALLOW_THREADS
	n = chain_drain(m, revision, timeout_ms);
	Py_END_ALLOW_THREADS
	return PyLong_FromUnsignedLong(n);
}

static PyObject *Mount_oldest_revision(MountObject *self, PyObject *unused)
{
	struct mount *m = mount_of(self);

	(void)unused;
	return m ? PyLong_FromUnsignedLong(chain_oldest(m)) : NULL;
}

static PyObject *Mount_passed_through(MountObject *self, PyObject *unused)
{
	struct mount *m = mount_of(self);
	struct inode **found;
	char path[FB_PATH_SIZE];

	(void)unused;
	if (!m)
		return NULL;
	ssize_t n = inodes_passed_through(m, &found);
	if (n < 0)
		return PyErr_NoMemory();
	PyObject *result = PyList_New(0);
	for (ssize_t i = 0; i < n; i++) {
		int len = inode_path(m, found[i], NULL, NULL, path);
		PyObject *row = result ? Py_BuildValue("(KIy#)", (unsigned long long)found[i]->nodeid, found[i]->n_passthrough, path,
						       (Py_ssize_t)(len < 0 ? 0 : len)) : NULL;
		if (result && (!row || PyList_Append(result, row) < 0))
			Py_CLEAR(result);
		Py_XDECREF(row);
		inode_release(m, found[i]);
	}
	free(found);
	return result;
}

static PyObject *Mount_start(MountObject *self, PyObject *unused)
{
	struct mount *m = mount_of(self);
	int e;

	(void)unused;
	if (!m)
		return NULL;
	Py_BEGIN_ALLOW_THREADS
	e = mount_start(m);
	Py_END_ALLOW_THREADS
	if (e)
		return raise_errno(-e, m->failed_call);
	Py_RETURN_NONE;
}

static PyObject *Mount_stop(MountObject *self, PyObject *unused)
{
	struct mount *m = mount_of(self);

	(void)unused;
	if (!m)
		return NULL;
	Py_BEGIN_ALLOW_THREADS
	mount_stop(m);
	Py_END_ALLOW_THREADS
	Py_RETURN_NONE;
}

static PyObject *Mount_invalidate(MountObject *self, PyObject *args)
{
	struct mount *m = mount_of(self);
	int timeout_ms, by_filters = 0;
	bool is_done;

	if (!m || !PyArg_ParseTuple(args, "i|p", &timeout_ms, &by_filters))
		return NULL;
	notify_all(m, by_filters);
	Py_BEGIN_ALLOW_THREADS
	is_done = notify_wait(m, timeout_ms);
	Py_END_ALLOW_THREADS
	return PyBool_FromLong(is_done);
}

static PyObject *Mount_set_callers(MountObject *self, PyObject *argument)
{
	struct mount *m = mount_of(self);
	int fd = m ? PyObject_AsFileDescriptor(argument) : -1;

	if (fd < 0)
		return NULL;
	int e = callers_set(m, fd);
	if (e)
		return raise_errno(-e, "taking the map of callers");
	Py_RETURN_NONE;
}

static PyObject *Mount_fileno(MountObject *self, PyObject *unused)
{
	(void)unused;
	return mount_of(self) ? PyLong_FromLong(self->mount->ended_fd) : NULL;
}

static PyObject *Mount_log_fileno(MountObject *self, PyObject *unused)
{
	(void)unused;
	return mount_of(self) ? PyLong_FromLong(self->mount->log_read_fd) : NULL;
}

static PyObject *Mount_counters(MountObject *self, PyObject *unused)
{
	struct mount *m = mount_of(self);

	(void)unused;
	if (!m)
		return NULL;
	struct counter rows[MAX_COUNTERS];
	size_t n = mount_counters(m, rows);
	PyObject *result = PyDict_New();
	for (size_t i = 0; result && i < n; i++) {
		PyObject *value = PyLong_FromUnsignedLongLong(rows[i].value);
		if (!value || PyDict_SetItemString(result, rows[i].name, value) < 0)
			Py_CLEAR(result);
		Py_XDECREF(value);
	}
	return result;
}

static PyObject *Mount_rehearse(MountObject *self, PyObject *args, PyObject *kwargs)
{
	static char *names[] = { "slot", "error", "skips", "data", NULL };
	struct mount *m = mount_of(self);
	struct rehearsal r = { 0 };
	Py_buffer slot, data = { 0 };

	if (!m || !PyArg_ParseTupleAndKeywords(args, kwargs, "y*|$IIz*", names, &slot, &r.error, &r.skips, &data))
		return NULL;
	r.data = data.buf;
	r.data_len = data.buf ? (size_t)data.len : 0;
	bool fits = slot.len == sizeof(r.slot);
	if (fits)
		memcpy(&r.slot, slot.buf, sizeof(r.slot));
	PyBuffer_Release(&slot);
	int e = fits && !m->is_started ? 0 : -EINVAL;
	if (!e) {
		Py_BEGIN_ALLOW_THREADS
		e = rehearse(m, &r);
		Py_END_ALLOW_THREADS
	}
	if (data.obj)
		PyBuffer_Release(&data);
	if (e)
		return raise_errno(-e, "rehearsing");
	PyObject *result = Py_BuildValue("{s:y#,s:I,s:i,s:O,s:I,s:I,s:I,s:I,s:I,s:K,s:s,s:y#}", "slot", &r.slot,
			     (Py_ssize_t)sizeof(r.slot), "error", r.error, "route", (int)r.route, "is_listed",
			     r.is_listed ? Py_True : Py_False, "pre_ran", r.pre_ran, "pre_edited", r.pre_edited,
			     "post_ran", r.post_ran, "post_edited", r.post_edited, "no_post", r.no_post, "edits",
			     (unsigned long long)r.edits, "decider", r.decider, "data", r.data,
			     (Py_ssize_t)r.data_len);
	free(r.data);
	return result;
}

static PyMethodDef mount_methods[] = {
	{ "share", (PyCFunction)(void (*)(void))Mount_share, METH_VARARGS | METH_KEYWORDS, NULL },
	{ "rehearse", (PyCFunction)(void (*)(void))Mount_rehearse, METH_VARARGS | METH_KEYWORDS, NULL },
	{ "join", (PyCFunction)Mount_join, METH_VARARGS, NULL },
	{ "set_chain", (PyCFunction)(void (*)(void))Mount_set_chain, METH_VARARGS | METH_KEYWORDS, NULL },
	{ "drain", (PyCFunction)Mount_drain, METH_VARARGS, NULL },
	{ "oldest_revision", (PyCFunction)Mount_oldest_revision, METH_NOARGS, NULL },
	{ "passed_through", (PyCFunction)Mount_passed_through, METH_NOARGS, NULL },
	{ "set_callers", (PyCFunction)Mount_set_callers, METH_O, NULL },
	{ "start", (PyCFunction)Mount_start, METH_NOARGS, NULL },
	{ "stop", (PyCFunction)Mount_stop, METH_NOARGS, NULL },
	{ "invalidate", (PyCFunction)Mount_invalidate, METH_VARARGS, NULL },
	{ "daemon_start", (PyCFunction)Mount_daemon_start, METH_VARARGS, NULL },
	{ "daemon_end", (PyCFunction)Mount_daemon_end, METH_NOARGS, NULL },
	{ "daemon_next", (PyCFunction)Mount_daemon_next, METH_NOARGS, NULL },
	{ "daemon_spin", (PyCFunction)Mount_daemon_spin, METH_O, NULL },
	{ "daemon_finish", (PyCFunction)Mount_daemon_finish, METH_O, NULL },
	{ "daemon_backing", (PyCFunction)Mount_daemon_backing, METH_O, NULL },
	{ "daemon_hold", (PyCFunction)Mount_daemon_hold, METH_VARARGS, NULL },
	{ "fileno", (PyCFunction)Mount_fileno, METH_NOARGS, NULL },
	{ "log_fileno", (PyCFunction)Mount_log_fileno, METH_NOARGS, NULL },
	{ "counters", (PyCFunction)Mount_counters, METH_NOARGS, NULL },
	{ NULL, NULL, 0, NULL },
};

static PyType_Slot mount_slots[] = {
	{ Py_tp_init, Mount_init },
	{ Py_tp_dealloc, Mount_dealloc },
	{ Py_tp_new, PyType_GenericNew },
	{ Py_tp_methods, mount_methods },
	{ 0, NULL },
};

static PyType_Spec mount_spec = {
	.name = "fusebpf._core.Mount",
	.basicsize = sizeof(MountObject),
	.flags = Py_TPFLAGS_DEFAULT,
	.slots = mount_slots,
};

/* -------------------------------------------------------------------------------- the module */

static int module_exec(PyObject *module)
{
	PyObject *type = PyType_FromSpec(&mount_spec);

	if (!type || PyModule_AddObjectRef(module, "Mount", type) < 0) {
		Py_XDECREF(type);
		return -1;
	}
	Py_DECREF(type);
	if (add_tables(module) < 0 || add_call_fields(module) < 0)
		return -1;
	return PyModule_AddIntConstant(module, "ABI_VERSION", FB_ABI_VERSION);
}

static PyModuleDef_Slot module_slots[] = {
	{ Py_mod_exec, module_exec },
	{ 0, NULL },
};

static struct PyModuleDef module_definition = {
	PyModuleDef_HEAD_INIT,
	.m_name = "fusebpf._core",
	.m_doc = "The native engine of fusebpf.",
	.m_slots = module_slots,
};

PyMODINIT_FUNC PyInit__core(void)
{
	return PyModuleDef_Init(&module_definition);
}
