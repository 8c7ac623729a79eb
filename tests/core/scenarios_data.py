"""Scenarios of open files: open's flags, read, write, append, mmap, fsync, unlinked files, programs."""

import fcntl
import mmap
import os
import shutil
from pathlib import Path
from typing import Any

from core.table import attempt, facts, mode_of, opened, put, scenario, umask

RW = os.O_CREAT | os.O_RDWR


# --------------------------------------------------------------------------------------- open


@scenario
def open_creates_with_mode_and_umask(p: Path) -> Any:
    seen = []
    for mask in (0, 0o022, 0o077):
        for mode in (0o666, 0o4755, 0o000, 0o7777):
            with umask(mask), opened(p / f"{mask}-{mode}", os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode) as fd:
                seen.append(facts(fd))
    return seen


@scenario
def open_errors(p: Path) -> Any:
    put(p / "file")
    os.symlink("file", p / "link")
    os.symlink("missing", p / "dangling")
    os.mkdir(p / "d")
    cases = [
        ("file", os.O_CREAT | os.O_EXCL),
        ("link", os.O_CREAT | os.O_EXCL),
        ("dangling", os.O_CREAT | os.O_EXCL),
        ("dangling", os.O_RDONLY),
        ("link", os.O_NOFOLLOW),
        ("link", os.O_NOFOLLOW | os.O_CREAT),
        ("dangling", os.O_NOFOLLOW | os.O_CREAT),
        ("d", os.O_WRONLY),
        ("d", os.O_RDWR),
        ("d", os.O_CREAT),
        ("d", os.O_CREAT | os.O_EXCL),
        ("d", os.O_TRUNC),
        ("d", os.O_CREAT | os.O_DIRECTORY),
        ("file", os.O_DIRECTORY),
        ("missing", os.O_RDONLY),
        ("missing/x", os.O_CREAT),
        ("file/", os.O_RDONLY),
        ("new/", os.O_CREAT),
    ]
    return [attempt(os.open, f"{p}/{name}", flags) for name, flags in cases]


@scenario
def open_with_o_trunc(p: Path) -> Any:
    put(p / "f", b"0123456789")
    put(p / "g", b"0123456789")
    with opened(p / "f", os.O_RDONLY) as reader:
        before = os.pread(reader, 100, 0)
        with opened(p / "f", os.O_WRONLY | os.O_TRUNC) as writer:
            after = os.pread(reader, 100, 0), facts(p / "f")
            os.write(writer, b"new")
            return (
                before,
                after,
                os.pread(reader, 100, 0),
                attempt(os.open, p / "g", os.O_CREAT | os.O_TRUNC) != "",
            )


@scenario
def open_with_o_append(p: Path) -> Any:
    put(p / "f", b"start")
    flags = os.O_RDWR | os.O_APPEND
    with opened(p / "f", flags) as a, opened(p / "f", flags) as b, opened(p / "f", os.O_RDWR) as plain:
        os.write(a, b"-a1")
        os.write(b, b"-b1")
        os.lseek(a, 0, os.SEEK_SET)
        os.write(a, b"-a2")
        os.pwrite(b, b"-b2", 0)
        os.write(plain, b"S")
        fcntl.fcntl(plain, fcntl.F_SETFL, os.O_APPEND)
        os.write(plain, b"-p")
        return os.pread(a, 100, 0), os.lseek(a, 0, os.SEEK_CUR), os.read(b, 100)


@scenario
def open_with_o_direct(p: Path) -> Any:
    with mmap.mmap(-1, 8192) as buffer, opened(p / "f", RW | os.O_DIRECT) as fd:
        buffer[:] = bytes(range(256)) * 32
        written = os.writev(fd, [buffer])
        buffer[:] = bytes(8192)
        read = os.preadv(fd, [buffer], 4096)
        return written, read, bytes(buffer[:4096]) == bytes(range(256)) * 16, facts(fd)


@scenario
def open_to_write_with_o_direct_that_is_taken_off(p: Path) -> Any:
    """As dd(1) does for its last block; before other opens of the file, and beside one that came first."""
    seen: list[Any] = []
    trunc = os.O_TRUNC
    ways = (("new", os.O_CREAT), ("new", trunc), ("old", trunc), ("old", trunc | os.O_APPEND))
    with mmap.mmap(-1, 4096) as buffer, opened(put(p / "old"), os.O_RDWR) as first:
        buffer[:] = b"x" * 4096
        for name, flags in ways:
            direct = os.O_WRONLY | os.O_DIRECT
            with opened(p / name, direct | flags) as fd, opened(p / name, os.O_RDWR) as later:
                seen.append(os.writev(fd, [buffer]))
                fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) & ~os.O_DIRECT)
                seen.append(attempt(os.write, fd, b"the rest"))
                seen.append((os.pread(later, 9000, 4000), os.pread(first, 9000, 4000), facts(fd)))
                seen.append((os.pwrite(later, b"L", 0), (p / name).read_bytes()[:3]))
    return seen


@scenario
def open_with_other_flags(p: Path) -> Any:
    put(p / "f", b"text")
    seen = []
    for flags in (os.O_SYNC, os.O_DSYNC, os.O_NONBLOCK, os.O_NOATIME, os.O_NOCTTY, os.O_CLOEXEC):
        with opened(p / "f", os.O_RDWR | flags) as fd:
            os.write(fd, b"T")
            seen.append((os.pread(fd, 10, 0), fcntl.fcntl(fd, fcntl.F_GETFL) & flags))
    with opened(p / "f", os.O_PATH) as fd:
        return (
            seen,
            facts(fd),
            attempt(os.read, fd, 1),
            attempt(os.open, f"/proc/self/fd/{fd}", os.O_RDONLY) != "",
        )


@scenario
def open_of_a_file_that_was_made_behind(p: Path) -> Any:
    seen = attempt(os.stat, p / "f")
    put(p / "f", b"there")
    with opened(p / "f", os.O_CREAT | os.O_RDWR) as fd:
        return seen, os.read(fd, 10), facts(fd)


@scenario
def descriptors_say_what_they_may(p: Path) -> Any:
    put(p / "f")
    with opened(p / "f", os.O_RDONLY) as r, opened(p / "f", os.O_WRONLY) as w, opened(p, os.O_RDONLY) as d:
        return (
            attempt(os.write, r, b"x"),
            attempt(os.read, w, 1),
            attempt(os.read, d, 1),
            attempt(os.write, d, b"x"),
        )


# ------------------------------------------------------------------------------ read and write


@scenario
def read_at_any_offset(p: Path) -> Any:
    data = os.urandom(0) + bytes(index * 7 % 251 for index in range(100_003))
    put(p / "f", data)
    spans = [
        (0, 1),
        (4095, 2),
        (100_000, 100),
        (100_003, 1),
        (200_000, 5),
        (0, 200_000),
        (65_536, 4096),
        (7, 0),
    ]
    with opened(p / "f", os.O_RDONLY) as fd:
        reads = [os.pread(fd, size, offset) for offset, size in spans]
        parts = [bytearray(3), bytearray(10), bytearray(1)]
        count = os.preadv(fd, parts, 99_995)
        return reads, count, parts, attempt(os.pread, fd, 1, -1), os.lseek(fd, 0, os.SEEK_END)


@scenario
def write_at_any_offset(p: Path) -> Any:
    with opened(p / "f", RW) as fd:
        counts = [os.write(fd, b"begin"), os.pwrite(fd, b"far", 1_000_000), os.pwrite(fd, b"", 5_000_000)]
        counts.append(os.writev(fd, [b"a", b"", b"bc"]))
        counts.append(os.pwrite(fd, b"over", 2))
        hole = os.pread(fd, 20, 500_000)
        return counts, hole, os.pread(fd, 20, 0), facts(fd), attempt(os.pwrite, fd, b"x", (1 << 62) - 1)


@scenario
def large_files_come_back_as_they_were_written(p: Path) -> Any:
    block = bytes(index * 31 % 253 for index in range(1_000_003))
    with opened(p / "f", RW) as fd:
        counts = [os.write(fd, block) for _ in range(5)]
        os.lseek(fd, 0, os.SEEK_SET)
        data = b"".join(iter(lambda: os.read(fd, 3_000_000), b""))
    shutil.copyfile(p / "f", p / "copy")
    return counts, data == block * 5, facts(p / "copy"), (p / "copy").read_bytes() == data


@scenario
def writers_of_two_descriptors_see_each_other(p: Path) -> Any:
    put(p / "f", b"0000000000")
    with opened(p / "f", os.O_RDWR) as a, opened(p / "f", os.O_RDWR) as b:
        seen = [os.pread(b, 10, 0)]
        for index in range(5):
            os.pwrite(a if index % 2 else b, b"%d" % index, index)
            seen += [os.pread(a, 10, 0), os.pread(b, 10, 0)]
        os.ftruncate(a, 3)
        return seen, os.pread(b, 10, 0), facts(b)


@scenario
def appends_of_many_processes_do_not_mix(p: Path) -> Any:
    put(p / "log", b"")
    children = []
    for letter in b"abcd":
        pid = os.fork()
        if pid == 0:
            with opened(p / "log", os.O_WRONLY | os.O_APPEND) as fd:
                for _ in range(100):
                    os.write(fd, bytes([letter]) * 50 + b"\n")
            os._exit(0)
        children.append(pid)
    statuses = [os.waitpid(pid, 0)[1] for pid in children]
    lines = (p / "log").read_bytes().splitlines()
    os.unlink(p / "log")  # in which order they came is chance
    return statuses, len(lines), {line for line in lines if len(set(line)) != 1}, len(set(lines))


@scenario
def mmap_shares_what_is_written(p: Path) -> Any:
    put(p / "f", b"x" * 10_000)
    with (
        opened(p / "f", os.O_RDWR) as fd,
        mmap.mmap(fd, 10_000) as shared,
        mmap.mmap(fd, 10_000, mmap.MAP_PRIVATE) as private,
    ):
        private[0:7] = b"private"
        shared[5000:5006] = b"shared"
        shared.flush()
        read = os.pread(fd, 10, 5000)
        os.pwrite(fd, b"written", 9000)
        return read, shared[9000:9007], private[0:7], os.pread(fd, 7, 0)


@scenario
def mmap_outlives_its_descriptor(p: Path) -> Any:
    put(p / "f", b"x" * 8192)
    with opened(p / "f", os.O_RDWR) as fd:
        shared = mmap.mmap(fd, 8192)
    shared[100:104] = b"late"
    shared.close()
    return (p / "f").read_bytes()[98:106], facts(p / "f")


@scenario
def sync_of_files_and_directories(p: Path) -> Any:
    put(p / "f")
    os.mkdir(p / "d")
    results = []
    for path, flags in ((p / "f", os.O_RDWR), (p / "f", os.O_RDONLY), (p / "d", os.O_RDONLY)):
        with opened(path, flags) as fd:
            if flags == os.O_RDWR:
                os.write(fd, b"dirty")
            results += [attempt(os.fsync, fd), attempt(os.fdatasync, fd)]
    os.sync()
    return results


@scenario
def closing_twice_the_duplicate_closes_once(p: Path) -> Any:
    with opened(p / "f", RW) as fd:
        other = os.dup(fd)
        os.write(other, b"text")
        os.close(other)
        os.write(fd, b" more")
        return os.pread(fd, 100, 0)


# ------------------------------------------------------------------------- unlinked, programs


@scenario
def unlinked_files_work_on(p: Path) -> Any:
    with opened(p / "f", RW) as fd:
        os.write(fd, b"0123456789")
        os.link(p / "f", p / "g")
        os.unlink(p / "f")
        one_left = facts(fd)
        os.unlink(p / "g")
        os.pwrite(fd, b"AB", 3)
        os.ftruncate(fd, 7)
        os.fchmod(fd, 0o640)
        os.fchown(fd, 1, 2)
        os.utime(fd, ns=(1, 2))
        os.setxattr(fd, "user.a", b"v")
        os.fsync(fd)
        again = attempt(lambda: os.close(os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)))
        return one_left, facts(fd), os.pread(fd, 100, 0), os.getxattr(fd, "user.a"), again, os.listdir(p)


@scenario
def unlinked_files_of_one_name_are_different(p: Path) -> Any:
    fds = []
    for index in range(5):
        fds.append(os.open(p / "f", RW | os.O_EXCL))
        os.write(fds[-1], b"%d" % index)
        os.unlink(p / "f")
    return [os.pread(fd, 10, 0) for fd in fds], len({os.fstat(fd).st_ino for fd in fds})


@scenario
def programs_run(p: Path) -> Any:
    shutil.copy("/bin/true", p / "true")
    put(p / "script", b"#!/bin/sh\nexit 7\n", 0o755)
    put(p / "plain", b"#!/bin/sh\n", 0o644)
    put(p / "nonsense", b"\x00\x01", 0o755)
    results = []
    for name in ("true", "script", "plain", "nonsense"):
        pid = os.fork()
        if pid == 0:
            error = attempt(os.execv, p / name, [name])
            os._exit({"EACCES": 100, "ENOEXEC": 101}.get(error, 102))
        results.append(os.waitpid(pid, 0)[1])
    return results


@scenario
def a_running_program_cannot_be_written(p: Path) -> Any:
    shutil.copy("/bin/cat", p / "cat")
    reader, writer = os.pipe()
    out, told = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.dup2(reader, 0)
        os.dup2(told, 1)
        os.close(writer)
        os.execv(p / "cat", ["cat"])
    os.write(writer, b"x")
    os.read(out, 1)  # it runs
    error = attempt(os.open, p / "cat", os.O_WRONLY)
    os.close(writer)
    os.close(reader)
    return error, os.waitpid(pid, 0)[1], mode_of(p / "cat")
