"""One mount, from its checks to its end, as an async context manager on trio.

The work of starting and ending is blocking calls, which run one after another in a trio thread each; each
step that made something says at once how it is undone. The core serves the mount on threads of its own. The
log task moves the core's log lines to `logging`.
"""

from __future__ import annotations

import contextlib
import errno
import os
from typing import TYPE_CHECKING, Self

import trio

from fusebpf import bpf, chain, checks, control, loader, mounts, registry, watching
from fusebpf._core import Mount
from fusebpf.arguments import AnyPath, path_text, several
from fusebpf.callers import Callers
from fusebpf.chain import FilterSpec, Link, MapSetting
from fusebpf.core_log import CoreLog
from fusebpf.daemon_import import begin, claim, end, leg_of, present
from fusebpf.errors import MountError, UsageError, reason
from fusebpf.live_chain import Change, LiveChain, pick_of, policy_changed
from fusebpf.map_view import MapView
from fusebpf.options import MountOptions, combined, lasting, unsent
from fusebpf.steps import bounded, in_thread
from fusebpf.watching import Events, Records, Statistic

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from types import TracebackType

    from fusebpf.daemon import Backing
    from fusebpf.loader import Filter
    from fusebpf.policy_map import PolicyMap

UNMOUNT_SECONDS = 10.0
"""How long an unmount may take (it writes back what is dirty) before the core is stopped regardless."""
STOP_SECONDS = 20.0
"""How long ops in flight may take to finish before their threads are given up."""
INVALIDATE_SECONDS = 30.0
"""How long the kernel may take to forget what it has cached."""


class Stack:
    """A mount of one directory through a chain of filters, for the time of an `async with` block.

    Args:
        src: The backing root: a path, or the descriptor of an open directory, which may be closed once the
            mount is there.
        mnt: The mount point: a directory; `src` itself is fine.
        filters: Stock names or paths of C sources (text is read as for --filter), or FilterSpecs.
        sets: Map values as for --set, "FILTER.MAP=VALUE", beside those in FilterSpecs.
        name: The mount's name; None: after the last component of `mnt`.
        roots: Further backing roots, numbered from 1, to which filters lead ops (FB_EDIT_BACKING).
        cache: "none", "normal" or "watch", as for --cache; None: what `options` say.
        options: As for -o; filters, sets and the name may come from here too.
        is_server: This process ends with its mount, so that whoever unmounts waits for it.
        daemon: A `pyfuse3.Operations` that answers ops; what follows is as for --route and so on, in seconds.

    Everything that can be wrong is a FusebpfError, raised before the block begins; nothing is left behind.
    """

    def __init__(
        self,
        src: AnyPath | int,
        mnt: AnyPath,
        *,
        filters: Iterable[AnyPath | FilterSpec] = (),
        sets: Iterable[str] = (),
        name: str | None = None,
        roots: Iterable[AnyPath] = (),
        cache: str | None = None,
        options: MountOptions | str = "",
        is_server: bool = False,
        daemon: object | None = None,
        routes: Iterable[str] = (),
        daemon_timeout: float = 30.0,
        on_daemon_failure: str = "fail",
    ) -> None:
        self.options = combined(options, name=name, cache=cache, roots=several("roots", roots))
        self._specs = [FilterSpec.of(item) for item in (*several("filters", filters), *self.options.filters)]
        self._set_texts = [*several("sets", sets), *self.options.sets]
        self._settings = [MapSetting.parse(text) for text in self._set_texts]
        self._name = self.options.name or ""
        source = src if isinstance(src, int) else path_text("src", src, "a path or a descriptor")
        self._given = (source, path_text("mnt", mnt))
        self._is_server = is_server
        self._leg = leg_of(daemon, several("routes", routes), daemon_timeout, on_daemon_failure, self.options)
        self._root_fds: list[int] = []
        self._entry: registry.Entry | None = None
        self._core: Mount | None = None
        self._live: LiveChain | None = None
        self._control: control.Server | None = None
        self._changing = trio.Lock()
        self._has_begun = False
        self._is_started = False
        self._callers = Callers()
        # What gives back everything but mount and core; and the two, whose end may take time.
        self._undo = contextlib.ExitStack()
        self._log: CoreLog | None = None

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
        return tuple(link.filter for link in self.links)

    @property
    def links(self) -> tuple[Link, ...]:
        """The loaded filters with the altitudes that they have in this chain, top first."""
        return tuple(self._live.links) if self._live else ()

    @property
    def revision(self) -> int:
        """How often the chain was published so far; a change may say which one it saw."""
        return self._live.revision if self._live else 0

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is allowed and yet may not be what was meant; a line each."""
        told = self._callers.warnings(self.links)
        stock = {os.fspath(loader.stock(name)) for name in loader.stock_names()}
        own = [link for link in self.links if os.fspath(link.filter.path) not in stock]
        return told + chain.never_run(own, unsent(self.options))

    def backing(self, inode: int) -> Backing:
        """The backing file of an inode or handle that a handler was given; OSError (EBADF): it has none."""
        return present(self._leg).backing(inode)

    def counters(self) -> dict[str, int]:
        """The counters of the core, by name: inodes, requests, failed_closed and others."""
        return self._started_core().counters()

    def map(self, filter: str, name: str) -> MapView:  # noqa: A002 - it is one
        """A policy map of a filter in the chain, as a dictionary: `stack.map("hide", "names")["*.k"] = True`.

        Raises:
            ChainError: There is no such filter.
            MapValueError: It has no such map.
        """

        def find() -> PolicyMap:
            if self._live is None:
                raise MountError("the mount is not there")
            return self._live.link(filter).filter.map(name)

        find()
        return MapView(find, lambda: policy_changed(self._started_core()))

    def events(self) -> Events:
        """The records of ops from now on, as an async iterator that ends with the mount.

        Of ops that at least one hook saw. Where they come faster than they are read, each Event says how many
        before it were missed.
        """
        is_new = self._live is None or self._live.shared is None

        def find() -> Records | None:
            shared = self._live.shared if self._live else None
            return Records(shared.recent, shared.filters, is_new=is_new) if shared else None

        return Events(find, lambda: not self._is_started)

    def stats(self) -> list[Statistic]:
        """How often each hook gave which verdict: the map `stats`; empty without filters."""
        if self._live is None or self._live.shared is None:
            return []
        names = {link.id: link.filter.name for link in self.links}
        return watching.statistics(self._live.shared.stats, names)

    # ------------------------------------------------------------------------- changing the chain

    async def attach(
        self,
        *filters: AnyPath | FilterSpec,
        sets: Iterable[str] = (),
        revision: int | None = None,
        open_files: str = "fail",
    ) -> Change:
        """Put filters into the chain while it works; all of them in one step.

        Args:
            filters: As for the class. Text may end in @ALTITUDE, @above:NAME or @below:NAME.
            sets: Map values, "FILTER.MAP=VALUE", set before the filters are attached.
            revision: The one that you saw; None: whatever it is.
            open_files: Where a filter hooks read or write and files are passed through to the kernel, new
                opens of those fail with EBUSY until the last old one is closed ("fail"), or go on ("keep").

        Raises:
            RevisionError: The chain has another revision.
            FusebpfError: They cannot be loaded, or do not fit in. The chain is as it was.
        """
        specs = [FilterSpec.of(item) for item in filters]
        settings = [MapSetting.parse(text) for text in several("sets", sets)]
        if not specs:
            raise UsageError("no filter is to be attached")
        chain.check_stock(specs, loader.stock_names())

        def change(live: LiveChain) -> Change:
            bpf.require()
            return live.attach(specs, settings, revision=revision, open_files=open_files)

        return await self._change(change)

    async def detach(self, name: str, *, revision: int | None = None) -> Change:
        """Take a filter out of the chain while it works.

        When this returns no op that begins sees it any more, and none uses it, but for those that Change
        counts: they began before and take longer than some seconds (they wait for a lock, say).

        Raises:
            RevisionError: The chain has another revision.
            ChainError: There is no such filter.
        """
        return await self._change(lambda live: live.detach(name, revision=revision))

    async def replace(
        self,
        name: str,
        filter: AnyPath | FilterSpec,  # noqa: A002 - it is one
        *,
        sets: Iterable[str] = (),
        fresh_maps: bool = False,
        revision: int | None = None,
        open_files: str = "fail",
    ) -> Change:
        """Put another filter in the place of one, in one step; arguments as for `attach`.

        Maps of the same name and type keep their content, unless `sets` gives another, or `fresh_maps`.

        Raises:
            RevisionError: The chain has another revision.
            FusebpfError: It cannot be loaded, or does not fit in. The chain is as it was.
        """
        spec = FilterSpec.of(filter)
        settings = [MapSetting.parse(text) for text in several("sets", sets)]
        chain.check_stock([spec], loader.stock_names())
        return await self._change(
            lambda live: live.replace(
                name, spec, settings, fresh_maps=fresh_maps, revision=revision, open_files=open_files
            )
        )

    async def _change(self, change: Callable[[LiveChain], Change]) -> Change:
        """Make one change at a time, to its end."""
        async with self._changing:
            self._started_core()

            def make() -> Change:
                if self._live is None:
                    raise MountError("the mount is not there")
                done = change(self._live)
                self._callers.note(self._prepared_core, self.entry.device, self.links)
                self._note_chain()
                return done

            return await in_thread(make)

    async def invalidate(self, *, by_filters: bool = False) -> None:
        """Make the kernel forget what it has cached; with `by_filters` only if filters let it keep something.

        Raises:
            MountError: The mount is not there, or the kernel did not get to it in time, since ops in flight
                hold it up; it will when they end.
        """
        core = self._started_core()
        if not await in_thread(lambda: core.invalidate(round(INVALIDATE_SECONDS * 1000), by_filters)):
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

    def reserve(self) -> None:
        """Check what can be checked and take the name; entering does it, if it was not done before.

        Raises:
            FusebpfError: Something is wrong; nothing is left behind.
        """
        if self._entry is not None:
            return
        chain.check_stock(self._specs, loader.stock_names())
        names = [pick_of(spec) for spec in self._specs]
        if None not in names:
            chain.check_sets(self._settings, [name for name in names if name is not None])
        checks.check_root(serves=True)
        checks.check_fuse()
        if self._specs:
            bpf.require()
        registry.await_killed()
        with registry.locked():
            registry.clean_dead()
        places = checks.check_places(*self._given, self.options.roots)
        self._root_fds = places.root_fds
        self._undo.callback(self._close_roots)
        try:
            entry = registry.own_entry(
                name=self._name, src=places.src, mnt=places.mnt, under=places.under, is_server=self._is_server
            )
            entry.options = lasting(self.options)
            entry.filter_texts = [spec.text for spec in self._specs]
            entry.set_texts = self._set_texts
            self._entry = registry.reserve(entry)
            self._undo.callback(registry.release, entry)
            claim(self._leg, entry.name, self._undo)
        except BaseException:
            self._undo.close()
            raise

    def release(self) -> None:
        """Give back what `reserve` took, where the mount was not begun after it."""
        self._undo.close()
        self._entry = None

    async def __aenter__(self) -> Self:
        if self._has_begun:
            raise UsageError(f"this Stack has been the mount on {self._given[1]!r} already: make another")
        checks.check_trio()
        self._has_begun = True
        try:
            await in_thread(self.reserve)
            await in_thread(self._prepare)
            self._log = CoreLog(self._prepared_core.log_fileno(), self.name)
            await in_thread(self._load)
            begin(self._leg, self._prepared_core, self)
            await in_thread(self._start)
            self._control = control.serve(self)
        except BaseException:
            await self._take_down()
            raise
        return self

    def _prepare(self) -> None:
        options = self.options
        try:
            self._core = Mount(
                self._root_fds[0],
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
                transport=options.transport,
                idle=options.idle,
                max_descriptors=options.max_descriptors,
                one_file_system=options.one_file_system,
                idmap=options.idmap,
                small=options.profile == "small",
                more_roots=self._root_fds[1:],
            )
        except OSError as error:
            raise MountError(f"a mount of {self.src!r} cannot be prepared: {reason(error)}") from error
        self._close_roots()

    @property
    def _prepared_core(self) -> Mount:
        """The core; nobody else holds it, so that its descriptors go when we let go of it."""
        if self._core is None:
            raise MountError("the mount is not prepared")
        return self._core

    def _close_roots(self) -> None:
        while self._root_fds:
            os.close(self._root_fds.pop())

    def _load(self) -> None:
        live = LiveChain(self._prepared_core, self.name, self.options, has_daemon=self._leg is not None)
        self._live = live
        self._undo.callback(live.close)
        if self._specs:
            live.attach(self._specs, self._settings)

    def _start(self) -> None:
        entry = self.entry
        try:
            self._prepared_core.start()
        except OSError as error:
            raise MountError(f"{entry.src!r} cannot be mounted on {entry.mnt!r}: {reason(error)}") from error
        self._is_started = True
        with mounts.opened(entry.mnt) as fd:
            mounted = mounts.by_id(mounts.place_of(fd).mount_id)
            entry.unique_id = mounts.unique_id_of(fd)
        if mounted is None or not mounted.is_ours:
            raise MountError(f"{entry.mnt!r} was taken by another mount meanwhile")
        entry.mount_id, entry.device = mounted.mount_id, mounted.device
        self._callers.note(self._prepared_core, self.entry.device, self.links)
        self._note_chain()

    def _note_chain(self) -> None:
        """Let the registry know what the chain is now."""
        entry = self.entry
        entry.filters = [
            {"name": link.filter.name, "altitude": link.altitude, "source": link.source}
            for link in self.links
        ]
        entry.filter_texts = list(dict.fromkeys(link.text for link in self.links))
        registry.write(entry)

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._take_down()

    async def _take_down(self) -> None:
        with trio.CancelScope(shield=True):
            if self._control is not None:
                await self._control.stop()
                self._control = None
            await self._changing.acquire()  # a change that is under way ends before
            if self._core is not None:
                if self._is_started:
                    trio.lowlevel.notify_closing(self._core.fileno())
                    await bounded(self._unmount, UNMOUNT_SECONDS, "the unmount")
                self._is_started = False
                await bounded(self._core.stop, STOP_SECONDS, "the end of ops in flight")
                await end(self._leg)
                if self._log is not None:
                    await self._log.stop()
            self._callers.close()
            await bounded(self._undo.close, UNMOUNT_SECONDS, "giving back what the mount held")
            self._core, self._live = None, None
            self._changing.release()

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


__all__: Sequence[str] = ("Stack", "Statistic")
