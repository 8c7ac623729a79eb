"""Scenarios of attributes: getattr, setattr by path and by descriptor, statfs, access, xattrs."""

import ctypes
import os
import struct
from pathlib import Path
from typing import Any

from core.table import NOBODY, OLD, acl, attempt, checked, facts, libc, mode_of, opened, put, scenario, when

UTIME_NOW, UTIME_OMIT = (1 << 30) - 1, (1 << 30) - 2
AT_FDCWD, AT_EMPTY_PATH = -100, 0x1000


def utimensat(path: Path, *times: tuple[int, int]) -> int:
    array = (ctypes.c_long * 4)(*(number for pair in times for number in pair))
    return checked(libc.utimensat(AT_FDCWD, os.fsencode(path), array, 0))


# --------------------------------------------------------------------------------------- mode


@scenario
def chmod_sets_every_bit(p: Path) -> Any:
    put(p / "f")
    os.mkdir(p / "d")
    seen = []
    for mode in (0o777, 0, 0o4755, 0o2711, 0o1644, 0o7777, 0o640):
        os.chmod(p / "f", mode)
        os.chmod(p / "d", mode)
        seen.append((mode_of(p / "f"), mode_of(p / "d")))
    return seen, facts(p / "f")


@scenario
def fchmod_by_descriptors_of_all_kinds(p: Path) -> Any:
    put(p / "f")
    os.mkdir(p / "d")
    with (
        opened(p / "f", os.O_RDONLY) as fd,
        opened(p / "d", os.O_RDONLY) as d,
        opened(p / "f", os.O_PATH) as o,
    ):
        os.fchmod(fd, 0o4711)
        os.fchmod(d, 0o2770)
        return mode_of(fd), mode_of(d), attempt(os.fchmod, o, 0o600)


@scenario
def chmod_errors(p: Path) -> Any:
    os.symlink("nowhere", p / "s")
    return attempt(os.chmod, p / "missing", 0o600), attempt(os.chmod, p / "s", 0o600)


# -------------------------------------------------------------------------------------- owner


@scenario
def chown_of_either_and_both(p: Path) -> Any:
    put(p / "f")
    seen = []
    for uid, gid in ((1, 2), (-1, 3), (4, -1), (-1, -1), (70000, 4294967294), (0, 0)):
        os.chown(p / "f", uid, gid)
        seen.append(facts(p / "f")[2:4])
    with opened(p / "f", os.O_RDONLY) as fd:
        os.fchown(fd, 5, 6)
    return seen, facts(p / "f")


@scenario
def chown_of_a_symlink_is_its_own(p: Path) -> Any:
    put(p / "f")
    os.symlink("f", p / "s")
    os.lchown(p / "s", 7, 8)
    os.chown(p / "s", 9, 10)
    return facts(p / "s", follow_symlinks=False), facts(p / "f")


@scenario
def chown_clears_suid_and_sgid_of_files(p: Path) -> Any:
    seen = []
    for mode in (0o6755, 0o4711, 0o2755, 0o2745, 0o6777):
        put(p / f"f{mode:o}", mode=mode)
        os.chown(p / f"f{mode:o}", 1000, 1000)
        seen.append(mode_of(p / f"f{mode:o}"))
    os.mkdir(p / "d")
    os.chmod(p / "d", 0o6755)
    os.chown(p / "d", 1000, 1000)
    return seen, mode_of(p / "d")


# --------------------------------------------------------------------------------------- size


@scenario
def truncate_by_path(p: Path) -> Any:
    put(p / "f", b"0123456789" * 1000)
    seen = []
    for size in (5000, 5, 0, 8192, 1 << 40, 3):
        os.truncate(p / "f", size)
        seen.append(facts(p / "f"))
    os.truncate(p / "f", 10)
    return seen, (p / "f").read_bytes()


@scenario
def truncate_by_descriptor(p: Path) -> Any:
    put(p / "f", b"0123456789" * 1000)
    with opened(p / "f", os.O_RDWR) as fd:
        os.ftruncate(fd, 4)
        first = os.pread(fd, 100, 0)
        os.ftruncate(fd, 12)
        return first, os.pread(fd, 100, 0), facts(fd)


@scenario
def truncate_errors(p: Path) -> Any:
    put(p / "f")
    os.mkfifo(p / "fifo")
    with opened(p / "f", os.O_RDONLY) as fd:
        return [
            attempt(os.ftruncate, fd, 0),
            attempt(os.truncate, p, 0),
            attempt(os.truncate, p / "f", -1),
            attempt(os.truncate, p / "f", (1 << 63) - 1),
            attempt(os.truncate, p / "missing", 0),
            attempt(os.truncate, p / "fifo", 0),
        ]


@scenario
def truncate_of_a_read_only_file_that_was_opened_before(p: Path) -> Any:
    with opened(p / "f", os.O_CREAT | os.O_RDWR, 0o400) as fd:
        os.write(fd, b"0123456789")
        os.fchmod(fd, 0o000)
        os.ftruncate(fd, 3)
        return os.pread(fd, 100, 0), facts(fd)


# -------------------------------------------------------------------------------------- times


@scenario
def times_are_kept_to_the_nanosecond(p: Path) -> Any:
    put(p / "f")
    os.mkdir(p / "d")
    os.symlink("f", p / "s")
    times = [(OLD, OLD + 1), (0, 999_999_999), (-1_500_000_000, -1), (4_102_444_800_000_000_001, 1)]
    seen = []
    for pair in times:
        os.utime(p / "f", ns=pair)
        os.utime(p / "d", ns=pair)
        os.utime(p / "s", ns=pair, follow_symlinks=False)
        seen += [facts(p / name, follow_symlinks=False) for name in "fds"]
    return seen


@scenario
def times_by_descriptor(p: Path) -> Any:
    put(p / "f")
    with opened(p / "f", os.O_RDONLY) as fd:
        os.utime(fd, ns=(OLD, OLD - 5))
        return facts(fd)


@scenario
def times_set_one_at_a_time(p: Path) -> Any:
    put(p / "f")
    os.utime(p / "f", ns=(OLD, OLD))
    seen = []
    for times in (
        ((7, 8), (0, UTIME_OMIT)),
        ((0, UTIME_OMIT), (9, 10)),
        ((0, UTIME_OMIT), (0, UTIME_OMIT)),
        ((0, UTIME_NOW), (0, UTIME_OMIT)),
        ((1, 1), (0, UTIME_NOW)),
        ((0, UTIME_NOW), (0, UTIME_NOW)),
    ):
        utimensat(p / "f", *times)
        st = os.stat(p / "f")
        seen.append((when(st.st_atime_ns), when(st.st_mtime_ns)))
    return seen, attempt(utimensat, p / "f", (0, 1_000_000_000), (0, 0)), attempt(os.utime, p / "missing")


@scenario
def times_of_what_happens(p: Path) -> Any:
    put(p / "f")
    os.mkdir(p / "d")
    seen = []

    def after(what: str, *names: str) -> None:
        seen.append((what, [facts(p / name)[6:8] for name in names]))
        for name in ("f", "d"):
            os.utime(p / name, ns=(OLD, OLD + 5))

    after("start", "f")
    with opened(p / "f", os.O_RDWR) as fd:
        os.write(fd, b"x")
        after("write", "f")
        os.ftruncate(fd, 0)
        after("truncate", "f")
    os.truncate(p / "f", 0)
    after("truncate to the same size by path", "f")
    put(p / "d" / "new")
    after("create", "d")
    os.rename(p / "d" / "new", p / "d" / "newer")
    after("rename", "d")
    os.unlink(p / "d" / "newer")
    after("unlink", "d")
    os.chmod(p / "f", 0o600)
    after("chmod", "f")
    with opened(p / "f", os.O_WRONLY | os.O_TRUNC):
        after("open with O_TRUNC", "f")
    return seen


@scenario
def reading_sets_atime(p: Path) -> Any:
    put(p / "f", b"text")
    put(p / "g", b"text")
    for name in ("f", "g"):
        os.utime(p / name, ns=(OLD, OLD + 5))
    with opened(p / "f", os.O_RDONLY) as fd:
        os.read(fd, 10)
    with opened(p / "g", os.O_RDONLY | os.O_NOATIME) as fd:
        os.read(fd, 10)
    return facts(p / "f"), facts(p / "g")


# ---------------------------------------------------------------------------- statfs and access


@scenario
def statfs_of_a_path_and_a_descriptor(p: Path) -> Any:
    put(p / "f")
    with opened(p / "f", os.O_RDONLY) as fd:
        both = os.statvfs(p), os.statvfs(fd)
    return [(st.f_bsize, st.f_frsize, st.f_blocks, st.f_files, st.f_namemax) for st in both]


@scenario
def stat_block_size_and_blocks(p: Path) -> Any:
    with opened(p / "f", os.O_CREAT | os.O_WRONLY) as fd:
        os.pwrite(fd, b"x" * 8192, 1 << 20)
        os.fsync(fd)
        st = os.stat(p / "f")
        return st.st_blksize, st.st_blocks, st.st_size


@scenario
def access_as_root(p: Path) -> Any:
    put(p / "f", mode=0)
    put(p / "x", mode=0o100)
    modes = (os.F_OK, os.R_OK, os.W_OK, os.X_OK, os.R_OK | os.W_OK)
    return [[os.access(p / name, mode) for mode in modes] for name in ("f", "x", "missing")]


# ----------------------------------------------------------------------------------- xattrs


@scenario
def xattrs_are_set_listed_and_removed(p: Path) -> Any:
    put(p / "f")
    os.mkdir(p / "d")
    for path in (p / "f", p / "d"):
        os.setxattr(path, "user.a", b"value")
        os.setxattr(path, "user.empty", b"")
        os.setxattr(path, "user.binary", bytes(range(256)))
        os.setxattr(path, "trusted.t", b"t")
        os.setxattr(path, "user.a", b"another value")
        os.removexattr(path, "user.binary")
    with opened(p / "f", os.O_RDONLY) as fd:
        os.setxattr(fd, "user.by_fd", b"fd")
        by_fd = sorted(os.listxattr(fd)), os.getxattr(fd, "user.a"), attempt(os.removexattr, fd, "user.a")
    return by_fd, sorted(os.listxattr(p / "f")), attempt(os.getxattr, p / "f", "user.a")


@scenario
def xattr_flags(p: Path) -> Any:
    put(p / "f")
    return [
        attempt(os.setxattr, p / "f", "user.a", b"1", os.XATTR_REPLACE),
        attempt(os.setxattr, p / "f", "user.a", b"2", os.XATTR_CREATE),
        attempt(os.setxattr, p / "f", "user.a", b"3", os.XATTR_CREATE),
        attempt(os.setxattr, p / "f", "user.a", b"4", os.XATTR_REPLACE),
        attempt(os.setxattr, p / "f", "user.a", b"5", 4),
        os.getxattr(p / "f", "user.a"),
    ]


@scenario
def xattr_errors(p: Path) -> Any:
    put(p / "f")
    os.symlink("f", p / "s")
    os.mkfifo(p / "fifo")
    return [
        attempt(os.getxattr, p / "f", "user.missing"),
        attempt(os.removexattr, p / "f", "user.missing"),
        attempt(os.getxattr, p / "missing", "user.a"),
        attempt(os.setxattr, p / "f", "nospace.a", b"x"),
        attempt(os.setxattr, p / "f", "user.", b"x"),
        attempt(os.setxattr, p / "f", "user." + "x" * 251, b"x"),
        attempt(os.setxattr, p / "f", "user.big", b"x" * 65537),
        attempt(os.setxattr, p / "f", "user.big", b"x" * 65536),
        attempt(os.setxattr, p / "s", "user.a", b"x", 0, follow_symlinks=False),
        attempt(os.setxattr, p / "s", "trusted.a", b"x", 0, follow_symlinks=False),
        attempt(os.setxattr, p / "fifo", "user.a", b"x"),
        attempt(os.getxattr, p / "fifo", "user.a"),
    ]


@scenario
def xattr_sizes(p: Path) -> Any:
    put(p / "f")
    os.setxattr(p / "f", "user.a", b"v" * 3000)
    path, buffer = os.fsencode(p / "f"), ctypes.create_string_buffer(4096)
    gets = [
        attempt(lambda n=n: checked(libc.getxattr(path, b"user.a", buffer, n)))
        for n in (0, 10, 2999, 3000, 4096)
    ]
    lists = [attempt(lambda n=n: checked(libc.listxattr(path, buffer, n))) for n in (0, 3, 7, 100)]
    return gets, lists, buffer.raw[:7], len(os.getxattr(p / "f", "user.a"))


@scenario
def capabilities_of_a_file_die_when_it_is_written(p: Path) -> Any:
    put(p / "f")
    value = struct.pack("<5I", 0x02000001, 1 << 13, 0, 0, 0)
    os.setxattr(p / "f", "security.capability", value)
    before = os.getxattr(p / "f", "security.capability")
    with opened(p / "f", os.O_WRONLY) as fd:
        os.write(fd, b"x")
    written = attempt(os.getxattr, p / "f", "security.capability")
    os.setxattr(p / "f", "security.capability", value)
    os.truncate(p / "f", 0)
    cut = attempt(os.getxattr, p / "f", "security.capability")
    os.setxattr(p / "f", "security.capability", value)
    os.chown(p / "f", 1, 1)
    return before, written, cut, attempt(os.getxattr, p / "f", "security.capability")


@scenario
def acls_are_xattrs_and_change_the_mode(p: Path) -> Any:
    put(p / "f", mode=0o600)
    os.mkdir(p / "d")
    value = acl((1, 7, NOBODY), (2, 5, 1000), (4, 4, NOBODY), (16, 5, NOBODY), (32, 1, NOBODY))
    os.setxattr(p / "f", "system.posix_acl_access", value)
    os.setxattr(p / "d", "system.posix_acl_default", value)
    modes = [mode_of(p / "f")]
    os.chmod(p / "f", 0o640)
    changed = os.getxattr(p / "f", "system.posix_acl_access")
    os.removexattr(p / "f", "system.posix_acl_access")
    modes.append(mode_of(p / "f"))
    errors = [
        attempt(os.setxattr, p / "f", "system.posix_acl_default", value),
        attempt(os.setxattr, p / "f", "system.posix_acl_access", b"nonsense"),
        attempt(os.setxattr, p / "f", "system.posix_acl_access", acl((1, 7, NOBODY))),
    ]
    put(p / "d" / "inherits", mode=0o666)
    os.mkdir(p / "d" / "sub", 0o777)
    return modes, changed, errors, sorted(os.listxattr(p / "d" / "sub"))
