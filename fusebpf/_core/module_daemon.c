/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The border to Python, the daemon leg's part: methods of Mount that fusebpf/daemon_leg.py calls.
 */
#include "module.h"

static struct daemon *daemon_of(MountObject *self)
{
	struct mount *m = mount_of(self);

	if (m && !m->daemon)
		PyErr_SetString(PyExc_ValueError, "the mount has no daemon");
	return m ? m->daemon : NULL;
}

PyObject *Mount_daemon_start(MountObject *self, PyObject *args)
{
	struct mount *m = mount_of(self);
	Py_buffer routes;
	long long timeout_ms;
	int falls_back, fd;

	if (!m || !PyArg_ParseTuple(args, "y*Lp", &routes, &timeout_ms, &falls_back))
		return NULL;
	int e = routes.len == 256 ? daemon_start(m, routes.buf, timeout_ms, falls_back, &fd) : -EINVAL;
	PyBuffer_Release(&routes);
	if (e)
		return raise_errno(-e, "making the daemon's leg");
	return Py_BuildValue("iiN", fd, m->daemon->event_fd,
			     PyMemoryView_FromMemory((char *)m->daemon->calls,
						     sizeof(struct daemon_call) * DAEMON_N_CALLS, PyBUF_WRITE));
}

PyObject *Mount_daemon_end(MountObject *self, PyObject *unused)
{
	struct daemon *d = daemon_of(self);

	(void)unused;
	if (!d)
		return NULL;
	daemon_end(d);
	Py_RETURN_NONE;
}

PyObject *Mount_daemon_next(MountObject *self, PyObject *unused)
{
	struct daemon *d = daemon_of(self);

	(void)unused;
	return d ? PyLong_FromUnsignedLongLong(daemon_next_event(d)) : NULL;
}

PyObject *Mount_daemon_spin(MountObject *self, PyObject *fd)
{
	struct daemon *d = daemon_of(self);
	long number = d ? PyLong_AsLong(fd) : 0;
	bool found;

	if (!d || PyErr_Occurred())
		return NULL;
	Py_BEGIN_ALLOW_THREADS
	found = daemon_spin(d, (int)number);
	Py_END_ALLOW_THREADS
	return PyBool_FromLong(found);
}

PyObject *Mount_daemon_finish(MountObject *self, PyObject *token)
{
	struct daemon *d = daemon_of(self);
	unsigned long number = d ? PyLong_AsUnsignedLong(token) : 0;

	return !d || PyErr_Occurred() ? NULL : PyBool_FromLong(daemon_finish(d, (uint32_t)number));
}

PyObject *Mount_daemon_backing(MountObject *self, PyObject *number)
{
	struct daemon *d = daemon_of(self);
	unsigned long long id = d ? PyLong_AsUnsignedLongLong(number) : 0;

	if (!d || PyErr_Occurred())
		return NULL;
	int fd = daemon_backing_fd(self->mount, id);
	return fd < 0 ? raise_errno(-fd, NULL) : PyLong_FromLong(fd);
}

PyObject *Mount_daemon_hold(MountObject *self, PyObject *args)
{
	struct daemon *d = daemon_of(self);
	unsigned int token;
	unsigned long long parent;
	const char *name;
	uint64_t id;

	if (!d || !PyArg_ParseTuple(args, "IKy", &token, &parent, &name))
		return NULL;
	int e = daemon_hold(self->mount, token, parent, name, &id);
	return e ? raise_errno(-e, NULL) : PyLong_FromUnsignedLongLong(id);
}

#define CALL_FIELD(path) { #path, offsetof(struct daemon_call, slot.path), sizeof(((struct daemon_call *)0)->slot.path) },

/* Where in a call lies what Python reads and writes: name, offset, size. */
static const struct {
	const char *name;
	size_t offset, size;
} call_fields[] = {
	CALL_FIELD(name.text) CALL_FIELD(name_len) CALL_FIELD(name2.text) CALL_FIELD(name2_len) CALL_FIELD(text)
	CALL_FIELD(text_len) CALL_FIELD(uid) CALL_FIELD(gid) CALL_FIELD(args) CALL_FIELD(result)
};

/** Say where in a call lies what Python reads and writes: CALL_FIELDS. */
int add_call_fields(PyObject *module)
{
	PyObject *result = PyDict_New();

	for (size_t i = 0; result && i < sizeof(call_fields) / sizeof(*call_fields); i++) {
		PyObject *value = Py_BuildValue("nn", call_fields[i].offset, call_fields[i].size);
		if (!value || PyDict_SetItemString(result, call_fields[i].name, value) < 0)
			Py_CLEAR(result);
		Py_XDECREF(value);
	}
	int e = result ? PyModule_AddObjectRef(module, "CALL_FIELDS", result) : -1;
	Py_XDECREF(result);
	return e;
}
