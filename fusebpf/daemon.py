"""What the author of a daemon uses: Daemon, Continue, and what a handler may ask for.

A daemon is a `pyfuse3.Operations`: async methods with pyfuse3's signatures and types. An op that it does not
define, or that raises Continue, goes on to the backing root. `daemon_leg` stands between it and the core.
"""

from __future__ import annotations

import contextlib
import errno
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn, Self

import pyfuse3

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    from fusebpf.daemon_leg import Leg
    from fusebpf.stack import Stack

HANDLERS = (
    *("lookup", "getattr", "setattr", "readlink", "mknod", "mkdir", "unlink", "rmdir", "symlink", "rename"),
    *("link", "open", "read", "write", "flush", "release", "fsync", "opendir", "readdir", "releasedir"),
    *("fsyncdir", "statfs", "setxattr", "getxattr", "listxattr", "removexattr", "access", "create"),
)
"""The ops that pyfuse3 can express, by the names of their handlers."""


class Continue(Exception):  # noqa: N818 - no error: the op goes on
    """Raised by a handler: the op goes on to the backing root, with its arguments or with others.

    Args:
        changes: Arguments that are to be others: name, new_name, target (bytes), mode, flags, uid, gid, size,
            offset, rdev, mask, atime_ns and mtime_ns (both or neither); as far as the op has them. They are
            checked as a filter's edits are (docs/abi.md). None, of what setattr sets: that is not set.
    """

    def __init__(self, **changes: int | bytes | None) -> None:
        super().__init__()
        self.changes = changes


class FileInfo(pyfuse3.FileInfo):
    """pyfuse3's FileInfo, which can also leave a file's data to the backing root.

    Args:
        fh: The handler's own number for the open file.
        passthrough: Reads and writes are the backing file's: by the kernel alone, where it can.
        options: direct_io, keep_cache, nonseekable, as for pyfuse3.
    """

    def __new__(cls, fh: int = 0, *, passthrough: bool = False, **options: int) -> Self:
        """Make one; the base class takes no other arguments than its own."""
        made = super().__new__(cls, fh, **options)  # type: ignore[call-arg]
        made.passthrough = passthrough
        return made

    def __init__(self, fh: int = 0, *, passthrough: bool = False, **_options: int) -> None:
        del fh, passthrough  # taken by __new__
        self.passthrough: bool


@dataclass(slots=True)
class Request:
    """What is known of the op that a handler is called for, beside the handler's arguments.

    Attributes:
        token: Of this call; unique among those under way.
        op: Its name.
        inode: The inode that it is about, as handlers know it.
        fh: The handle, as handlers know it; 0 without one.
        uid: Of the caller, as are gid, pid and umask.
        unique: The kernel's number of the request.
        other: The second inode, of rename (the new directory) and link (what is linked); 0 without one.
        args: For a look at a result: the op's arguments by name (name, new_name, target, mode, flags, …).
    """

    token: int
    op: str
    unique: int
    inode: int
    fh: int
    our_inode: int
    our_fh: int
    other: int
    our_other: int
    uid: int
    gid: int
    pid: int
    umask: int
    args: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class Result:
    """The result of an op as a `post_…` handler sees it, and may change it in place.

    Attributes:
        error: The errno, 0 for success; set it, or raise FUSEError, to fail the op.
        attr: lookup, getattr, setattr and what makes entries: the attributes; None elsewhere.
        data: read, readlink, getxattr, listxattr: the bytes; at most as many as were asked for.
        count: write: the bytes written.
        statfs: statfs: its numbers.
    """

    error: int = 0
    attr: pyfuse3.EntryAttributes | None = None
    data: bytes | None = None
    count: int | None = None
    statfs: pyfuse3.StatvfsData | None = None


class Backing(os.PathLike[str]):
    """The file on the backing root behind an inode or handle.

    It is path-like: `os.open(backing, os.O_RDONLY)` opens the file, whatever its name is by now. It has a
    descriptor until it is closed, or collected.
    """

    def __init__(self, fd: int, *, is_open: bool) -> None:
        self._fd = fd
        self._data_fd = fd if is_open else -1

    def fileno(self) -> int:
        """The descriptor; that of an inode is O_PATH, that of a handle as it was opened."""
        if self._fd < 0:
            raise ValueError("the backing is closed")
        return self._fd

    @property
    def fd(self) -> int:
        """The same."""
        return self.fileno()

    def __fspath__(self) -> str:
        return f"/proc/self/fd/{self.fileno()}"

    @property
    def path(self) -> str:
        """Where the file is at this moment; for messages, since names change."""
        return os.readlink(self)  # noqa: PTH115 - bytes that are no text must not fail

    def open(self, flags: int = os.O_RDONLY) -> int:
        """Open the file: a descriptor that the caller closes."""
        return os.open(self, flags | os.O_CLOEXEC)

    def stat(self) -> os.stat_result:
        """Its attributes."""
        return os.fstat(self.fileno())

    def pread(self, size: int, offset: int) -> bytes:
        """Read from it. Blocks as a read of the backing file system does."""
        return os.pread(self._readable(), size, offset)

    def _readable(self) -> int:
        if self._data_fd >= 0 and os.get_blocking(self._data_fd):
            with contextlib.suppress(OSError):
                os.pread(self._data_fd, 0, 0)
                return self._data_fd
        self._data_fd = self.open() if self._data_fd in {-1, self._fd} else self._data_fd
        return self._data_fd

    def pwrite(self, data: bytes, offset: int) -> int:
        """Write to it, whatever it was opened for."""
        fd = self.open(os.O_WRONLY)
        try:
            return os.pwrite(fd, data, offset)
        finally:
            os.close(fd)

    def close(self) -> None:
        """Give the descriptors back."""
        for fd in {self._fd, self._data_fd} - {-1}:
            os.close(fd)
        self._fd = self._data_fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()


class Daemon(pyfuse3.Operations):
    """Base class of daemons: define the ops that you care about; the others go on to the backing root.

    Handlers are pyfuse3's. `async def post_OP(self, request, result)` sees the result of an op that the
    backing root answered, a Request and a Result, and may change the result.

    Attributes:
        stack: The mount, once it has begun; `stack.backing(inode)` is the file behind an inode or handle.
        leg: How it is reached; not for handlers.
    """

    stack: Stack
    leg: Leg

    @property
    def request(self) -> Request:
        """What is known of the op that the calling handler serves.

        Raises:
            LookupError: No handler calls.
        """
        return self.leg.request

    def entry(self, parent: int, name: bytes) -> pyfuse3.EntryAttributes:
        """The backing root's entry of a name, to answer with while the handler is called.

        Raises:
            OSError: There is none.
        """
        return self.leg.entry(parent, name)

    async def forget(self, inode_list: Sequence[tuple[pyfuse3.InodeT, int]]) -> None:
        """Not defined: nothing is to be forgotten."""


def _goes_on(op: str) -> Any:
    async def handler(_self: Daemon, *_args: Any) -> NoReturn:
        raise Continue

    handler.__name__ = op
    handler.__doc__ = f"Not defined: {op} goes on to the backing root."
    return handler


for _op in HANDLERS:
    setattr(Daemon, _op, _goes_on(_op))


def attributes_of(stat: os.stat_result, inode: int) -> pyfuse3.EntryAttributes:
    """What stat(2) says as pyfuse3 has it, to be cached for no time."""
    entry = pyfuse3.EntryAttributes()
    for name in ("st_mode", "st_nlink", "st_uid", "st_gid", "st_rdev", "st_size", "st_blksize", "st_blocks"):
        setattr(entry, name, getattr(stat, name))
    for name in ("st_atime_ns", "st_mtime_ns", "st_ctime_ns"):
        setattr(entry, name, getattr(stat, name))
    entry.st_ino = pyfuse3.InodeT(inode)
    entry.entry_timeout = entry.attr_timeout = 0
    return entry


def no_backing(number: int) -> OSError:
    """What `stack.backing` raises for a node without one."""
    return OSError(errno.EBADF, f"inode or handle {number} has no backing file")
