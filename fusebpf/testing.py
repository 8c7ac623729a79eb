"""Unit tests for filters, without a mount.

A test describes an op, the filters' hooks run on it in the kernel, and what they decided comes back:

    assert run("hide", "lookup", name=b".ssh", maps={"hide.names": ".ssh"}).verdict == "FB_NEGATIVE"

Compiler, verifier, hooks, verdicts and checks are those of a mount; only the op, and what the backing root
would answer, are made up. Needs root. `run` asks once; a `Chain` is loaded once, asked often, and its maps
keep what the hooks left there.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from fusebpf import bpf, chain, checks, loader
from fusebpf._core import SIZES, Mount
from fusebpf.btf import Btf, Kind
from fusebpf.chain import FilterSpec, MapSetting
from fusebpf.errors import PlatformError, UsageError
from fusebpf.live_chain import file_of, load_file, place_all, set_all
from fusebpf.shared_maps import SharedMaps
from fusebpf.slot import OPCODES, SlotType
from fusebpf.watching import edit_names

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from fusebpf.chain import Link
    from fusebpf.compiler import Compiled
    from fusebpf.loader import Filter
    from fusebpf.policy_map import PolicyMap

__all__ = ["Chain", "Outcome", "Said", "run"]

Source = str | os.PathLike[str] | FilterSpec
"""A filter as for --filter: a stock name, FILE.c, FILE.c:NAME, each with @ALTITUDE or without."""

_PHASES = ("pre", "post")
_FB_PHASES = ("FB_PRE", "FB_POST")
_ROUTES = ("backing", "daemon", "reply")
_BROKEN = "FB_BROKEN"
_MAX_ERRNO = 511


class Said(NamedTuple):
    """What one hook said."""

    filter: str
    phase: str
    """`pre` or `post`."""
    verdict: str
    """`FB_CONTINUE`, `FB_REPLY` (which `-Exxx` stands for), …; `FB_BROKEN` where it broke a rule."""


@dataclass(frozen=True)
class Outcome:
    """What a chain made of an op."""

    verdicts: tuple[Said, ...]
    """What the hooks said, in the order in which they ran."""
    error: int
    """The errno that the caller would be told; 0 is success."""
    route: str
    """`backing`: the op would run; `reply`: a filter answered."""
    edits: frozenset[str]
    """What was edited and used, as in FB_EDIT_…: {"NAME", "MODE"}."""
    decider: str
    """The filter that ended the pre stage, else the last that edited, else ""."""
    is_listed: bool
    """For `dirent`: whether the entry stays in the listing."""
    why: str
    """Why an op was failed closed; "" if no rule was broken."""
    data: bytes = field(repr=False)
    """The payload as it would be written, or as the caller would get it; b"" for ops without."""
    slot: Mapping[str, Any] = field(repr=False)
    """The op as it would be done and answered: struct fb_slot, texts as bytes."""

    @property
    def verdict(self) -> str:
        """What was said last other than FB_CONTINUE."""
        return next(
            (one.verdict for one in reversed(self.verdicts) if one.verdict != "FB_CONTINUE"), "FB_CONTINUE"
        )

    @property
    def name(self) -> bytes:
        """The op's name, as it would be used."""
        return bytes(self.slot["name"])

    @property
    def name2(self) -> bytes:
        """The new name of a rename, as it would be used."""
        return bytes(self.slot["name2"])

    @property
    def text(self) -> bytes:
        """A link's target, or the value of an extended attribute."""
        return bytes(self.slot["text"])

    @property
    def args(self) -> dict[str, Any]:
        """The op's arguments, as they would be used; {} for ops without."""
        return dict(self.slot["args"])

    @property
    def attr(self) -> dict[str, Any]:
        """The attributes that the caller would get."""
        return dict(self.slot["result"]["attr"])

    @property
    def statfs(self) -> dict[str, Any]:
        """The answer of a statfs."""
        return dict(self.slot["result"]["statfs"])

    @property
    def count(self) -> int:
        """The bytes moved."""
        return int(self.slot["result"]["count"])


def run(
    filters: Source | Iterable[Source],
    op: str,
    *,
    maps: Mapping[str, str] | None = None,
    phase: str | None = None,
    error: int | str = 0,
    args: Mapping[str, Any] | None = None,
    data: bytes | None = None,
    **described: Any,
) -> Outcome:
    """Load filters, run them on one op, and let go of them: `Chain` and its `run` in one call."""
    with Chain(filters, maps=maps) as loaded:
        return loaded.run(op, phase=phase, error=error, args=args, data=data, **described)


class Chain:
    """Filters loaded as for a mount, for the time of a `with` block.

    Args:
        filters: One filter or several, as for --filter; or FilterSpecs.
        maps: Content of their policy maps, as for --set: {"hide.names": ".ssh,*.key"}.

    Raises:
        FusebpfError: What a mount with these filters would be refused for too.
    """

    def __init__(self, filters: Source | Iterable[Source], *, maps: Mapping[str, str] | None = None) -> None:
        given = [filters] if isinstance(filters, str | os.PathLike | FilterSpec) else list(filters)
        specs = [FilterSpec.of(one) for one in given]
        settings = [MapSetting.parse(f"{target}={value}") for target, value in (maps or {}).items()]
        if not specs:
            raise UsageError(
                "a chain without filters decides nothing: name one, such as 'hide' or './mine.c'"
            )
        chain.check_stock(specs, loader.stock_names())
        checks.check_root()
        bpf.require()
        self._n_runs = 0
        with contextlib.ExitStack() as undo:
            self._load(undo, specs, settings)
            self._undo = undo.pop_all()

    def _load(self, undo: contextlib.ExitStack, specs: list[FilterSpec], settings: list[MapSetting]) -> None:
        compiled = {file_of(spec): _compiled(file_of(spec)) for spec in specs}
        types = next(iter(compiled.values()))
        try:
            self._shared = undo.enter_context(SharedMaps.create(1, types))
        except OSError as failure:
            raise PlatformError(f"the maps of a chain cannot be made: {failure.strerror}") from failure
        loaded = {
            source: load_file(source, one, self._shared, specs, undo) for source, one in compiled.items()
        }
        placed, own_settings = place_all(specs, loaded)
        self._links = chain.arrange(chain.settle(placed), SIZES["max_filters"])
        set_all([*settings, *own_settings], {link.filter.name: link.filter for link in self._links})
        self._types = Btf(types.btf)
        self._slot = SlotType(self._types)
        self._edit_names = edit_names()
        self._core = _core_of(self._shared, self._links)
        undo.callback(self._core.stop)
        self._log_fd = self._core.log_fileno()
        os.set_blocking(self._log_fd, False)

    def filter(self, name: str) -> Filter:
        """One of its filters.

        Raises:
            UsageError: It has none of that name.
        """
        for link in self._links:
            if link.filter.name == name:
                return link.filter
        names = ", ".join(link.filter.name for link in self._links)
        raise UsageError(f"the chain has no filter {name!r}; its filters are: {names}")

    def map(self, target: str) -> PolicyMap:
        """A policy map, by FILTER.MAP: items() and set() read and replace its content.

        Raises:
            UsageError: There is none of that name.
        """
        owner, _, name = target.partition(".")
        maps = self.filter(owner).maps
        if name not in maps:
            known = ", ".join(f"{owner}.{each}" for each in maps) or "none"
            raise UsageError(f"there is no map {target!r}; the maps of {owner!r} are: {known}")
        return maps[name]

    def run(
        self,
        op: str,
        *,
        phase: str | None = None,
        error: int | str = 0,
        args: Mapping[str, Any] | None = None,
        data: bytes | None = None,
        **described: Any,
    ) -> Outcome:
        """Run the chain on one op.

        Args:
            op: Its name, as in PRE(filter, op); `dirent` is one entry of a listing.
            phase: `pre` or `post`, where only those hooks are to run. None: the whole way.
            error: The errno that the backing root would answer, as a number or a name; 0 is success.
            args: Fields of the op's arguments: {"flags": os.O_WRONLY}.
            data: The payload, at most 1 MiB: what is to be written, or what the backing root would have read.
            described: Fields of struct fb_slot (docs/abi.md): name, name2, path, path2 and text as bytes or
                str; uid, gid, pid, flags, type and others as numbers. And what the backing root would answer:
                attr={"mode": …}, statfs={…}, count=…, or text=….

        Raises:
            UsageError: There is no such op or field, a value does not fit, or no filter hooks the op.
        """
        phases = _phases(phase)
        self._check_hooked(op, phases)
        self._n_runs += 1
        raw = self._slot.pack(op, self._n_runs, args or {}, described)
        skips = sum(1 << bit for bit, name in enumerate(_PHASES) if name not in phases)
        number = _errno(error)
        self._clear_stats()
        try:
            said = self._core.rehearse(raw, error=number, skips=skips, data=data)
        except OSError as failure:
            raise PlatformError(f"the op {op!r} cannot be run: {failure.strerror}") from failure
        return Outcome(
            verdicts=self._verdicts(),
            error=said["error"],
            route=_ROUTES[said["route"]],
            edits=frozenset(name for bit, name in self._edit_names.items() if said["edits"] & bit),
            decider=said["decider"],
            is_listed=said["is_listed"],
            why=self._why(),
            data=said["data"],
            slot=self._slot.unpack(op, said["slot"]),
        )

    def close(self) -> None:
        """Let go of the filters."""
        self._undo.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check_hooked(self, op: str, phases: tuple[str, ...]) -> None:
        if op not in OPCODES:
            ops = " ".join(sorted(OPCODES))
            raise UsageError(f"there is no op {op!r} that filters see; the ops are: {ops}")
        wanted = {(_PHASES.index(phase), OPCODES[op]) for phase in phases}
        if any((hook.phase, hook.opcode) in wanted for link in self._links for hook in link.filter.hooks):
            return
        names = {opcode: name for name, opcode in OPCODES.items()}
        hooked = sorted({names[hook.opcode] for link in self._links for hook in link.filter.hooks})
        labels = ", ".join(link.label for link in self._links)
        which = " or ".join(phases)
        raise UsageError(f"{labels}: no {which} hook on {op!r}; hooked are: {' '.join(hooked)}")

    # --------------------------------------------------------------------------- what the hooks left

    def _clear_stats(self) -> None:
        for key in list(bpf.map_keys(self._shared.stats, SIZES["stat_key"])):
            bpf.map_delete(self._shared.stats, key)

    def _verdicts(self) -> tuple[Said, ...]:
        """What each hook counted, and the core where one broke a rule, which it counts beside the hook."""
        key_type = self._types.find(Kind.STRUCT, "fb_stat_key")
        found: dict[tuple[int, int], str] = {}
        for key in bpf.map_keys(self._shared.stats, SIZES["stat_key"]):
            row = self._types.unpack(key_type, key)
            place = (_FB_PHASES.index(row["phase"]), row["filter"])
            if found.get(place) != _BROKEN:
                found[place] = str(row["verdict"])
        order = sorted(found, key=lambda place: (place[0], -place[1] if place[0] else place[1]))
        names = [link.filter.name for link in self._links]
        return tuple(Said(names[place[1]], _PHASES[place[0]], found[place]) for place in order)

    def _why(self) -> str:
        try:
            said = os.read(self._log_fd, 65536)
        except BlockingIOError:
            return ""
        return said.decode(errors="replace").splitlines()[0].partition(" ")[2]


def _compiled(source: str) -> Compiled:
    """A compiled file; tests ask for the same one again and again."""
    try:
        status = os.stat(source)  # noqa: PTH116 - a path as the user gave it
    except OSError:
        return loader.compile_source(source)  # which says what is wrong
    return _compile(source, status.st_mtime_ns, status.st_size)


@functools.lru_cache(maxsize=64)
def _compile(source: str, mtime_ns: int, size: int) -> Compiled:
    del mtime_ns, size  # another file if they differ
    return loader.compile_source(source)


def _core_of(shared: SharedMaps, links: list[Link]) -> Mount:
    """A core that has the chain and mounts nothing."""
    root_fd = os.open("/", os.O_PATH | os.O_DIRECTORY)
    try:
        core = Mount(root_fd, "/", source="testing", more_roots=[root_fd] * (SIZES["max_roots"] - 1))
    finally:
        os.close(root_fd)
    shared.give_to(core)
    described = []
    for index, (one, altitude, *_) in enumerate(links):
        hooks = [(hook.opcode, hook.phase, hook.program.fd) for hook in one.hooks]
        described.append((index, one.name, altitude, one.wants, hooks))
    core.set_chain(described)
    return core


def _phases(phase: str | None) -> tuple[str, ...]:
    if phase is not None and phase not in _PHASES:
        raise UsageError(f"there is no phase {phase!r}; say 'pre' or 'post', or nothing for both")
    return _PHASES if phase is None else (phase,)


def _errno(error: int | str) -> int:
    number = getattr(errno, error, None) if isinstance(error, str) else error
    if not isinstance(number, int) or not 0 <= number <= _MAX_ERRNO:
        raise UsageError(
            f"{error!r} is no errno: a name such as 'ENOENT' or a number up to {_MAX_ERRNO} is wanted"
        )
    return number
