"""The chain of one mount while it lives: filters come, go and are replaced; each change is published whole.

A change is checked and loaded completely before the core sees anything of it; then one call swaps the
snapshot. Ops in flight end on the snapshot that they began with, and a change waits for them for a bounded
time. What an op that takes longer still uses (its programs and maps, the filter's id) goes when it ends.

Blocking calls; the owner makes one at a time.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple

from fusebpf import bpf, chain, keeping, loader, registry, set_text
from fusebpf._core import OPS, SIZES
from fusebpf.chain import FilterSpec, Link, MapSetting
from fusebpf.checks import check_descriptors_left
from fusebpf.errors import (
    ChainError,
    MountError,
    NoSuchFilter,
    PlatformError,
    RevisionError,
    UsageError,
    reason,
)
from fusebpf.joining import Joiner
from fusebpf.pins import StagedPins

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from fusebpf._core import Mount
    from fusebpf.compiler import Compiled
    from fusebpf.loader import Filter, SharedMaps
    from fusebpf.options import MountOptions

DRAIN_SECONDS = 5.0
"""How long a change waits for ops that began before it."""
INVALIDATE_SECONDS = 30.0
"""How long it waits for the kernel to forget what the old chain said."""
POLICY_SECONDS = 2
"""The same, for a change of a policy map."""
OPEN_FILES = ("fail", "keep")

_log = logging.getLogger(__name__)
_DATA_OPS = frozenset(opcode for name, opcode, *_ in OPS if name in {"read", "write"})


class PassedThrough(NamedTuple):
    """A file whose data the kernel reads and writes alone, unseen by hooks, until its last open is closed."""

    nodeid: int
    opens: int
    path: str
    """Below the mount's root; "" where it is not known."""


class Change(NamedTuple):
    """What became of a change to the chain.

    Attributes:
        revision: Of the chain since then.
        names: The filters that came, or the one that went.
        n_in_flight: Ops that began before and still use the old chain, after a wait of DRAIN_SECONDS.
        passed_through: Where a filter with data hooks came: the files that it does not see.
        fresh_maps: After a replacement: the maps that took nothing over, but for those that were set.
    """

    revision: int
    names: tuple[str, ...]
    n_in_flight: int = 0
    passed_through: tuple[PassedThrough, ...] = ()
    fresh_maps: tuple[str, ...] = ()


class LiveChain:
    """Loaded filters in their order, what they share, and the revision. It owns them."""

    def __init__(self, core: Mount, name: str, options: MountOptions, *, has_daemon: bool = False) -> None:
        self.has_daemon = has_daemon
        self._core = core
        self._options = options
        self._name = name
        self._free_ids = deque((number, 0) for number in range(SIZES["max_filters"]))
        self.shared: SharedMaps | None = None
        self.links: list[Link] = []
        self.revision = 0
        self._joiner: Joiner | None = None

    def close(self) -> None:
        """Give everything back; the pins are the registry's to remove."""
        self._stop_joining()
        for link in self.links:
            link.filter.close()
        self.links = []
        if self.shared is not None:
            self.shared.close()
        self.shared = None
        del self._core  # its descriptors go with the last reference

    def link(self, name: str) -> Link:
        """The filter of that name.

        Raises:
            NoSuchFilter: There is none.
        """
        for link in self.links:
            if link.filter.name == name:
                return link
        known = ", ".join(link.label for link in self.links)
        has = f"its filters are: {known}" if known else "it has no filter"
        raise NoSuchFilter(f"{name!r} is no filter of the mount {self._name!r} ({has})")

    # --------------------------------------------------------------------------------- changes

    def attach(
        self,
        specs: Sequence[FilterSpec],
        settings: Sequence[MapSetting] = (),
        *,
        revision: int | None = None,
        open_files: str = "fail",
    ) -> Change:
        """Put filters into the chain, all in one step.

        Raises:
            FusebpfError: They cannot be loaded, or do not fit in; the chain is as it was.
        """
        self._check(revision, open_files)
        # Compiling and the kernel's verifying take long, and neither holds Python's lock.
        with contextlib.ExitStack() as undo, ThreadPoolExecutor() as pool:
            paths = list(dict.fromkeys(file_of(spec) for spec in specs))
            compiled = list(pool.map(loader.compile_source, paths))
            shared = self._shared_for(compiled[0], undo)

            def load(path: str, one: Compiled) -> dict[str, Filter]:
                return load_file(path, one, shared, specs, undo)

            loaded = dict(zip(paths, pool.map(load, paths, compiled), strict=True))
            placed, own_settings = place_all(specs, loaded)
            new = [link._replace(keeps_open_files=open_files == "keep") for link in placed]
            self._check_absent(new)
            links = chain.arrange(
                chain.settle([*self.links, *new]), SIZES["max_filters"], has_daemon=self.has_daemon
            )
            self._check_options(links)
            filters = {link.filter.name: link.filter for link in new}
            set_all([*settings, *own_settings], filters, self._names(), self._name)
            links = self._with_ids(links)
            self._share(shared)
            for link in new:
                link.filter.pin(registry.pins(self._name) / link.filter.name)
                undo.callback(registry.remove_pins, self._name, link.filter.name)
            _check_room(links, self.links)
            self._publish(links, shared)
            undo.pop_all()
        return self._finish(list(filters))

    def detach(self, name: str, *, revision: int | None = None) -> Change:
        """Take a filter out of the chain; its programs and maps go, unless somebody else has pinned them.

        Raises:
            ChainError: There is no such filter, or the chain has another revision.
        """
        self._check(revision)
        link, shared = self.link(name), self._shared_now()
        self._publish([one for one in self.links if one is not link], shared)
        change = self._finish([name])
        self._remove(link, shared)
        return change

    def replace(
        self,
        name: str,
        spec: FilterSpec,
        settings: Sequence[MapSetting] = (),
        *,
        fresh_maps: bool = False,
        revision: int | None = None,
        open_files: str = "fail",
    ) -> Change:
        """Put another filter in the place of one, in one step.

        Maps of the same name and type go over with their content, but for those that are set, and with
        `fresh_maps` none. The place stays the same, unless the spec says another.

        Raises:
            FusebpfError: It cannot be loaded, or does not fit in; the chain is as it was.
        """
        self._check(revision, open_files)
        old, shared = self.link(name), self._shared_now()
        with contextlib.ExitStack() as undo:
            compiled = loader.compile_source(file_of(spec))
            pick = _replacement(spec, name, compiled)
            all_settings = [*settings, *(MapSetting(pick, *item) for item in spec.sets.items())]
            fresh = {setting.map for setting in all_settings}
            alike = {} if fresh_maps else keeping.alike(old.filter, compiled, pick, fresh)
            kept = keeping.as_they_are(alike, compiled)
            (new,) = loader.load(compiled, shared, names=[pick], kept=kept)
            undo.callback(new.close)
            (link,) = chain.place(spec, [new])
            if spec.altitude is None and spec.beside is None:
                link = link._replace(altitude=old.altitude)
            link = link._replace(
                id=old.id if pick == name else -1, keeps_open_files=open_files == "keep", revision=0
            )
            others = [one for one in self.links if one is not old]
            links = chain.arrange(
                chain.settle([*others, link]), SIZES["max_filters"], has_daemon=self.has_daemon
            )
            self._check_options(links)
            for policy_map in (one for full, one in alike.items() if full not in kept):
                keeping.copy(policy_map, new.maps[policy_map.name])
            set_all(all_settings, {pick: new}, self._names(), self._name)
            links = self._with_ids(links)
            staged = StagedPins(registry.pins(self._name) / pick, new.pins())
            undo.callback(staged.discard)
            _check_room(links, self.links)
            self._publish(links, shared)
            undo.pop_all()
        staged.commit()
        change = self._finish([pick])
        if pick == name:
            old.filter.close()
        else:
            self._remove(old, shared)
        filled = {one.name for one in alike.values()} | fresh
        return change._replace(fresh_maps=tuple(sorted(set(new.maps) - filled)))

    # ----------------------------------------------------------------------------------- steps

    def _stop_joining(self) -> None:
        if self._joiner:
            self._joiner.stop()
        self._joiner = None

    def _names(self) -> list[str]:
        return [link.filter.name for link in self.links]

    def _check_absent(self, new: Sequence[Link]) -> None:
        for name in (link.filter.name for link in new):
            if any(link.filter.name == name for link in self.links):
                raise ChainError(
                    f"filter {name!r} is in the chain already: `fusebpf replace {self._name} {name} FILTER` "
                    f"puts another in its place, `fusebpf detach {self._name} {name}` takes it out"
                )

    def _check_options(self, links: list[Link]) -> None:
        if self._options.idmap:
            chain.check_idmap(links)
        if self._options.profile == "small":
            chain.check_small(links, self._core.counters())

    def _check(self, revision: int | None, open_files: str = "fail") -> None:
        if open_files not in OPEN_FILES:
            raise UsageError(f"open files: {open_files!r} is neither {' nor '.join(OPEN_FILES)}")
        if revision is not None and revision != self.revision:
            raise RevisionError(
                f"the chain of {self._name!r} was changed meanwhile: it has revision {self.revision}, and "
                f"you saw {revision}; look at it again (`fusebpf filters {self._name}`)"
            )

    def _shared_now(self) -> SharedMaps:
        if self.shared is None:
            raise ChainError(f"the mount {self._name!r} has no filter")
        return self.shared

    def _shared_for(self, types: Compiled, undo: contextlib.ExitStack) -> SharedMaps:
        """What the filters share; made for the first one."""
        if self.shared is not None:
            return self.shared
        try:
            # As many rings as there can be: workers that come back from waiting may be more than the limit.
            shared = loader.SharedMaps.create(types=types)
        except OSError as error:
            raise PlatformError(f"the maps of the mount cannot be made: {reason(error)}") from error
        undo.callback(self._discard, shared)
        return shared

    def _discard(self, shared: SharedMaps) -> None:
        if self.shared is not shared:
            shared.close()

    def _share(self, shared: SharedMaps) -> None:
        if self.shared is not None:
            return
        pins = registry.make_pins(self._name)
        with contextlib.ExitStack() as unpin:
            unpin.callback(registry.remove_pins, self._name)
            shared.pin(pins)
            try:
                shared.give_to(self._core)
            except OSError as error:
                raise MountError(f"the filters cannot be attached: {reason(error)}") from error
            unpin.pop_all()
        self.shared = shared  # the core has them for good

    def _with_ids(self, links: list[Link]) -> list[Link]:
        """Give new ones their ids: the one first that was given back longest ago."""
        oldest = self._core.oldest_revision()
        free = [number for number, since in self._free_ids if since <= oldest]
        numbered = []
        for link in links:
            if link.id < 0 and not free:
                if len(self.links) == SIZES["max_filters"]:
                    raise ChainError(
                        f"a full chain has no id for {link.filter.name!r}: there a filter is replaced by one "
                        f"of its own name alone; detach one first"
                    )
                raise ChainError(
                    f"no id is free for {link.filter.name!r}: ops in flight still use filters that were "
                    f"detached; try again when they have ended"
                )
            new = link.id < 0 or link.revision == 0
            number = link.id if link.id >= 0 else free.pop(0)
            numbered.append(link._replace(id=number, revision=self.revision + 1) if new else link)
        return numbered

    def _publish(self, links: list[Link], shared: SharedMaps) -> None:
        """Swap the snapshot; the map `filters` knows all that run at any moment."""
        shared.describe_chain([_described(link) for link in (*self.links, *links)])
        attached = [
            (*_described(link), [(hook.opcode, hook.phase, hook.program.fd) for hook in link.filter.hooks])
            for link in links
        ]
        keeps = all(link.keeps_open_files for link in links if _hooks_data(link.filter))
        self._stop_joining()  # it goes by descriptors of filters that may be about to go
        try:
            self.revision = self._core.set_chain(attached, keep_open_files=keeps)
        except OSError as error:
            shared.describe_chain([_described(link) for link in self.links])
            raise MountError(f"the chain cannot be changed: {reason(error)}") from error
        self._joiner = Joiner(self._core, self.revision, links, shared)
        used = {link.id for link in links}
        self._free_ids = deque(one for one in self._free_ids if one[0] not in used)
        self.links = links

    def _finish(self, names: Sequence[str]) -> Change:
        """Wait for ops in flight, and see that the kernel forgets what the old chain told it."""
        n_in_flight = self._core.drain(self.revision, int(DRAIN_SECONDS * 1000))
        # After the drain: an op of the old chain may have told the kernel something until just now.
        if not self._core.invalidate(int(INVALIDATE_SECONDS * 1000)):
            _log.warning("%s: ops in flight hold up the kernel in forgetting what it has cached", self._name)
        self._shared_now().describe_chain([_described(link) for link in self.links])
        came = [link.filter for link in self.links if link.filter.name in names]
        passed: tuple[PassedThrough, ...] = ()
        if any(_hooks_data(filter_) for filter_ in came):
            passed = tuple(
                PassedThrough(nodeid, opens, os.fsdecode(path))
                for nodeid, opens, path in sorted(self._core.passed_through())
            )
        return Change(self.revision, tuple(names), n_in_flight, passed)

    def _remove(self, link: Link, shared: SharedMaps) -> None:
        """Let go of a filter that has left the chain; its id is free when no op in flight can use it."""
        registry.remove_pins(self._name, link.filter.name)
        link.filter.close()
        for key in list(bpf.map_keys(shared.stats, SIZES["stat_key"])):
            if int.from_bytes(key[:4], "little") == link.id:
                bpf.map_delete(shared.stats, key)
        self._free_ids.append((link.id, self.revision))


def policy_changed(core: Mount) -> None:
    """A policy map was changed: what the kernel keeps since a filter set a ttl, it forgets."""
    core.invalidate(POLICY_SECONDS * 1000, True)


def file_of(spec: FilterSpec) -> str:
    """The C source of a filter."""
    return os.fspath(loader.stock(spec.source)) if spec.is_stock else spec.source


def pick_of(spec: FilterSpec) -> str | None:
    """Which filter of its file; None: all."""
    return spec.source if spec.is_stock else spec.pick


def _check_room(links: Sequence[Link], before: Sequence[Link]) -> None:
    """See that a mount can work with this chain: the core has a descriptor of its own for each hook."""
    check_descriptors_left(*(sum(len(link.filter.hooks) for link in each) for each in (links, before)))


def _described(link: Link) -> tuple[int, str, int, int]:
    return link.id, link.filter.name, link.altitude, link.filter.wants


def _hooks_data(filter_: Filter) -> bool:
    return any(hook.opcode in _DATA_OPS for hook in filter_.hooks)


def set_all(
    settings: Sequence[MapSetting], filters: Mapping[str, Filter], there: Sequence[str] = (), mount: str = ""
) -> None:
    """Fill maps of filters.

    Args:
        settings: What to fill them with; several of a map are one list, and nothing is dropped.
        filters: Those that come, by their names.
        there: The names of those that the mount has already.
        mount: What that mount is called.

    Raises:
        UsageError: A value is for a filter that is not among them.
        MapValueError: There is no such map, or the value does not fit it.
        OSError: The kernel refused an element.
    """
    chain.check_sets(settings, list(filters), there, mount)
    texts: dict[tuple[str, str], list[str]] = {}
    for setting in settings:
        texts.setdefault((setting.filter, setting.map), []).append(setting.value)
    for (name, map_name), values in texts.items():
        filters[name].set(map_name, set_text.one_list(values))


def load_file(
    path: str,
    compiled: Compiled,
    shared: SharedMaps,
    specs: Sequence[FilterSpec],
    undo: contextlib.ExitStack,
) -> dict[str, Filter]:
    """Load the filters of one file that are wanted; together, since they may share maps.

    Args:
        path: The file.
        compiled: What is in it.
        shared: The maps of the mount that they are for.
        specs: What is wanted, of this file and of others.
        undo: Gets their closing.

    Returns:
        The filters by their names.

    Raises:
        FilterError: Something is wrong with the file, or it has no filter of a name.
    """
    picks = [pick_of(spec) for spec in specs if file_of(spec) == path]
    names = None if None in picks else [pick for pick in picks if pick is not None]
    filters = loader.load(compiled, shared, names=names)
    for filter_ in filters:
        undo.callback(filter_.close)
    return {filter_.name: filter_ for filter_ in filters}


def place_all(
    specs: Sequence[FilterSpec], loaded: Mapping[str, Mapping[str, Filter]]
) -> tuple[list[Link], list[MapSetting]]:
    """The loaded filters, by file and name, that specs stand for, in their order; and what the specs set.

    Raises:
        UsageError: One altitude for several filters.
    """
    placed: list[Link] = []
    settings: list[MapSetting] = []
    for spec in specs:
        filters, pick = loaded[file_of(spec)], pick_of(spec)
        links = chain.place(spec, [filters[pick]] if pick else list(filters.values()))
        placed += links
        settings += [MapSetting(link.filter.name, *item) for link in links for item in spec.sets.items()]
    return placed, settings


def _replacement(spec: FilterSpec, name: str, compiled: Compiled) -> str:
    """Which filter of a file is to stand in the place of `name`."""
    if pick := pick_of(spec):
        return pick
    names = list(compiled.filters)
    if name in names or len(names) == 1:
        return name if name in names else names[0]
    raise UsageError(
        f"{spec.source!r} has no filter {name!r} and several others ({', '.join(names)}): "
        f"pick one, {spec.source}:{names[0]}"
    )
