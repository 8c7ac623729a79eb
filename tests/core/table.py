"""The table of scenarios, and how one is run and looked at: on the bare directory and on a mount alike.

A scenario is a function of a fresh directory; what it returns, and the tree that it leaves, must not depend
on where the directory lies. It runs in a child of its own, which may change its identity and can be killed.
"""

import ctypes
import errno
import os
import pickle
import select
import signal
import stat
import struct
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

Scenario = Callable[[Path], Any]
SCENARIOS: dict[str, Scenario] = {}

OLD = 1_500_000_000_123_456_789
"""A time in nanoseconds that no test happens at."""
RECENT_NS = 86_400 * 10**9

libc = ctypes.CDLL(None, use_errno=True)
libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long]


def scenario(function: Scenario) -> Scenario:
    """Put a scenario into the table."""
    assert function.__name__ not in SCENARIOS
    SCENARIOS[function.__name__] = function
    return function


def attempt(call: Callable[..., Any], *args: Any, **keywords: Any) -> Any:
    """What the call returns, or the name of its errno."""
    try:
        return call(*args, **keywords)
    except OSError as error:
        return errno.errorcode[error.errno or 0]


def checked(result: int) -> int:
    """The result of a libc function, or its errno as an OSError."""
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def put(path: Path, data: bytes = b"text\n", mode: int = 0o644) -> Path:
    """Make a file with this content and exactly this mode."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.write(fd, data)
    os.fchmod(fd, mode)
    os.close(fd)
    return path


def link_fd(fd: int, path: Path) -> int:
    """Give an open file a name; os.link() does not follow /proc/self/fd."""
    at_fdcwd, at_symlink_follow = -100, 0x400
    old = b"/proc/self/fd/%d" % fd
    return checked(libc.linkat(at_fdcwd, old, at_fdcwd, os.fsencode(path), at_symlink_follow))


@contextmanager
def opened(
    path: Path | str | bytes, flags: int, mode: int = 0o644, dir_fd: int | None = None
) -> Iterator[int]:
    """A descriptor for the time of a block."""
    fd = os.open(path, flags, mode, dir_fd=dir_fd)
    try:
        yield fd
    finally:
        os.close(fd)


def open_to_all(path: Path, mode: int = 0o777) -> Path:
    """A new directory that anybody may use, whatever the umask."""
    os.mkdir(path)
    os.chmod(path, mode)
    return path


@contextmanager
def user(uid: int, gid: int | None = None, groups: Sequence[int] = ()) -> Iterator[None]:
    """Act as another user for the time of a block; only in a scenario's child."""
    gid = uid if gid is None else gid
    os.setgroups(list(groups))
    os.setegid(gid)
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups([])


@contextmanager
def umask(mask: int) -> Iterator[None]:
    """Another umask for the time of a block; only in a scenario's child."""
    old = os.umask(mask)
    try:
        yield
    finally:
        os.umask(old)


def acl(*entries: tuple[int, int, int]) -> bytes:
    """The value of system.posix_acl_…: (tag, permissions, id); tags: 1 owner, 2 user, 4 group, 8 group id, 16
    mask, 32 other."""
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


NOBODY = 0xFFFFFFFF


# ------------------------------------------------------------------------------- what is seen


class Seen(NamedTuple):
    """One entry of a tree, as far as it does not depend on when and where it was made."""

    mode: str
    nlink: int
    uid: int
    gid: int
    size: int
    rdev: int
    atime: int | str
    mtime: int | str
    ctime: int | str
    content: bytes | int | None
    xattrs: tuple[tuple[str, bytes], ...]


def when(time_ns: int) -> int | str:
    """A time that was set; "now" for one that happened."""
    return "now" if abs(time.time_ns() - time_ns) < RECENT_NS else time_ns


Facts = tuple[str, int, int, int, int, int, int | str, int | str, int | str]


def facts(target: Path | str | bytes | int, **keywords: Any) -> Facts:
    """What stat(2) says, as far as it does not depend on when and where."""
    st = os.stat(target, **keywords)
    size = 0 if stat.S_ISDIR(st.st_mode) else st.st_size
    owner = oct(st.st_mode), st.st_nlink, st.st_uid, st.st_gid
    return (*owner, size, st.st_rdev, when(st.st_atime_ns), when(st.st_mtime_ns), when(st.st_ctime_ns))


def mode_of(target: Path | int) -> str:
    """The permission bits, in octal."""
    return oct(
        stat.S_IMODE(os.lstat(target).st_mode if isinstance(target, Path) else os.stat(target).st_mode)
    )


def owner_of(path: Path) -> tuple[int, int, str]:
    """Owner, group and permission bits."""
    st = os.lstat(path)
    return st.st_uid, st.st_gid, oct(stat.S_IMODE(st.st_mode))


def content_of(path: bytes, mode: int) -> bytes | int | None:
    if stat.S_ISLNK(mode):
        return os.readlink(path)
    if not stat.S_ISREG(mode):
        return None
    with opened(path, os.O_RDONLY | os.O_NOATIME | os.O_CLOEXEC) as fd:
        data = b"".join(iter(lambda: os.read(fd, 1 << 20), b""))
    return data if len(data) < 4096 else hash(data)


def xattrs_of(path: bytes) -> tuple[tuple[str, bytes], ...]:
    names = attempt(os.listxattr, path, follow_symlinks=False)
    if isinstance(names, str):
        return ((names, b""),)
    return tuple((name, os.getxattr(path, name, follow_symlinks=False)) for name in sorted(names))


def tree(top: Path) -> dict[bytes, Seen]:
    """Everything below a directory, and itself as b""."""
    found = {}

    def visit(path: bytes, name: bytes) -> None:
        st = os.lstat(path)
        numbers = facts(path, follow_symlinks=False)
        found[name] = Seen(*numbers, content_of(path, st.st_mode), xattrs_of(path))
        if stat.S_ISDIR(st.st_mode):
            with opened(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOATIME) as fd:
                names = [os.fsencode(entry) for entry in os.listdir(fd)]
            for entry in sorted(names):
                visit(path + b"/" + entry, name + b"/" + entry)

    visit(os.fsencode(top), b"")
    return found


# --------------------------------------------------------------------------------- children


def in_child(function: Callable[..., Any], *args: Any, seconds: float = 20) -> Any:
    """Run a function in a child, which is killed when its time is over; returns what it returned.

    Raises:
        AssertionError: It raised, or had to be killed.
    """
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        _be_child(writer, function, args)
    os.close(writer)
    end = time.monotonic() + seconds
    data, is_late = b"", False
    poll = select.poll()
    poll.register(reader, select.POLLIN)
    while not is_late:
        is_late = not poll.poll(max(0.0, end - time.monotonic()) * 1000)
        block = b"" if is_late else os.read(reader, 1 << 20)
        if not block:
            break
        data += block
    os.close(reader)
    if is_late:
        os.kill(pid, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    name = getattr(function, "__name__", function)
    assert not is_late, f"killed after {seconds} s: {name}"
    assert data, f"the child ended with status {status}: {name}"
    is_good, result = pickle.loads(data)  # noqa: S301 - our own child's
    assert is_good, f"{name} raised:\n{result}"
    return result


def _be_child(writer: int, function: Callable[..., Any], args: tuple[Any, ...]) -> NoReturn:
    status = 1
    try:
        os.umask(0o022)
        try:
            outcome = (True, function(*args))
        except BaseException:  # noqa: BLE001 - the parent shows it
            outcome = (False, traceback.format_exc())
        data = pickle.dumps(outcome)
        while data:
            data = data[os.write(writer, data) :]
        status = 0
    finally:
        os._exit(status)
