"""Scenarios of ops beside the classical ones: allocation, copies, unnamed files, ioctls, locks, rights."""

import ctypes
import fcntl
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from core.table import (
    attempt,
    checked,
    facts,
    in_child,
    libc,
    link_fd,
    mode_of,
    open_to_all,
    opened,
    put,
    scenario,
    user,
)

FICLONE = 0x40049409
CAP_FSETID = 4
FS_IOC_GETFLAGS, FS_IOC_SETFLAGS = 0x80086601, 0x40086602


@scenario
def an_append_only_file_is_appended_to_and_no_more(p: Path) -> Any:
    append_only = 0x20

    def flag(bit: int) -> None:
        with opened(p / "f", os.O_RDONLY) as fd:
            # The others stay: ext4 takes the lack of its own for a wish to lay the file out anew.
            (old,) = struct.unpack("l", fcntl.ioctl(fd, FS_IOC_GETFLAGS, bytes(8)))
            fcntl.ioctl(fd, FS_IOC_SETFLAGS, struct.pack("l", old & ~append_only | bit))

    def change(flags: int) -> Any:
        with opened(p / "f", flags) as fd:
            written = attempt(os.write, fd, b"more"), attempt(os.pwrite, fd, b"and more", 0)
            return written, attempt(os.ftruncate, fd, 0)

    put(p / "f", b"log\n")
    flag(append_only)
    try:
        ways = (os.O_APPEND, 0, os.O_TRUNC, os.O_APPEND | os.O_TRUNC)
        seen = [attempt(change, os.O_RDWR | way) for way in ways]
        seen += [attempt(os.unlink, p / "f"), attempt(os.truncate, p / "f", 0), (p / "f").read_bytes()]
    finally:
        flag(0)
    return seen, attempt(change, os.O_RDWR | os.O_APPEND), attempt(change, os.O_RDWR), (p / "f").read_bytes()


@scenario
def fallocate(p: Path) -> Any:
    with opened(p / "f", os.O_CREAT | os.O_RDWR) as fd:
        return attempt(lambda: checked(libc.fallocate(fd, 0, 0, 4096)))


@scenario
def posix_fallocate(p: Path) -> Any:
    with opened(p / "f", os.O_CREAT | os.O_RDWR) as fd:
        return attempt(os.posix_fallocate, fd, 0, 4096), os.fstat(fd).st_size


@scenario
def punch_hole(p: Path) -> Any:
    with opened(put(p / "f", b"x" * 8192), os.O_RDWR) as fd:
        return attempt(lambda: checked(libc.fallocate(fd, 3, 0, 4096)))


@scenario
def tmpfile(p: Path) -> Any:
    with opened(p, os.O_TMPFILE | os.O_RDWR, 0o640) as fd:
        os.write(fd, b"unnamed")
        unnamed = facts(fd), os.listdir(p)
        link_fd(fd, p / "named")
        return unnamed, facts(fd), (p / "named").read_bytes()


@scenario
def copy_file_range(p: Path) -> Any:
    with (
        opened(put(p / "f", b"text" * 10_000), os.O_RDONLY) as old,
        opened(p / "g", os.O_CREAT | os.O_RDWR) as new,
    ):
        return os.copy_file_range(old, new, 40_000), os.pread(new, 10, 39_990), os.fstat(new).st_size


@scenario
def sendfile(p: Path) -> Any:
    with (
        opened(put(p / "f", b"text" * 10_000), os.O_RDONLY) as old,
        opened(p / "g", os.O_CREAT | os.O_RDWR) as new,
    ):
        return os.sendfile(new, old, 0, 40_000), os.pread(new, 10, 39_990)


@scenario
def splice(p: Path) -> Any:
    reader, writer = os.pipe()
    with (
        opened(put(p / "f", b"text" * 100), os.O_RDONLY) as old,
        opened(p / "g", os.O_CREAT | os.O_RDWR) as new,
    ):
        return (
            os.splice(old, writer, 400),
            os.splice(reader, new, 400),
            os.pread(new, 1000, 0) == b"text" * 100,
        )


@scenario
def ficlone(p: Path) -> Any:
    with opened(put(p / "f"), os.O_RDONLY) as old, opened(p / "g", os.O_CREAT | os.O_RDWR) as new:
        return attempt(fcntl.ioctl, new, FICLONE, old)


@scenario
def seek_hole_and_data(p: Path) -> Any:
    with opened(p / "f", os.O_CREAT | os.O_RDWR) as fd:
        os.pwrite(fd, b"end", 1 << 20)
        size = (1 << 20) + 3
        data, hole = os.lseek(fd, 0, os.SEEK_DATA), os.lseek(fd, 1 << 20, os.SEEK_HOLE)
        return data in {0, 1 << 20}, hole == size, attempt(os.lseek, fd, size, os.SEEK_DATA)


@scenario
def ioctl_of_flags(p: Path) -> Any:
    with opened(put(p / "f"), os.O_RDONLY) as fd:
        return attempt(fcntl.ioctl, fd, FS_IOC_GETFLAGS, b"\0" * 8)


def _locks(p: Path, lock: Callable[[int, int], Any]) -> Any:
    """Whether a second process is kept out, and let in when the first has let go."""
    with opened(put(p / "f"), os.O_RDWR) as fd:
        lock(fd, fcntl.LOCK_EX)
        refused = _in_another_process(p, lock)
        lock(fd, fcntl.LOCK_UN)
        return refused, _in_another_process(p, lock)


def _in_another_process(p: Path, lock: Callable[[int, int], Any]) -> Any:
    def take() -> Any:
        with opened(p / "f", os.O_RDWR) as fd:
            return attempt(lock, fd, fcntl.LOCK_EX | fcntl.LOCK_NB)

    return in_child(take, seconds=5)


@scenario
def flock(p: Path) -> Any:
    return _locks(p, fcntl.flock)


@scenario
def posix_lock(p: Path) -> Any:
    return _locks(p, fcntl.lockf)


@scenario
def ofd_lock(p: Path) -> Any:
    def lock(fd: int, how: int) -> Any:
        kind = fcntl.F_UNLCK if how & fcntl.LOCK_UN else fcntl.F_WRLCK
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, struct.pack("hhqqi4x", kind, 0, 0, 0, 0))

    return _locks(p, lock)


@scenario
def lock_ends_with_its_descriptor(p: Path) -> Any:
    with opened(put(p / "f"), os.O_RDWR) as fd:
        fcntl.lockf(fd, fcntl.LOCK_EX)
    return _in_another_process(p, fcntl.lockf)


@scenario
def bits_go_when_a_root_without_the_capability_to_keep_them_changes_the_file(p: Path) -> Any:
    source = put(p / "source")
    paths = [put(p / f"f{number}", b"0123456789") for number in range(3)]
    for path in paths:
        os.chown(path, 1000, 777)
        os.chmod(path, 0o2745)
    header = struct.pack("=Ii", 0x20080522, 0)
    caps = ctypes.create_string_buffer(24)
    checked(libc.capget(header, caps))
    effective, *others = struct.unpack("=6I", caps.raw)
    checked(libc.capset(header, struct.pack("=6I", effective & ~(1 << CAP_FSETID), *others)))
    os.chown(paths[0], 1000, 5)
    with opened(paths[1], os.O_RDWR) as fd:
        os.posix_fallocate(fd, 0, 100)
    with opened(source, os.O_RDONLY) as old, opened(paths[2], os.O_RDWR) as new:
        os.copy_file_range(old, new, 4)
    return [mode_of(path) for path in paths]


@scenario
def who_made_a_file_of_his_group_keeps_its_sgid_bit_in_writing(p: Path) -> Any:
    d = open_to_all(p / "d")
    with user(1000, 1234), opened(d / "file", os.O_CREAT | os.O_RDWR, 0o666) as fd:
        os.fchmod(fd, 0o2666)
        os.write(fd, b"x")
        return mode_of(d / "file")


@scenario
def who_writes_a_file_of_another_group_takes_an_sgid_bit_that_came_since_he_opened_it(p: Path) -> Any:
    d = open_to_all(p / "d")
    with user(1000, 1234):
        os.close(os.open(d / "file", os.O_CREAT | os.O_RDWR, 0o666))
    os.chmod(d / "file", 0o666)
    with user(2000):
        fd = os.open(d / "file", os.O_WRONLY)
    os.chmod(d / "file", 0o2666)
    with user(2000):
        os.write(fd, b"x")
        os.close(fd)
    return mode_of(d / "file")


@scenario
def who_writes_a_file_of_another_group_takes_its_sgid_bit_also_while_its_maker_has_it_open(p: Path) -> Any:
    d = open_to_all(p / "d")
    with user(1000, 1234):
        made = os.open(d / "file", os.O_CREAT | os.O_RDWR, 0o666)
        os.fchmod(made, 0o666)
    with user(2000):
        fd = os.open(d / "file", os.O_WRONLY)
    os.fchmod(made, 0o2666)
    with user(2000):
        os.write(fd, b"x")
        os.close(fd)
    modes = [mode_of(d / "file")]
    with user(1000, 1234), opened(d / "file", os.O_WRONLY) as fd:
        os.fchmod(made, 0o2666)
        os.write(fd, b"y")
    modes.append(mode_of(d / "file"))
    os.close(made)
    return modes


@scenario
def who_writes_a_file_of_another_group_takes_its_sgid_bit_also_while_it_is_read(p: Path) -> Any:
    d = open_to_all(p / "d")
    with user(1000, 1234), opened(d / "file", os.O_CREAT | os.O_RDWR, 0o666) as made:
        os.fchmod(made, 0o666)
        reader = os.open(d / "file", os.O_RDONLY)
    with user(2000):
        fd = os.open(d / "file", os.O_WRONLY)
    os.chmod(d / "file", 0o2666)
    with user(2000):
        os.write(fd, b"x")
        os.close(fd)
    os.close(reader)
    return mode_of(d / "file")
