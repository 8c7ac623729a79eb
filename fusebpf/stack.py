"""One mount, from its checks to its end, as an async context manager on trio.

The work of starting and ending is blocking calls, which run one after another in a trio thread each; each
step that made something says at once how it is undone. The core serves the mount on threads of its own. The
log task moves the core's log lines to `logging`.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import struct
from typing import TYPE_CHECKING, NamedTuple, Self, TypeVar

import trio

from fusebpf import bpf, chain, checks, loader, mounts, registry
from fusebpf._core import OPS, SIZES, Mount
from fusebpf.chain import FilterSpec, Link, MapSetting
from fusebpf.errors import FusebpfError, MountError, PlatformError, UsageError
from fusebpf.options import MountOptions, parse

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from types import TracebackType

    from fusebpf.compiler import Compiled
    from fusebpf.loader import Filter, SharedMaps

UNMOUNT_SECONDS = 10.0
"""How long an unmount may take (it writes back what is dirty) before the core is stopped regardless."""
STOP_SECONDS = 20.0
"""How long ops in flight may take to finish before their threads are given up."""
INVALIDATE_SECONDS = 30.0
"""How long the kernel may take to forget what it has cached."""

_VERDICTS = {0: "continue", 1: "backing", 2: "daemon", 3: "reply", 4: "negative", 5: "drop", 15: "broken"}
_PHASES = ("pre", "post")

T = TypeVar("T")
_log = logging.getLogger(__name__)


class Statistic(NamedTuple):
    """How often a hook of a filter gave a verdict."""

    filter: str
    phase: str
    op: str
    verdict: str
    times: int


class Stack:
    """A mount of one directory through a chain of filters, for the time of an `async with` block.

    Args:
        src: The backing root: a path, or the descriptor of an open directory, which may be closed once the
            mount is there.
        mnt: The mount point: a directory; `src` itself is fine.
        filters: Stock names or paths of C sources (text is read as for --filter), or FilterSpecs.
        sets: Map values as for --set, "FILTER.MAP=VALUE", beside those in FilterSpecs.
        name: The mount's name; None: after the last component of `mnt`.
        cache: "none", "normal" or "watch", as for --cache; None: what `options` say.
        options: As for -o; filters, sets and the name may come from here too.
        is_server: This process ends with its mount, so that whoever unmounts waits for it.

    Everything that can be wrong is a FusebpfError, raised on entering; nothing is left behind then.
    """

    def __init__(
        self,
        src: mounts.StrPath | int,
        mnt: mounts.StrPath,
        *,
        filters: Iterable[mounts.StrPath | FilterSpec] = (),
        sets: Iterable[str] = (),
        name: str | None = None,
        cache: str | None = None,
        options: MountOptions | str = "",
        is_server: bool = False,
    ) -> None:
        base = options if isinstance(options, MountOptions) else parse(options)
        self.options = base if cache is None else parse(f"cache={cache}", base)
        self._specs = [FilterSpec.of(item) for item in (*filters, *self.options.filters)]
        self._set_texts = [*sets, *self.options.sets]
        self._settings = [MapSetting.parse(text) for text in self._set_texts]
        self._name = name or self.options.name or ""
        if name and self.options.name not in {None, name}:
            raise UsageError(f"two names for one mount: {name!r} and {self.options.name!r}")
        self._given = (src, mnt)
        self._is_server = is_server
        self._root_fd = -1
        self._entry: registry.Entry | None = None
        self._core: Mount | None = None
        self._shared: SharedMaps | None = None
        self._links: list[Link] = []
        self._is_started = False
        # What gives back everything but mount and core; and the two, whose end may take time.
        self._undo = contextlib.ExitStack()
        self._log_scope = trio.CancelScope()
        self._log_done: trio.Event | None = None

    # ------------------------------------------------------------------------------ what it is

    @property
    def entry(self) -> registry.Entry:
        """Its entry in the registry."""
        if self._entry is None:
            raise MountError("the mount has not begun")
        return self._entry

    @property
    def name(self) -> str:
        """The mount's name."""
        return self.entry.name

    @property
    def src(self) -> str:
        """The backing root, as a path free of symlinks."""
        return self.entry.src

    @property
    def mnt(self) -> str:
        """The mount point, as a path free of symlinks."""
        return self.entry.mnt

    @property
    def filters(self) -> tuple[Filter, ...]:
        """The loaded filters, top first."""
        return tuple(link.filter for link in self._links)

    @property
    def links(self) -> tuple[Link, ...]:
        """The loaded filters with the altitudes that they have in this chain, top first."""
        return tuple(self._links)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is allowed and yet may not be what was meant; a line each."""
        if not self.options.default_permissions:
            return ()
        stock = {os.fspath(loader.stock(name)) for name in loader.stock_names()}
        return tuple(
            f"{link.filter.path}: the hook on access of {link.filter.name!r} never runs: "
            "the kernel sends ACCESS only with -o nodefault_permissions"
            for link in self._links
            if os.fspath(link.filter.path) not in stock
            and any(hook.program.pin_name in {"pre_access", "post_access"} for hook in link.filter.hooks)
        )

    def counters(self) -> dict[str, int]:
        """The counters of the core, by name: inodes, requests, failed_closed and others."""
        return self._started_core().counters()

    def stats(self) -> list[Statistic]:
        """How often each hook gave which verdict: the map `stats`; empty without filters."""
        if self._shared is None:
            return []
        names = {index: link.filter.name for index, link in enumerate(self._links)}
        ops = {opcode: name for name, opcode, *_ in OPS}
        rows = []
        for key in bpf.map_keys(self._shared.stats, SIZES["stat_key"]):
            value = bpf.map_lookup(self._shared.stats, key, SIZES["stat"])
            if value is None:
                continue
            filter_id, phase, op, verdict = struct.unpack("=4I", key)
            rows.append(
                Statistic(
                    names.get(filter_id, str(filter_id)),
                    _PHASES[phase],
                    ops.get(op, str(op)),
                    _VERDICTS.get(verdict, str(verdict)),
                    struct.unpack("=Q", value)[0],
                )
            )
        return sorted(rows)

    async def invalidate(self) -> None:
        """Make the kernel forget what it has cached of the mount: entries, attributes, pages.

        Raises:
            MountError: The mount is not there, or the kernel did not get to it in time, since ops in flight
                hold it up; it will when they end.
        """
        core = self._started_core()
        if not await _in_thread(lambda: core.invalidate(round(INVALIDATE_SECONDS * 1000))):
            raise MountError(
                f"ops in flight hold up the invalidation of {self.mnt!r} for {INVALIDATE_SECONDS:.0f} s"
            )

    async def wait(self) -> None:
        """Wait until the mount has ended: unmounted by somebody, or its connection broken."""
        await trio.lowlevel.wait_readable(self._started_core().fileno())

    def _started_core(self) -> Mount:
        if self._core is None or not self._is_started:
            raise MountError("the mount is not there")
        return self._core

    # ------------------------------------------------------------------------------- how it begins

    def reserve(self) -> None:
        """Check what can be checked and take the name; entering does it, if it was not done before.

        Raises:
            FusebpfError: Something is wrong; nothing is left behind.
        """
        if self._entry is not None:
            return
        chain.check_stock(self._specs, loader.stock_names())
        names = [_pick_of(spec) for spec in self._specs]
        if None not in names:
            chain.check_sets(self._settings, [name for name in names if name is not None])
        checks.check_root()
        checks.check_fuse()
        if self._specs:
            bpf.require()
        src, mnt = self._given
        with registry.locked():
            registry.clean_dead()
        places = checks.check_places(src, mnt)
        self._root_fd = places.root_fd
        self._undo.callback(self._close_root)
        try:
            entry = registry.own_entry(
                name=self._name, src=places.src, mnt=places.mnt, under=places.under, is_server=self._is_server
            )
            entry.filter_texts = [spec.text for spec in self._specs]
            entry.set_texts = self._set_texts
            self._entry = registry.reserve(entry)
            self._undo.callback(registry.release, entry)
        except BaseException:
            self._undo.close()
            raise

    def release(self) -> None:
        """Give back what `reserve` took, where the mount was not begun after it."""
        self._undo.close()
        self._entry = None

    async def __aenter__(self) -> Self:
        try:
            await _in_thread(self.reserve)
            await _in_thread(self._prepare)
            self._start_log()
            if self._specs:
                await _in_thread(self._load)
            await _in_thread(self._start)
        except BaseException:
            await self._take_down()
            raise
        return self

    def _prepare(self) -> None:
        options = self.options
        try:
            self._core = Mount(
                self._root_fd,
                self.mnt,
                source=options.fsname or self.src,
                flags=options.flags,
                allow_other=options.allow_other,
                default_permissions=options.default_permissions,
                max_read=options.max_read,
                passthrough=options.passthrough,
                max_workers=options.max_workers,
                ttl_ns=0 if options.cache == "none" else round(options.ttl * 1e9),
                backing_locks=options.locks == "backing",
                watch=options.cache == "watch",
            )
        except OSError as error:
            raise MountError(f"a mount of {self.src!r} cannot be prepared: {error.strerror}") from error
        self._close_root()

    @property
    def _prepared_core(self) -> Mount:
        """The core; nobody else holds it, so that its descriptors go when we let go of it."""
        if self._core is None:
            raise MountError("the mount is not prepared")
        return self._core

    def _close_root(self) -> None:
        if self._root_fd >= 0:
            os.close(self._root_fd)
            self._root_fd = -1

    def _load(self) -> None:
        pins = registry.make_pins(self.name)
        compiled = {path: loader.compile_source(path) for path in {_source_of(spec) for spec in self._specs}}
        try:
            types = next(iter(compiled.values()))
            # As many rings as there can be: workers that come back from waiting may be more than the limit.
            self._shared = loader.SharedMaps.create(types=types)
        except OSError as error:
            raise PlatformError(f"the maps of the mount cannot be made: {error.strerror}") from error
        shared = self._shared
        self._undo.callback(shared.close)
        loaded = {path: self._load_file(path, one, shared) for path, one in compiled.items()}
        links = [link for spec in self._specs for link in self._links_of(spec, loaded[_source_of(spec)])]
        self._links = chain.arrange(links, SIZES["max_filters"])
        chain.check_sets(self._settings, [link.filter.name for link in self._links])
        by_name = {link.filter.name: link.filter for link in self._links}
        for setting in self._settings:
            by_name[setting.filter].set(setting.map, setting.value)
        try:
            self._attach(shared)
            shared.pin(pins)
            for link in self._links:
                link.filter.pin(pins / link.filter.name)
        except OSError as error:
            raise MountError(f"the filters cannot be attached: {error.strerror or error}") from error

    def _load_file(self, path: str, compiled: Compiled, shared: SharedMaps) -> dict[str, Filter]:
        """Load the filters of one file that are wanted; together, since they may share maps."""
        picks = [_pick_of(spec) for spec in self._specs if _source_of(spec) == path]
        names = None if None in picks else [pick for pick in picks if pick is not None]
        filters = loader.load(compiled, shared, names=names)
        for filter_ in filters:
            self._undo.callback(filter_.close)
        return {filter_.name: filter_ for filter_ in filters}

    def _links_of(self, spec: FilterSpec, loaded: dict[str, Filter]) -> list[Link]:
        pick = _pick_of(spec)
        links = chain.place(spec, [loaded[pick]] if pick is not None else list(loaded.values()))
        for link in links:
            self._settings += [MapSetting(link.filter.name, *item) for item in spec.sets.items()]
        return links

    def _attach(self, shared: SharedMaps) -> None:
        maps = {"slots": shared.slots, "windows": shared.windows, "stats": shared.stats}
        self._prepared_core.share(**maps, recent=shared.recent, rings=shared.rings)
        described, attached = [], []
        for index, (filter_, altitude) in enumerate(self._links):
            hooks = [(hook.opcode, hook.phase, hook.program.fd) for hook in filter_.hooks]
            described.append((index, filter_.name, altitude, filter_.wants))
            attached.append((index, filter_.name, altitude, filter_.wants, hooks))
        shared.describe_chain(described)
        self._prepared_core.set_chain(attached)

    def _start(self) -> None:
        entry = self.entry
        try:
            self._prepared_core.start()
        except OSError as error:
            raise MountError(
                f"{entry.src!r} cannot be mounted on {entry.mnt!r}: {error.strerror or error}"
            ) from error
        self._is_started = True
        with mounts.opened(entry.mnt) as fd:
            mounted = mounts.by_id(mounts.place_of(fd).mount_id)
            entry.unique_id = mounts.unique_id_of(fd)
        if mounted is None or not mounted.is_ours:
            raise MountError(f"{entry.mnt!r} was taken by another mount meanwhile")
        entry.mount_id, entry.device = mounted.mount_id, mounted.device
        entry.filters = [
            {"name": link.filter.name, "altitude": link.altitude, "source": str(link.filter.path)}
            for link in self._links
        ]
        registry.write(entry)

    # --------------------------------------------------------------------------------- how it ends

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._take_down()

    async def _take_down(self) -> None:
        with trio.CancelScope(shield=True):
            if self._core is not None:
                if self._is_started:
                    trio.lowlevel.notify_closing(self._core.fileno())
                    await _bounded(self._unmount, UNMOUNT_SECONDS, "the unmount")
                self._is_started = False
                await _bounded(self._core.stop, STOP_SECONDS, "the end of ops in flight")
                if self._log_done is not None:
                    self._log_scope.cancel()
                    await self._log_done.wait()
            await _bounded(self._undo.close, UNMOUNT_SECONDS, "giving back what the mount held")
            self._core, self._links, self._shared = None, [], None

    def _unmount(self) -> None:
        """Unmount, lazily where it is busy: what uses it gets ENOTCONN once the core has stopped."""
        mounted = self.entry.mounted
        if mounted is None:
            return
        try:
            mounts.unmount(mounted)
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            mounts.unmount(mounted, is_lazy=True)

    # ------------------------------------------------------------------------------------- the log

    def _start_log(self) -> None:
        fd = os.dup(self._prepared_core.log_fileno())
        self._undo.callback(os.close, fd)
        os.set_blocking(fd, False)
        self._log_done = trio.Event()
        trio.lowlevel.spawn_system_task(
            self._move_log, fd, self._log_done, name=f"fusebpf log of {self.name}"
        )

    async def _move_log(self, fd: int, done: trio.Event) -> None:
        rest = b""
        with self._log_scope:
            while True:
                await trio.lowlevel.wait_readable(fd)
                data = _read_all(fd)
                if not data:
                    break
                rest = self._log_lines(rest + data)
        self._log_lines(rest + _read_all(fd) + b"\n")
        done.set()

    def _log_lines(self, data: bytes) -> bytes:
        *lines, rest = data.split(b"\n")
        for line in lines:
            level, _, message = line.decode(errors="replace").partition(" ")
            if message:
                number = logging.getLevelNamesMapping().get(level.upper(), logging.WARNING)
                _log.log(number, "%s: %s", self.name, message)
        return rest


def _source_of(spec: FilterSpec) -> str:
    return os.fspath(loader.stock(spec.source)) if spec.is_stock else spec.source


def _pick_of(spec: FilterSpec) -> str | None:
    return spec.source if spec.is_stock else spec.pick


def _read_all(fd: int) -> bytes:
    """What is there to be read now; b"" if there is nothing or the other end is closed."""
    data = b""
    with contextlib.suppress(BlockingIOError):
        while block := os.read(fd, 65536):
            data += block
    return data


async def _in_thread(function: Callable[[], T]) -> T:
    """Run a step that must run to its end; whoever cancels waits for it."""
    return await trio.to_thread.run_sync(function)


async def _bounded(function: Callable[[], object], seconds: float, what: str) -> None:
    """Run a step of the end; a failure or a hang is logged, and the next step comes all the same."""
    with trio.move_on_after(seconds) as scope:
        try:
            await trio.to_thread.run_sync(function, abandon_on_cancel=True)
        except (OSError, FusebpfError) as error:
            _log.error("%s failed: %s", what, error)
    if scope.cancelled_caught:
        _log.error("%s is given up after %.0f s", what, seconds)


__all__: Sequence[str] = ("Stack", "Statistic")
