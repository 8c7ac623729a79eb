"""The log lines of a mount's core, from its pipe to `logging`."""

from __future__ import annotations

import contextlib
import logging
import os

import trio

_log = logging.getLogger(__name__)


class CoreLog:
    """The task that moves the lines; it begins at once, and works until `stop`."""

    def __init__(self, fd: int, name: str) -> None:
        """`fd` is duplicated; `name` is the mount's."""
        self._fd = os.dup(fd)
        self._name = name
        self._scope = trio.CancelScope()
        self._done = trio.Event()
        os.set_blocking(self._fd, False)
        trio.lowlevel.spawn_system_task(self._move, name=f"fusebpf log of {name}")

    async def stop(self) -> None:
        """End it, when everything that was written is moved."""
        self._scope.cancel()
        await self._done.wait()

    async def _move(self) -> None:
        rest = b""
        with self._scope:
            while True:
                await trio.lowlevel.wait_readable(self._fd)
                data = _read_all(self._fd)
                if not data:
                    break
                rest = self._lines(rest + data)
        self._lines(rest + _read_all(self._fd) + b"\n")
        os.close(self._fd)
        self._done.set()

    def _lines(self, data: bytes) -> bytes:
        *lines, rest = data.split(b"\n")
        for line in lines:
            level, _, message = line.decode(errors="replace").partition(" ")
            if message:
                number = logging.getLevelNamesMapping().get(level.upper(), logging.WARNING)
                _log.log(number, "%s: %s", self._name, message)
        return rest


def _read_all(fd: int) -> bytes:
    """What is there to be read now; b"" if there is nothing or the other end is closed."""
    data = b""
    with contextlib.suppress(BlockingIOError):
        while block := os.read(fd, 65536):
            data += block
    return data
