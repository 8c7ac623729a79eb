/* SPDX-License-Identifier: Apache-2.0 */
/* The border to Python: what its two files share. Nobody else includes this. */
#ifndef FUSEBPF_MODULE_H
#define FUSEBPF_MODULE_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "core.h"

/* module_tables.c: new references, or NULL with an exception set */
PyObject *module_ops(void);
PyObject *module_args(void);
PyObject *module_sizes(void);

#endif
