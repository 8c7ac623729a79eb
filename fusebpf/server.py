"""The process that serves a mount of `fusebpf mount`.

It runs in the foreground, or in the background with a parent that waits.

The parent forks before there is any thread, and waits at a socket pair for one line of JSON: "ready" or the
error. It answers "ready" with one byte; a server that reads the end of the stream instead (the parent was
killed, or ^C was typed) takes everything down again, so that there is never a mount that nobody was told of.
SIGTERM and SIGINT unmount; so does anybody's umount.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import resource
import select
import signal
import socket
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import trio

from fusebpf import registry
from fusebpf.errors import SHORTAGES, FilterError, FusebpfError, MountError, PlatformError, reason

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Iterator
    from types import FrameType

    from fusebpf.stack import Stack

END_SECONDS = 60.0
"""How long a parent waits for the end of a server that takes everything down."""

_HEEDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_log = logging.getLogger(__name__)


class ServerError(FusebpfError):
    """What a server told its parent: the same line, details and exit code; `bug` is a traceback."""

    def __init__(self, message: str, detail: str = "", exit_code: int = 1, bug: str = "") -> None:
        super().__init__(message)
        self.detail = detail
        self.exit_code = exit_code
        self.bug = bug


class Interrupted(Exception):  # noqa: N818 - a signal's arrival is no error
    """A signal came before the mount was usable; everything was taken down again."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def _shortage(error: Exception) -> str:
    """What this machine lacks, if that is what the error says; else nothing."""
    if isinstance(error, OSError) and error.errno in SHORTAGES:
        where = f"{str(error.filename)!r}: " if error.filename is not None else ""
        return f"{where}{reason(error)}"
    if isinstance(error, RuntimeError) and str(error) == "can't start new thread":  # threading has no errno
        return f"{error} (ulimit -u and -v say how many there may be, and how much memory)"
    return ""


def as_told(error: Exception) -> ServerError:
    """What the user is told of any error."""
    if isinstance(error, ServerError):
        return error
    if isinstance(error, FusebpfError):
        detail = error.detail if isinstance(error, FilterError) else ""
        return ServerError(str(error), detail, error.exit_code)
    if isinstance(error, FileNotFoundError) and error.filename is None:  # getcwd(2) alone has no name to tell
        return ServerError("the current directory has been removed: go to one that is there")
    if isinstance(error, FileNotFoundError) and str(error.filename).startswith("/proc/self/"):
        return ServerError(f"{str(error.filename)!r} is missing: mount -t proc proc /proc")
    if lacking := _shortage(error):
        return ServerError(lacking)
    text = " ".join(f"{type(error).__name__}: {error}".split())
    message = f"{text} (this is a bug; FUSEBPF_DEBUG=1 shows where)"
    return ServerError(message, bug="".join(traceback.format_exception(error)))


# -------------------------------------------------------------------------------------- the server


def run_foreground(stack: Stack) -> None:
    """Serve a mount in this process until it is unmounted or a signal comes.

    Raises:
        FusebpfError: It could not be mounted.
        Interrupted: A signal came before it was usable.
    """

    async def tell() -> None:
        _warn(stack.warnings)
        sys.stderr.write(
            f"fusebpf: {stack.src!r} is mounted on {stack.mnt!r} as {stack.name!r}; ^C unmounts\n"
        )

    _set_up_process()
    _set_up_log()
    with _held_signals():
        trio.run(_serve, stack, tell, None)


async def _serve(stack: Stack, tell: Callable[[], Awaitable[None]], parent: socket.socket | None) -> None:
    """Mount, tell whoever waits, serve, unmount.

    Args:
        stack: Not entered.
        tell: Called when the mount is usable.
        parent: Says a byte when it was told, or ends before; None: nobody waits.
    """
    ended_by = 0
    is_wanted = parent is None
    failure: Exception | None = None
    with trio.open_signal_receiver(*_HEEDED) as signals:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _HEEDED)
        async with trio.open_nursery() as nursery:

            async def heed_signals() -> None:
                nonlocal ended_by
                async for number in signals:
                    # The terminal of whoever mounted in the background is none of ours.
                    if number != signal.SIGHUP or parent is None:
                        ended_by = number
                        nursery.cancel_scope.cancel()

            async def heed_parent() -> None:
                nonlocal is_wanted, ended_by
                if parent is None:
                    return
                await trio.lowlevel.wait_readable(parent)
                is_wanted = bool(_received(parent))
                if not is_wanted:
                    ended_by = signal.SIGINT
                    nursery.cancel_scope.cancel()

            nursery.start_soon(heed_signals)
            nursery.start_soon(heed_parent)
            is_usable = False
            try:
                async with stack:
                    await tell()
                    is_usable = True
                    await stack.wait()
            except Exception as error:  # noqa: BLE001 - a nursery would wrap it into a group
                failure = error
            nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure
    if ended_by and not (is_usable and is_wanted):
        raise Interrupted(ended_by)


def _warn(lines: Iterable[str]) -> None:
    for line in lines:
        sys.stderr.write(f"fusebpf: warning: {line}\n")


def _received(channel: socket.socket) -> bytes:
    try:
        return channel.recv(1)
    except OSError:
        return b""


@contextlib.contextmanager
def _held_signals() -> Iterator[None]:
    """Keep signals waiting until the loop runs that heeds them."""
    old = signal.pthread_sigmask(signal.SIG_BLOCK, _HEEDED)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, old)


def _set_up_process() -> None:
    """Let the server have as many descriptors, and write files as long, as root may: it does so for all."""
    for limit in (resource.RLIMIT_NOFILE, resource.RLIMIT_FSIZE):
        hard = resource.getrlimit(limit)[1]
        resource.setrlimit(limit, (hard, hard))
    with contextlib.suppress(ValueError):  # without CAP_SYS_RESOURCE
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def _set_up_log() -> None:
    level = logging.DEBUG if os.environ.get("FUSEBPF_DEBUG") else logging.WARNING
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)


# ------------------------------------------------------------------------------------ background


def run_background(stack: Stack, *, root_fd: int | None = None) -> None:
    """Serve a mount in a process of its own; returns when the mount is usable.

    Args:
        stack: Not entered; nobody may use it in this process afterwards.
        root_fd: A descriptor that the server needs.

    Raises:
        ServerError: It could not be mounted.
        Interrupted: A signal came before it was usable.
    """
    ours, theirs = socket.socketpair()
    with ours, theirs, _held_signals():
        pid = os.fork()
        if pid == 0:
            _be_server(stack, theirs, {theirs.fileno()} | ({root_fd} if root_fd is not None else set()))
        theirs.close()
        try:
            told = _read_interruptibly(ours)
        except Interrupted:
            ours.close()
            _wait_for(pid)
            raise
        if told.get("ready"):
            for number in _HEEDED:  # what comes from here on comes too late: the mount stays, and we say so
                signal.signal(number, signal.SIG_IGN)
            ours.sendall(b"k")
            _warn(told["warnings"])
            return
    status = _wait_for(pid)
    if told:
        raise ServerError(**told)
    # It died without a word; what it left is a dead server's.
    with registry.locked():
        registry.clean_dead()
    raise MountError(f"the server died before the mount was usable (exit status {status})")


def _be_server(stack: Stack, parent: socket.socket, kept: set[int]) -> NoReturn:
    exit_code = 1
    has_log = False
    try:
        os.setsid()
        _set_up_process()
        try:
            _close_all_but(kept | {0, 1, 2})
            stack.reserve()
            _redirect(registry.log_path(stack.name))
            _set_up_log()
            has_log = True

            async def tell() -> None:
                os.chdir("/")
                for fd in kept - {parent.fileno()}:
                    os.close(fd)
                _send(parent, {"ready": True, "warnings": stack.warnings})

            trio.run(_serve, stack, tell, parent)
            exit_code = 0
        except Interrupted as error:
            exit_code = 128 + error.number
        except Exception as error:  # noqa: BLE001 - the parent tells it
            told = as_told(error)
            if has_log and told.bug:
                _log.error("%s", told.bug)
            _send(
                parent,
                {"message": str(told), "detail": told.detail, "exit_code": told.exit_code, "bug": told.bug},
            )
        finally:
            stack.release()
    except BaseException:  # noqa: BLE001 - nothing may return into the parent's code
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.flush()
        os._exit(exit_code)


def _close_all_but(kept: set[int]) -> None:
    for fd in [int(path.name) for path in Path("/proc/self/fd").iterdir()]:
        if fd not in kept:
            with contextlib.suppress(OSError):
                os.close(fd)


def _redirect(log: os.PathLike[str]) -> None:
    null = os.open(os.devnull, os.O_RDONLY)
    try:
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise PlatformError(f"the log {os.fspath(log)!r} cannot be written: {error.strerror}") from error
    for source, target in ((null, 0), (file, 1), (file, 2)):
        os.dup2(source, target)
    for fd in {null, file} - {0, 1, 2}:
        os.close(fd)


def _send(parent: socket.socket, told: dict[str, Any]) -> None:
    parent.setblocking(True)
    # A parent that is gone is noticed by who reads from it.
    with contextlib.suppress(OSError):
        parent.sendall(json.dumps(told).encode() + b"\n")


def _read_line(channel: socket.socket) -> dict[str, Any]:
    data = b""
    while not data.endswith(b"\n"):
        block = channel.recv(65536)
        if not block:
            return {}
        data += block
    told: dict[str, Any] = json.loads(data)
    return told


def _read_interruptibly(channel: socket.socket) -> dict[str, Any]:
    """Read what the server says, with signals let through; a second one ends this process at once."""

    def interrupt(number: int, _frame: FrameType | None) -> None:
        for one in _HEEDED:
            signal.signal(one, signal.SIG_DFL)
        raise Interrupted(number)

    old = {number: signal.signal(number, interrupt) for number in _HEEDED}
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _HEEDED)
        told = _read_line(channel)
        signal.pthread_sigmask(signal.SIG_BLOCK, _HEEDED)
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
    return told


def _wait_for(pid: int) -> int | None:
    """Wait for the end of a child, for a bounded time; its exit status, negative for a signal."""
    fd = os.pidfd_open(pid)
    try:
        is_over, _, _ = select.select([fd], [], [], END_SECONDS)
    finally:
        os.close(fd)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) if is_over else None
