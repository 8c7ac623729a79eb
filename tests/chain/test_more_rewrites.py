"""Rewrites of what only some ops have, and those that are refused. The numbers are those of more.c."""

import ctypes
import fcntl
import os
import select
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from chain.chained import HERE, Chained, chained
from chain.test_rewrites import a_file, fd_call, mode, n_broken, names, nothing
from core.table import attempt, checked, in_child, libc, opened, put

GETFLAGS, SETFLAGS, NODUMP = 0x80086601, 0x40086602, 0x40
OFD_GETLK = 36


@pytest.fixture(scope="module")
def more(run_directory: Path) -> Iterator[Chained]:
    """Through more.c, which rewrites what its map `way` says."""
    with chained(run_directory, [HERE / "more.c"]) as made:
        yield made


def rw(call: Callable[[int], Any]) -> Callable[[Path], Any]:
    return fd_call(os.O_RDWR, call)


def with_hole(p: Path) -> None:
    """Data, a hole from 1 MiB, data from 2 MiB, the end at 4 MiB."""
    with opened(p / "name", os.O_RDWR | os.O_CREAT) as fd:
        os.pwrite(fd, b"x" * (1 << 20), 0)
        os.pwrite(fd, b"x" * (1 << 20), 2 << 20)
        os.ftruncate(fd, 4 << 20)


def seek(offset: int, whence: int) -> Callable[[Path], Any]:
    return rw(lambda fd: os.lseek(fd, offset, whence))


def two_files(p: Path) -> None:
    put(p / "name", b"0123456789")
    put(p / "to", b"..........")


def copy(p: Path) -> int:
    with opened(p / "name", os.O_RDONLY) as fd, opened(p / "to", os.O_RDWR) as out:
        return os.copy_file_range(fd, out, 6, 0, 0)


def allocate(fd: int) -> int:
    return checked(libc.fallocate(fd, 0, 0, 8192))


def lock(fd: int, command: int, kind: int, start: int, length: int) -> tuple[int, int, int]:
    """fcntl(2)'s lock: what came back of type, start and length."""
    answer = fcntl.fcntl(fd, command, struct.pack("hhqqi4x", kind, 0, start, length, 0))
    found = struct.unpack("hhqqi4x", answer)
    return found[0], found[2], found[3]


def locks_behind(p: Path, behind: Path) -> tuple[int, int, int]:
    """Take a lock of bytes 0 to 9, and look for one on the backing file meanwhile."""
    with opened(p / "name", os.O_RDWR) as fd, opened(behind / "name", os.O_RDWR) as other:
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 10)
        return lock(other, OFD_GETLK, fcntl.F_WRLCK, 0, 0)


def statx(p: Path) -> tuple[bool, int, int]:
    """Whether there is a birth time, and which."""
    buffer = ctypes.create_string_buffer(256)
    checked(libc.statx(-100, os.fsencode(p / "name"), 0, 0xFFF, buffer))
    mask, seconds, ns = struct.unpack_from("I", buffer)[0], *struct.unpack_from("qI", buffer, 80)
    return bool(mask & 0x800), seconds, ns


def poll(events: int) -> Callable[[Path], Any]:
    def act(fd: int) -> list[int]:
        poller = select.poll()
        poller.register(fd, events)
        return [found for _, found in poller.poll(0)]

    return rw(act)


def flags(fd: int) -> int:
    return int(struct.unpack("q", fcntl.ioctl(fd, GETFLAGS, bytes(8)))[0]) & NODUMP


def set_flags(fd: int) -> Any:
    return fcntl.ioctl(fd, SETFLAGS, struct.pack("q", 0x80000)) and None  # extents, as it is


def flags_behind(behind: Path) -> int:
    with opened(behind / "name", os.O_RDONLY) as fd:
        return flags(fd)


def size(b: Path) -> int:
    return (b / "name").stat().st_size


def many(p: Path) -> None:
    for number in range(200):
        put(p / f"file-{number:03}")


def with_xattr(p: Path) -> None:
    put(p / "name")
    os.setxattr(p / "name", "user.a", b"value")


Row = tuple[str, int, Callable[[Path], Any], Callable[[Path], Any], Callable[[Path], Any] | None, Any]

GOOD: list[Row] = [
    ("setattr valid", 1, a_file, lambda p: os.chmod(p / "name", 0o600), lambda b: mode(b / "name"),
     (None, "0o644")),
    ("mkdir umask", 1, nothing, lambda p: os.mkdir(p / "name"), lambda b: mode(b / "name"), (None, "0o700")),
    ("mknod umask", 2, nothing, lambda p: os.mkfifo(p / "name"), lambda b: mode(b / "name"), (None, "0o666")),
    ("create umask", 2, nothing, lambda p: os.close(os.open(p / "name", os.O_CREAT | os.O_RDWR, 0o666)),
     lambda b: mode(b / "name"), (None, "0o666")),
    ("fallocate offset", 1, a_file, rw(allocate), size, (0, 12288)),
    ("fallocate length", 2, lambda b: put(b / "name", b""), rw(allocate), size, (0, 1)),
    ("fallocate mode", 3, a_file, rw(allocate), size, (0, 10)),
    ("lseek offset", 1, with_hole, seek(0, os.SEEK_HOLE), None, (3 << 20, None)),
    ("lseek whence", 2, with_hole, seek(1 << 20, os.SEEK_HOLE), None, (2 << 20, None)),
    ("lseek answered", 3, with_hole, seek(0, os.SEEK_HOLE), None, (77, None)),
    ("lseek result", 50, with_hole, seek(0, os.SEEK_HOLE), None, ((1 << 20) + 5, None)),
    ("copy offset", 1, two_files, copy, lambda b: (b / "to").read_bytes(), (6, b"234567....")),
    ("copy offset_out", 2, two_files, copy, lambda b: (b / "to").read_bytes(), (6, b"...012345.")),
    ("copy length", 3, two_files, copy, lambda b: (b / "to").read_bytes(), (4, b"0123......")),
    ("getlk answered", 4, a_file, rw(lambda fd: lock(fd, fcntl.F_GETLK, fcntl.F_WRLCK, 0, 0)), None,
     ((fcntl.F_WRLCK, 5, 5), None)),
    ("getlk result", 50, a_file, rw(lambda fd: lock(fd, fcntl.F_GETLK, fcntl.F_WRLCK, 0, 0)), None,
     ((fcntl.F_RDLCK, 1, 2), None)),
    ("statx mask", 1, a_file, lambda p: statx(p)[0], None, (False, None)),
    ("statx btime", 50, a_file, statx, None, ((True, 7, 42), None)),
    ("statx no btime", 51, a_file, lambda p: statx(p)[0], None, (False, None)),
    ("times before 1970", 52, a_file, lambda p: os.stat(p / "name").st_mtime_ns, None, (-1500000000, None)),
    ("poll events", 1, a_file, poll(select.POLLIN | select.POLLOUT), None, ([select.POLLOUT], None)),
    ("poll answered", 2, a_file, poll(select.POLLIN | select.POLLOUT), None, ([select.POLLIN], None)),
    ("poll result", 50, a_file, poll(select.POLLIN | select.POLLOUT), None, ([select.POLLOUT], None)),
    ("getxattr size", 1, with_xattr, lambda p: os.getxattr(p / "name", "user.a"), None, ("E2BIG", None)),
    ("listxattr size", 1, with_xattr, lambda p: os.listxattr(p / "name"), None, ("E2BIG", None)),
    ("setxattr text", 1, a_file, lambda p: os.setxattr(p / "name", "user.a", b"x"),
     lambda b: os.getxattr(b / "name", "user.a"), (None, b"another value")),
    ("opendir flags", 1, many, names, None, (sorted(f"file-{n:03}" for n in range(200)), None)),
    ("readdir size", 1, many, names, None, (sorted(f"file-{n:03}" for n in range(200)), None)),
    ("ioctl data", 1, a_file, rw(set_flags), flags_behind, (None, NODUMP)),
    ("ioctl command", 2, a_file, rw(set_flags), flags_behind, ("ENOTTY", 0)),
    ("ioctl answered", 3, a_file, rw(flags), flags_behind, (NODUMP, 0)),
    ("ioctl result", 50, a_file, rw(flags), flags_behind, (NODUMP, 0)),
]  # fmt: skip

BAD: list[tuple[str, int, Callable[[Path], Any], Callable[[Path], Any]]] = [
    ("setattr valid", 20, a_file, lambda p: os.chmod(p / "name", 0o600)),
    ("umask", 20, nothing, lambda p: os.mkdir(p / "name")),
    *((f"fallocate {way}", way, a_file, rw(allocate)) for way in (20, 21, 22, 23)),
    *((f"lseek {way}", way, with_hole, seek(0, os.SEEK_HOLE)) for way in (20, 21, 22, 60)),
    *((f"copy {way}", way, two_files, copy) for way in (20, 21, 22)),
    *((f"getlk {way}", way, a_file, rw(lambda fd: lock(fd, fcntl.F_GETLK, fcntl.F_WRLCK, 10, 5)))
      for way in (20, 21, 22, 23, 25, 26, 60)),
    *((f"setlk {way}", way, a_file, rw(lambda fd: fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 5, 5)))
      for way in (20, 21, 22, 23, 24)),
    *((f"flock {way}", way, a_file, rw(lambda fd: fcntl.flock(fd, fcntl.LOCK_EX))) for way in (22, 23, 24)),
    *((f"getxattr {way}", way, with_xattr, lambda p: os.getxattr(p / "name", "user.a")) for way in (20, 21)),
    *((f"listxattr {way}", way, with_xattr, lambda p: os.listxattr(p / "name")) for way in (20, 21)),
    ("setxattr text", 20, a_file, lambda p: os.setxattr(p / "name", "user.a", b"x")),
    ("opendir flags", 20, nothing, os.listdir),
    *((f"readdir {way}", way, many, os.listdir) for way in (20, 21)),
    *((f"ioctl {way}", way, a_file, rw(set_flags)) for way in (20, 21, 22, 23)),
    ("ioctl result", 60, a_file, rw(flags)),
]  # fmt: skip


def apply(more: Chained, way: int, prepare: Callable[[Path], Any], act: Callable[[Path], Any]) -> Any:
    through, behind = more.fresh()
    prepare(behind)
    with more.map("more/way").put(0, way):
        return in_child(lambda: attempt(act, through), seconds=10), behind


@pytest.mark.parametrize("row", GOOD, ids=[row[0] for row in GOOD])
def test_a_rewrite_is_used(more: Chained, row: Row) -> None:
    _, way, prepare, act, look, expected = row

    outcome, behind = apply(more, way, prepare, act)

    assert expected == (outcome, look(behind) if look else None)


@pytest.mark.parametrize("row", BAD, ids=[row[0] for row in BAD])
def test_a_bad_rewrite_fails_the_op_and_is_counted(more: Chained, row: Any) -> None:
    _, way, prepare, act = row
    before = n_broken(more)

    outcome, _ = apply(more, way, prepare, act)

    assert outcome == "EIO"
    assert n_broken(more) > before


@pytest.mark.parametrize("way", [20, 21, 60])
def test_a_bad_rewrite_of_poll_is_counted(more: Chained, way: int) -> None:
    before = n_broken(more)

    outcome, _ = apply(more, way, a_file, poll(select.POLLIN))

    assert outcome == [select.POLLERR]  # poll(2) has no other way to tell
    assert n_broken(more) > before


@pytest.mark.parametrize(("way", "found"), [(1, (1, 100, 10)), (2, (0, 0, 10))])
def test_a_rewritten_lock_is_what_others_meet(more: Chained, way: int, found: tuple[int, ...]) -> None:
    through, behind = more.fresh()
    a_file(behind)

    with more.map("more/way").put(0, way):
        assert in_child(locks_behind, through, behind) == found


def test_a_lock_that_would_wait_need_not(more: Chained) -> None:
    through, behind = more.fresh()
    a_file(behind)

    def second(fd: int) -> Any:
        with opened(behind / "name", os.O_RDWR) as other:
            fcntl.flock(other, fcntl.LOCK_EX)
            return attempt(fcntl.flock, fd, fcntl.LOCK_EX)

    with more.map("more/way").put(0, 3):
        assert in_child(lambda: rw(second)(through)) == "EAGAIN"


def test_a_lock_of_a_file_is_shared_where_a_filter_says_so(more: Chained) -> None:
    through, behind = more.fresh()
    a_file(behind)

    def both(fd: int) -> Any:
        fcntl.flock(fd, fcntl.LOCK_EX)
        with opened(behind / "name", os.O_RDWR) as other:
            return attempt(fcntl.flock, other, fcntl.LOCK_SH | fcntl.LOCK_NB)

    with more.map("more/way").put(0, 2):
        assert in_child(lambda: rw(both)(through)) is None
