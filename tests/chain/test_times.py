"""Times that filters show and set: also those that nanoseconds in 64 bits cannot tell, and the present."""

import os
import time
from pathlib import Path

import pytest
from chain.chained import chained, source
from core.table import in_child, put

FAR = 9_500_000_000
"""Seconds: in the year 2271, beyond what a signed number of nanoseconds in 64 bits holds."""

SHOWN = """
FILTER(shown, .altitude = 500)
FB_ALWAYS_INLINE int shown_attr(struct fb_slot *ctx)
{
	if (ctx->error)
		return FB_CONTINUE;
	ctx->result.attr.uid = 1000;
	ctx->result.attr.ctime_ns = 7000000000ull;
	ctx->edits |= FB_EDIT_ATTR;
	return FB_REWRITE;
}
POST(shown, lookup) { return shown_attr(ctx); }
POST(shown, getattr) { return shown_attr(ctx); }
"""
SET = """
FILTER(set, .altitude = 500)
PRE(set, setattr)
{
	ctx->args.setattr.mtime_ns = 5000000000ull;
	ctx->edits |= FB_EDIT_TIMES;
	return FB_REWRITE;
}
"""
TAKEN = """
FILTER(taken, .altitude = 500)
PRE(taken, setattr)
{
	ctx->args.setattr.valid &= ~FB_SET_ATIME;
	ctx->edits |= FB_EDIT_FLAGS;
	return FB_REWRITE;
}
"""


@pytest.fixture
def far_ns(tmpfs: Path) -> int:
    """Such a time as the file system keeps it."""
    os.utime(put(tmpfs / "f"), (FAR, FAR + 1))
    assert (tmpfs / "f").stat().st_mtime == FAR + 1
    return FAR * 10**9


def test_a_time_that_a_filter_leaves_is_the_one_of_the_file(
    run_directory: Path, directory: Path, tmpfs: Path, far_ns: int
) -> None:
    with chained(run_directory, [source(directory, SHOWN)], src=tmpfs) as made:
        seen = in_child(os.stat, made.mounted.path / "f")

    assert (seen.st_uid, seen.st_atime_ns, seen.st_mtime_ns) == (1000, far_ns, far_ns + 10**9)
    assert seen.st_ctime == 7


def test_a_time_that_a_filter_leaves_is_set_as_the_caller_says(
    run_directory: Path, directory: Path, tmpfs: Path, far_ns: int
) -> None:
    with chained(run_directory, [source(directory, SET)], src=tmpfs) as made:
        in_child(lambda: os.utime(made.mounted.path / "f", (FAR + 2, FAR + 2)))

    now = (tmpfs / "f").stat()
    assert (now.st_atime_ns, now.st_mtime) == (far_ns + 2 * 10**9, 5)


def test_a_rewritten_time_counts_also_where_the_caller_sets_the_present(
    run_directory: Path, directory: Path
) -> None:
    now = _touched(run_directory, source(directory, SET))

    assert now.st_mtime == 5
    assert now.st_atime == pytest.approx(time.time(), abs=60)


def test_a_time_that_a_filter_takes_away_is_not_set_to_the_present(
    run_directory: Path, directory: Path
) -> None:
    now = _touched(run_directory, source(directory, TAKEN))

    assert now.st_atime == 1
    assert now.st_mtime == pytest.approx(time.time(), abs=60)


def _touched(run_directory: Path, one: Path) -> os.stat_result:
    """A file of 1970 on the backing root, after touch(1) through a filter."""
    with chained(run_directory, [one]) as made:
        through, behind = made.fresh()
        os.utime(put(behind / "f"), (1, 1))
        in_child(lambda: os.utime(through / "f"))
        return (behind / "f").stat()
