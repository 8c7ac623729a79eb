"""Between a daemon and the core: pyfuse3's session over the core's socket, the wrapper around each handler.

A call's token comes in the pid of a request's context, or as its handle, and leads to the call in a table
that the core shares. Continue is a private errno; its arguments, and the looks at results, go by that table.
"""

from __future__ import annotations

import contextlib
import contextvars
import errno
import logging
import os
from typing import TYPE_CHECKING, Any, cast

import pyfuse3
import trio

from fusebpf import daemon as public
from fusebpf.daemon import HANDLERS, Backing, Continue, Request
from fusebpf.daemon_calls import ARGS, EDITS_AT, ERROR_AT, FLAGS_AT, TEXTS, Calls, shown
from fusebpf.daemon_routes import OPCODES, Route, check_looks
from fusebpf.daemon_tasks import Turn, in_turn, pyfuse3s_trio, turn
from fusebpf.daemon_types import RETURNS, Context, is_sane, shown_of
from fusebpf.errors import MountError, UsageError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from fusebpf._core import Mount
    from fusebpf.stack import Stack

CONTINUE = 600
"""daemon.h: DAEMON_CONTINUE."""
OURS = 1 << 62
"""daemon.h: DAEMON_OURS. Numbers of a daemon's own inodes are below it."""
END_SECONDS = 5.0
"""How long handlers under way may take to end when the mount does."""

_FOLLOW_OPEN = {
    "read": "open",
    "write": "open",
    "flush": "open",
    "fsync": "open",
    "release": "open",
    "readdir": "opendir",
    "fsyncdir": "opendir",
    "releasedir": "opendir",
}
_NO_CONTEXT = frozenset(_FOLLOW_OPEN)
_PRE, _POST, _DEFINES = 1, 2, 4
_CHANGED, _GOES_ON, _LEAVES_DATA = 1, 2, 4

_request: contextvars.ContextVar[Request] = contextvars.ContextVar("fusebpf request")
_log = logging.getLogger(__name__)
_owner: list[str] = []


def _after_cancel(mine: Turn, failure: BaseException | None) -> BaseException | None:
    """What is left of a handler's exception once its cancelling has been taken out of it."""
    try:
        if mine.renew(failure):
            return pyfuse3.FUSEError(errno.EINTR)
    except BaseException as rest:  # noqa: BLE001 - judged as if the handler had raised that
        return rest
    return failure


class Leg:
    """A daemon of a mount, from its checks to its end.

    Args:
        daemon: A `pyfuse3.Operations`, or what has its methods.
        routes: As for --route; without one that says "daemon", what the daemon defines is its own.
        timeout: How many seconds a handler may take.
        on_failure: "fail" or "backing": what ops of a daemon that has ended get.

    Raises:
        UsageError: Something of that cannot be.
    """

    def __init__(self, daemon: object, *, routes: Iterable[str], timeout: float, on_failure: str) -> None:
        if isinstance(daemon, type) or not any(callable(getattr(daemon, op, None)) for op in HANDLERS):
            raise UsageError(f"{daemon!r} is no daemon: an instance of a pyfuse3.Operations is wanted")
        if not isinstance(timeout, int | float) or not 0.001 <= timeout <= 1e6:
            raise UsageError(
                f"daemon timeout {timeout!r}: a number of seconds from 0.001 to 1000000 is wanted"
            )
        if on_failure not in {"fail", "backing"}:
            raise UsageError(f"on daemon failure {on_failure!r}: fail or backing is wanted")
        check_looks(daemon)
        self.daemon: Any = daemon
        self._routes = [Route.parse(text) for text in routes]
        self._timeout_ms = round(timeout * 1000)
        self._falls_back = on_failure == "backing"
        self._scopes: dict[int, trio.CancelScope] = {}
        self._cancelled: set[int] = set()
        self._scope = trio.CancelScope()
        self._done: trio.Event | None = None
        self._core: Mount | None = None
        self._calls = Calls(memoryview(b""))
        self._event_fd = -1
        self._name = ""
        for op in HANDLERS:
            setattr(self, op, self._wrapped(op))

    # What pyfuse3 asks an Operations for, beside handlers.
    supports_dot_lookup = False
    enable_writeback_cache = False
    enable_acl = False

    def init(self) -> None:
        """Hand pyfuse3's init on."""
        if callable(init := getattr(self.daemon, "init", None)):
            init()

    def stacktrace(self) -> None:
        """Hand pyfuse3's debugging aid on."""
        self.daemon.stacktrace()

    async def forget(self, inode_list: list[tuple[int, int]]) -> None:
        """Hand the daemon its share of what the kernel forgets."""
        if not self.defines("forget"):
            return
        try:
            await self.daemon.forget(inode_list)
        except Exception:  # noqa: BLE001 - it would end pyfuse3's session
            _log.exception("%s: the daemon's forget raised an exception", self._name)

    # ------------------------------------------------------------------------------ begin and end

    def claim(self, name: str) -> None:
        """Take this process's one session.

        Raises:
            MountError: Another mount of this process has it.
        """
        if _owner:
            raise MountError(
                f"the mount {name!r} cannot have a daemon: the mount {_owner[0]!r} of this process has one, "
                "and pyfuse3 serves one per process"
            )
        _owner.append(name)
        self._name = name

    def disclaim(self) -> None:
        """Give it back."""
        if self._name:
            _owner.clear()
        self._name = ""

    def defines(self, op: str) -> bool:
        """Whether the daemon has a handler of its own for the op."""
        mine = getattr(type(self.daemon), op, None)
        bases = (getattr(public.Daemon, op, None), getattr(pyfuse3.Operations, op, None))
        return mine is not None and mine not in bases

    def _route_table(self, *, filters_decide: bool) -> bytes:
        table = bytearray(256)
        for op in HANDLERS:
            table[OPCODES[op]] |= _DEFINES * self.defines(op)
        if not filters_decide and not any(route.to_daemon for route in self._routes):
            for op in HANDLERS:
                follows = self.defines(_FOLLOW_OPEN.get(op, ""))
                table[OPCODES[op]] |= _PRE * (self.defines(op) and not follows)
                table[OPCODES[op]] |= _POST * hasattr(self.daemon, f"post_{op}")
        for op, is_post, to_daemon in self._routes:
            bit = _POST if is_post else _PRE
            if to_daemon and is_post and not hasattr(self.daemon, f"post_{op}"):
                raise UsageError(f"route post_{op}=daemon: the daemon has no handler post_{op}")
            table[OPCODES[op]] = table[OPCODES[op]] & ~bit | bit * to_daemon
        return bytes(table)

    def begin(self, core: Mount, stack: Stack, *, filters_decide: bool) -> None:
        """Connect pyfuse3 to the core, and serve from now on.

        Args:
            core: Not started.
            stack: What a Daemon finds as its `stack`.
            filters_decide: A filter may say FB_DAEMON, so nothing else is the daemon's without a route.

        Raises:
            MountError: pyfuse3 refuses.
        """
        if isinstance(self.daemon, public.Daemon):
            self.daemon.stack, self.daemon.leg = stack, self
        table = self._route_table(filters_decide=filters_decide)
        try:
            fd, event_fd, calls = core.daemon_start(table, self._timeout_ms, self._falls_back)
        except OSError as error:
            raise MountError(f"the daemon's leg cannot be made: {error.strerror}") from error
        try:
            pyfuse3.init(cast("pyfuse3.Operations", self), f"/dev/fd/{fd}", set())
        except BaseException as error:
            os.close(fd)
            raise MountError(f"pyfuse3 cannot be started: {error}") from error
        self._core, self._event_fd, self._calls = core, event_fd, Calls(calls)
        self._done = trio.Event()
        trio.lowlevel.spawn_system_task(self._serve, self._done, name=f"fusebpf daemon of {self._name}")

    async def _serve(self, done: trio.Event) -> None:
        core = self._core
        assert core is not None  # noqa: S101 - set by begin
        with self._scope, pyfuse3s_trio(core.daemon_spin):
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._heed_events, core, nursery)
                    await pyfuse3.main()
                    nursery.cancel_scope.cancel()
            except BaseException:  # noqa: BLE001 - whatever it is, the mount goes on
                if not self._scope.cancel_called:
                    _log.exception("%s: the daemon has ended by an exception", self._name)
        if not self._scope.cancel_called:
            _log.error(
                "%s: the daemon has ended; its ops %s",
                self._name,
                "go to the backing root" if self._falls_back else "fail",
            )
        core.daemon_end()
        with contextlib.suppress(Exception):
            pyfuse3.close(unmount=False)
        done.set()

    async def end(self) -> None:
        """End the session; called when the core has stopped."""
        if self._done is not None:
            self._scope.cancel()
            with trio.move_on_after(END_SECONDS):
                await self._done.wait()
            self._done = None
        self.disclaim()

    # ----------------------------------------------------------------------------- one request

    def _wrapped(self, op: str) -> Any:
        if not self.defines(op):

            async def goes_on(*args: Any) -> Any:
                return self._not_defined(op, args)

            return goes_on
        handler = getattr(self.daemon, op)
        check, wanted = RETURNS.get(op, (lambda _: True, ""))
        if op in _NO_CONTEXT:

            def by_handle(token: int, *args: Any) -> Awaitable[Any]:
                request = self._calls.request(token)
                return self._run(request, handler, (request.fh, *args), check, wanted)

            return by_handle

        def by_context(*args: Any) -> Awaitable[Any]:
            request = self._calls.request(args[-1].pid)
            if op == "getxattr" and request.op == "setxattr":
                return self._probe(request, handler, args)
            return self._run(request, handler, (*args[:-1], Context(request)), check, wanted)

        return by_context

    def _not_defined(self, op: str, args: tuple[Any, ...]) -> bytes:
        if op == "getxattr" and (request := self._calls.request(args[-1].pid)).op == "setxattr":
            return self._probed(request)
        raise pyfuse3.FUSEError(CONTINUE)

    async def _probe(self, request: Request, handler: Any, args: tuple[Any, ...]) -> Any:
        """Is the attribute there, as pyfuse3 asks before it is set with XATTR_CREATE or XATTR_REPLACE?"""
        try:
            return await handler(*args[:-1], Context(request))
        except Continue:
            return self._probed(request)

    def _probed(self, request: Request) -> bytes:
        # Let pyfuse3 go on to setxattr, whose Continue leaves the question to the backing file system.
        flags = self._calls.argument(request, "flags")
        if flags & os.XATTR_CREATE:
            raise pyfuse3.FUSEError(pyfuse3.ENOATTR)
        return b""

    async def _run(
        self,
        request: Request,
        handler: Callable[..., Awaitable[Any]],
        args: tuple[Any, ...],
        check: Callable[[Any], bool],
        wanted: str,
    ) -> Any:
        token, mine = request.token, turn.get()
        _request.set(request)
        self._scopes[token] = scope = mine.scope
        if token in self._cancelled:
            self._cancelled.discard(token)
            scope.cancel()
        failure = None
        try:
            result = await handler(*args)
        except BaseException as error:  # noqa: BLE001 - what ends pyfuse3's session is raised again
            failure = error
        del self._scopes[token]
        if scope.cancel_called:
            failure = _after_cancel(mine, failure)
        if failure is not None:
            result = self._failed(request, failure)
        if isinstance(result, Continue):
            return self._go_on(request, result.changes)
        if not is_sane(check, result):
            _log.error(
                "%s: the daemon's %s returned %.80s, and %s is wanted; it failed with EIO",
                self._name,
                request.op,
                shown_of(result),
                wanted,
            )
            raise pyfuse3.FUSEError(errno.EIO)
        opened = result[0] if isinstance(result, tuple) else result
        if isinstance(opened, public.FileInfo) and opened.passthrough:
            self._calls.put(request, FLAGS_AT, "I", _LEAVES_DATA)
        return result

    def _failed(self, request: Request, failure: BaseException) -> Continue:
        """What a handler's exception means: Continue, an errno, or the end of the daemon.

        Raises:
            FUSEError: The op fails.
        """
        said = failure
        while isinstance(said, BaseExceptionGroup) and len(said.exceptions) == 1:
            said = said.exceptions[0]  # raised in a nursery of the handler's
        if isinstance(said, Continue):
            return said
        if isinstance(said, pyfuse3.FUSEError):
            if 0 < said.errno < 512:
                raise said
            raise pyfuse3.FUSEError(errno.EIO) from said
        if not isinstance(failure, Exception):
            raise failure
        _log.error(
            "%s: the daemon's %s raised an exception, so it failed with EIO",
            self._name,
            request.op,
            exc_info=failure,
        )
        raise pyfuse3.FUSEError(errno.EIO) from None

    # --------------------------------------------------------------------------- the call's table

    def _go_on(self, request: Request, changes: dict[str, int | bytes | None]) -> None:
        """Tell the core that the op goes on; a listing's entries, which pyfuse3 has, come first."""
        try:
            edits = self._calls.change(request, changes)
        except Exception as error:  # noqa: BLE001 - a handler may have put anything there
            _log.error(
                "%s: Continue(%s) is none that %s can have: %s", self._name, changes, request.op, error
            )
            raise pyfuse3.FUSEError(errno.EIO) from None
        if edits:
            self._calls.put(request, EDITS_AT, "Q", edits)
            self._calls.put(request, FLAGS_AT, "I", _CHANGED)
        if request.op == "readdir":
            self._calls.put(request, FLAGS_AT, "I", _GOES_ON)
            return
        raise pyfuse3.FUSEError(CONTINUE)

    # ----------------------------------------------------------------------------- looks at results

    async def _heed_events(self, core: Mount, nursery: trio.Nursery) -> None:
        while True:
            await trio.lowlevel.wait_readable(self._event_fd)
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self._event_fd)
            while event := core.daemon_next():
                kind, token = event >> 32, event & 0xFFFFFFFF
                if kind == 1:
                    nursery.start_soon(in_turn, self._look, core, token)
                elif scope := self._scopes.get(token):
                    scope.cancel()
                elif self._calls.token_at(token) == token:
                    self._cancelled.add(token)

    async def _look(self, core: Mount, token: int) -> None:
        with contextlib.suppress(pyfuse3.FUSEError):
            await self._look_at(self._calls.request(token))
        core.daemon_finish(token)

    async def _look_at(self, request: Request) -> None:
        handler = getattr(self.daemon, f"post_{request.op}", None)
        if handler is None:
            return
        texts = {key: text for key in TEXTS if (text := self._calls.text(request, key))}
        request.args = texts | {key: self._calls.argument(request, key) for key in ARGS.get(request.op, ())}
        result = self._calls.result(request)
        before = shown(result)
        error = result.error
        try:
            await self._run(request, handler, (request, result), lambda _: True, "")
            error = result.error
        except pyfuse3.FUSEError as failure:
            error = errno.EIO if failure.errno == CONTINUE else failure.errno
        try:
            self._calls.put(request, ERROR_AT, "I", error)
            if not error:
                self._calls.put_result(request, before, result)
        except Exception as wrong:  # noqa: BLE001 - a handler may have left anything there
            _log.error("%s: post_%s left a result that makes no sense: %s", self._name, request.op, wrong)
            self._calls.put(request, ERROR_AT, "I", errno.EIO)

    # ------------------------------------------------------------------------------ the backing

    def backing(self, number: int) -> Backing:
        """The backing file of an inode or handle that a handler was given.

        Raises:
            OSError: It has none (EBADF).
        """
        if self._core is None:
            raise MountError("the mount has not begun")
        request = _request.get(None)
        ours = number
        if request is not None and 1 < number < OURS:
            ours = request.our_fh if number == request.fh and request.our_fh else 0
            ours = ours or self._ours(request, number)
        if not ours:
            raise public.no_backing(number)
        try:
            return Backing(self._core.daemon_backing(ours), is_open=ours >> 61 == 3)
        except OSError as error:
            if error.errno == errno.EBADF:
                raise public.no_backing(number) from None
            raise

    @staticmethod
    def _ours(request: Request, number: int) -> int:
        """Our number of an inode that the handler was given; 0: it has no backing, or was not given to it."""
        if number == request.inode:
            return request.our_inode
        return request.our_other if number == request.other else 0

    def entry(self, parent: int, name: bytes) -> pyfuse3.EntryAttributes:
        """The backing root's entry of a name, for a handler to answer with.

        Raises:
            OSError: There is none.
        """
        request = self.request
        ours = self._ours(request, parent) or parent
        if self._core is None:
            raise MountError("the mount has not begun")
        inode = self._core.daemon_hold(request.token, ours, name)
        with Backing(self._core.daemon_backing(inode), is_open=False) as backing:
            return public.attributes_of(backing.stat(), inode)

    @property
    def request(self) -> Request:
        """The request that the calling handler serves.

        Raises:
            LookupError: No handler calls.
        """
        return _request.get()
