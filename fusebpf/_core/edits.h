/* SPDX-License-Identifier: Apache-2.0 */
/* What filters rewrote, checked. */
#ifndef FUSEBPF_EDITS_H
#define FUSEBPF_EDITS_H

#include "core.h"

/* edits.c */
const char *verdict_edit(struct request *rq, const struct fb_slot *slot, const struct op *op, enum fb_phase phase,
			 bool is_reply, uint64_t edits);

/* edits_text.c */
const char *edit_name(const struct op *op, uint32_t slot_len, const struct fb_name *from, struct fb_name *to, uint32_t *len);
const char *edit_text(struct request *rq, const struct fb_slot *slot, bool is_reply);
const char *value_check(const struct op *op, const char *value, uint32_t len);

#endif
