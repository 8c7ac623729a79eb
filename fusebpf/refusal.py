"""Why the verifier refused a hook: its log, put into one line with the place in the filter's source."""

import re
from collections.abc import Iterable
from itertools import pairwise

from fusebpf import bpf, tables
from fusebpf.bpf import MapType, ProgramRefusedError
from fusebpf.compiler import Compiled, Function, SourceLine, source_lines
from fusebpf.errors import VerifierError

_N_DETAIL_LINES = 24
_STATISTICS = re.compile(r"verification time \d+|stack depth |processed \d+ insns|insns processed")
_STEP = re.compile(r"^(\d+): \(", re.MULTILINE)
_NO_POINTER = re.compile(r"invalid mem access '(scalar|inv)'")
_HINTS = {
    "BPF program is too large": "take branches out of its loops, or use helpers in their place",
    "infinite loop detected": "give the loop a constant bound, and a counter that each round changes",
    "jumps is too complex": "fewer branches in a row: a loop in place of repeated code, or several hooks",
    "call to invalid destination": "a function of your own is written with FB_ALWAYS_INLINE",
    "invalid mem access 'map_value_or_null'": "a map's lookup may give NULL, test it before it is used",
}
_SLEEPABLE_MAPS = "Sleepable programs can only use"
_MAPS_THAT_SLEEP = frozenset(
    {
        MapType.HASH,
        MapType.ARRAY,
        MapType.PERCPU_HASH,
        MapType.PERCPU_ARRAY,
        MapType.LRU_HASH,
        MapType.LRU_PERCPU_HASH,
        MapType.ARRAY_OF_MAPS,
        MapType.HASH_OF_MAPS,
        MapType.RINGBUF,
        MapType.QUEUE,
        MapType.STACK,
        MapType.BLOOM_FILTER,
    }
)


def explain(compiled: Compiled, function: str, refusal: ProgramRefusedError) -> VerifierError:
    """The exception for a refused hook. Compiles the file once more, to find the line (about a second)."""
    hook = compiled.hooks_by_function[function]
    log, steps = _lines(refusal.log), _lines(refusal.steps)
    decision = next(
        (line for line in log if "infinite loop" in line), log[-1] if log else str(refusal.strerror)
    )
    if _SLEEPABLE_MAPS in refusal.log:
        used = [name for _, name in compiled.functions[function].uses]
        decision = map_advice(compiled, used) or decision
    elif _NO_POINTER.search(decision) and _has_global(compiled.functions[function]):
        decision = f"{decision}: filters have no global variables, use a map"
    decision = next((f"{decision} ({hint})" for words, hint in _HINTS.items() if words in decision), decision)
    place = _place(compiled, function, "\n".join(steps))
    where = (
        f"{place.file}:{place.line}"
        if place and place.file == tables.shown(compiled.path)
        else compiled.where(function)
    )
    shown = f"{where}: the kernel's verifier refuses {hook.macro}: {decision}"
    head = [f"{place.file}:{place.line}: {place.text}"] if place else []
    return VerifierError(shown, "\n".join([f"in {function}", *head, *(steps or log)[-_N_DETAIL_LINES:]]))


def _lines(log: str) -> list[str]:
    return [line for line in log.splitlines() if line.strip() and not _STATISTICS.match(line)]


def _place(compiled: Compiled, function: str, steps: str) -> SourceLine | None:
    """The source line of the last instruction that was looked at, in the filter's own file if possible."""
    numbers = [int(number) for number in _STEP.findall(steps)]
    if not numbers:
        return None
    lines = source_lines(compiled.path, function)
    behind = [lines[index] for index in sorted(lines, reverse=True) if index <= numbers[-1]]
    own = [line for line in behind if line.file == tables.shown(compiled.path)]
    return next(iter([*own, *behind]), None)


def _has_global(body: Function) -> bool:
    """Is there an address that nobody filled in? A constant of 64 zero bits would have been a plain move."""
    used = {index for index, _ in body.uses}
    words = [body.code[i : i + 8] for i in range(0, len(body.code), 8)]
    return any(
        a[0] == bpf.LD_IMM64 and not a[1] >> 4 and a[4:] == b[4:] == bytes(4) and index not in used
        for index, (a, b) in enumerate(pairwise(words))
    )


def map_advice(compiled: Compiled, names: Iterable[str]) -> str:
    """Which of these maps hooks cannot use, and what they can; "" where they can use all."""
    unfit = []
    for name in dict.fromkeys(names):
        definition = compiled.maps[name]
        if definition.type not in _MAPS_THAT_SLEEP:
            known = {each.value: each.name for each in MapType}
            kind = known.get(definition.type, f"type {definition.type}").lower().replace("_", " ")
            unfit.append(f"{name!r} ({kind})")
    if not unfit:
        return ""
    return (
        f"hooks may sleep and cannot use the map {', '.join(unfit)}: use an array, hash, queue or ring buffer"
    )
