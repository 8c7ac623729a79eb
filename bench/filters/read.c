/* SPDX-License-Identifier: Apache-2.0 OR MIT OR GPL-2.0 */
/* A hook on read that decides nothing and wants no payload: what bench_window is compared with. */
#include "fusebpf.h"

FILTER(bench_read, .altitude = FB_DATA, .doc = "Lets every read pass.")

POST(bench_read, read) { return FB_CONTINUE; }
