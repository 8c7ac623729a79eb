"""For each op, a system call that makes the kernel send it. By name; a test sees that none is missing."""

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

Trigger = Callable[[], Any]


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
        "lookup": lambda: (
            os.stat("missing-or-not", dir_fd=stream) if op == "x" else os.stat("f", dir_fd=stream)
        ),
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
    }
    try:
        yield calls[op]
    finally:
        for fd in (file, directory, stream, own, own_dir):
            with suppress(OSError):
                os.close(fd)
