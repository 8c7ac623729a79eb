/* SPDX-License-Identifier: Apache-2.0 */
/* The border to Python: what its files share. Nobody else includes this. */
#ifndef FUSEBPF_MODULE_H
#define FUSEBPF_MODULE_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "core.h"

typedef struct {
	PyObject_HEAD
	struct mount *mount;
} MountObject;

/* module.c */
PyObject *raise_errno(int e, const char *call);
struct mount *mount_of(MountObject *self);

/* module_daemon.c */
PyObject *Mount_daemon_start(MountObject *self, PyObject *args);
PyObject *Mount_daemon_end(MountObject *self, PyObject *unused);
PyObject *Mount_daemon_next(MountObject *self, PyObject *unused);
PyObject *Mount_daemon_spin(MountObject *self, PyObject *fd);
PyObject *Mount_daemon_finish(MountObject *self, PyObject *token);
PyObject *Mount_daemon_backing(MountObject *self, PyObject *number);
PyObject *Mount_daemon_hold(MountObject *self, PyObject *args);
int add_call_fields(PyObject *module);

/* module_tables.c */
int add_tables(PyObject *module);

#endif
