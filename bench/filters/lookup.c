/* SPDX-License-Identifier: Apache-2.0 OR MIT OR GPL-2.0 */
/* One hook on one op that decides nothing: what it adds to the op is what a hook costs. */
#include "fusebpf.h"

FILTER(bench_lookup, .altitude = FB_WATCH, .doc = "Lets every lookup pass.")

PRE(bench_lookup, lookup) { return FB_CONTINUE; }
