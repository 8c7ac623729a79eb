"""Compiled filters → the kernel: maps with their types, verified programs, pins.

A `Filter` is loaded and attached nowhere; whoever holds it closes it. What goes wrong half-way is undone:
nothing stays loaded, open or pinned after an exception. Needs root; any thread may call, one at a time per
object.
"""

import contextlib
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Self

from fusebpf import _core, bpf
from fusebpf.bpf import MapType
from fusebpf.btf import Btf
from fusebpf.compiler import (
    SHARED_MAPS,
    Compiled,
    Declaration,
    Function,
    HookFunction,
    compile_source,
    stock,
    stock_names,
)
from fusebpf.errors import FilterError, MapValueError, UnknownHook, reason
from fusebpf.pins import close_all, hold, pin_all
from fusebpf.policy_map import PolicyMap
from fusebpf.refusal import explain, map_advice
from fusebpf.shared_maps import SharedMaps

__all__ = [
    "CheckedFilter",
    "Compiled",
    "Filter",
    "Hook",
    "Program",
    "SharedMaps",
    "check",
    "compile_source",
    "load",
    "stock",
    "stock_names",
]

PHASES = {"pre": 0, "post": 1}
"""FB_PRE and FB_POST."""

_OP_POST_ONLY, _OP_XATTR = _core.OP_FLAGS["POST_ONLY"], _core.OP_FLAGS["XATTR"]
_MAPS_OF_MAPS = frozenset({MapType.ARRAY_OF_MAPS, MapType.HASH_OF_MAPS})
_GROUPS = ("name", "any")
_STATX = next(opcode for name, opcode, *_ in _core.OPS if name == "statx")


@dataclass(frozen=True)
class Program:
    """One hook function in the kernel. Functions of one code share a descriptor, which their filter owns."""

    name: str
    """As compiled: `hide__pre__lookup`."""
    fd: int
    pin_name: str
    """As pinned: `pre_lookup`."""
    body: Function
    """Its instructions, and the maps that they use."""


class Hook(NamedTuple):
    """What runs at one place of one op; groups are taken apart already."""

    phase: int
    opcode: int
    program: Program


class Filter:
    """A filter in the kernel, attached nowhere. It owns its descriptors."""

    def __init__(
        self,
        declaration: Declaration,
        path: str,
        hooks: tuple[Hook, ...],
        programs: tuple[Program, ...],
        maps: dict[str, PolicyMap],
    ) -> None:
        self.name = declaration.name
        self.altitude = declaration.altitude
        self.wants = declaration.wants
        self.doc = declaration.doc
        self.path = path
        self.hooks = hooks
        self.programs = programs
        self.maps = maps
        self._is_open = True

    def set(self, map_name: str, value: str) -> None:
        """Replace the content of a map (`--set FILTER.MAP=VALUE`); PolicyMap.set lists the forms.

        Raises:
            MapValueError: There is no such map, or the value does not fit it.
            OSError: The kernel refused an element.
        """
        self.map(map_name).set(value)

    def map(self, name: str) -> PolicyMap:
        """One of its maps.

        Raises:
            MapValueError: There is no such map.
        """
        if name not in self.maps:
            known = ", ".join(f"{one} ({each.describe()})" for one, each in self.maps.items())
            has = f"it has: {known}" if known else "it has none"
            raise MapValueError(f"the filter {self.name!r} has no map {name!r}; {has}")
        return self.maps[name]

    def code(self, program: Program, shared: SharedMaps) -> bytes | None:
        """The instructions of a hook with descriptors of maps; None if one is another filter's map."""
        fds = shared.by_name()
        for _, full_name in program.body.uses:
            owner, is_owned, short = full_name.partition("__")
            policy_map = self.maps.get(short if is_owned and owner == self.name else full_name)
            if policy_map:
                fds[full_name] = policy_map.fd
            elif full_name not in fds:
                return None
        return program.body.linked(fds)

    def pins(self) -> list[tuple[str, int]]:
        """What is pinned of it: maps and programs by the names that they get (`names`, `pre_lookup`)."""
        maps = [(each.name, each.fd) for each in self.maps.values()]
        return [*maps, *((each.pin_name, each.fd) for each in self.programs)]

    def pin(self, directory: Path) -> None:
        """Pin maps and programs in a directory, which is made.

        Raises:
            MountError: Something could not be pinned; nothing is.
        """
        pin_all(directory, self.pins())

    def close(self) -> None:
        """Give the descriptors back. Pins, and chains that use the hooks, keep what they need."""
        if not self._is_open:
            return
        self._is_open = False
        close_all({each.fd for each in self.programs})
        for each in self.maps.values():
            each.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass(frozen=True)
class CheckedFilter:
    """What `check` found in a file."""

    name: str
    altitude: int
    wants: int
    doc: str
    path: str
    hooks: tuple[str, ...]
    """The hook functions as their author wrote them: `PRE(hide, name)`."""
    maps: dict[str, str]
    """What each map is, by its name."""
    n_programs: int
    """Distinct programs that were verified."""


def check(path: str | os.PathLike[str]) -> list[CheckedFilter]:
    """Compile, load and verify all filters of a file, and let go of them again.

    Raises:
        FilterError: Something is wrong with the file.
        PlatformError: There is no bcc, or no BPF.
    """
    compiled = compile_source(path)
    found = []
    with SharedMaps.create(1, compiled) as shared, contextlib.ExitStack() as loaded:
        for each in [loaded.enter_context(each) for each in load(compiled, shared)]:
            hooks = tuple(hook.macro for hook in compiled.hooks(each.name).values())
            maps = {name: policy_map.describe() for name, policy_map in each.maps.items()}
            n_programs = len({program.fd for program in each.programs})
            row = (each.name, each.altitude, each.wants, each.doc, each.path, hooks, maps, n_programs)
            found.append(CheckedFilter(*row))
    return found


def load(
    source: Compiled | str | os.PathLike[str],
    shared: SharedMaps,
    *,
    names: Sequence[str] | None = None,
    kept: Mapping[str, int] | None = None,
) -> list[Filter]:
    """Load the filters of a file.

    Args:
        source: Compiled, or a path to compile.
        shared: The maps of the mount that they are for.
        names: Which filters, in this order. None: all of the file.
        kept: Descriptors of maps that are used instead of new ones, by their names in the file.

    Returns:
        The filters, which the caller closes.

    Raises:
        CompileError: The compiler refused the file.
        UnknownHook: A hook on an op that does not exist.
        VerifierError: The kernel refused a hook; `detail` has the end of its log.
        FilterError: Something else is wrong with the file, or it has no filter of that name.
        PlatformError: There is no bcc, or no BPF.
    """
    compiled = source if isinstance(source, Compiled) else compile_source(source)
    wanted = list(compiled.filters) if names is None else list(dict.fromkeys(names))
    for name in wanted:
        if name not in compiled.filters:
            declared = ", ".join(compiled.filters)
            raise FilterError(f"{compiled.path}: declares no filter {name!r}; it declares: {declared}")
    places = {name: _places(compiled, name) for name in wanted}
    _check_unused_maps(compiled)
    try:
        with contextlib.ExitStack() as undo, _Kernel(compiled, shared, kept or {}) as kernel:
            filters = []
            kernel.verify([function for name in wanted for function in compiled.hooks(name)])
            for name in wanted:
                filters.append(kernel.filter(name, places[name]))
                undo.callback(filters[-1].close)
            undo.pop_all()
    except OSError as error:
        raise FilterError(f"{compiled.path}: its filters cannot be loaded: {reason(error)}") from error
    return filters


def _check_unused_maps(compiled: Compiled) -> None:
    """Judge the maps that no hook uses; the kernel judges those that one uses.

    Raises:
        FilterError: No hook could use one of them.
    """
    used = {name for function in compiled.hooks_by_function for _, name in compiled.functions[function].uses}
    if advice := map_advice(compiled, (name for name in compiled.maps if name not in used)):
        raise FilterError(f"{compiled.path}: {advice}")


# ------------------------------------------------------------------------------ hooks by name


def _places(compiled: Compiled, filter_name: str) -> dict[tuple[int, int], str]:
    """Which function runs at (phase, opcode): one for the op itself beats `name`, and that beats `any`."""
    hooks = compiled.hooks(filter_name)
    ranks = {op: rank for rank, op in enumerate(_GROUPS)}
    by_rank = sorted(hooks.items(), key=lambda item: ranks.get(item[1].op, -1), reverse=True)
    places: dict[tuple[int, int], str] = {}
    for function, hook in by_rank:
        for opcode in _opcodes(compiled.where(function), hook):
            places[PHASES[hook.phase], opcode] = function
    explicit = {(hook.phase, hook.op): function for function, hook in hooks.items()}
    for (phase, op), function in explicit.items():
        # Two requests ask for attributes, and a filter that knows of one must not be got round by the other.
        if op == "getattr" and (phase, "statx") not in explicit:
            places[PHASES[phase], _STATX] = function
    return dict(sorted(places.items()))


def _opcodes(where: str, hook: HookFunction) -> list[int]:
    """The ops of a hook: one, or those of its group.

    Raises:
        UnknownHook: No such op, or none that filters see.
    """
    hookable = {name: (opcode, n, flags) for name, opcode, n, flags, kind, _ in _core.OPS if kind == "hook"}
    if hook.op in _GROUPS:
        return [
            opcode
            for opcode, n_names, flags in hookable.values()
            if not flags & _OP_POST_ONLY and (hook.op == "any" or (n_names and not flags & _OP_XATTR))
        ]
    if hook.op not in hookable:
        reason = "there is no such op"
        for name, _, _, _, kind, of in _core.OPS:
            if name == hook.op:
                reason = f"it comes as {of}" if kind == "alias" else "no filter sees it"
        ops = " ".join([*sorted(hookable), *_GROUPS])
        raise UnknownHook(f"{where}: {hook.macro}: {reason}; the ops are: {ops}")
    opcode, _, flags = hookable[hook.op]
    if hook.phase == "pre" and flags & _OP_POST_ONLY:
        instead = f"POST({hook.filter}, {hook.op})"
        raise FilterError(f"{where}: {hook.macro}: {hook.op} has no pre stage; say {instead}")
    return [opcode]


# ------------------------------------------------------------------------------ into the kernel


class _Kernel:
    """What one load has in the kernel so far; filters take duplicates of what they need."""

    def __init__(self, compiled: Compiled, shared: SharedMaps, kept: Mapping[str, int]) -> None:
        self._compiled = compiled
        self._maps = {**shared.by_name(), **kept}
        self._btf = Btf(compiled.btf)
        self._programs: dict[Function, int] = {}
        self._undo = contextlib.ExitStack()
        self._btf_fd = -1

    def __enter__(self) -> Self:
        self._btf_fd = bpf.btf_load(self._compiled.btf)
        self._undo.callback(os.close, self._btf_fd)
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    def filter(self, name: str, places: dict[tuple[int, int], str]) -> Filter:
        """Load one filter."""
        compiled = self._compiled
        functions = compiled.hooks(name)
        with contextlib.ExitStack() as undo:
            programs, duplicates = {}, {}
            for function, hook in functions.items():
                fd = self._programs[compiled.functions[function]]
                if fd not in duplicates:
                    duplicates[fd] = hold(undo, os.dup(fd))
                body = compiled.functions[function]
                programs[function] = Program(function, duplicates[fd], f"{hook.phase}_{hook.op}", body)
            maps = self._policy_maps(undo, name, functions)
            for program in programs.values():
                if program.pin_name in maps:
                    both = f"a map and a hook of {name!r} are both called {program.pin_name!r}"
                    raise FilterError(f"{compiled.path}: {both}")
            undo.pop_all()
        hooks = tuple(Hook(phase, opcode, programs[function]) for (phase, opcode), function in places.items())
        return Filter(compiled.filters[name], compiled.path, hooks, tuple(programs.values()), maps)

    def _policy_maps(
        self, undo: contextlib.ExitStack, filter_name: str, functions: Mapping[str, HookFunction]
    ) -> dict[str, PolicyMap]:
        """The filter's own maps, and those of no filter that its hooks use."""
        used = {name for function in functions for _, name in self._compiled.functions[function].uses}
        has_dirent = any(hook.op == "dirent" for hook in functions.values())
        maps: dict[str, PolicyMap] = {}
        for full_name, definition in self._compiled.maps.items():
            owner, is_owned, short = full_name.partition("__")
            if full_name in SHARED_MAPS or (owner != filter_name if is_owned else full_name not in used):
                continue
            name = short if is_owned else full_name
            if name in maps:
                raise FilterError(f"{self._compiled.path}: {filter_name!r} has two maps called {name!r}")
            maps[name] = PolicyMap(
                name,
                hold(undo, os.dup(self._map(full_name))),
                self._btf,
                definition.btf_key,
                definition.btf_value,
                shown=f"{filter_name}.{name}",
                is_asked_of_entries=has_dirent,
            )
        return maps

    def _map(self, name: str) -> int:
        """The descriptor of a map, which is created at its first use."""
        if name in self._maps:
            return self._maps[name]
        compiled, definition = self._compiled, self._compiled.maps[name]
        if name in SHARED_MAPS:
            raise FilterError(f"{compiled.path}: hooks do not use {name!r} themselves; fb_emit() does")
        if definition.type in _MAPS_OF_MAPS:
            raise FilterError(f"{compiled.path}: the map {name!r} is a map of maps: not supported in filters")
        shape = (definition.type, definition.key_size, definition.value_size, definition.max_entries)
        btf = (self._btf_fd, definition.btf_key, definition.btf_value) if definition.btf_value else (0, 0, 0)
        try:
            fd = bpf.map_create(*shape, name=name.replace("__", "_"), flags=definition.flags, btf=btf)
        except OSError as error:
            raise FilterError(f"{compiled.path}: the map {name!r} cannot be made: {reason(error)}") from None
        self._maps[name] = hold(self._undo, fd)
        return fd

    def verify(self, functions: Iterable[str]) -> None:
        """Load the programs of functions, side by side; the same code is verified once."""
        by_body: dict[Function, str] = {}
        for function in functions:
            by_body.setdefault(self._compiled.functions[function], function)
        codes = [self._code(body) for body in by_body]  # which makes the maps
        with ThreadPoolExecutor() as pool:
            loading = [pool.submit(self._load, *one) for one in zip(by_body.values(), codes, strict=True)]
        for body, one in zip(by_body, loading, strict=True):
            if not one.exception():
                self._programs[body] = hold(self._undo, one.result())
        for one in loading:
            one.result()  # the first refusal, if there is any

    def _code(self, body: Function) -> bytes:
        """A function's instructions with the descriptors of its maps."""
        return body.linked({map_name: self._map(map_name) for _, map_name in body.uses})

    def _load(self, function: str, code: bytes) -> int:
        try:
            return bpf.prog_load(code, self._kernel_name(function))
        except bpf.ProgramRefusedError as refusal:
            raise explain(self._compiled, function, refusal) from None
        except OSError as error:
            raise FilterError(
                f"{self._compiled.path}: {function} cannot be loaded: {reason(error)}"
            ) from None

    def _kernel_name(self, function: str) -> str:
        """At most 15 characters for bpftool: `hide_pre_name`, or what functions of one code share."""
        hook = self._compiled.hooks_by_function[function]
        body = self._compiled.functions[function]
        same = [
            other
            for name, other in self._compiled.hooks_by_function.items()
            if self._compiled.functions[name] == body and other.filter == hook.filter
        ]
        words = [hook.filter]
        if len({other.phase for other in same}) == 1:
            words.append(hook.phase)
        if len(same) == 1:
            words.append(hook.op)
        short = "_".join(words)
        return short if len(short) <= 15 else _shortened(words)


def _shortened(words: list[str]) -> str:
    """Words cut to 15 characters in all, the longest first: `reado_pre_lookup`."""
    cut = list(words)
    while len("_".join(cut)) > 15:
        longest = max(range(len(cut)), key=lambda i: (len(cut[i]), -i))
        cut[longest] = cut[longest][:-1]
    return "_".join(cut)
