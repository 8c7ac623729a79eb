"""Ways to lock, for tests: of ranges and of whole files, here, in another process, and who waits for them."""

import fcntl
import os
import re
import signal
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from core.table import attempt, in_child, opened

READ, WRITE, UNLOCK = fcntl.F_RDLCK, fcntl.F_WRLCK, fcntl.F_UNLCK
TO_END = 0
FORMAT = "hhqqi4x"


def posix(fd: int, kind: int, start: int = 0, length: int = TO_END, *, waits: bool = False) -> Any:
    data = struct.pack(FORMAT, kind, os.SEEK_SET, start, length, 0)
    return attempt(lambda: fcntl.fcntl(fd, fcntl.F_SETLKW if waits else fcntl.F_SETLK, data) and None)


def ofd(fd: int, kind: int, start: int = 0, length: int = TO_END, *, waits: bool = False) -> Any:
    data = struct.pack(FORMAT, kind, os.SEEK_SET, start, length, 0)
    return attempt(lambda: fcntl.fcntl(fd, fcntl.F_OFD_SETLKW if waits else fcntl.F_OFD_SETLK, data) and None)


def whole(fd: int, kind: int, _start: int = 0, _length: int = TO_END, *, waits: bool = False) -> Any:
    how = {READ: fcntl.LOCK_SH, WRITE: fcntl.LOCK_EX, UNLOCK: fcntl.LOCK_UN}[kind]
    return attempt(fcntl.flock, fd, how | (0 if waits else fcntl.LOCK_NB))


Lock = Callable[..., Any]
ALL: dict[str, Lock] = {"posix": posix, "ofd": ofd, "flock": whole}


def getlk(fd: int, kind: int, start: int = 0, length: int = TO_END, command: int = fcntl.F_GETLK) -> Any:
    """(type, start, length, pid) of what is in the way."""
    answer = fcntl.fcntl(fd, command, struct.pack(FORMAT, kind, os.SEEK_SET, start, length, 0))
    found, _, start, length, pid = struct.unpack(FORMAT, answer)
    return (found,) if found == UNLOCK else (found, start, length, pid)


def elsewhere(path: Path, call: Callable[[int], Any], flags: int = os.O_RDWR) -> Any:
    """What a second process finds that opens the file itself."""

    def act() -> Any:
        with opened(path, flags) as fd:
            return call(fd)

    return in_child(act, seconds=10)


@contextmanager
def another(path: Path, call: Callable[[int], Any]) -> Iterator[int]:
    """A second process that opens the file, does this, and stays for the time of a block."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            fd = os.open(path, os.O_RDWR)
            call(fd)
            os.write(writer, b"1")
            signal.alarm(60)
            signal.pause()
        finally:
            os._exit(status)
    os.close(writer)
    try:
        assert os.read(reader, 1) == b"1"
        yield pid
    finally:
        os.close(reader)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def lock_in_the_end(path: Path, lock: Lock) -> Any:
    """What a second process finds that locks the file to write, when the last lock on it is to have gone.

    RELEASE, by which an open file's own locks go, comes after close(2) has returned: so it may take a moment.
    """
    end = time.monotonic() + 5
    while (said := elsewhere(path, lambda fd: lock(fd, WRITE))) and time.monotonic() < end:
        time.sleep(0.01)
    return said


def n_waiting(path: Path) -> int:
    """How many wait for a lock of the file: through the mount it is the server that does."""
    inode = os.stat(path).st_ino
    return len(re.findall(rf"->.*:{inode} ", Path("/proc/locks").read_text()))


def is_waited_for(path: Path) -> bool:
    """Whether somebody does."""
    return n_waiting(path) > 0
