"""The steps of a mount's start and end: blocking calls, each in a trio thread."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, TypeVar

import trio

from fusebpf.errors import FusebpfError

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")
_log = logging.getLogger(__name__)


async def in_thread(function: Callable[[], T]) -> T:
    """Run a step that must run to its end; whoever cancels waits for it."""
    return await trio.to_thread.run_sync(function)


async def bounded(function: Callable[[], object], seconds: float, what: str) -> None:
    """Run a step of the end; a failure or a hang is logged, and the next step comes all the same."""
    with trio.move_on_after(seconds) as scope:
        try:
            await trio.to_thread.run_sync(function, abandon_on_cancel=True)
        except (OSError, FusebpfError) as error:
            _log.error("%s failed: %s", what, error)
    if scope.cancelled_caught:
        _log.error("%s is given up after %.0f s", what, seconds)
