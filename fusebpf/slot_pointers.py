"""Where a hook's instructions may have a pointer to the op's slot: does an atomic addition go there?

Each hook adds to counters in maps, and a slot is a value in a map like those. So what each register and each
word of the stack may hold is followed along all ways through the program, as far as slots are concerned.
"""

from __future__ import annotations

import functools
import struct
from typing import NamedTuple

from fusebpf import bpf

_INSTRUCTION = struct.Struct("<BBhi")
# Classes and modes of instructions: Documentation/bpf/standardization/instruction-set.rst.
_LDX, _STX, _ALU, _JMP, _JMP32, _ALU64 = 1, 3, 4, 5, 6, 7
_ATOMIC, _MOV, _FROM_REGISTER, _STACK = 0xC0, 0xB0, 0x08, 10
_JUMP, _LONG_JUMP, _CALL, _EXIT = 0x05, 0x06, 0x85, 0x95
_MAP_LOOKUP = 1
_N_CACHED = 64  # programs of `any` stand at some 80 places

Known = frozenset[tuple[int, str]]
"""(place, what may be there): registers are 0 and up, offsets on the stack negative."""


class _Step(NamedTuple):
    operation: int
    registers: int
    offset: int
    immediate: int

    @property
    def kind(self) -> int:
        return self.operation & 7

    @property
    def target(self) -> int:
        return self.registers & 15

    @property
    def source(self) -> int:
        return self.registers >> 4


@functools.lru_cache(maxsize=_N_CACHED)
def are_added_to(code: bytes, slots_fd: int) -> bool:
    """Whether an atomic addition of these instructions may change a slot.

    Args:
        code: With descriptors of maps.
        slots_fd: The map of the slots.
    """
    steps = [_Step._make(step) for step in _INSTRUCTION.iter_unpack(code)]
    seen: dict[int, Known] = {}
    todo: list[tuple[int, Known]] = [(0, frozenset())]
    while todo:
        at, known = todo.pop()
        before = seen.get(at)
        if before is not None and known <= before:
            continue
        known |= before or frozenset()
        seen[at] = known
        step = steps[at]
        is_atomic = step.kind == _STX and step.operation & 0xE0 == _ATOMIC
        if is_atomic and (step.target, "slot") in known:
            return True
        known = _after(step, known, slots_fd)
        todo += [(following, known) for following in _following(at, step) if following < len(steps)]
    return False


def _after(step: _Step, known: Known, slots_fd: int) -> Known:
    """What is where behind an instruction."""
    if step.operation == _CALL:
        finds_slot = step.immediate == _MAP_LOOKUP and (1, "map") in known
        kept = frozenset(pair for pair in known if not 0 <= pair[0] <= 5)
        return _put(kept, 0, {"slot"} if finds_slot else set())
    if step.operation == bpf.LD_IMM64:
        is_slots = step.source == bpf.PSEUDO_MAP_FD and step.immediate == slots_fd
        return _put(known, step.target, {"map"} if is_slots else set())
    if step.kind == _STX and step.target == _STACK and step.operation & 0xE0 != _ATOMIC:
        return _put(known, step.offset, _at(known, step.source))
    if step.kind in {_LDX, _ALU, _ALU64}:
        return _put(known, step.target, _computed(step, known))
    return known


def _computed(step: _Step, known: Known) -> set[str]:
    """What its register may hold behind an instruction that computes or loads."""
    if step.kind == _LDX:  # nothing but the stack holds pointers
        return _at(known, step.offset) if step.source == _STACK else set()
    if step.kind == _ALU:  # half a pointer is none
        return set()
    added = _at(known, step.source) if step.operation & _FROM_REGISTER else set()
    return added if step.operation & 0xF0 == _MOV else added | _at(known, step.target)


def _at(known: Known, place: int) -> set[str]:
    return {what for where, what in known if where == place}


def _put(known: Known, place: int, what: set[str]) -> Known:
    rest = frozenset(pair for pair in known if pair[0] != place)
    return rest | {(place, one) for one in what}


def _following(at: int, step: _Step) -> list[int]:
    """Where a program may go on."""
    if step.operation == _EXIT:
        return []
    if step.operation == _JUMP:
        return [at + 1 + step.offset]
    if step.operation == _LONG_JUMP:
        return [at + 1 + step.immediate]
    if step.kind in {_JMP, _JMP32} and step.operation != _CALL:
        return [at + 1, at + 1 + step.offset]
    return [at + 2 if step.operation == bpf.LD_IMM64 else at + 1]
