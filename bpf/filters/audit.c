/* SPDX-License-Identifier: Apache-2.0 OR MIT OR GPL-2.0 */
#include "fusebpf.h"

FILTER(audit, .altitude = FB_WATCH, .doc = "Decides nothing: every op is recorded in `recent` and counted in `stats`.")

PRE(audit, any) { return FB_CONTINUE; }
POST(audit, any) { return FB_CONTINUE; }
