"""The kernel's mount table and the calls that change it.

Nothing here sends a request to a FUSE server: paths are opened with O_PATH and looked at with statx and
AT_STATX_DONT_SYNC, so that a mount whose server is dead or hangs can be found, judged and taken down. (The
walk to a path still asks the file systems above it.) Any thread may call; there is no state.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import stat
import struct
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

FUSE_TYPE = "fuse.fusebpf"
"""How our mounts read in the mount table."""

MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_SYNCHRONOUS = 16
MS_REMOUNT = 32
MS_DIRSYNC = 128
MS_NOSYMFOLLOW = 256
MS_NOATIME = 1024
MS_NODIRATIME = 2048
MS_SILENT = 32768
MS_RELATIME = 1 << 21
MS_STRICTATIME = 1 << 24
MS_LAZYTIME = 1 << 25

_MNT_DETACH = 2
_UMOUNT_NOFOLLOW = 8

_CLONE_NEWNS = 0x20000

_AT_EMPTY_PATH = 0x1000
_AT_STATX_DONT_SYNC = 0x4000
_STATX_TYPE = 0x1
_STATX_INO = 0x100
_STATX_MNT_ID = 0x1000
_STATX_MNT_ID_UNIQUE = 0x4000
_STATX_ATTR_MOUNT_ROOT = 0x2000

StrPath = str | os.PathLike[str]

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = (
    ctypes.c_char_p,
    ctypes.c_char_p,
    ctypes.c_char_p,
    ctypes.c_ulong,
    ctypes.c_char_p,
)
_libc.setns.argtypes = (ctypes.c_int, ctypes.c_int)
_libc.umount2.argtypes = (ctypes.c_char_p, ctypes.c_int)
_libc.statx.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_uint, ctypes.c_char_p)


class CoveredError(OSError):
    """A mount cannot be reached, since another stands on top of it."""


class Mounted(NamedTuple):
    """One line of /proc/self/mountinfo.

    Source: proc_pid_mountinfo(5).
    """

    mount_id: int
    parent_id: int
    device: str
    root: str
    point: str
    options: str
    peers: int
    """The peer group that its mounts propagate to; 0: none."""
    master: int
    """The peer group that it receives mounts from; 0: none."""
    fs_type: str
    source: str
    super_options: str

    @property
    def is_ours(self) -> bool:
        """Whether it is a fusebpf mount."""
        return self.fs_type == FUSE_TYPE


def _unescape(field: bytes) -> str:
    return os.fsdecode(re.sub(rb"\\([0-7]{3})", lambda match: bytes((int(match[1], 8),)), field))


def parse_mountinfo(text: bytes) -> list[Mounted]:
    """Parse the text of a mountinfo file, in its order."""
    table = []
    for line in text.split(b"\n"):
        if not line:
            continue
        fields = line.split(b" ")
        end = fields.index(b"-", 6)
        groups = dict(field.partition(b":")[::2] for field in fields[6:end])
        table.append(
            Mounted(
                mount_id=int(fields[0]),
                parent_id=int(fields[1]),
                device=fields[2].decode(),
                root=_unescape(fields[3]),
                point=_unescape(fields[4]),
                options=_unescape(fields[5]),
                peers=int(groups.get(b"shared", 0)),
                master=int(groups.get(b"master", 0)),
                fs_type=_unescape(fields[end + 1]),
                source=_unescape(fields[end + 2]),
                super_options=_unescape(fields[end + 3]),
            )
        )
    return table


def table() -> list[Mounted]:
    """What is mounted in this mount namespace."""
    return parse_mountinfo(Path("/proc/self/mountinfo").read_bytes())


def by_id(mount_id: int) -> Mounted | None:
    """The mount of this id in this mount namespace, or None."""
    return next((mounted for mounted in table() if mounted.mount_id == mount_id), None)


class Place(NamedTuple):
    """What an open directory is, without asking a FUSE server."""

    device: int
    inode: int
    mount_id: int
    is_directory: bool
    is_mount_root: bool

    def is_same(self, other: Place) -> bool:
        """Whether both are one directory, through whatever mounts it was reached."""
        return (self.device, self.inode) == (other.device, other.inode)


def place_of(fd: int) -> Place:
    """What an open file is, as the kernel has it cached.

    Raises:
        OSError: The kernel does not say.

    Source: statx(2).
    """
    buffer = _statx(fd, _STATX_TYPE | _STATX_INO | _STATX_MNT_ID)
    attributes, mode, inode = struct.unpack_from("<8xQ12xH2xQ", buffer)
    major, minor, mount_id = struct.unpack_from("<136xIIQ", buffer)
    return Place(
        os.makedev(major, minor),
        inode,
        mount_id,
        stat.S_ISDIR(mode),
        bool(attributes & _STATX_ATTR_MOUNT_ROOT),
    )


def unique_id_of(fd: int) -> int:
    """The id of an open file's mount that no other mount will ever have, or 0 where the kernel has none.

    Source: Linux commit 98d2b43081972 ("add unique mount ID") (v6.8).
    """
    buffer = _statx(fd, _STATX_MNT_ID_UNIQUE)
    mask, mount_id = struct.unpack_from("<I140xQ", buffer)
    return int(mount_id) if mask & _STATX_MNT_ID_UNIQUE else 0


def _statx(fd: int, mask: int) -> bytes:
    buffer = ctypes.create_string_buffer(256)
    if _libc.statx(fd, b"", _AT_EMPTY_PATH | _AT_STATX_DONT_SYNC, mask, buffer) != 0:
        _raise_errno("statx")
    return buffer.raw


@contextmanager
def opened(path: StrPath, *, dir_fd: int | None = None) -> Iterator[int]:
    """Open a path with O_PATH, for the time of a `with` block.

    Raises:
        OSError: There is no such path.
    """
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC, dir_fd=dir_fd)
    try:
        yield fd
    finally:
        os.close(fd)


def path_of(fd: int) -> str:
    """The absolute path, free of symlinks, that an open file has now."""
    return os.readlink(f"/proc/self/fd/{fd}")  # noqa: PTH115 - Path would normalize it


def canonical(path: StrPath) -> str:
    """The absolute path, free of symlinks; unlike realpath(3) it does not stat what stands at its end.

    Raises:
        OSError: There is no such path.
    """
    with opened(path) as fd:
        return path_of(fd)


def mount_of(path: StrPath) -> Mounted | None:
    """The mount that a path is the root of: the topmost one there; None if it is no mount point.

    Raises:
        OSError: There is no such path.
    """
    with opened(path) as fd:
        place = place_of(fd)
    return by_id(place.mount_id) if place.is_mount_root else None


def mount(source: str, point: StrPath, fs_type: str, flags: int = 0, data: str = "") -> None:
    """Put a file system into the tree.

    Raises:
        OSError: It failed.
    """
    arguments = [os.fsencode(text) for text in (source, point, fs_type)]
    if _libc.mount(*arguments, flags, os.fsencode(data) or None) != 0:
        _raise_errno("mount", point)


def enter_namespace(path: StrPath) -> None:
    """Take this process, which has one thread, into another mount namespace, to the root there.

    Args:
        path: Of the namespace, such as /proc/1/ns/mnt.

    Raises:
        OSError: It is none, or we may not.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if _libc.setns(fd, _CLONE_NEWNS) != 0:
            _raise_errno("setns", path)
    finally:
        os.close(fd)


def unmount(mounted: Mounted, *, is_lazy: bool = False) -> bool:
    """Take one mount down, and no other that may stand at the same place.

    Returns:
        False if it was not there any more.

    Raises:
        CoveredError: Another mount stands on top of it.
        OSError: EBUSY, or it failed otherwise.
    """
    now = by_id(mounted.mount_id)
    if now is None or (now.device, now.fs_type) != (mounted.device, mounted.fs_type):
        return False
    with opened(now.point) as fd:
        if place_of(fd).mount_id != mounted.mount_id:
            raise CoveredError(errno.EBUSY, "another mount covers it", now.point)
        # A lazy unmount goes through the descriptor, which cannot be another mount; a plain one cannot,
        # since the descriptor itself would keep the mount busy.
        if is_lazy:
            return _umount2(f"/proc/self/fd/{fd}", _MNT_DETACH, now.point)
    return _umount2(now.point, _UMOUNT_NOFOLLOW, now.point)


def _umount2(path: str, flags: int, name: str) -> bool:
    if _libc.umount2(os.fsencode(path), flags) == 0:
        return True
    # EINVAL: no mount point; somebody else was faster.
    if ctypes.get_errno() == errno.EINVAL:
        return False
    _raise_errno("umount", name)
    return False


def receivers(mounted: Mounted, mounts: list[Mounted]) -> list[Mounted]:
    """The mounts in which what is mounted in `mounted` shows too, by propagation; itself first.

    Source: mount_namespaces(7).
    """
    found = [mounted]
    groups = {mounted.peers} - {0}
    grew = bool(groups)
    while grew:
        grew = False
        for other in mounts:
            if other not in found and (other.peers in groups or other.master in groups):
                found.append(other)
                groups |= {other.peers} - {0}
                grew = True
    return found


def aliases(path: str, mounted: Mounted, mounts: list[Mounted]) -> list[str]:
    """The paths at which a mount on `path`, which lies in `mounted`, would show; `path` itself first."""
    inner = _moved(path, mounted.point, mounted.root)
    return [
        _moved(inner, receiver.root, receiver.point)
        for receiver in receivers(mounted, mounts)
        if receiver.device == mounted.device and is_below(inner, receiver.root)
    ]


def _moved(path: str, top: str, other: str) -> str:
    """What `path`, which lies below `top`, is called below `other`."""
    return os.path.normpath(os.path.join(other, os.path.relpath(path, top)))  # noqa: PTH118 - as text


def is_below(path: str, top: str) -> bool:
    """Whether a canonical path is `top` or lies below it."""
    return path == top or path.startswith(top.rstrip("/") + "/")


def ancestors(fd: int) -> Iterator[Place]:
    """The directories above an open directory, from its parent up to the root."""
    place = place_of(fd)
    current = os.dup(fd)
    try:
        while True:
            above = os.open("..", os.O_PATH | os.O_CLOEXEC, dir_fd=current)
            os.close(current)
            current = above
            parent = place_of(current)
            if parent == place:
                return
            yield parent
            place = parent
    finally:
        os.close(current)


def any_above(fd: int, test: Callable[[Place], bool]) -> bool:
    """Whether one of the directories above an open directory fulfils `test`."""
    return any(test(place) for place in ancestors(fd))


def _raise_errno(call: str, path: StrPath | None = None) -> None:
    number = ctypes.get_errno()
    raise OSError(number, f"{call}: {os.strerror(number)}", path)
