"""Scenarios of ops on names: lookup, and what makes, moves and removes entries."""

import os
import socket
import stat
from pathlib import Path
from typing import Any

from core.table import attempt, checked, facts, libc, link_fd, mode_of, opened, put, scenario, umask

AT_FDCWD = -100
NOREPLACE, EXCHANGE, WHITEOUT = 1, 2, 4
LONG = "n" * 255


def renameat2(old: Path, new: Path, flags: int) -> int:
    return checked(libc.renameat2(AT_FDCWD, os.fsencode(old), AT_FDCWD, os.fsencode(new), flags))


# ------------------------------------------------------------------------------------ lookup


@scenario
def lookup_of_a_missing_name(p: Path) -> Any:
    return (
        attempt(os.stat, p / "missing"),
        attempt(os.lstat, p / "missing"),
        attempt(os.open, p / "missing", 0),
    )


@scenario
def lookup_below_a_file(p: Path) -> Any:
    put(p / "file")
    calls = (os.stat, os.mkdir, os.unlink, os.rmdir, os.listdir)
    return [attempt(call, p / "file" / "below") for call in calls], attempt(
        os.open, p / "file" / "x", os.O_CREAT
    )


@scenario
def lookup_of_a_name_that_came_and_went(p: Path) -> Any:
    seen = [attempt(os.stat, p / "f")]
    put(p / "f")
    seen.append(attempt(facts, p / "f"))
    os.unlink(p / "f")
    seen.append(attempt(os.stat, p / "f"))
    os.mkdir(p / "f")
    return [*seen, facts(p / "f")]


@scenario
def names_of_255_bytes(p: Path) -> Any:
    put(p / LONG)
    os.mkdir(p / ("d" * 255))
    os.symlink("target", p / ("s" * 255))
    os.rename(p / LONG, p / ("r" * 255))
    os.link(p / ("r" * 255), p / ("l" * 255))
    os.unlink(p / ("r" * 255))
    os.setxattr(p / ("l" * 255), "user." + "x" * 250, b"v")
    return sorted(os.listdir(p)), [entry.is_dir() for entry in sorted(os.scandir(p), key=lambda e: e.name)]


@scenario
def names_of_256_bytes(p: Path) -> Any:
    long = p / ("n" * 256)
    put(p / "f")
    pairs = (os.rename, os.link)
    made = [attempt(call, long) for call in (os.stat, os.mkdir, os.unlink, os.rmdir, os.mkfifo, os.readlink)]
    return (
        made,
        attempt(os.open, long, os.O_CREAT | os.O_WRONLY),
        attempt(os.symlink, "x", long),
        [attempt(call, p / "f", long) for call in pairs],
        [attempt(call, long, p / "f") for call in pairs],
        attempt(os.stat, p / ("n" * 2000)),
    )


@scenario
def names_that_are_no_utf8(p: Path) -> Any:
    names = [b"\xff\xfe", b"\x01\x7f", b"new\nline", b" ", b"\xc3", b"-rf", "ü".encode(), b"\\", b"*?["]
    for name in names:
        with opened(os.fsencode(p) + b"/" + name, os.O_CREAT | os.O_WRONLY) as fd:
            os.write(fd, name)
    os.rename(os.fsencode(p) + b"/\xff\xfe", os.fsencode(p) + b"/\xfe\xff")
    return sorted(os.listdir(os.fsencode(p)))


@scenario
def names_of_dots(p: Path) -> Any:
    os.mkdir(p / "d")
    os.mkdir(p / "...")
    d = f"{p}/d"
    return [
        attempt(os.mkdir, f"{d}/."),
        attempt(os.mkdir, f"{d}/.."),
        attempt(os.rmdir, f"{d}/."),
        attempt(os.rmdir, f"{d}/.."),
        attempt(os.unlink, f"{d}/."),
        attempt(os.rename, f"{d}/.", f"{d}2"),
        attempt(os.rename, d, f"{p}/.../.."),
        os.path.samefile(f"{d}/..", p),
        os.path.samefile(f"{d}/../d/.", d),
    ]


# ----------------------------------------------------------------------------------- symlinks


@scenario
def symlink_and_readlink(p: Path) -> Any:
    targets = ["file", "/", "../..", "ü", "x" * 59, "x" * 60, "y/" * 2047 + "z", "\udcff"]
    for index, target in enumerate(targets):
        os.symlink(target, p / f"link{index}")
    return [os.readlink(p / f"link{index}") for index in range(len(targets))], facts(
        p / "link4", follow_symlinks=False
    )


@scenario
def symlink_errors(p: Path) -> Any:
    put(p / "file")
    os.symlink("nowhere", p / "dangling")
    return [
        attempt(os.symlink, "x", p / "file"),
        attempt(os.symlink, "x", p / "dangling"),
        attempt(os.symlink, "", p / "empty"),
        attempt(os.symlink, "x" * 4096, p / "long"),
        attempt(os.symlink, "x", p / "missing" / "link"),
        attempt(os.readlink, p / "file"),
        attempt(os.readlink, p),
        attempt(os.readlink, p / "missing"),
    ]


@scenario
def symlinks_are_followed(p: Path) -> Any:
    os.mkdir(p / "d")
    put(p / "d" / "file", b"content")
    os.symlink("d", p / "to_d")
    os.symlink("d/file", p / "to_file")
    os.symlink("missing", p / "dangling")
    with opened(p / "dangling", os.O_CREAT | os.O_WRONLY) as fd:
        os.write(fd, b"made through a link")
    os.rename(p / "to_d" / "file", p / "to_d" / "moved")
    return facts(p / "to_d"), (p / "to_d" / "moved").read_bytes(), attempt(os.stat, p / "to_file")


@scenario
def symlink_loops(p: Path) -> Any:
    os.symlink("loop", p / "loop")
    for index in range(41):
        os.symlink(f"chain{index + 1}", p / f"chain{index}")
    put(p / "chain41")
    return [
        attempt(os.stat, p / "loop"),
        attempt(os.open, p / "loop", os.O_RDONLY),
        attempt(os.stat, p / "chain0"),
        attempt(facts, p / "chain2"),
        attempt(os.open, p / "loop" / "below", os.O_CREAT),
    ]


# ---------------------------------------------------------------------------------- mknod


@scenario
def mknod_of_each_type(p: Path) -> Any:
    device = os.makedev(0xABC, 0x12345)
    os.mknod(p / "regular", stat.S_IFREG | 0o640)
    os.mknod(p / "fifo", stat.S_IFIFO | 0o604)
    os.mknod(p / "socket", stat.S_IFSOCK | 0o755)
    os.mknod(p / "character", stat.S_IFCHR | 0o600, device)
    os.mknod(p / "block", stat.S_IFBLK | 0o600, os.makedev(7, 3))
    with umask(0o077):
        os.mknod(p / "masked", stat.S_IFIFO | 0o666)
    return {entry.name: facts(p / entry.name) for entry in os.scandir(p)}


@scenario
def mknod_errors(p: Path) -> Any:
    put(p / "file")
    return [
        attempt(os.mknod, p / "file", stat.S_IFIFO | 0o600),
        attempt(os.mknod, p / "file" / "x", stat.S_IFIFO | 0o600),
        attempt(os.mknod, p / "missing" / "x", stat.S_IFREG | 0o600),
        attempt(os.mknod, p / "dir", stat.S_IFDIR | 0o600),
        attempt(os.mknod, p / "what", 0o130000 | 0o600),
    ]


@scenario
def fifo_passes_data(p: Path) -> Any:
    os.mkfifo(p / "fifo")
    with opened(p / "fifo", os.O_RDWR) as both, opened(p / "fifo", os.O_RDONLY | os.O_NONBLOCK) as reader:
        os.write(both, b"through")
        return os.read(reader, 100), attempt(os.read, reader, 1)


@scenario
def socket_can_be_bound_and_connected(p: Path) -> Any:
    os.chdir(p)
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        server.bind("socket")
        server.listen()
        client.connect("socket")
        client.send(b"hello")
        peer, _ = server.accept()
        with peer, socket.socket(socket.AF_UNIX) as late:
            return peer.recv(10), attempt(late.bind, "socket"), facts("socket")


# ---------------------------------------------------------------------------- mkdir and rmdir


@scenario
def mkdir_modes(p: Path) -> Any:
    modes = (0o777, 0o700, 0o1777, 0o2755, 0o000)
    for mode in modes:
        with umask(0):
            os.mkdir(p / f"free{mode:o}", mode)
        with umask(0o027):
            os.mkdir(p / f"masked{mode:o}", mode)
    return {entry.name: facts(entry.path) for entry in os.scandir(p)}, facts(p)


@scenario
def mkdir_errors(p: Path) -> Any:
    put(p / "file")
    os.symlink("missing", p / "dangling")
    names = ("file", "dangling", "file/x", "missing/x", "")
    return [attempt(os.mkdir, p / name) for name in names], attempt(os.mkdir, f"{p}/trailing/")


@scenario
def rmdir_errors(p: Path) -> Any:
    os.makedirs(p / "full" / "inner")
    put(p / "file")
    os.symlink("full", p / "link")
    return [attempt(os.rmdir, p / name) for name in ("full", "file", "missing", "link", "file/x")]


@scenario
def rmdir_makes_a_directory_dead(p: Path) -> Any:
    os.mkdir(p / "d")
    os.chdir(p / "d")
    with opened(p / "d", os.O_RDONLY) as fd:
        os.rmdir(p / "d")
        return (
            attempt(os.mkdir, "below"),
            attempt(os.open, "below", os.O_CREAT),
            attempt(os.listdir, fd),
            attempt(os.stat, "below"),
            facts(fd)[1],
            attempt(os.getcwd),
        )


# ------------------------------------------------------------------------------------- unlink


@scenario
def unlink_of_each_type(p: Path) -> Any:
    put(p / "file")
    os.symlink("file", p / "link")
    os.mkfifo(p / "fifo")
    for name in ("link", "fifo", "file"):
        os.unlink(p / name)
    return os.listdir(p), facts(p)


@scenario
def unlink_errors(p: Path) -> Any:
    os.mkdir(p / "d")
    put(p / "file")
    return [attempt(os.unlink, p / name) for name in ("d", "missing", "file/x", "d/missing")], attempt(
        os.unlink, f"{p}/file/"
    )


# ------------------------------------------------------------------------------------- rename


@scenario
def rename_moves_and_replaces(p: Path) -> Any:
    os.makedirs(p / "a" / "deep")
    os.makedirs(p / "b" / "empty")
    for name in ("f1", "f2", "f3"):
        put(p / "a" / name, name.encode())
    inode = os.stat(p / "a" / "f1").st_ino
    os.rename(p / "a" / "f1", p / "a" / "moved")
    os.rename(p / "a" / "f2", p / "a" / "f3")
    is_same = os.stat(p / "a" / "moved").st_ino == inode
    os.rename(p / "a" / "moved", p / "b" / "f1")
    os.rename(p / "a" / "deep", p / "b" / "empty")
    put(p / "b" / "empty" / "inner")
    os.rename(p / "b", p / "a" / "b")
    return is_same, facts(p / "a" / "b" / "empty" / "inner"), attempt(os.stat, p / "b"), facts(p / "a")


@scenario
def rename_of_an_open_file(p: Path) -> Any:
    with opened(p / "f", os.O_CREAT | os.O_RDWR) as fd:
        os.write(fd, b"before ")
        os.rename(p / "f", p / "g")
        os.write(fd, b"after")
        put(p / "f", b"another")
        return os.pread(fd, 100, 0), facts(fd), (p / "g").read_bytes()


@scenario
def rename_over_an_open_file(p: Path) -> Any:
    put(p / "f", b"old")
    put(p / "g", b"new")
    with opened(p / "f", os.O_RDWR) as fd:
        os.rename(p / "g", p / "f")
        os.pwrite(fd, b"still here", 0)
        return os.pread(fd, 100, 0), facts(fd), (p / "f").read_bytes()


@scenario
def rename_of_hard_links_of_one_file_does_nothing(p: Path) -> Any:
    put(p / "f")
    os.link(p / "f", p / "g")
    os.rename(p / "f", p / "g")
    return sorted(os.listdir(p)), facts(p / "g")


@scenario
def rename_errors(p: Path) -> Any:
    os.makedirs(p / "d" / "full")
    os.mkdir(p / "e")
    put(p / "e" / "inner")
    put(p / "file")
    pairs = [
        *(
            ("missing", "x"),
            ("d", "d/full/x"),
            ("d", "d"),
            ("d", "e"),
            ("e", "d"),
            ("file", "d"),
            ("d", "file"),
        ),
        *(("file", "missing/x"), ("file/x", "y"), ("file", "file/x"), ("d/full", "d"), ("file", "")),
    ]
    return [attempt(os.rename, p / old, p / new) for old, new in pairs]


@scenario
def rename_noreplace(p: Path) -> Any:
    for name in ("a", "b"):
        put(p / name, name.encode())
    os.mkdir(p / "d")
    return (
        attempt(renameat2, p / "a", p / "b", NOREPLACE),
        attempt(renameat2, p / "a", p / "d", NOREPLACE),
        attempt(renameat2, p / "a", p / "a", NOREPLACE),
        attempt(renameat2, p / "a", p / "c", NOREPLACE),
        attempt(renameat2, p / "a", p / "x", NOREPLACE),
        attempt(renameat2, p / "b", p / "c", NOREPLACE | EXCHANGE),
        attempt(renameat2, p / "b", p / "c", 8),
    )


@scenario
def rename_exchange(p: Path) -> Any:
    os.makedirs(p / "d" / "inner")
    put(p / "file", b"content")
    os.mkdir(p / "e")
    put(p / "e" / "other", b"other")
    inodes = [os.stat(p / name).st_ino for name in ("d", "file")]
    results = [
        attempt(renameat2, p / "d", p / "file", EXCHANGE),
        attempt(renameat2, p / "e" / "other", p / "d", EXCHANGE),
        attempt(renameat2, p / "missing", p / "d", EXCHANGE),
        attempt(renameat2, p / "d", p / "missing", EXCHANGE),
        attempt(renameat2, p / "file", p / "file" / "inner", EXCHANGE),
    ]
    moved = os.stat(p / "file").st_ino == inodes[0], os.stat(p / "e" / "other").st_ino == inodes[1]
    return results, moved, facts(p / "file" / "inner"), (p / "e" / "other").read_bytes()


@scenario
def rename_whiteout(p: Path) -> Any:
    put(p / "f", b"moved")
    result = attempt(renameat2, p / "f", p / "g", WHITEOUT)
    return result, facts(p / "f"), facts(p / "g"), attempt(renameat2, p / "g", p / "f", WHITEOUT | EXCHANGE)


# --------------------------------------------------------------------------------------- link


@scenario
def link_makes_one_file_of_many_names(p: Path) -> Any:
    os.mkdir(p / "d")
    put(p / "a", b"first")
    os.link(p / "a", p / "b")
    os.link(p / "b", p / "d" / "c")
    with opened(p / "d" / "c", os.O_WRONLY | os.O_APPEND) as fd:
        os.write(fd, b" second")
    os.chmod(p / "b", 0o600)
    inodes = {os.stat(path).st_ino for path in (p / "a", p / "b", p / "d" / "c")}
    contents = {(p / "a").read_bytes(), (p / "b").read_bytes()}
    os.unlink(p / "a")
    os.rename(p / "b", p / "moved")
    return len(inodes), contents, facts(p / "d" / "c"), facts(p / "moved")


@scenario
def link_of_other_types(p: Path) -> Any:
    os.symlink("nowhere", p / "symlink")
    os.mkfifo(p / "fifo")
    os.link(p / "symlink", p / "symlink2", follow_symlinks=False)
    os.link(p / "fifo", p / "fifo2")
    return [facts(p / name, follow_symlinks=False) for name in ("symlink", "symlink2", "fifo", "fifo2")]


@scenario
def link_errors(p: Path) -> Any:
    put(p / "file")
    put(p / "other")
    os.mkdir(p / "d")
    pairs = (
        ("d", "e"),
        ("missing", "x"),
        ("file", "other"),
        ("file", "missing/x"),
        ("file", "other/x"),
        ("file", "d"),
    )
    return [attempt(os.link, p / old, p / new) for old, new in pairs]


@scenario
def link_of_an_unlinked_file(p: Path) -> Any:
    with opened(p / "f", os.O_CREAT | os.O_RDWR) as fd:
        os.unlink(p / "f")
        return attempt(link_fd, fd, p / "back"), os.listdir(p)


@scenario
def link_and_rename_to_another_file_system(p: Path) -> Any:
    put(p / "f")
    os.mkdir(p / "d")
    away = Path("/dev/shm") / f"fusebpf-{os.getpid()}"  # noqa: S108 - another file system is what is wanted
    results = [attempt(call, p / "f", away) for call in (os.link, os.rename)]
    results.append(attempt(os.rename, p / "d", away))
    put(away)
    results += [attempt(call, away, p / "g") for call in (os.link, os.rename)]
    os.unlink(away)
    return results


@scenario
def ops_relative_to_a_directory(p: Path) -> Any:
    os.makedirs(p / "d" / "e")
    with opened(p / "d", os.O_RDONLY | os.O_DIRECTORY) as d, opened(p / "d" / "e", os.O_PATH) as e:
        with opened("f", os.O_CREAT | os.O_WRONLY, 0o600, dir_fd=e) as fd:
            os.write(fd, b"text")
        os.rename(p / "d", p / "moved")
        os.link("f", "g", src_dir_fd=e, dst_dir_fd=d)
        os.rename("f", "h", src_dir_fd=e, dst_dir_fd=d)
        os.mkdir("sub", dir_fd=e)
        os.symlink("g", "s", dir_fd=d)
        os.unlink("g", dir_fd=d)
        return facts("h", dir_fd=d), os.readlink("s", dir_fd=d), mode_of(p / "moved" / "e" / "sub")
