"""`--cache watch`: the kernel keeps what it was told without end, and is told of changes behind the mount.
A change counts as seen when it is there within the deadline of `wait_until`."""

import mmap
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
import serving
import support
from core import scenarios_users
from core.table import in_child
from core.watched import AGAIN_SECONDS, MODES, has, is_stopped, requests_of, settled, watched

# ------------------------------------------------------------------------------ it is cached


def test_nothing_is_asked_for_twice(directory: Path) -> None:
    (directory / "src" / "d" / "e").mkdir(parents=True)
    (directory / "src" / "d" / "e" / "f").write_text("text")
    with watched(directory, "cache=watch,ttl=0") as served:
        deep = served.path / "d" / "e"

        def look() -> None:
            assert (deep / "f").stat().st_size == 4
            assert deep.stat().st_nlink == 2

        look()
        before = settled(served)
        for _ in range(5):
            look()

        assert requests_of(served) == before


@pytest.mark.parametrize("options", ["cache=watch", "ttl=60"])
def test_the_time_of_change_that_chattr_leaves_is_seen(directory: Path, options: str) -> None:
    with watched(directory, options) as served:
        (served.path / "f").touch()
        assert (served.path / "f").stat().st_ctime_ns == (served.src / "f").stat().st_ctime_ns
        time.sleep(0.02)  # more than the tick by which a file system tells the time

        support.run("chattr", "+d", served.path / "f")

        changed = (served.src / "f").stat().st_ctime_ns
        support.wait_until(lambda: (served.path / "f").stat().st_ctime_ns == changed)


def test_a_listing_is_kept(directory: Path) -> None:
    with watched(directory) as served:
        for number in range(200):
            (served.src / f"f{number}").touch()
        settled(served)
        os.listdir(served.path)
        os.listdir(served.path)
        before = settled(served)

        assert len(os.listdir(served.path)) == 200

        assert requests_of(served) - before <= 2  # OPENDIR, RELEASEDIR


def test_own_changes_are_not_told_back(directory: Path) -> None:
    with watched(directory, "cache=watch,nopassthrough") as served:
        for number in range(100):
            path = served.path / f"f{number}"
            path.write_text("x")
            path.rename(served.path / f"g{number}")
            (served.path / f"g{number}").chmod(0o600)
        settled(served)

        assert served.counters()["changes_behind"] == 0
        assert served.counters()["notifications"] == 0


def test_what_a_filter_hooks_is_not_kept(directory: Path) -> None:
    with serving.serve(directory, "hooked", filters=["audit"], options="cache=watch") as served:
        (served.src / "f").write_text("x")
        (served.path / "f").stat()
        before = settled(served)

        (served.path / "f").stat()

        assert requests_of(served) > before


# ------------------------------------------------------------------------------ it is told


@pytest.mark.parametrize("options", MODES)
def test_content_and_size_are_seen(directory: Path, options: str) -> None:
    with watched(directory, options) as served:
        (served.src / "f").write_text("old")
        assert (served.path / "f").read_text() == "old"
        assert (served.path / "f").stat().st_size == 3

        (served.src / "f").write_text("new, longer")

        support.wait_until(lambda: (served.path / "f").stat().st_size == len("new, longer"))
        assert (served.path / "f").read_text() == "new, longer"


def test_content_of_the_same_size_and_time_is_seen(directory: Path) -> None:
    with watched(directory, "cache=watch,nopassthrough") as served:
        (served.src / "f").write_text("before")
        with (served.path / "f").open() as file:
            assert file.read() == "before"
            was = (served.src / "f").stat()

            (served.src / "f").write_text("behind")
            os.utime(served.src / "f", ns=(was.st_atime_ns, was.st_mtime_ns))

            def sees() -> bool:
                file.seek(0)
                return file.read() == "behind"

            support.wait_until(sees)


def test_attributes_are_seen(directory: Path) -> None:
    with watched(directory) as served:
        (served.src / "f").touch()
        (served.src / "d").mkdir()
        for name in ("f", "d"):
            (served.path / name).stat()
            (served.src / name).chmod(0o700)
            os.chown(served.src / name, 12, 34)
        for path in (served.path / "f", served.path / "d"):
            support.wait_until(partial(has, path, "st_gid", 34))
            assert path.stat().st_mode & 0o777 == 0o700


def test_suid_that_goes_with_a_write_is_gone_at_once(directory: Path, bare: Path) -> None:
    act = scenarios_users.suid_is_seen_to_be_gone_by_who_asks_for_the_mode_alone
    with watched(directory) as served:
        assert in_child(act, served.path) == in_child(act, bare)


def test_an_acl_that_is_changed_behind_is_heeded(directory: Path) -> None:
    with watched(directory) as served:
        (served.src / "f").write_text("x")
        (served.src / "f").chmod(0o600)
        assert support.run("cat", served.path / "f", user=1000, check=False).returncode != 0

        support.run("setfacl", "-m", "u:1000:r", served.src / "f")

        support.wait_until(
            lambda: support.run("cat", served.path / "f", user=1000, check=False).returncode == 0
        )


def test_names_that_come_and_go_are_seen(directory: Path) -> None:
    with watched(directory) as served:
        (served.src / "gone").touch()
        (served.src / "dir").mkdir()
        (served.src / "dir" / "moved").write_text("moved")
        assert sorted(os.listdir(served.path)) == ["dir", "gone"]
        assert not (served.path / "new").exists()
        assert (served.path / "gone").exists()
        assert (served.path / "dir" / "moved").exists()

        (served.src / "gone").unlink()
        (served.src / "new").touch()
        (served.src / "dir" / "moved").rename(served.src / "here")

        support.wait_until(lambda: sorted(os.listdir(served.path)) == ["dir", "here", "new"])
        support.wait_until(lambda: not (served.path / "gone").exists())
        support.wait_until(lambda: not (served.path / "dir" / "moved").exists())
        assert (served.path / "here").read_text() == "moved"
        assert (served.path / "new").exists()
        assert os.listdir(served.path / "dir") == []


def test_link_counts_are_seen_under_every_name(directory: Path) -> None:
    with watched(directory) as served:
        (served.src / "a").touch()
        os.link(served.src / "a", served.src / "b")
        for name in ("a", "b", "a"):
            assert (served.path / name).stat().st_nlink == 2

        os.link(served.src / "a", served.src / "c")
        for name in ("a", "b"):
            support.wait_until(partial(has, served.path / name, "st_nlink", 3))
        (served.src / "a").unlink()
        support.wait_until(lambda: not (served.path / "a").exists())
        support.wait_until(lambda: (served.path / "b").stat().st_nlink == 2)


def test_a_directory_that_moved_is_one_and_the_same(directory: Path) -> None:
    with watched(directory) as served:
        (served.src / "a" / "sub").mkdir(parents=True)
        (served.src / "b").mkdir()
        (served.src / "a" / "sub" / "f").write_text("x")
        fd = os.open(served.path / "a" / "sub", os.O_RDONLY)
        try:
            (served.src / "a" / "sub").rename(served.src / "b" / "sub")

            support.wait_until((served.path / "b" / "sub").exists)
            support.wait_until(lambda: not (served.path / "a" / "sub").exists())
            assert os.stat(fd).st_ino == (served.path / "b" / "sub").stat().st_ino
            assert os.listdir(fd) == ["f"]
        finally:
            os.close(fd)


def test_a_file_that_is_deleted_behind_gives_its_space_back(directory: Path, ext4: Path) -> None:
    (directory / "src").symlink_to(ext4)
    with watched(directory) as served:
        (ext4 / "large").write_bytes(bytes(8 << 20))
        (served.path / "large").read_bytes()
        free = os.statvfs(ext4).f_bfree

        (ext4 / "large").unlink()

        support.wait_until(lambda: os.statvfs(ext4).f_bfree - free > 1000)


def test_a_file_that_is_written_by_mmap_through_the_mount(directory: Path) -> None:
    with watched(directory) as served:
        (served.src / "f").write_bytes(bytes(4096))
        os.utime(served.src / "f", (1, 1))
        assert (served.path / "f").stat().st_mtime == 1
        with (served.path / "f").open("r+b") as file, mmap.mmap(file.fileno(), 4096) as data:
            data[0] = 65
            assert (served.src / "f").stat().st_mtime > 1
            support.wait_until(lambda: (served.path / "f").stat().st_mtime > 1)
            data[1] = 66
        support.wait_until(
            lambda: (served.path / "f").stat().st_mtime_ns == (served.src / "f").stat().st_mtime_ns
        )


def test_times_of_a_file_that_is_passed_through_are_kept_right(directory: Path) -> None:
    with watched(directory) as served:
        (served.src / "f").touch()
        with (served.path / "f").open("ab", buffering=0) as file:
            for size in range(1, 20):
                file.write(b"x")
                assert (served.path / "f").stat().st_size == size
        was = (served.path / "f").stat(), (served.src / "f").stat()
        assert was[0].st_mtime_ns == was[1].st_mtime_ns


def test_what_this_very_process_changes_is_seen(directory: Path) -> None:
    """The process that embeds the mount is not the mount."""
    program = """
import os, sys, time, trio, fusebpf
async def main():
    async with fusebpf.Stack(sys.argv[1], sys.argv[2], cache="watch", name=sys.argv[3]):
        def work():
            os.stat(sys.argv[2] + "/f")
            open(sys.argv[1] + "/f", "w").write("changed")
            end = time.monotonic() + 10
            while os.stat(sys.argv[2] + "/f").st_size != 7 and time.monotonic() < end:
                time.sleep(0.01)
            print(os.stat(sys.argv[2] + "/f").st_size)
        await trio.to_thread.run_sync(work)
trio.run(main)
"""
    for name in ("src", "mnt"):
        (directory / name).mkdir()
    (directory / "src" / "f").touch()
    python = support.CHECKOUT / ".venv/bin/python"
    words = ["-c", program, str(directory / "src"), str(directory / "mnt"), f"test{os.getpid()}-embedded"]

    assert support.run(python, *words, seconds=40).stdout == "7\n"


def test_an_overflow_invalidates_everything(directory: Path) -> None:
    most = int(Path("/proc/sys/fs/fanotify/max_queued_events").read_text())
    with watched(directory) as served:
        (served.src / "d").mkdir()
        (served.src / "f").touch()
        (served.path / "f").stat()
        (served.path / "d").stat()
        os.kill(served.pid, signal.SIGSTOP)
        try:
            support.wait_until(lambda: is_stopped(served.pid))
            for number in range(most):  # two events each: what befell the name, and a change of its links
                place = served.src / "d" / str(number)
                place.touch()
                place.unlink()
            (served.src / "f").write_text("changed when nobody was told")
        finally:
            os.kill(served.pid, signal.SIGCONT)

        support.wait_until(lambda: served.counters()["watch_overflows"] > 0)
        support.wait_until(lambda: (served.path / "f").stat().st_size > 0)
        assert os.listdir(served.path / "d") == []


def test_what_changes_is_seen_while_an_invalidation_waits_for_what_it_cannot_find(directory: Path) -> None:
    (directory / "src").mkdir()
    (directory / "src" / "f").touch(0o600)
    (directory / "src" / "linked").hardlink_to(directory / "src" / "f")
    (directory / "src" / "other").touch(0o600)
    with watched(directory) as served, ThreadPoolExecutor(1) as pool:
        (served.path / "linked").stat()  # one of several names: it is kept for a second
        (served.path / "other").stat()
        told = pool.submit(served.invalidate)
        n_seen = 0
        for mode in range(0o100601, 0o100700):
            (served.src / "other").chmod(mode)
            support.wait_until(partial(has, served.path / "other", "st_mode", mode))
            if told.done():
                break
            n_seen += 1

        told.result(10)

        assert n_seen > 2


@pytest.mark.parametrize("options", MODES)
def test_what_is_changed_in_one_of_two_places_is_seen_in_the_other(directory: Path, options: str) -> None:
    one, two = directory / "src" / "one", directory / "src" / "two"
    one.mkdir(parents=True)
    two.mkdir()
    for name in ("changed", "removed", "moved"):
        (one / name).write_text("old")
    support.run("mount", "--bind", one, two)
    try:
        with watched(directory, options) as served:
            here, there = served.path / "one", served.path / "two"
            for _ in range(2):  # the second time from what is kept
                assert [path.stat().st_size for path in there.iterdir()] == [3, 3, 3]
            (here / "changed").write_text("newer")
            (here / "changed").chmod(0o600)
            (here / "removed").unlink()
            (here / "moved").rename(here / "here")

            support.wait_until(lambda: has(there / "changed", "st_size", 5))
            support.wait_until(lambda: has(there / "changed", "st_mode", 0o100600))
            support.wait_until(lambda: sorted(os.listdir(there)) == ["changed", "here"])
            support.wait_until(lambda: not (there / "removed").exists())
            assert (there / "here").read_text() == "old"
    finally:
        support.umount(two, support.MNT_DETACH)


# ---------------------------------------------------------------------- where it cannot be


def test_what_is_mounted_below_behind_is_seen(directory: Path) -> None:
    with watched(directory) as served:
        (served.src / "sub").mkdir()
        assert os.listdir(served.path / "sub") == []
        support.run("mount", "-t", "tmpfs", "tmpfs", served.src / "sub")
        try:
            (served.src / "sub" / "inside").touch()

            support.wait_until(lambda: os.listdir(served.path / "sub") == ["inside"])
            (served.src / "sub" / "inside").unlink()
            support.wait_until(lambda: os.listdir(served.path / "sub") == [])
        finally:
            support.run("umount", "-l", served.src / "sub")
        (served.src / "sub" / "below").touch()
        support.wait_until(lambda: os.listdir(served.path / "sub") == ["below"])


def test_a_name_that_changed_is_told_again_for_whoever_was_just_being_answered(directory: Path) -> None:
    with watched(directory) as served:
        for name in "fg":
            (served.src / name).write_text(name)
            assert (served.path / name).read_text() == name
        settled(served)

        (served.src / "f").rename(served.src / "g")

        support.wait_until(lambda: (served.path / "g").read_text() == "f")
        time.sleep(0.2)  # until it was told again for the first time
        (served.path / "g").stat()
        before = requests_of(served)
        time.sleep(AGAIN_SECONDS)
        (served.path / "g").stat()
        assert requests_of(served) > before
        before = settled(served)
        (served.path / "g").stat()
        assert requests_of(served) == before


def test_a_backing_root_that_cannot_be_watched_is_refused(directory: Path, mount: support.Mounter) -> None:
    below = mount()
    target = directory / "target"
    target.mkdir()

    done = support.run(
        *(support.COMMAND, "mount", below.path, target, "--cache", "watch", "--name", "test-unwatched"),
        check=False,
    )

    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "fanotify cannot watch the backing root, so use --cache normal" in done.stderr
    assert target not in support.mountpoints(directory)
