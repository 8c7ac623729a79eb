"""cache=none: what a path costs, and that whatever changes behind the mount is seen at once."""

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import serving
from core.table import attempt, in_child, opened, user

ROUNDS = 50
# Looks a path up until it is killed.
WALK = """
import os, sys
while True: os.stat(sys.argv[1])
"""
# Makes a file and removes it until it is killed.
COME_AND_GO = """
import os, sys
while True:
    os.close(os.open(sys.argv[1], os.O_CREAT | os.O_WRONLY, 0o644))
    os.unlink(sys.argv[1])
"""


def _make_tree(directory: Path) -> None:
    (directory / "src" / "a" / "b").mkdir(parents=True)
    (directory / "src" / "a" / "b" / "f").write_text("text")


def test_each_walk_asks_for_everything(directory: Path) -> None:
    """Three lookups, the attributes of three directories that the caller searches, and of the file."""
    _make_tree(directory)
    with serving.serve(directory, "walk", options="cache=none") as served:

        def stat_once() -> int:
            before = served.counters()["requests"]
            (served.path / "a" / "b" / "f").stat()
            return served.counters()["requests"] - before

        assert in_child(lambda: {stat_once() for _ in range(ROUNDS)}) == {7}


def test_who_may_create_never_finds_a_name_missing_that_comes_and_goes_behind(directory: Path) -> None:
    with serving.serve(directory, "comes-and-goes", options="cache=none") as served:
        words = [sys.executable, "-c", COME_AND_GO, str(served.src / "f")]

        def create() -> None:
            os.close(os.open(served.path / "f", os.O_CREAT | os.O_WRONLY, 0o644))

        with subprocess.Popen(words) as other:
            try:

                def create_often() -> set[object]:
                    return {attempt(create) for _ in range(10_000)}

                assert in_child(create_often, seconds=60) == {None}
            finally:
                other.kill()


def test_a_change_behind_the_mount_is_seen_at_once_beside_others_that_walk_there(directory: Path) -> None:
    """The kernel takes the answer that comes first, of lookups that overlap: see decision 14."""
    _make_tree(directory)
    with serving.serve(directory, "beside", options="cache=none") as served, contextlib.ExitStack() as stack:
        behind, seen = served.src / "a", served.path / "a"
        for _ in range(3):
            walker = subprocess.Popen([sys.executable, "-c", WALK, seen / "b" / "f"])
            stack.callback(walker.wait)
            stack.callback(walker.kill)

        def change_often() -> int:
            wrong = 0
            for count in range(5000):
                mode = 0o700 + count % 64
                behind.chmod(mode)
                wrong += seen.stat().st_mode & 0o777 != mode
            return wrong

        assert in_child(change_often, seconds=60) == 0


def test_a_directory_that_changes_behind_the_mount_is_seen_at_once_by_its_path(directory: Path) -> None:
    _make_tree(directory)
    with serving.serve(directory, "behind", options="cache=none") as served:
        behind, seen = served.src / "a", served.path / "a"

        def change(mode: int) -> tuple[int, int, str | bytes]:
            behind.chmod(mode)
            (behind / f"d{mode}").mkdir(exist_ok=True)
            st = seen.stat()
            with user(1000):
                said = attempt((seen / "b" / "f").read_bytes)
            (behind / f"d{mode}").rmdir()
            return st.st_mode & 0o777, st.st_nlink, said

        def change_often() -> set[tuple[int, int, str | bytes]]:
            return {change(mode) for _ in range(ROUNDS) for mode in (0o755, 0o700)}

        assert in_child(change_often) == {(0o755, 4, b"text"), (0o700, 4, "EACCES")}


def test_a_file_that_changes_behind_the_mount_is_seen_at_once_by_its_descriptor(directory: Path) -> None:
    """Right after a lookup, too: what a lock protects is known to who gets the lock."""
    _make_tree(directory)
    with serving.serve(directory, "file", options="cache=none") as served:

        def append_often() -> list[int]:
            path = served.path / "a" / "b" / "f"
            sizes = []
            with (
                opened(path, os.O_RDONLY) as fd,
                opened(served.src / "a" / "b" / "f", os.O_WRONLY | os.O_APPEND) as behind,
            ):
                for _ in range(ROUNDS):
                    path.stat()
                    os.write(behind, b"x")
                    sizes.append(os.fstat(fd).st_size)
            return sizes

        assert in_child(append_often) == list(range(5, 5 + ROUNDS))
