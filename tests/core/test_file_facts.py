"""statx, the attributes of lsattr and chattr, other ioctls, poll: against the bare directory."""

import array
import fcntl
import os
import select
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import support
from core.comparing import compare, fresh
from core.table import attempt, in_child, opened, put, user
from core.variants import Variant

GETFLAGS, SETFLAGS = 0x80086601, 0x40086602
GETFLAGS_32, SETFLAGS_32 = 0x80046601, 0x40046602
FSGETXATTR, FSSETXATTR = 0x801C581F, 0x401C5820
APPEND, IMMUTABLE, NODUMP, NOATIME = 0x20, 0x10, 0x40, 0x80
UNKNOWN = 0x80046699
DEBUG_FILES = ("fault_around_bytes", "devices_deferred", "kvm/pages_2m", "clk/clk_summary")


@pytest.fixture(autouse=True)
def _unlocked(bare: Path) -> Iterator[None]:
    """Files that a test made immutable can be removed again."""
    yield
    support.run("chattr", "-R", "-ia", bare, check=False)


# ----------------------------------------------------------------------------------- statx


def test_a_file_has_its_time_of_birth(variant: Variant) -> None:
    through, behind = fresh(variant)
    (behind / "old").write_text("x")
    (through / "new").write_text("x")
    (through / "d").mkdir()
    (through / "link").symlink_to("new")

    for name in ("old", "new", "d", "link"):
        shown = "--format=%w %W %s %F %x"
        seen = [support.run("stat", shown, where / name).stdout for where in (through, behind)]
        assert seen[0] == seen[1]
        assert abs(int(seen[0].split()[3]) - time.time()) < 60


def test_an_unlinked_file_has_its_time_of_birth(variant: Variant, bare: Path) -> None:
    def act(p: Path) -> Any:
        put(p / "f")
        with opened(p / "f", os.O_RDONLY) as fd:
            (p / "f").unlink()
            born = int(support.run("stat", "--format=%W", f"/proc/{os.getpid()}/fd/{fd}", "-L").stdout)
            return abs(born - time.time()) < 60

    assert compare(variant, bare, act) is True


# ---------------------------------------------------------------------------- inode flags


def flags_of(fd: int) -> int:
    data = array.array("q", [0])
    fcntl.ioctl(fd, GETFLAGS, data)
    return data[0] & 0xFFFFFFFF


def test_flags_are_shown_and_set(variant: Variant, bare: Path) -> None:
    def act(p: Path) -> Any:
        (p / "d").mkdir()
        said = []
        for path in (put(p / "f"), p / "d"):
            with opened(path, os.O_RDONLY) as fd:
                old = flags_of(fd)
                fcntl.ioctl(fd, SETFLAGS, struct.pack("q", old | NODUMP | NOATIME))
                said.append((old, flags_of(fd)))
        return said

    compare(variant, bare, act)


def test_lsattr_and_chattr(variant: Variant) -> None:
    through, behind = fresh(variant)
    (behind / "f").write_text("x")

    support.run("chattr", "+d", through / "f")

    shown = [support.run("lsattr", where / "f").stdout.split()[0] for where in (through, behind)]
    assert shown[0] == shown[1]
    assert "d" in shown[0]


@pytest.mark.parametrize("flag", [APPEND, IMMUTABLE])
def test_append_only_and_immutable_files(variant: Variant, bare: Path, flag: int) -> None:
    def act(p: Path) -> Any:
        with opened(put(p / "f"), os.O_RDONLY) as fd:
            old = flags_of(fd)
            fcntl.ioctl(fd, SETFLAGS, struct.pack("q", old | flag))
            try:
                return (
                    flags_of(fd) & flag,
                    attempt(os.unlink, p / "f"),
                    attempt(os.open, p / "f", os.O_WRONLY),
                    attempt(os.truncate, p / "f", 0),
                )
            finally:
                fcntl.ioctl(fd, SETFLAGS, struct.pack("q", old))

    compare(variant, bare, act)


def test_a_user_may_set_no_flags_but_on_own_files(variant: Variant, bare: Path) -> None:
    def act(p: Path) -> Any:
        put(p / "own")
        os.chown(p / "own", 1000, 1000)
        os.chmod(put(p / "other"), 0o666)
        said = []
        with user(1000):
            for name in ("own", "other"):
                with opened(p / name, os.O_RDWR) as fd:
                    old = flags_of(fd)
                    said += [
                        attempt(fcntl.ioctl, fd, SETFLAGS, struct.pack("q", old | flag))
                        for flag in (NODUMP, IMMUTABLE)
                    ]
                    said.append(flags_of(fd))
        return said

    compare(variant, bare, act)


def test_xfs_attributes(variant: Variant, bare: Path) -> None:
    def act(p: Path) -> Any:
        with opened(put(p / "f"), os.O_RDONLY) as fd:
            old = attempt(fcntl.ioctl, fd, FSGETXATTR, bytes(28))
            if isinstance(old, str):
                return old
            nodump = struct.pack("I", struct.unpack("I", old[:4])[0] | 0x80) + old[4:]
            return old, attempt(fcntl.ioctl, fd, FSSETXATTR, nodump), fcntl.ioctl(fd, FSGETXATTR, bytes(28))

    compare(variant, bare, act)


def test_a_user_may_set_no_flags_by_the_number_for_programs_of_32_bits(variant: Variant, bare: Path) -> None:
    """In a program of 64 bits the kernel does not know that number, nor ask whether the caller may."""

    def act(p: Path) -> Any:
        os.chmod(put(p / "other"), 0o644)
        with user(1000), opened(p / "other", os.O_RDONLY) as fd:
            old = flags_of(fd)
            said = attempt(fcntl.ioctl, fd, SETFLAGS_32, struct.pack("i", old | NODUMP))
            return said, attempt(fcntl.ioctl, fd, GETFLAGS_32, bytes(4)), flags_of(fd) == old

    compare(variant, bare, act)


def test_an_ioctl_that_is_not_known_is_refused(variant: Variant, bare: Path) -> None:
    def act(p: Path) -> Any:
        with opened(put(p / "f"), os.O_RDWR) as fd, opened(p, os.O_RDONLY) as directory:
            return [attempt(fcntl.ioctl, one, UNKNOWN, bytes(8)) for one in (fd, directory)]

    assert compare(variant, bare, act) == ["ENOTTY", "ENOTTY"]


def test_what_the_kernel_answers_itself(variant: Variant, bare: Path) -> None:
    def act(p: Path) -> Any:
        fionread, fioclex = 0x541B, 0x5451
        with opened(put(p / "f", b"12345"), os.O_RDONLY) as fd:
            os.read(fd, 2)
            left = fcntl.ioctl(fd, fionread, bytes(4))
            return left, fcntl.ioctl(fd, fioclex)

    compare(variant, bare, act)


# ------------------------------------------------------------------------------------ poll


def test_a_file_is_always_ready(variant: Variant, bare: Path) -> None:
    def act(p: Path) -> Any:
        said = []
        with opened(put(p / "f"), os.O_RDWR) as fd:
            for events in (select.POLLIN, select.POLLOUT, select.POLLIN | select.POLLOUT | select.POLLPRI, 0):
                poll = select.poll()
                poll.register(fd, events)
                said.append([event for _, event in poll.poll(0)])
            ready = select.select([fd], [fd], [fd], 1)
            return said, [len(one) for one in ready]

    compare(variant, bare, act)


def test_epoll_takes_a_file_too(variant: Variant) -> None:
    """On the bare directory it is EPERM; a file of FUSE has poll, so the kernel takes it."""

    def act(p: Path) -> Any:
        with opened(put(p / "f"), os.O_RDWR) as fd, select.epoll() as epoll:
            epoll.register(fd, select.EPOLLIN | select.EPOLLOUT)
            return [event for _, event in epoll.poll(1)]

    assert in_child(act, fresh(variant)[0]) == [select.EPOLLIN | select.EPOLLOUT]


# ------------------------------------------------------- flags that are changed after the open


def test_what_is_passed_through_goes_on_appending(variant: Variant) -> None:
    """On the bare directory it does not: the kernel opened the backing file with the flags of the open."""

    def act(p: Path) -> tuple[bytes, bytes]:
        with opened(put(p / "f", b"12345"), os.O_WRONLY | os.O_APPEND) as fd:
            os.pwritev(fd, [b"A"], 0, 0x20)  # RWF_NOAPPEND, which no request tells of
            first = (p / "f").read_bytes()
            fcntl.fcntl(fd, fcntl.F_SETFL, 0)
            os.pwrite(fd, b"B", 0)
        return first, (p / "f").read_bytes()

    is_passed = variant.name == "passed_through"
    assert in_child(act, fresh(variant)[0]) == (b"12345A", b"12345AB" if is_passed else b"B2345A")


def test_o_direct_stays_with_what_is_passed_through(variant: Variant) -> None:
    """On the bare directory it does not, for the same reason."""

    def act(p: Path) -> Any:
        with opened(put(p / "f"), os.O_RDWR | os.O_DIRECT) as fd:
            fcntl.fcntl(fd, fcntl.F_SETFL, 0)
            return attempt(os.write, fd, b"text")

    assert in_child(act, fresh(variant)[0]) == ("EINVAL" if variant.name == "passed_through" else 4)


# -------------------------------------------------------------------- files that are made up


@pytest.mark.parametrize("options", ["", "nopassthrough"])
def test_files_that_the_kernel_makes_up_are_read_whole(mount: support.Mounter, options: str) -> None:
    for path in (Path("/proc/sys/kernel/ostype"), Path("/sys/kernel/fscaps")):
        mounted = mount(src=path.parent, options=options)

        assert (mounted.path / path.name).read_bytes() == path.read_bytes()

        mounted.umount()


@pytest.mark.parametrize("options", ["", "nopassthrough"])
def test_made_up_files_that_know_no_offsets_are_read_and_written(
    mount: support.Mounter, directory: Path, options: str
) -> None:
    debugfs = directory / "debugfs"
    debugfs.mkdir()
    support.run("mount", "-t", "debugfs", "debugfs", debugfs)
    mounted = mount(src=debugfs, options=options)

    def contents(top: Path) -> list[Any]:
        return [attempt((top / name).read_bytes) for name in DEBUG_FILES]

    def written(top: Path, data: Any) -> Any:
        return attempt((top / DEBUG_FILES[0]).write_bytes, data)

    bare = contents(debugfs)  # EPERM where the kernel is locked down, ENOENT where it has no such file
    assert bare == contents(mounted.path)
    if isinstance(bare[0], bytes):
        assert written(debugfs, bare[0]) == written(mounted.path, bare[0])

    mounted.umount()
    support.umount(debugfs, support.MNT_DETACH)


# ------------------------------------------- file systems that have no direct I/O and no ACLs


@pytest.fixture
def ramfs(directory: Path) -> Iterator[Path]:
    """The root of a ramfs, which knows no direct I/O, no ACLs and no file handles."""
    path = directory / "ramfs"
    path.mkdir()
    support.run("mount", "-t", "ramfs", "-o", "mode=755", "ramfs", path)
    yield path
    support.umount(path, support.MNT_DETACH)


def test_o_direct_is_refused_as_where_the_backing_file_system_has_none(
    mount: support.Mounter, ramfs: Path
) -> None:
    (ramfs / "f").write_text("text")
    mounted = mount(src=ramfs)

    def act(top: Path) -> Any:
        def direct(flags: int, name: str = "f") -> Any:
            return attempt(lambda: os.close(os.open(top / name, flags | os.O_DIRECT)))

        first = direct(os.O_RDONLY), direct(os.O_RDWR), direct(os.O_RDWR | os.O_CREAT, top.name)
        with opened(top / "f", os.O_RDONLY):
            return first, direct(os.O_RDONLY), direct(os.O_RDWR), (top / top.name).exists()

    assert in_child(act, ramfs) == in_child(act, mounted.path)


@pytest.mark.parametrize("options", ["", "profile=small", "nodefault_permissions"])
def test_who_does_not_own_a_file_has_his_access_where_the_backing_file_system_knows_no_acls(
    mount: support.Mounter, ramfs: Path, options: str
) -> None:
    (ramfs / "d").mkdir()
    for name in ("d/f", "d"):
        os.chown(put(ramfs / name) if name == "d/f" else ramfs / name, 5, 6)
    mounted = mount(src=ramfs, options=options)

    def act(top: Path) -> Any:
        seen = attempt(put, top / "d" / top.name) == top / "d" / top.name, (top / "d/f").read_bytes()
        with user(1000):
            return seen, (top / "d/f").read_bytes(), os.access(top / "d", os.W_OK), attempt(put, top / "d/g")

    assert in_child(act, ramfs) == in_child(act, mounted.path)
