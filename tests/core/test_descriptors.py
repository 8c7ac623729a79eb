"""Many inodes, few descriptors; and nothing is left when the kernel forgets."""

import contextlib
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import serving
import support
from core.table import OLD, attempt, facts, in_child, link_fd, opened, user

SMALL = 128
FORGET = Path("/proc/sys/vm/drop_caches")
# Has 4 files open, and reads all there are.
SHARE = """
import os, sys
path = sys.argv[1]
held = [open(f"{path}/held{sys.argv[2]}-{index}", "w") for index in range(4)]
for _ in range(5):
    for top, _, names in os.walk(path):
        for name in names: open(os.path.join(top, name)).read()
"""


def make_files(directory: Path, count: int) -> None:
    """Files of their own inode each, in several directories."""
    for part in range(10):
        (directory / f"part{part}").mkdir(parents=True)
        for index in range(count // 10):
            (directory / f"part{part}" / f"f{index}").write_bytes(b"%d" % index)


def stat_all(top: Path) -> int:
    """How many files lie below a directory; each is looked up."""
    return sum(
        len([os.stat(os.path.join(place, name)) for name in names]) for place, _, names in os.walk(top)
    )


def work_on_unlinked(p: Path) -> Any:
    """What an unlinked open file and a removed directory still do, when many others were looked up."""
    os.mkdir(p / "dead")
    with opened(p / "f", os.O_CREAT | os.O_RDWR) as fd, opened(p / "dead", os.O_RDONLY) as d:
        os.write(fd, b"0123456789")
        os.link(p / "f", p / "g")
        os.unlink(p / "f")
        os.unlink(p / "g")
        os.rmdir(p / "dead")
        n_found = stat_all(p / "many")
        results = [
            attempt(os.pwrite, fd, b"AB", 3),
            attempt(os.ftruncate, fd, 7),
            attempt(os.fchmod, fd, 0o640),
            attempt(os.fchown, fd, 1, 2),
            attempt(os.utime, fd, ns=(OLD, OLD)),
            attempt(os.fchmod, d, 0o711),
        ]
        return n_found, results, os.pread(fd, 100, 0), facts(fd), facts(d)


@pytest.mark.parametrize("options", ["", "nopassthrough"])
def test_unlinked_open_files_work_on_with_few_descriptors(directory: Path, bare: Path, options: str) -> None:
    make_files(bare / "many", 2000)
    make_files(directory / "src" / "many", 2000)
    expected = in_child(work_on_unlinked, bare, seconds=30)

    with serving.serve(directory, "unlinked", options=options, n_files=SMALL) as served:
        assert expected == in_child(work_on_unlinked, served.path, seconds=30)
        assert served.counters()["inodes"] >= 2000
        assert served.n_descriptors() < SMALL


@pytest.mark.alone
def test_many_inodes_are_forgotten_by_few_requests(directory: Path) -> None:
    make_files(directory / "src" / "many", 2000)

    def forget(served: serving.Served) -> bool:
        """Let the kernel forget all, and say whether it was told in batches."""
        stat_all(served.path / "many")
        before = served.counters()
        FORGET.write_text("2")
        support.wait_until(lambda: served.counters()["inodes"] < 100, 20)
        return served.counters()["requests"] - before["requests"] < before["inodes"] // 2

    with serving.serve(directory, "batch") as served:
        # FORGETs are sent in batches when more of them wait than a worker has taken, so for nearly all.
        support.wait_until(lambda: forget(served), 60)


def test_a_tree_larger_than_the_descriptor_limit_is_changed_and_removed(directory: Path) -> None:
    make_files(directory / "src", 1000)

    def change(p: Path) -> Any:
        n = stat_all(p)
        for top, dirs, files in os.walk(p, topdown=False):
            for name in files:
                path = os.path.join(top, name)
                os.chmod(path, 0o600)
                os.rename(path, path + ".renamed")
                os.truncate(path + ".renamed", 1)
                os.unlink(path + ".renamed")
            for name in dirs:
                os.rmdir(os.path.join(top, name))
        return n, os.listdir(p)

    with serving.serve(directory, "change", n_files=SMALL) as served:
        assert in_child(change, served.path, seconds=30) == (1000, [])
        assert served.n_descriptors() < SMALL


def test_stat_of_3000_files_leaves_half_of_the_descriptors(directory: Path) -> None:
    make_files(directory / "src", 3000)

    with serving.serve(directory, "stat", n_files=512) as served:
        assert in_child(stat_all, served.path, seconds=30) == 3000

        counters = served.counters()
        assert counters["inodes"] > 3000
        assert counters["descriptors"] <= 256
        assert served.n_descriptors() <= 256 + 64


@pytest.mark.parametrize(
    ("options", "is_kept"), [("", True), ("cache=none", False), ("nodefault_permissions", False)]
)
def test_a_listing_looks_nothing_up_that_the_kernel_would_not_keep(
    directory: Path, options: str, is_kept: bool
) -> None:
    make_files(directory / "src", 1000)

    def list_one(p: Path) -> int:
        return len(os.listdir(p / "part3"))

    with serving.serve(directory, "list", options=options) as served:
        assert in_child(list_one, served.path) == 100
        assert (served.counters()["inodes"] > 100) == is_kept
        assert in_child(stat_all, served.path, seconds=30) == 1000


@pytest.mark.parametrize("what", ["directories", "files"])
def test_open_files_take_the_descriptors_of_what_is_only_known(directory: Path, what: str) -> None:
    """A server that may have 256, half of them for what is known: 150 can be open at once."""
    make_files(directory / "src", 1000)
    for index in range(150):
        (directory / "src" / f"d{index}").mkdir()
        (directory / "src" / f"d{index}" / "f").write_bytes(b"%d" % index)

    def open_all(p: Path) -> int:
        stat_all(p)
        with contextlib.ExitStack() as stack:
            for index in range(150):
                d = p / f"d{index}"
                if what == "directories":
                    stack.enter_context(opened(d, os.O_RDONLY | os.O_DIRECTORY))
                else:
                    stack.enter_context(opened(d / "f", os.O_RDWR))
            return stat_all(p)

    with serving.serve(directory, "open", n_files=256) as served:
        assert in_child(open_all, served.path, seconds=30) == 1150


def test_many_at_once_share_few_descriptors(directory: Path) -> None:
    """What ops hold for a moment has room too: of 128, while 8 processes have 4 files open each."""
    make_files(directory / "src", 1000)

    with serving.serve(directory, "share", n_files=SMALL) as served:
        words = [(sys.executable, "-c", SHARE, served.path, str(number)) for number in range(8)]
        with support.clients(*words) as clients:
            assert [client.wait(60) for client in clients] == [0] * 8


def test_users_reach_files_whose_descriptors_were_closed(directory: Path) -> None:
    make_files(directory / "src", 2000)

    def read_all_as_user(p: Path) -> Any:
        stat_all(p)
        with user(1000):
            return [attempt(lambda i=i: (p / f"part{i}" / "f1").read_bytes()) for i in range(10)], stat_all(p)

    with serving.serve(directory, "users", options="nodefault_permissions", n_files=SMALL) as served:
        assert in_child(read_all_as_user, served.path, seconds=30) == ([b"1"] * 10, 2000)


@pytest.mark.parametrize("options", ["", "nopassthrough"])
def test_unnamed_files_that_got_a_name_hold_no_descriptors(directory: Path, options: str) -> None:
    def make(p: Path) -> Any:
        for index in range(3 * SMALL):
            with opened(p, os.O_TMPFILE | os.O_RDWR) as fd:
                os.write(fd, b"%d" % index)
                link_fd(fd, p / f"f{index}")
        return sum((p / f"f{index}").read_bytes() == b"%d" % index for index in range(3 * SMALL))

    with serving.serve(directory, "named", options=options, n_files=SMALL) as served:
        assert in_child(make, served.path, seconds=30) == 3 * SMALL
        assert served.counters()["inodes"] > 3 * SMALL
        assert served.counters()["descriptors"] <= SMALL // 2


@pytest.mark.alone
@pytest.mark.parametrize("filters", [[], ["audit"]], ids=["plain", "audited"])
def test_nothing_is_left_when_all_is_closed_and_forgotten(directory: Path, filters: list[str]) -> None:
    def work(p: Path) -> None:
        for index in range(300):
            with opened(p / f"f{index}", os.O_CREAT | os.O_RDWR) as fd:
                os.write(fd, b"x")
            attempt(os.stat, p / f"missing{index}")
            attempt(os.open, p / f"f{index}", os.O_CREAT | os.O_EXCL)
        os.listdir(p)
        stat_all(p)
        for index in range(0, 300, 2):
            os.unlink(p / f"f{index}")
        os.link(p / "f1", p / "link")
        os.rename(p / "f3", p / "f5")

    with serving.serve(directory, "leaks", filters=filters) as served:
        n_before = served.n_descriptors()
        in_child(work, served.path, seconds=30)
        assert served.counters()["inodes"] > 100

        def is_forgotten() -> bool:
            FORGET.write_text("2")
            return served.counters()["inodes"] == 1

        support.wait_until(is_forgotten)
        counters = served.counters()
        assert counters["handles"] == 0
        assert counters["slots_in_use"] == 0
        assert counters["failed_closed"] == 0
        assert counters["descriptors"] <= 1
        support.wait_until(lambda: served.n_descriptors() <= n_before + counters["workers"])


def test_inode_numbers_are_those_of_the_backing_root(variant: Any) -> None:
    mounted = variant.mounted
    place = mounted.src / "numbers"
    (place / "d").mkdir(parents=True)
    (place / "f").write_text("x")

    for name in (".", "d", "f"):
        assert (place / name).stat().st_ino == (mounted.path / "numbers" / name).stat().st_ino


def test_what_changes_behind_the_mount_is_seen(variant: Any) -> None:
    mounted = variant.mounted
    place, behind = mounted.path / "behind", mounted.src / "behind"
    behind.mkdir()
    (behind / "f").write_text("first")
    assert (place / "f").read_text() == "first"

    (behind / "f").write_text("second, longer")
    (behind / "g").write_text("new")

    assert (place / "f").read_text() == "second, longer"
    assert (place / "g").read_text() == "new"
    assert sorted(os.listdir(place)) == ["f", "g"]
    (behind / "f").unlink()
    assert os.listdir(place) == ["g"]
    support.wait_until(lambda: not (place / "f").exists())


def test_where_there_are_no_file_handles_the_kernel_is_asked_to_let_go(directory: Path) -> None:
    """On an overlay each inode that the kernel knows holds a descriptor."""
    layers, src = directory / "layers", directory / "src"
    layers.mkdir()
    support.run("mount", "-t", "tmpfs", "tmpfs", layers)
    try:
        make_files(layers / "lower", 10 * SMALL)
        for name in ("upper", "work"):
            (layers / name).mkdir()
        src.mkdir()
        places = f"lowerdir={layers}/lower,upperdir={layers}/upper,workdir={layers}/work"
        support.run("mount", "-t", "overlay", "overlay", "-o", places, src)

        def work(p: Path) -> Any:
            with opened(p / "part0" / "f0", os.O_RDONLY) as fd, opened(p / "part1", os.O_RDONLY) as part:
                n_found = stat_all(p)
                return n_found, os.pread(fd, 10, 0), os.fstat(fd).st_size, len(os.listdir(part)), stat_all(p)

        with serving.serve(directory, "overlay", n_files=4 * SMALL) as served:
            n = 10 * SMALL
            assert in_child(work, served.path, seconds=30) == (n, b"0", 1, n // 10, n)
            support.wait_until(lambda: served.counters()["descriptors"] <= 2 * SMALL)
    finally:
        support.umount(src, support.MNT_DETACH)
        support.umount(layers, support.MNT_DETACH)


def test_the_table_of_descriptors_is_large_enough_from_the_start(directory: Path) -> None:
    with serving.serve(directory, "table") as served:
        status = Path(f"/proc/{served.pid}/status").read_text()
        size = int(status.partition("FDSize:")[2].split()[0])
        assert size >= min(served.n_most_descriptors(), 65536)
