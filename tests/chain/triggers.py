"""For each op, a system call that makes the kernel send it. By name; a test sees that none is missing."""

import ctypes
import fcntl
import os
import select
import stat
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from core.table import checked, libc

Trigger = Callable[[], Any]
FS_IOC_GETFLAGS = 0x80086601


def _poll(fd: int) -> Any:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return poll.poll(0)


@contextmanager
def prepared(op: str, p: Path) -> Iterator[Trigger]:
    """All that the op needs; then the call that triggers it."""
    (p / "f").write_bytes(b"0123456789")
    (p / "d").mkdir()
    os.symlink("target", p / "link")
    os.setxattr(p / "f", "user.a", b"value")
    file, directory = os.open(p / "f", os.O_RDWR), os.open(p / "d", os.O_RDONLY)
    stream = os.open(p, os.O_RDONLY)
    own = os.open(p / "f", os.O_RDWR)
    own_dir = os.open(p / "d", os.O_RDONLY)
    calls: dict[str, Trigger] = {
        "lookup": lambda: os.stat("f", dir_fd=stream),
        "getattr": lambda: os.fstat(file),
        "setattr": lambda: os.fchmod(file, 0o600),
        "readlink": lambda: os.readlink(p / "link"),
        "symlink": lambda: os.symlink("x", p / "new"),
        "mknod": lambda: os.mknod(p / "new", stat.S_IFIFO | 0o600),
        "mkdir": lambda: os.mkdir(p / "new"),
        "unlink": lambda: os.unlink(p / "f"),
        "rmdir": lambda: os.rmdir(p / "d"),
        "rename": lambda: os.rename(p / "f", p / "new"),
        "link": lambda: os.link(p / "f", p / "new"),
        "open": lambda: os.close(os.open(p / "f", os.O_RDONLY)),
        "read": lambda: os.pread(file, 4, 2),
        "write": lambda: os.pwrite(file, b"AB", 2),
        "statfs": lambda: os.statvfs(p),
        "release": lambda: os.close(own),
        "fsync": lambda: os.fsync(file),
        "setxattr": lambda: os.setxattr(p / "f", "user.b", b"x"),
        "getxattr": lambda: os.getxattr(p / "f", "user.a"),
        "listxattr": lambda: os.listxattr(p / "f"),
        "removexattr": lambda: os.removexattr(p / "f", "user.a"),
        "flush": lambda: os.close(os.dup(file)),
        "opendir": lambda: os.close(os.open(p / "d", os.O_RDONLY | os.O_DIRECTORY)),
        "readdir": lambda: os.listdir(stream),
        "releasedir": lambda: os.close(own_dir),
        "fsyncdir": lambda: os.fsync(directory),
        "access": lambda: os.access(p / "f", os.R_OK),
        "create": lambda: os.close(os.open(p / "new", os.O_CREAT | os.O_EXCL | os.O_WRONLY)),
        "dirent": lambda: os.listdir(stream),
        "getlk": lambda: len(fcntl.fcntl(file, fcntl.F_GETLK, struct.pack("hhqqi4x", 1, 0, 0, 0, 0))),
        "setlk": lambda: fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB),
        "flock": lambda: fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB),
        "ioctl": lambda: len(fcntl.ioctl(file, FS_IOC_GETFLAGS, bytes(8))),
        "poll": lambda: _poll(file),
        "fallocate": lambda: checked(libc.fallocate(file, 0, 0, 4096)),
        "lseek": lambda: os.lseek(file, 0, os.SEEK_HOLE),
        "copy_file_range": lambda: os.copy_file_range(file, own, 4, 0, 20),
        "tmpfile": lambda: os.close(os.open(p, os.O_TMPFILE | os.O_RDWR)),
        "statx": lambda: checked(libc.statx(file, b"", 0x1000, 0xFFF, ctypes.create_string_buffer(256))),
    }
    try:
        yield calls[op]
    finally:
        for fd in (file, directory, stream, own, own_dir):
            with suppress(OSError):
                os.close(fd)
