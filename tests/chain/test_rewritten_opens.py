"""Flags of an open that a filter rewrote hold for every read and write, which the kernel cannot know."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chain.chained import Chained, chained, source
from chain.test_io_modes import last_open
from core.table import attempt, in_child, opened, put

TEXT = """
FILTER(opens, .altitude = 500)
BPF_ARRAY(opens__change, u32, 3); /* flags to set, flags to take away, for which uid alone */

FB_ALWAYS_INLINE u32 number(u32 index)
{
	u32 *it = opens__change.lookup(&index);

	return it ? *it : 0;
}

FB_ALWAYS_INLINE int change(struct fb_slot *ctx, u32 *flags)
{
	u32 now = (*flags | number(0)) & ~number(1);

	if (now == *flags || (number(2) && ctx->uid != number(2)))
		return FB_CONTINUE;
	*flags = now;
	ctx->edits |= FB_EDIT_FLAGS;
	return FB_REWRITE;
}

PRE(opens, open) { return change(ctx, &ctx->args.open.flags); }
PRE(opens, create) { return change(ctx, &ctx->args.create.flags); }
"""
SET, TAKEN, USER = 0, 1, 2
NOBODY = 65534


@pytest.fixture(scope="module", params=["", "nopassthrough", "cache=watch"])
def opens(run_directory: Path, request: pytest.FixtureRequest) -> Iterator[Chained]:
    with chained(run_directory, [source(run_directory, TEXT, "opens")], options=request.param) as made:
        yield made


def overwrite(path: Path, flags: int) -> tuple[Any, bytes]:
    """Write over the beginning; what came of it, and what is read then."""
    path.read_bytes()
    with opened(path, flags) as fd:
        done = attempt(os.pwrite, fd, b"AB", 0)
    return done, path.read_bytes()


def test_each_write_appends_where_a_filter_says_so(opens: Chained) -> None:
    through, behind = opens.fresh()
    put(behind / "f", b"0123456789")

    with opens.map("opens/change").put(SET, os.O_APPEND):
        assert in_child(overwrite, through / "f", os.O_WRONLY) == (2, b"0123456789AB")
        assert in_child(overwrite, through / "f", os.O_RDWR) == (2, b"0123456789ABAB")


def test_a_file_that_is_made_is_appended_to_where_a_filter_says_so(opens: Chained) -> None:
    through, behind = opens.fresh()

    def make() -> None:
        with opened(through / "f", os.O_CREAT | os.O_RDWR) as fd:
            os.pwrite(fd, b"one", 0)
            os.pwrite(fd, b"two", 0)

    with opens.map("opens/change").put(SET, os.O_APPEND):
        in_child(make)
    assert (behind / "f").read_bytes() == b"onetwo"


def test_who_may_only_read_cannot_write(opens: Chained) -> None:
    through, behind = opens.fresh()
    put(behind / "f", b"0123456789")

    with opens.map("opens/change").put(TAKEN, os.O_RDWR):
        assert in_child(overwrite, through / "f", os.O_RDWR) == ("EBADF", b"0123456789")
        assert in_child(attempt, os.truncate, through / "f", 3) is None  # no open
    assert (behind / "f").read_bytes() == b"012"


def test_who_may_only_read_cannot_write_beside_another_who_may(opens: Chained) -> None:
    through, behind = opens.fresh()
    put(behind / "f", b"0123456789", 0o666)
    os.chmod(behind, 0o777)

    def beside() -> Any:
        with opened(through / "f", os.O_RDWR) as fd:
            os.setuid(NOBODY)
            said = attempt(overwrite, through / "f", os.O_RDWR)
            return said if isinstance(said, str) else said[0], os.pwrite(fd, b"x", 9)

    change = opens.map("opens/change")
    with change.put(TAKEN, os.O_RDWR), change.put(USER, NOBODY):
        said, written = in_child(beside)
    assert (said in {"EBUSY", "EBADF"}, written) == (True, 1)
    assert (behind / "f").read_bytes() == b"012345678x"


def test_who_may_do_more_than_he_asked_for_is_passed_through_still(opens: Chained) -> None:
    through, behind = opens.fresh()
    put(behind / "f", b"text")
    with opened(through / "f", os.O_RDONLY):
        plain = last_open(opens)

    with opens.map("opens/change").put(SET, os.O_RDWR):
        in_child((through / "f").read_bytes)

    assert last_open(opens) == plain


def test_a_copy_goes_over_nothing_where_a_filter_says_that_writes_append(opens: Chained) -> None:
    through, behind = opens.fresh()
    put(behind / "f", b"0123456789")
    put(behind / "new", b"ABC")

    def copy(path: Path, flags: int = 0) -> Any:
        with opened(path / "new", os.O_RDONLY) as old, opened(path / "f", os.O_WRONLY | flags) as fd:
            return attempt(os.copy_file_range, old, fd, 3, 0, 0)

    with opens.map("opens/change").put(SET, os.O_APPEND):
        said = in_child(copy, through)
    assert (behind / "f").read_bytes()[:10] == b"0123456789"
    assert said == copy(behind, os.O_APPEND) == "EBADF"
