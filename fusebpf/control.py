"""The control socket of a mount: who may change a chain that works, and how it is asked.

A stream socket, /run/fusebpf/NAME.sock, for root alone: by its mode, its directory's, and the credentials
that the kernel gives of each peer. A request is one line of JSON, and so is its answer:

    {"version": 1, "request": "detach", "name": "hide"}
    {"version": 1, "ok": true, "result": {…}}
    {"version": 1, "ok": false, "error": {"message": "…", "detail": "", "exit_code": 1}}

What is not understood is answered with an error. The server runs on trio, in the process of the mount.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import select
import socket
import struct
import time
from typing import TYPE_CHECKING, Any

import trio

from fusebpf import registry
from fusebpf.errors import MountError, UsageError
from fusebpf.server import ServerError, as_told

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from fusebpf.live_chain import Change
    from fusebpf.stack import Stack

VERSION = 1

_MAX_BYTES = 1 << 20
_ANSWER_SECONDS = 300.0
"""Several filters may have to be compiled first."""
_LOOK_SECONDS = 2.0
_UCRED = struct.Struct("3i")
_log = logging.getLogger(__name__)


# -------------------------------------------------------------------------------------- the server


class Server:
    """The socket of one mount, and the task that serves it."""

    def __init__(self, stack: Stack, listener: trio.SocketListener) -> None:
        self._stack = stack
        self._listener = listener
        self._path = registry.control_path(stack.name)
        self._scope = trio.CancelScope()
        self._done = trio.Event()
        trio.lowlevel.spawn_system_task(self._serve, name=f"fusebpf control of {stack.name}")

    async def stop(self) -> None:
        """End it; a change that is under way is done before."""
        self._scope.cancel()
        await self._done.wait()
        self._path.unlink(missing_ok=True)

    async def _serve(self) -> None:
        with self._scope:
            try:
                await trio.serve_listeners(self._connection, [self._listener])
            except Exception as error:  # noqa: BLE001 - the mount goes on without it
                _log.error("%s: the control socket is out of order: %s", self._stack.name, error)
        self._done.set()

    async def _connection(self, stream: trio.SocketStream) -> None:
        """Serve one peer. Nothing that it does may harm the mount."""
        try:
            async with stream:
                if _uid_of(stream) != os.geteuid():
                    await stream.send_all(_answer(error=MountError("only root may ask")))
                    return
                rest = b""
                while block := await stream.receive_some(65536):
                    *lines, rest = (rest + block).split(b"\n")
                    for line in lines:
                        await stream.send_all(await self._told(line, stream))
                    if len(rest) > _MAX_BYTES:
                        await stream.send_all(
                            _answer(error=UsageError("a request is a line of 1 MiB at most"))
                        )
                        return
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return  # it did not wait for its answer
        except Exception:  # noqa: BLE001 - see above
            _log.exception("%s: the control socket", self._stack.name)

    async def _told(self, line: bytes, stream: trio.SocketStream) -> bytes:
        try:
            request = _Request(line)
            if request.is_change and _has_gone(stream):
                return b""  # nobody would learn of what is done
            return _answer(result=await self._do(request))
        except Exception as error:  # noqa: BLE001 - it is the answer
            return _answer(error=error)

    async def _do(self, request: _Request) -> dict[str, Any]:
        doers: dict[str, Callable[[_Request], Awaitable[dict[str, Any]]]] = {
            "attach": self._attach,
            "detach": self._detach,
            "replace": self._replace,
            "filters": self._filters,
            "policy_changed": self._policy_changed,
        }
        what = request.text("request")
        if what not in doers:
            raise UsageError(f"there is no request {what!r}, there are: {', '.join(doers)}")
        return await doers[what](request)

    async def _attach(self, request: _Request) -> dict[str, Any]:
        filters, sets = request.texts("filters"), request.texts("sets")
        revision, open_files = request.number("revision"), request.text("open_files", "fail")
        request.end()
        return self._changed(
            await self._stack.attach(*filters, sets=sets, revision=revision, open_files=open_files)
        )

    async def _detach(self, request: _Request) -> dict[str, Any]:
        name, revision = request.text("name"), request.number("revision")
        request.end()
        return self._changed(await self._stack.detach(name, revision=revision))

    async def _replace(self, request: _Request) -> dict[str, Any]:
        name, filter_, sets = request.text("name"), request.text("filter"), request.texts("sets")
        revision, open_files = request.number("revision"), request.text("open_files", "fail")
        fresh_maps = request.flag("fresh_maps")
        request.end()
        change = await self._stack.replace(
            name, filter_, sets=sets, fresh_maps=fresh_maps, revision=revision, open_files=open_files
        )
        return self._changed(change)

    async def _filters(self, request: _Request) -> dict[str, Any]:
        request.end()
        rows = [
            {
                "name": link.filter.name,
                "altitude": link.altitude,
                "hooks": [program.pin_name for program in link.filter.programs],
                "maps": list(link.filter.maps),
                "doc": link.filter.doc,
                "source": link.source,
                "id": link.id,
                "revision": link.revision,
            }
            for link in self._stack.links
        ]
        return {"revision": self._stack.revision, "filters": rows}

    async def _policy_changed(self, request: _Request) -> dict[str, Any]:
        """Somebody has changed a policy map by its pin."""
        request.end()
        await self._stack.invalidate(by_filters=True)
        return {}

    def _changed(self, change: Change) -> dict[str, Any]:
        told = change._asdict()
        told["passed_through"] = [one._asdict() for one in change.passed_through]
        told["warnings"] = [
            line for line in self._stack.warnings if any(f" of {name!r} " in line for name in change.names)
        ]
        return told


def serve(stack: Stack) -> Server:
    """Open the control socket of a mount and serve it until `stop`.

    Raises:
        MountError: There can be no socket.
    """
    path = registry.control_path(stack.name)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        path.unlink(missing_ok=True)
        listener.bind(os.fspath(path))
        path.chmod(0o600)
        listener.listen(16)
    except OSError as error:
        listener.close()
        raise MountError(f"the control socket {str(path)!r} cannot be made: {error.strerror}") from error
    return Server(stack, trio.SocketListener(trio.socket.from_stdlib_socket(listener)))


def _uid_of(stream: trio.SocketStream) -> int:
    """Who the peer was when it connected.

    Source: unix(7), SO_PEERCRED.
    """
    raw = stream.socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    return int(_UCRED.unpack(raw)[1])


class _Request:
    """One line, taken apart; what is wrong with it is a UsageError."""

    def __init__(self, line: bytes) -> None:
        try:
            data = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UsageError(f"a request is one line of JSON: {error}") from None
        if not isinstance(data, dict):
            raise UsageError(f"a request is a JSON object, not {type(data).__name__}")
        self._data: dict[str, Any] = data
        version = self._take("version", int, None)
        if version != VERSION:
            raise UsageError(f"version {version!r} of the protocol is not spoken here, {VERSION} is")

    def _take(self, key: str, kind: type, default: Any) -> Any:
        value = self._data.pop(key, default)
        if value is not default and type(value) is not kind:
            raise UsageError(f"{key!r} in a request is {kind.__name__}, not {value!r}")
        return value

    def text(self, key: str, default: str | None = None) -> str:
        value = self._take(key, str, default)
        if value is None:
            raise UsageError(f"{key!r} is missing in the request")
        _check_text(key, value)
        return str(value)

    def texts(self, key: str) -> list[str]:
        values = self._take(key, list, None) or []
        if not all(isinstance(value, str) for value in values):
            raise UsageError(f"{key!r} in a request is a list of texts")
        for value in values:
            _check_text(key, value)
        return [str(value) for value in values]

    @property
    def is_change(self) -> bool:
        """Whether it asks for another chain; a policy has changed already."""
        return self._data.get("request") in ("attach", "detach", "replace")

    def number(self, key: str) -> int | None:
        value = self._take(key, int, None)
        return None if value is None else int(value)

    def flag(self, key: str) -> bool:
        return bool(self._take(key, bool, False))

    def end(self) -> None:
        if self._data:
            raise UsageError(f"{next(iter(self._data))!r} is not known in such a request")


def _has_gone(stream: trio.SocketStream) -> bool:
    """Whether the peer has closed its end; one that only says no more still waits."""
    closed = select.poll()
    closed.register(stream.socket.fileno(), 0)
    return bool(closed.poll(0))


def _check_text(key: str, value: str) -> None:
    try:
        is_text = b"\0" not in os.fsencode(value)
    except UnicodeEncodeError:
        is_text = False
    if not is_text:
        raise UsageError(f"{key!r} in a request has a zero byte or half a character: {value!r}")


def _answer(result: dict[str, Any] | None = None, error: Exception | None = None) -> bytes:
    answer: dict[str, Any] = {"version": VERSION, "ok": error is None}
    if error is None:
        answer["result"] = result
    else:
        told = as_told(error)
        if told.bug:
            _log.error("%s", told.bug)
        answer["error"] = {"message": str(told), "detail": told.detail, "exit_code": told.exit_code}
    # ASCII: paths may hold bytes that are no UTF-8.
    return json.dumps(answer).encode("ascii") + b"\n"


# -------------------------------------------------------------------------------------- the client


class StoppedError(MountError):
    """The server was stopped by a signal, and answers nobody."""


def ask(entry: registry.Entry, request: str, **arguments: Any) -> dict[str, Any]:
    """Ask the server of a mount, and wait for its answer.

    Raises:
        ServerError: What it answered, if that is an error.
        MountError: It cannot be asked, is stopped, or ends before it answers.
    """
    line = json.dumps({"version": VERSION, "request": request, **arguments}).encode("ascii") + b"\n"
    answer, end = b"", time.monotonic() + _ANSWER_SECONDS
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as channel:
        channel.settimeout(_LOOK_SECONDS)
        try:
            channel.connect(os.fspath(registry.control_path(entry.name)))
            with contextlib.suppress(BrokenPipeError):
                channel.sendall(line)
            while not answer.endswith(b"\n"):
                try:
                    block = channel.recv(65536)
                except TimeoutError:
                    _check_goes_on(entry, end)
                    continue
                if not block:
                    raise MountError(
                        f"the server of {entry.name!r} (pid {entry.pid}) ended before it answered"
                    )
                answer += block
        except TimeoutError:
            _check_goes_on(entry, 0)
        except OSError as error:
            raise MountError(
                f"the server of {entry.name!r} (pid {entry.pid}) cannot be asked: {error.strerror}"
            ) from error
    return _result_of(answer)


def _check_goes_on(entry: registry.Entry, end: float) -> None:
    server = f"the server of {entry.name!r} (pid {entry.pid})"
    if entry.is_stopped:
        raise StoppedError(f"{server} is stopped: `kill -CONT {entry.pid}` lets it go on")
    if time.monotonic() > end:
        raise MountError(f"{server} gave no answer within {_ANSWER_SECONDS:g} seconds")


def _result_of(answer: bytes) -> dict[str, Any]:
    told = json.loads(answer)
    if not told["ok"]:
        raise ServerError(**told["error"])
    result: dict[str, Any] = told["result"]
    return result
