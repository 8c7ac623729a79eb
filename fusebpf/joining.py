"""Hooks that stand one after another at an op, joined into one program: a chain then costs one run.

Each hook becomes a function of the program, which the kernel verifies by itself (a global function: its work
is not multiplied by that of the others). The main part asks one after another, until one says more than "go
on", and returns how many it asked; each leaves its own verdict record and counts for itself.

Only what leaves the slot alone can be followed by another: in a run of its own each hook finds the slot as
the core filled it in, and must do so here.
"""

from __future__ import annotations

import logging
import os
import struct
import threading
from typing import TYPE_CHECKING, NamedTuple

from fusebpf import bpf, slot_pointers
from fusebpf._core import OPS, SIZES

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from fusebpf._core import Mount
    from fusebpf.chain import Link
    from fusebpf.loader import Filter, Program, SharedMaps

_log = logging.getLogger(__name__)

_INSTRUCTION = struct.Struct("<BBhi")
_ST, _STX, _ATOMIC, _STACK = 0x02, 0x03, 0xC0, 10
_CALL, _EXIT, _PSEUDO_CALL = 0x85, 0x95, 1
_THREAD_NUMBER, _RINGBUF_OUTPUT = 14, 130  # bpf_get_current_pid_tgid
# Jumps to places that are not known yet.
_FOUND, _END = 1 << 14, 1 << 14 | 1
# Helpers that write to maps and rings alone: lookups, updates, deletes, clocks, random numbers, ids, locks.
# linux/bpf.h: __BPF_FUNC_MAPPER.
_QUIET_HELPERS = frozenset({1, 2, 3, 5, 6, 7, 8, 14, 15, 93, 94, 118, 125, 130, 160})
_POST = 1  # FB_POST
_DIRENT = next(opcode for name, opcode, *_ in OPS if name == "dirent")
_BTF_MAGIC = 0xEB9F
_FUNC_GLOBAL = 1


class Joiner:
    """Joins the hooks of a chain while it works: verifying takes some 0.1 s for each program.

    The chain works without; what the kernel refuses stays as it is. Until `stop`, the filters must stay open.
    """

    def __init__(self, core: Mount, revision: int, links: Sequence[Link], shared: SharedMaps) -> None:
        self._core = core
        self._revision = revision
        self._shared = shared
        self._is_stopping = threading.Event()
        self._programs: dict[tuple[tuple[int, int], ...], int] = {}
        places = _places(links)
        self._thread: threading.Thread | None = None
        if places:
            self._thread = threading.Thread(target=self._join_all, args=(places,), daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Let it end; what is joined already stays so."""
        self._is_stopping.set()
        if self._thread:
            self._thread.join()
        self._thread = None

    def _join_all(self, places: dict[tuple[int, int], list[_Place]]) -> None:
        codes: dict[int, bytes | None] = {}
        try:
            for (phase, opcode), hooks in places.items():
                for hook in hooks:
                    if hook.program.fd not in codes:
                        codes[hook.program.fd] = hook.code(self._shared)
                for first, n in runs([codes[hook.program.fd] for hook in hooks], self._shared.slots):
                    if self._is_stopping.is_set():
                        return
                    fd = self._program(hooks[first : first + n], codes)
                    if fd >= 0:
                        self._core.join(self._revision, opcode, phase, first, n, fd)
        finally:
            for fd in self._programs.values():
                if fd >= 0:
                    os.close(fd)
            self._programs.clear()

    def _program(self, hooks: Sequence[_Place], codes: dict[int, bytes | None]) -> int:
        """The program of these hooks, loaded once for all ops that have them; -1 where it cannot be."""
        key = tuple((hook.filter_id, hook.program.fd) for hook in hooks)
        if key not in self._programs:
            members = [Member(hook.filter_id, codes[hook.program.fd] or b"") for hook in hooks]
            try:
                self._programs[key] = load(members, self._shared)
            except OSError as error:
                _log.debug("%d hooks run one by one: %s", len(hooks), error.strerror)
                self._programs[key] = -1
        return self._programs[key]


class _Place(NamedTuple):
    """A hook where it stands in the chain."""

    filter_id: int
    filter: Filter
    program: Program

    def code(self, shared: SharedMaps) -> bytes | None:
        return self.filter.code(self.program, shared)


def _places(links: Sequence[Link]) -> dict[tuple[int, int], list[_Place]]:
    """The hooks of each phase and op that has several, in the order in which the core asks them."""
    found: dict[tuple[int, int], list[_Place]] = {}
    for link in links:
        for hook in link.filter.hooks:
            place = _Place(link.id, link.filter, hook.program)
            found.setdefault((hook.phase, hook.opcode), []).append(place)
    for (phase, _), hooks in found.items():
        if phase == _POST:
            hooks.reverse()
    return {where: hooks for where, hooks in found.items() if len(hooks) > 1 and where[1] != _DIRENT}


class Member(NamedTuple):
    """One hook of a join: the id of its filter, and its instructions with their maps' descriptors."""

    filter_id: int
    code: bytes


def leaves_one_record(code: bytes) -> bool:
    """Whether a hook writes to rings in one place alone, so that whose record is whose cannot be doubted."""
    return sum(step[0] == _CALL and step[3] == _RINGBUF_OUTPUT for step in _steps(code)) == 1


def leaves_slot_alone(code: bytes, slots_fd: int = -1) -> bool:
    """Whether a hook stores to nothing but its stack, but for counters in maps that it adds to atomically."""
    for operation, registers, _, immediate in _steps(code):
        kind, target, source = operation & 7, registers & 15, registers >> 4
        if kind in {_ST, _STX} and target != _STACK and operation & 0xE0 != _ATOMIC:
            return False
        if operation == _CALL and (source or immediate not in _QUIET_HELPERS):
            return False
    return not slot_pointers.are_added_to(code, slots_fd)


def runs(members: Sequence[bytes | None], slots_fd: int = -1) -> Iterator[tuple[int, int]]:
    """Where hooks can be joined: (first, count), each at least two.

    Args:
        members: The hooks of one op and phase in the order in which they are asked; None cannot be joined.
        slots_fd: The map of the mount's slots, as the hooks name it.
    """
    first = 0
    while first < len(members):
        end = first
        while end < len(members) and (code := members[end]) is not None and leaves_one_record(code):
            end += 1
            if not leaves_slot_alone(code, slots_fd):
                break  # it may be the last one
        if end - first > 1:
            yield first, end - first
        first = max(end, first + 1)


def load(members: Sequence[Member], shared: SharedMaps) -> int:
    """Load the program that asks these hooks, in this order.

    Args:
        members: At least two.
        shared: The mount's maps.

    Returns:
        Its descriptor.

    Raises:
        OSError: The kernel refused it, since it is too large.
    """
    main = _main(members, shared)
    code, starts = bytearray(main), [0]
    for member in members:
        starts.append(len(code) // 8)
        code += member.code
    for at, index in _calls(main):
        # A call is relative to the instruction behind it.
        struct.pack_into("<i", code, at * 8 + 4, starts[index + 1] - at - 1)
    first_type = 3
    infos = b"".join(struct.pack("<II", start, first_type + index) for index, start in enumerate(starts))
    btf_fd = bpf.btf_load(_btf(len(starts)))
    try:
        return bpf.joined_load(bytes(code), "fb_joined", btf_fd, infos)
    finally:
        os.close(btf_fd)


def _steps(code: bytes) -> Iterator[tuple[int, int, int, int]]:
    """The instructions, without the second halves of those that take two."""
    skip = False
    for step in _INSTRUCTION.iter_unpack(code):
        if not skip:
            yield step
        skip = not skip and step[0] == bpf.LD_IMM64


def _calls(main: bytes) -> Iterator[tuple[int, int]]:
    """(instruction, which member it calls) of the main part."""
    for at, (operation, registers, _, immediate) in enumerate(_INSTRUCTION.iter_unpack(main)):
        if operation == _CALL and registers >> 4 == _PSEUDO_CALL:
            yield at, immediate


def _main(members: Sequence[Member], shared: SharedMaps) -> bytes:
    """The main part; in its calls stands the index of the member, which `load` replaces."""
    steps = [
        (_CALL, 0, 0, _THREAD_NUMBER),
        (0xBC, 9 | 0 << 4, 0, 0),  # w9 = w0: the thread
        (0xB7, 8, 0, 0),  # r8 = 0: how many were asked
    ]
    for attempt in range(SIZES["n_tries"]):
        steps += [
            (0xBC, 2 | 9 << 4, 0, 0),
            (0x07, 2, 0, attempt * SIZES["next_place"]),
            (0x57, 2, 0, SIZES["n_places"] - 1),  # r2 = the index of a place
            *_lookup(shared.hooks),
            (0x15, 0, 2, 0),  # none there
            (0x61, 1 | 0 << 4, SIZES["hook_thread_at"], 0),
            (0x1D, 1 | 9 << 4, _FOUND, 0),  # it is this thread's
        ]
    steps += [(0x05, 0, _END, 0)]
    found = len(steps)
    steps += [
        (0xBF, 6 | 0 << 4, 0, 0),  # r6 = the hook that runs
        (0x61, 2 | 6 << 4, SIZES["hook_slot_at"], 0),  # r2 = its slot's index
        *_lookup(shared.slots),
        (0x15, 0, _END, 0),  # no slot: nobody was asked
        (0xBF, 7 | 0 << 4, 0, 0),  # r7 = the slot
    ]
    for index, member in enumerate(members):
        steps += [
            (0xB7, 2, 0, member.filter_id),  # r2 = the filter
            (0x63, 6 | 2 << 4, SIZES["hook_filter_at"], 0),
            (0x63, 7 | 2 << 4, SIZES["slot_filter_at"], 0),
            (0x07, 8, 0, 1),  # r8 += 1
            (_CALL, _PSEUDO_CALL << 4, 0, index),
            (0x67, 0, 0, 32),  # the upper half of an int is nobody's
            (0x55, 0, _END, 0),  # not 0: it does not simply go on
        ]
    targets = {_FOUND: found, _END: len(steps)}
    steps += [(0xBF, 0 | 8 << 4, 0, 0), (_EXIT, 0, 0, 0)]
    return b"".join(
        _INSTRUCTION.pack(operation, registers, targets.get(offset, offset + at + 1) - at - 1, immediate)
        for at, (operation, registers, offset, immediate) in enumerate(steps)
    )


def _lookup(map_fd: int) -> list[tuple[int, int, int, int]]:
    """r0 = where the element r2 of an array lies, 0 if nowhere."""
    return [
        (0x63, 10 | 2 << 4, -4, 0),  # on the stack
        (0xBF, 2 | 10 << 4, 0, 0),
        (0x07, 2, 0, -4),  # r2: the key
        (bpf.LD_IMM64, 1 | bpf.PSEUDO_MAP_FD << 4, 0, map_fd),
        (0, 0, 0, 0),
        (_CALL, 0, 0, 1),  # bpf_map_lookup_elem
    ]


def _btf(n_functions: int) -> bytes:
    """Types of n functions `int hook(void)`, whose ids are 3 and up.

    Source: Documentation/bpf/btf.rst.
    """
    strings = b"\0int\0"
    names = [f"hook{number}".encode() for number in range(n_functions)]
    name_at = []
    for name in names:
        name_at.append(len(strings))
        strings += name + b"\0"

    def entry(name: int, kind: int, length: int, size_or_type: int, *rest: int) -> bytes:
        return struct.pack(f"<III{len(rest)}I", name, kind << 24 | length, size_or_type, *rest)

    types = [
        entry(1, 1, 0, 4, 1 << 24 | 32),  # 1: int, signed, 32 bits
        entry(0, 13, 0, 1),  # 2: int (void)
    ]
    types += [entry(name, 12, _FUNC_GLOBAL, 2) for name in name_at]
    section = b"".join(types)
    header = struct.pack("<HBBIIIII", _BTF_MAGIC, 1, 0, 24, 0, len(section), len(section), len(strings))
    return header + section + strings
