"""Mounts below the backing root: crossed, with inode numbers that stand for one file; or left out."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import serving
import support

FILLED = ("a", "b", "c")


@pytest.fixture
def tree(directory: Path) -> Iterator[Path]:
    """A source with two tmpfs below it, whose inode numbers are alike, and files in each."""
    src = directory / "src"
    (src / "one").mkdir(parents=True)
    (src / "two").mkdir()
    (src / "one" / "covered").touch()
    for name in ("one", "two"):
        support.run("mount", "-t", "tmpfs", "tmpfs", src / name)
        for each in FILLED:
            (src / name / each).write_text(f"{name}/{each}")
    (src / "plain").write_text("plain")
    yield src
    for name in ("one", "two"):
        support.umount(src / name, support.MNT_DETACH)


def numbers(top: Path) -> dict[str, int]:
    """Every entry below a directory and its inode number; the three ways to ask agree."""
    found = {}
    for place, _, _ in os.walk(top):
        for _ in range(3):  # the first listing comes with attributes, later ones without
            with os.scandir(place) as entries:
                listed = {entry.name: entry.inode() for entry in entries}
        for name, number in listed.items():
            path = Path(place, name)
            assert path.lstat().st_ino == number, path
            assert int(support.run("stat", "--format=%i", path).stdout) == number
            assert str(path) not in found
            found[str(path.relative_to(top))] = number
    return found


@pytest.mark.parametrize("options", ["", "cache=watch"])
def test_numbers_do_not_collide_and_those_of_the_root_are_unchanged(tree: Path, options: str) -> None:
    assert (tree / "one" / "a").stat().st_ino == (tree / "two" / "a").stat().st_ino

    with serving.serve(tree.parent, "numbers", options=options) as served:
        seen = numbers(served.path)

        assert len(seen) == 9
        assert len(set(seen.values())) == 9
        assert seen["plain"] == (tree / "plain").stat().st_ino
        assert (served.path / "one" / "a").read_text() == "one/a"
        assert (served.path / "two" / "a").read_text() == "two/a"
    with serving.serve(tree.parent, "numbers", options=options) as served:
        assert seen == numbers(served.path)


def test_work_in_a_mount_below(tree: Path) -> None:
    with serving.serve(tree.parent, "work") as served:
        (served.path / "one" / "new").write_text("new")
        (served.path / "one" / "new").rename(served.path / "one" / "renamed")
        os.link(served.path / "one" / "renamed", served.path / "one" / "linked")
        with pytest.raises(OSError, match="cross-device"):
            (served.path / "one" / "renamed").rename(served.path / "plain-too")

        assert (tree / "one" / "linked").read_text() == "new"
        assert sorted(os.listdir(served.path / "one")) == [*FILLED, "linked", "renamed"]


@pytest.mark.parametrize("options", ["", "cache=watch"])
def test_mounts_below_are_left_out(tree: Path, mount: support.Mounter, options: str) -> None:
    mounted = mount(tree, arguments=["--one-file-system"], options=options)

    assert os.listdir(mounted.path / "one") == ["covered"]
    assert os.listdir(mounted.path / "two") == []
    assert (mounted.path / "plain").read_text() == "plain"
    (mounted.path / "two" / "below").touch()
    assert sorted(os.listdir(tree / "two")) == [*FILLED]
    assert all(
        number == (mounted.path / name).stat().st_ino for name, number in numbers(mounted.path).items()
    )


def test_a_mount_that_comes_later_is_left_out_too(tree: Path, mount: support.Mounter) -> None:
    mounted = mount(tree, options="one_file_system,ttl=0")
    (tree / "later").mkdir()
    support.run("mount", "-t", "tmpfs", "tmpfs", tree / "later")
    try:
        (tree / "later" / "inside").touch()

        assert os.listdir(mounted.path / "later") == []
    finally:
        support.run("umount", tree / "later")
