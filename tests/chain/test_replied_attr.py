"""Attributes that a filter answers with, and listings with less room than an entry takes."""

import os
from pathlib import Path

from chain.chained import chained, source
from core.table import attempt, in_child, put

REPLIES = """
FILTER(replies, .altitude = 500)
FB_ALWAYS_INLINE int reply(struct fb_slot *ctx)
{
	ctx->result.attr.mode = ctx->type | 0644;
	ctx->result.attr.size = 5;
	ctx->result.attr.btime_ns = 3000000000ull;
	ctx->result.attr.ino = ctx->op == FB_OP_setattr ? 77 : 0;
	ctx->edits |= FB_EDIT_ATTR;
	return FB_REPLY;
}
PRE(replies, getattr) { return reply(ctx); }
PRE(replies, setattr) { return reply(ctx); }
"""
ROOM = """
FILTER(room, .altitude = 500)
PRE(room, readdir)
{
	ctx->args.rw.size = 20;
	ctx->edits |= FB_EDIT_SIZE;
	return FB_REWRITE;
}
"""


def test_a_file_keeps_its_inode_number_whatever_a_filter_answers(
    run_directory: Path, directory: Path
) -> None:
    with chained(run_directory, [source(directory, REPLIES)]) as made:
        through, behind = made.fresh()
        ino = put(behind / "f").stat().st_ino

        def look() -> list[tuple[int, int]]:
            before = os.stat(through / "f")
            os.chmod(through / "f", 0o600)
            after = os.stat(through / "f")
            return [(one.st_ino, one.st_size) for one in (before, after)]

        assert in_child(look) == [(ino, 5), (ino, 5)]


def test_a_listing_that_has_no_room_for_an_entry_is_refused_and_not_empty(
    run_directory: Path, directory: Path
) -> None:
    with chained(run_directory, [source(directory, ROOM)]) as made:
        through, behind = made.fresh()
        put(behind / "f")

        assert in_child(attempt, os.listdir, through) == "EINVAL"
