"""Listings that the kernel keeps for as long as all hooks on dirent let it, where it is told of changes."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import serving
import support
from chain.chained import Array, source

FILTER = """
FILTER(lister, .altitude = 500)
BPF_ARRAY(lister__ttl, u32, 1); /* ms */
BPF_ARRAY(lister__drops, u32, 1); /* entries that end so */

POST(lister, dirent)
{
    u32 zero = 0, *ttl = lister__ttl.lookup(&zero), *drops = lister__drops.lookup(&zero);
    u32 is_dropped = drops && *drops && fb_name_ends(ctx, "~");

    ctx->ttl_ns = ttl ? *ttl * 1000000ull : 0;
    ctx->edits = FB_EDIT_TTL;
    return (is_dropped ? FB_DROP : FB_CONTINUE) | FB_REWRITE;
}
"""
SILENT = """
FILTER(silent, .altitude = 400)
POST(silent, dirent) { return FB_CONTINUE; }
"""
WATCHED = "cache=watch"
A_MINUTE_MS, A_MOMENT_MS = 60_000, 300


class Listed:
    """A mount whose filter says how long listings may be kept, and a directory of it."""

    def __init__(self, served: serving.Served, name: str) -> None:
        self._pins = support.PINS / name / "lister"
        self._served = served
        self.path = served.path / "d"
        self.src = served.src / "d"

    def let(self, what: str, value: int) -> None:
        """Put a number into a map, as bpftool does: nobody is told."""
        array = Array(self._pins / what)
        array[0] = value
        array.close()

    def names(self) -> list[str]:
        return sorted(os.listdir(self.path))

    def n_asked(self) -> int:
        """Entries that the hook was asked of so far."""
        return sum(n for (_, _, op, _), n in self._served.stats().items() if op == "dirent")

    def is_kept(self) -> bool:
        """Whether the next listing asks nobody."""
        before = self.n_asked()
        self.names()
        return self.n_asked() == before

    def invalidate(self) -> None:
        self._served.invalidate()


@contextmanager
def listing(directory: Path, options: str = WATCHED, more: str = "") -> Iterator[Listed]:
    (directory / "src" / "d").mkdir(parents=True)
    for name in ("a", "b~", "c"):
        (directory / "src" / "d" / name).touch()
    filters = [source(directory, FILTER)]
    if more:
        filters.append(source(directory, more, "more"))
    with serving.serve(directory, "listed", filters=filters, options=options) as served:
        yield Listed(served, f"test{os.getpid()}-listed")


def _settle(listed: Listed) -> None:
    """What hooks say is learnt from one listing, and kept of the next one."""
    for _ in range(3):
        listed.names()


@pytest.fixture
def listed(directory: Path) -> Iterator[Listed]:
    with listing(directory) as made:
        made.let("ttl", A_MINUTE_MS)
        _settle(made)
        yield made


def test_a_listing_is_kept_while_its_time_lasts(listed: Listed) -> None:
    assert listed.is_kept()
    assert listed.names() == ["a", "b~", "c"]


def test_the_hook_is_asked_again_when_the_time_is_over(listed: Listed) -> None:
    listed.invalidate()
    listed.let("ttl", A_MOMENT_MS)
    _settle(listed)
    time.sleep(A_MOMENT_MS / 1000 + 0.2)  # what is told of is what time alone does
    listed.let("drops", 1)

    assert listed.names() == ["a", "c"]


def test_what_changes_behind_the_mount_is_seen_while_a_listing_is_kept(listed: Listed) -> None:
    (listed.src / "new").touch()

    support.wait_until(lambda: listed.names() == ["a", "b~", "c", "new"])


def test_what_changes_through_the_mount_is_seen_at_once(listed: Listed) -> None:
    (listed.path / "new").touch()
    (listed.path / "a").unlink()

    assert listed.names() == ["b~", "c", "new"]


def test_an_invalidation_has_the_hook_asked_again(listed: Listed) -> None:
    listed.let("drops", 1)
    assert listed.names() == ["a", "b~", "c"], "bpftool tells nobody"

    listed.invalidate()

    assert listed.names() == ["a", "c"]


def test_dropped_entries_stay_dropped_in_what_is_kept(listed: Listed) -> None:
    listed.let("drops", 1)
    listed.invalidate()
    _settle(listed)

    assert listed.is_kept()
    assert listed.names() == ["a", "c"]


def test_every_directory_has_its_own_time(listed: Listed) -> None:
    other = listed.path.parent / "other"
    other.mkdir()
    (other / "x~").touch()
    os.listdir(other)
    listed.let("drops", 1)

    assert listed.names() == ["a", "b~", "c"]
    other.joinpath("y").touch()  # so that it is listed anew
    assert os.listdir(other) == ["y"]


def test_without_a_ttl_nothing_is_kept(listed: Listed) -> None:
    listed.invalidate()
    listed.let("ttl", 0)
    _settle(listed)

    assert not listed.is_kept()


def test_one_hook_that_gives_none_is_enough(directory: Path) -> None:
    with listing(directory, more=SILENT) as listed:
        listed.let("ttl", A_MINUTE_MS)
        _settle(listed)

        assert not listed.is_kept()


@pytest.mark.parametrize("options", ["cache=normal", "cache=none"])
def test_nothing_is_kept_where_nobody_tells_of_changes(directory: Path, options: str) -> None:
    with listing(directory, options) as listed:
        listed.let("ttl", A_MINUTE_MS)
        _settle(listed)

        assert not listed.is_kept()


def test_a_part_of_a_listing_alone_is_not_kept(listed: Listed) -> None:
    listed.invalidate()
    with os.scandir(listed.path) as entries:
        next(entries)
    listed.let("drops", 1)

    assert listed.names() == ["a", "c"]


@contextmanager
def opened(path: Path) -> Iterator[int]:
    """A directory that stays open: `os.listdir` of it rewinds it."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield fd
    finally:
        os.close(fd)


def test_a_directory_that_is_open_is_listed_anew_when_the_time_is_over(listed: Listed) -> None:
    listed.invalidate()
    listed.let("ttl", A_MOMENT_MS)
    _settle(listed)
    with opened(listed.path) as fd:
        os.listdir(fd)
        listed.let("drops", 1)
        time.sleep(A_MOMENT_MS / 1000 + 0.2)  # what is told of is what time alone does

        assert sorted(os.listdir(fd)) == ["a", "c"]


def test_a_directory_that_was_opened_in_time_is_not_shown_as_it_was_after_it(listed: Listed) -> None:
    listed.invalidate()
    listed.let("ttl", A_MOMENT_MS)
    _settle(listed)
    with opened(listed.path) as fd:
        listed.let("drops", 1)
        time.sleep(A_MOMENT_MS / 1000 + 0.2)  # what is told of is what time alone does

        assert sorted(os.listdir(fd)) == ["a", "c"]


def test_a_directory_that_was_open_before_its_hooks_gave_no_time_is_not_kept(listed: Listed) -> None:
    with opened(listed.path) as fd:
        listed.let("ttl", 0)
        listed.invalidate()
        os.listdir(fd)
        listed.let("drops", 1)
        time.sleep(0.1)  # it is kept until the kernel has it all, 20 ms (cache.c: SHORTEST_LIST_MS)

        assert sorted(os.listdir(fd)) == ["a", "c"]


def test_a_directory_that_was_open_before_a_filter_came_is_judged_each_time(directory: Path) -> None:
    for name in ("src", "mnt"):
        (directory / name).mkdir()
    for name in ("a", "b~", "c"):
        (directory / "src" / name).touch()
    with serving.serve(directory, "listed", options=WATCHED) as served, opened(served.path) as fd:
        os.listdir(fd)
        support.run(support.COMMAND, "attach", served.path, source(directory, FILTER))
        os.listdir(fd)
        Listed(served, f"test{os.getpid()}-listed").let("drops", 1)
        time.sleep(0.1)  # it is kept until the kernel has it all, 20 ms (cache.c: SHORTEST_LIST_MS)

        assert sorted(os.listdir(fd)) == ["a", "c"]
