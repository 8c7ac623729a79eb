/* SPDX-License-Identifier: Apache-2.0 OR MIT OR GPL-2.0 */
/* Eight filters with a hook on one op each, which decide nothing: what they add to the op is what a chain costs. */
#include "fusebpf.h"

#define ONE_OF_EIGHT(n)                                                                                \
	FILTER(bench_eight##n, .altitude = FB_WATCH + n, .doc = "Lets every getattr pass.")            \
	PRE(bench_eight##n, getattr) { return FB_CONTINUE; }

ONE_OF_EIGHT(0)
ONE_OF_EIGHT(1)
ONE_OF_EIGHT(2)
ONE_OF_EIGHT(3)
ONE_OF_EIGHT(4)
ONE_OF_EIGHT(5)
ONE_OF_EIGHT(6)
ONE_OF_EIGHT(7)
