"""Runs hooks without a mount: a slot is filled in, the hook runs, and the record that it left is read."""

import mmap
import os
import struct
from pathlib import Path
from typing import Any, NamedTuple, Self

from fusebpf import _core, bpf, loader
from fusebpf.btf import Btf, Kind

OPCODES = {name: opcode for name, opcode, *_ in _core.OPS}
STOCK = ("hide", "readonly", "deny", "audit")
"""The stock filters that these tests load."""
HEAD = '#include "fusebpf.h"\nFILTER(f, .altitude = 5)\n'
"""The first two lines of a filter that a test writes."""

TYPES = (
    HEAD
    + "BPF_ARRAY(f__record, struct fb_verdict_record, 1);\n"
    + "BPF_ARRAY(f__hook, struct fb_hook, 1);\n"
    + "POST(f, any) { return FB_CONTINUE; }\n"
)
"""A filter that brings the types that the runner needs."""

_PAGE = mmap.PAGESIZE
_RECORD_HEADER = struct.Struct("<II")
_RING = 0


class Verdict(NamedTuple):
    """What a hook said."""

    verdict: str
    error: str
    flags: int
    edits: int
    records: int
    """How many records it left; the others are the first one's."""
    slot: dict[str, Any]
    """The slot after it."""


class HookRunner:
    """Runs hooks on slot 0 of the shared maps of a mount that is not there."""

    def __init__(self, shared: loader.SharedMaps, btf: bytes) -> None:
        self._btf = Btf(btf)
        self._slot = self._btf.find(Kind.STRUCT, "fb_slot")
        self._hook = self._btf.find(Kind.STRUCT, "fb_hook")
        self._record = self._btf.find(Kind.STRUCT, "fb_verdict_record")
        # None of the calls below may change the thread: its number is where hooks look.
        (self._number, _) = bpf.prog_run(shared.thread, b"")
        self._place = self._number % _core.SIZES["n_places"]
        self._hooks = shared.hooks
        self._slots = mmap.mmap(shared.slots, _core.SIZES["slot"] * _core.SIZES["n_slots"])
        self._consumer = mmap.mmap(shared.rings[_RING], _PAGE)
        self._producer = mmap.mmap(shared.rings[_RING], 3 * _PAGE, prot=mmap.PROT_READ, offset=_PAGE)
        self._n_runs = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for mapped in (self._slots, self._consumer, self._producer):
            mapped.close()

    def run(self, one: loader.Filter, phase: str, op: str, **slot: Any) -> Verdict:
        """Run the hook of a filter at (phase, op); name, name2, path and path2 are given as texts."""
        wanted = (loader.PHASES[phase], OPCODES[op])
        (program,) = (hook.program for hook in one.hooks if (hook.phase, hook.opcode) == wanted)
        self._n_runs += 1
        for field in ("name", "name2", "path", "path2"):
            text = slot.get(field, "")
            slot[f"{field}_len"] = len(os.fsencode(text))
            slot[field] = {"text": text} if field.startswith("name") else text
        places = {"op": f"FB_OP_{op}", "phase": f"FB_{phase.upper()}", "unique": self._n_runs}
        slot = {
            "abi": _core.ABI_VERSION,
            "key_op": OPCODES[op],
            "key_uid": slot.get("uid", 0),
            **places,
            **slot,
        }
        packed = self._btf.pack(self._slot, slot)
        self._slots[: len(packed)] = packed
        hook = {**places, "slot": 0, "ring": _RING, "filter": 3, "thread": self._number}
        bpf.map_update(self._hooks, self._place.to_bytes(4, "little"), self._btf.pack(self._hook, hook))
        bpf.prog_run(program.fd, b"")
        records = self._take_records()
        after = self._btf.unpack(self._slot, self._slots[: len(packed)])
        if not records:
            return Verdict("", "", 0, 0, 0, after)
        first = records[0]
        assert (first["unique"], first["filter"], first["op"]) == (self._n_runs, 3, f"FB_OP_{op}")
        return Verdict(first["verdict"], first["error"], first["flags"], first["edits"], len(records), after)

    def _take_records(self) -> list[dict[str, Any]]:
        taken = []
        consumed = struct.unpack_from("<Q", self._consumer)[0]
        produced = struct.unpack_from("<Q", self._producer)[0]
        while consumed < produced:
            start = _PAGE + consumed % _PAGE  # the data page is mapped twice, so no record wraps
            length, _ = _RECORD_HEADER.unpack_from(self._producer, start)
            begin = start + _RECORD_HEADER.size
            taken.append(self._btf.unpack(self._record, self._producer[begin : begin + length]))
            consumed += -(-(_RECORD_HEADER.size + length) // 8) * 8
        struct.pack_into("<Q", self._consumer, 0, consumed)
        return taken


def write(directory: Path, text: str, name: str = "mine.c") -> Path:
    """A source file."""
    path = directory / name
    path.write_text(text)
    return path


def descriptors() -> list[str]:
    """What this process has open."""
    found = []
    for entry in Path("/proc/self/fd").iterdir():
        try:
            found.append(str(entry.readlink()))
        except FileNotFoundError:  # the descriptor of this very listing
            continue
    return sorted(found)
