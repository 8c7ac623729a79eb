"""`-o idmap`: the mount can be cloned with mapped ids."""

import ctypes
import os
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import support
from core.table import attempt, checked, in_child, mode_of, opened, put, user

OPEN_TREE, MOVE_MOUNT, MOUNT_SETATTR = 428, 429, 442
AT_EMPTY_PATH, AT_FDCWD = 0x1000, -100
OPEN_TREE_CLONE, MOVE_MOUNT_F_EMPTY_PATH = 1, 4
MOUNT_ATTR_IDMAP = 0x00100000
SHIFT = 10_000

_libc = ctypes.CDLL(None, use_errno=True)


@contextmanager
def user_namespace() -> Iterator[int]:
    """A user namespace in which the ids from 0 on are those from SHIFT on outside; a descriptor of it."""
    sleeper = subprocess.Popen(["unshare", "--user", "sleep", "1000"])
    try:
        own = os.readlink("/proc/self/ns/user")
        support.wait_until(lambda: os.readlink(f"/proc/{sleeper.pid}/ns/user") != own)
        for kind in ("uid", "gid"):
            Path(f"/proc/{sleeper.pid}/{kind}_map").write_text(f"0 {SHIFT} 65536\n")
        fd = os.open(f"/proc/{sleeper.pid}/ns/user", os.O_RDONLY)
        try:
            yield fd
        finally:
            os.close(fd)
    finally:
        sleeper.kill()
        sleeper.wait()


def map_ids(source: Path, target: Path, namespace: int) -> None:
    """Mount a clone of a mount whose files' ids are mapped: those on disk to SHIFT and on."""
    fd = checked(_libc.syscall(OPEN_TREE, AT_FDCWD, os.fsencode(source), OPEN_TREE_CLONE))
    try:
        attributes = struct.pack("=4Q", MOUNT_ATTR_IDMAP, 0, 0, namespace)
        checked(_libc.syscall(MOUNT_SETATTR, fd, b"", AT_EMPTY_PATH, attributes, len(attributes)))
        flags = MOVE_MOUNT_F_EMPTY_PATH
        checked(_libc.syscall(MOVE_MOUNT, fd, b"", AT_FDCWD, os.fsencode(target), flags))
    finally:
        os.close(fd)


@contextmanager
def mapped(source: Path, target: Path) -> Iterator[Path]:
    """A clone of `source` with mapped ids on `target`, for the time of a block."""
    with user_namespace() as namespace:
        map_ids(source, target, namespace)
        try:
            yield target
        finally:
            support.umount(target, support.MNT_DETACH)


def act(p: Path) -> Any:
    """What a mapped user makes, and may do and not do; the ids as the user sees them."""
    said = []
    with user(SHIFT + 1000):
        os.umask(0o022)
        os.mkdir(p / "d")
        os.mkdir(p / "d" / "sub")
        (p / "d" / "f").write_text("x")
        os.symlink("f", p / "d" / "l")
        os.mkfifo(p / "d" / "fifo")
        os.rename(p / "d" / "f", p / "d" / "g")
        os.link(p / "d" / "g", p / "d" / "h")
        os.chmod(p / "d" / "g", 0o640)
        said += [attempt(os.chown, p / "d" / "g", SHIFT + 5, -1), attempt((p / "closed").read_text)]
        for name in ("", "sub", "g", "l", "fifo"):
            st = os.lstat(p / "d" / name)
            said.append((st.st_uid - SHIFT, st.st_gid - SHIFT, oct(st.st_mode)))
    with user(1000):
        said += [attempt(os.mkdir, p / "closed-to-others"), attempt((p / "d" / "g").read_text)]
    return said


def test_files_get_the_mapped_ids(directory: Path, bare: Path, mount: support.Mounter) -> None:
    """As a mapped clone of the bare directory does it."""
    mounted = mount(options="idmap")
    target = directory / "mapped"
    target.mkdir()
    seen = []
    support.run("mount", "--bind", bare, bare)
    for source, backing in ((mounted.path, mounted.src), (bare, bare)):
        (backing / "closed").write_text("closed")
        (backing / "closed").chmod(0o600)
        os.chown(backing, 1000, 1000)
        with mapped(source, target) as place:
            said = in_child(act, place)
            ids = [(os.lstat(path).st_uid, os.lstat(path).st_gid) for path in sorted(backing.rglob("d/*"))]
            seen.append((said, ids))
    support.run("umount", bare)

    assert seen[0] == seen[1]
    assert set(seen[0][1]) == {(1000, 1000)}


def test_a_mount_without_it_cannot_be_mapped(directory: Path, mount: support.Mounter) -> None:
    mounted = mount()
    target = directory / "mapped"
    target.mkdir()

    with user_namespace() as namespace, pytest.raises(OSError, match="Invalid argument"):
        map_ids(mounted.path, target, namespace)


def test_writing_as_others_still_clears_privileges(mount: support.Mounter) -> None:
    mounted = mount(options="idmap,nopassthrough")
    program = mounted.src / "program"
    program.write_text("x")
    program.chmod(0o6777)

    support.run("tee", mounted.path / "program", stdin="y", user=1000)

    assert program.stat().st_mode & 0o7777 == 0o777


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["-o", "idmap,nodefault_permissions"], "'idmap' and 'nodefault_permissions' exclude one another"),
        (["-o", "idmap", "--filter", "deny"], "filter 'deny' reads callers' ids"),
    ],
)
def test_what_needs_the_callers_ids_is_refused(directory: Path, words: list[str], said: str) -> None:
    src, target = directory / "src", directory / "mnt"
    src.mkdir()
    target.mkdir()

    done = support.run(
        support.COMMAND, "mount", src, target, "--name", "test-idmap", *words, check=False, seconds=60
    )

    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert said in done.stderr
    assert support.mountpoints(directory) == []


def keep_bits(p: Path) -> Any:
    """What ops whose requests do not name their caller leave of suid and sgid bits."""
    seen = []
    for number, (uid, gid, groups) in enumerate(
        [(0, 0, []), (1000, 1000, []), (1000, 777, []), (1000, 5, [777])]
    ):
        for mode in (0o6766, 0o2766):
            path = put(p / f"f{number}-{mode:o}")
            for act in (
                lambda fd: os.posix_fallocate(fd, 0, 9),
                lambda fd: os.write(fd, b"x"),
                lambda fd: os.fchown(fd, -1, os.getegid()),
            ):
                os.chown(path, 1000, 777)
                path.chmod(mode)
                with user(uid, gid, groups), opened(path, os.O_RDWR) as fd:
                    act(fd)
                seen.append(mode_of(path))
    return seen


def test_bits_stay_and_go_by_who_the_caller_is(mount: support.Mounter, bare: Path) -> None:
    mounted = mount(options="idmap,nopassthrough")

    assert in_child(keep_bits, mounted.path) == in_child(keep_bits, bare)
