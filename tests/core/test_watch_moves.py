"""`--cache watch`: what the mount itself moves is what the kernel takes it for, even if it just changed."""

import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import support
from core.watched import AGAIN_SECONDS, has, settled, watched


def test_own_moves_are_not_told_back_while_names_change_elsewhere(directory: Path) -> None:
    with watched(directory) as served:
        for name in ("mine", "theirs"):
            (served.path / name).mkdir()
        for number in range(100):
            (served.path / "mine" / f"f{number}").touch()
        os.listdir(served.path / "theirs")
        settled(served)
        before = served.counters()

        (served.src / "theirs" / "f").touch()
        support.wait_until(lambda: served.counters()["changes_behind"] > before["changes_behind"])
        for number in range(100):
            (served.path / "mine" / f"f{number}").rename(served.path / "mine" / f"g{number}")
        settled(served)

        told = served.counters()["notifications"] - before["notifications"]
        assert 0 < told < 20  # of "theirs", and that again


@pytest.mark.parametrize("make", [Path.mkdir, Path.touch])
def test_what_is_renamed_as_soon_as_it_changed_behind_is_what_it_became(
    directory: Path, make: Callable[[Path], None]
) -> None:
    """The kernel, which has not been told yet, takes along what had the name before."""
    with watched(directory) as served:
        places = [Path(f"d{number}") for number in range(8)]
        for place in places:
            (served.src / place).mkdir()
            for name in ("a", "other"):
                make(served.src / place / name)
        for place in places:
            (served.path / place / "a").stat()
            settled(served)
            (served.path / place / "a").stat()
            (served.src / place / "just now").touch()  # the watch pauses behind it

            (served.src / place / "other").rename(served.src / place / "a")
            (served.path / place / "a").rename(served.path / place / "b")

        for place in places:
            inode = (served.src / place / "b").stat().st_ino
            support.wait_until(partial(has, served.path / place / "b", "st_ino", inode))


def _exchange(a: Path, b: Path) -> None:
    spare = a.with_name("spare")
    for old, new in ((a, spare), (b, a), (spare, b)):
        old.rename(new)


def _leave_a_directory_that_goes(path: Path, src: Path) -> None:
    _exchange(src / "a" / "x", src / "a" / "z")
    (path / "a" / "x").rename(path / "b" / "y")
    (path / "a" / "z").unlink()
    (path / "a").rmdir()


def _leave_a_name_that_was_left_before(path: Path, src: Path) -> None:
    """The first move and the last are of one thread, name and file."""
    (path / "a" / "x").unlink()
    (path / "a" / "z").rename(path / "a" / "x")
    (path / "a" / "x").rename(path / "a" / "z")
    (path / "a" / "x").touch()
    _exchange(src / "a" / "x", src / "a" / "z")
    (path / "a" / "x").rename(path / "b" / "y")


@pytest.mark.parametrize("move", [_leave_a_directory_that_goes, _leave_a_name_that_was_left_before])
def test_what_is_moved_as_soon_as_it_changed_behind_is_what_it_became_whatever_comes_between(
    directory: Path, move: Callable[[Path, Path], None]
) -> None:
    with watched(directory) as served:
        places = [f"p{number}" for number in range(8)]
        for place in places:
            for name in "ab":
                (served.path / place / name).mkdir(parents=True)
            for name in "xz":
                (served.path / place / "a" / name).touch()
        for place in places:
            time.sleep(AGAIN_SECONDS)  # until no move is told any more for what changed in another place
            (served.path / place / "a" / "x").stat()
            (served.src / place / "just now").touch()  # the watch pauses behind it

            move(served.path / place, served.src / place)

        for place in places:
            inode = (served.src / place / "b" / "y").stat().st_ino
            support.wait_until(partial(has, served.path / place / "b" / "y", "st_ino", inode))
