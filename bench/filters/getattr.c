/* SPDX-License-Identifier: Apache-2.0 OR MIT OR GPL-2.0 */
/* One hook on one op that decides nothing: what it adds to the op is what a hook costs. */
#include "fusebpf.h"

FILTER(bench_getattr, .altitude = FB_WATCH, .doc = "Lets every getattr pass.")

PRE(bench_getattr, getattr) { return FB_CONTINUE; }
