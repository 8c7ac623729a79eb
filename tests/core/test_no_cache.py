"""cache=none: what a path costs, and that whatever changes behind the mount is seen at once."""

import os
from collections.abc import Sequence
from pathlib import Path

import pytest
import serving
from core.table import attempt, in_child, opened, user

ROUNDS = 50


def _make_tree(directory: Path) -> None:
    (directory / "src" / "a" / "b").mkdir(parents=True)
    (directory / "src" / "a" / "b" / "f").write_text("text")


@pytest.mark.parametrize(("filters", "n_most"), [([], 5), (["audit"], 7)], ids=["plain", "getattr is hooked"])
def test_what_a_lookup_said_of_a_directory_is_not_asked_for_again_by_the_same_walk(
    directory: Path, filters: Sequence[str], n_most: int
) -> None:
    """The root's attributes, three lookups, the file's; of the two directories only for a hook to see it."""
    _make_tree(directory)
    with serving.serve(directory, "walk", filters=filters, options="cache=none") as served:

        def stat_once() -> int:
            before = served.counters()["requests"]
            (served.path / "a" / "b" / "f").stat()
            return served.counters()["requests"] - before

        # The least: the clock's tick may end in the middle of one.
        assert min(in_child(lambda: [stat_once() for _ in range(ROUNDS)])) == n_most


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
