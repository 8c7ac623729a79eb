"""The tasks in which pyfuse3 runs handlers: what it is given for trio, and the cancel scope of each task.

pyfuse3 takes trio from its own attribute `trio`, by which `pyfuse3.asyncio` puts another loop there. Here it
stays trio, but for three things. Each task has one cancel scope for the handlers that it runs, as a scope for
each handler costs more than all else around it. A lock that is free is taken without a round of the
scheduler. For a request that comes at once nobody sleeps.
"""

from __future__ import annotations

import contextlib
import contextvars
import time
from typing import TYPE_CHECKING, Any

import pyfuse3
import trio

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

ROUND_SECONDS = 0.001
"""How long requests that come one after another may keep trio's other tasks from running."""


class Turn:
    """The cancel scope around the handlers that one task runs one after another.

    It is entered and left by hand: between the task's beginning and a handler's nothing else enters a scope,
    so the order stays that of a stack.
    """

    def __init__(self) -> None:
        self.scope = self._entered()

    @staticmethod
    def _entered() -> trio.CancelScope:
        scope = trio.CancelScope()
        scope.__enter__()
        return scope

    def leave(self, error: BaseException | None) -> bool:
        """Leave the scope; whether the error was no more than its cancellation."""
        trace = error.__traceback__ if error else None
        return bool(self.scope.__exit__(type(error) if error else None, error, trace))

    def renew(self, error: BaseException | None) -> bool:
        """Leave the scope, which was cancelled, and enter another for the next handler; as `leave`."""
        try:
            return self.leave(error)
        finally:
            self.scope = self._entered()


turn: contextvars.ContextVar[Turn] = contextvars.ContextVar("fusebpf turn")


async def in_turn(function: Callable[..., Awaitable[Any]], *args: Any) -> None:
    """Run a task's function with a turn of its own."""
    mine = Turn()
    turn.set(mine)
    try:
        await function(*args)
    except BaseException as error:
        if not mine.leave(error):
            raise
    else:
        mine.leave(None)


class _Lock:
    """trio's lock, without a checkpoint where it is free: pyfuse3 waits for a request right after it."""

    def __init__(self) -> None:
        self._lock = trio.Lock()

    async def __aenter__(self) -> None:
        try:
            self._lock.acquire_nowait()
        except trio.WouldBlock:
            await self._lock.acquire()

    async def __aexit__(self, *_error: object) -> None:
        self._lock.release()


class _Nursery:
    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery

    def start_soon(self, function: Callable[..., Awaitable[Any]], *args: Any, name: object = None) -> None:
        """Start a task with a turn."""
        self._nursery.start_soon(in_turn, function, *args, name=name)


class _Lowlevel:
    def __init__(self, look: Callable[[int], bool]) -> None:
        self._look = look
        self._last_round = 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(trio.lowlevel, name)

    async def wait_readable(self, fd: int) -> None:
        """Wait for a request; if it comes at once, without a round of the scheduler for some time."""
        if self._look(fd):
            now = time.monotonic()
            if now - self._last_round < ROUND_SECONDS:
                return
            self._last_round = now
        await trio.lowlevel.wait_readable(fd)


class _Trio:
    """What pyfuse3 has for trio."""

    Lock = _Lock

    def __init__(self, look: Callable[[int], bool]) -> None:
        self.lowlevel = _Lowlevel(look)

    def __getattr__(self, name: str) -> Any:
        return getattr(trio, name)

    @staticmethod
    @contextlib.asynccontextmanager
    async def open_nursery() -> AsyncIterator[_Nursery]:
        """A nursery whose tasks have turns."""
        async with trio.open_nursery() as nursery:
            yield _Nursery(nursery)


@contextlib.contextmanager
def pyfuse3s_trio(look: Callable[[int], bool]) -> Iterator[None]:
    """Give pyfuse3 this trio for the time of a `with` block.

    Args:
        look: Whether there is a request at a descriptor, or is one in a moment.
    """
    before = pyfuse3.trio  # type: ignore[attr-defined]
    pyfuse3.trio = _Trio(look)  # type: ignore[attr-defined]
    try:
        yield
    finally:
        pyfuse3.trio = before  # type: ignore[attr-defined]
