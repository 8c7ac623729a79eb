"""struct fb_slot from Python: an op in words to its bytes and back, for `fusebpf.testing`."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, Any, NamedTuple

from fusebpf._core import ARGS, OP_FLAGS, OPS, SIZES
from fusebpf.btf import Btf, Kind
from fusebpf.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

OPCODES = {name: opcode for name, opcode, _, _, kind, _ in OPS if kind == "hook"}
"""The ops that filters see."""

TEXTS = ("name", "name2", "path", "path2", "text")
RESULTS = ("attr", "statfs", "count")

_N_NAMES = {name: n_names for name, _, n_names, *_ in OPS}
_FLAGS = {name: flags for name, _, _, flags, *_ in OPS}
_OP_ENTRY, _OP_ATTR, _OP_XATTR = (OP_FLAGS[name] for name in ("ENTRY", "ATTR", "XATTR"))
_HAS_PATH = 1 << 1
_OWN = frozenset(
    {"", "abi", "op", "phase", "filter", "unique", "tag2", "edits", "error", "zero", "key", "args", "result"}
)
"""What the core fills in, and what callers have another word for."""


class _Place(NamedTuple):
    offset: int
    type: int


class SlotType:
    """The slot's layout, as the filters were compiled with it."""

    def __init__(self, btf: Btf) -> None:
        self._btf = btf
        self._root = _Place(0, btf.find(Kind.STRUCT, "fb_slot"))
        members = {
            name
            for name in self._names(self._root.type)
            if not name.endswith("_len") and not _is_reserved(name)
        }
        self._fields = sorted({*members, *TEXTS, *RESULTS} - _OWN)

    def pack(self, op: str, unique: int, args: Mapping[str, Any], described: Mapping[str, Any]) -> bytes:
        """An op's slot.

        Raises:
            UsageError: There is no such field, or a value does not fit.
        """
        _check_texts(op, described)
        for name in described:
            if name not in self._fields:
                raise UsageError(f"{name!r} is no field of an op; the fields are: {' '.join(self._fields)}")
        numbers = {"uid": 0, "gid": 0, "pid": os.getpid(), "nodeid": 1, "type": _type_of(op)}
        numbers |= {name: value for name, value in described.items() if name not in {*TEXTS, *RESULTS}}
        if "path" in described:
            numbers["flags"] = numbers.get("flags", 0) | _HAS_PATH
        raw = bytearray(SIZES["slot"])
        self._put(raw, self._root, "an op", {"op": OPCODES[op], "unique": unique, **numbers})
        if args:
            self._put(raw, self._place("args", ARGS[op]), f"the arguments of {op!r}", args)
        for name, value in _result(op, described).items():
            self._put(raw, self._place("result"), "a result", {name: value})
        for name in TEXTS:
            self._put_text(raw, name, os.fsencode(described.get(name, b"")))
        return bytes(raw)

    def unpack(self, op: str, raw: bytes) -> dict[str, Any]:
        """A slot's fields; texts as bytes, `args` as those of the op, without what only the union has."""
        fields: dict[str, Any] = self._btf.unpack(self._root.type, raw)
        del fields["key"]
        for name in TEXTS:
            start = self._place(name).offset
            fields[name] = raw[start : start + fields[f"{name}_len"]]
        fields["args"] = {} if ARGS[op] == "nothing" else fields["args"][ARGS[op]]
        return fields

    # ------------------------------------------------------------------------------------ the layout

    def _names(self, type_id: int) -> list[str]:
        found: list[str] = []
        for member in self._btf.resolve(type_id).members:
            found += [member.name] if member.name else self._names(member.type)
        return found

    def _place(self, *path: str) -> _Place:
        place = self._root
        for name in path:
            place = self._member(place, name)
        return place

    def _member(self, outer: _Place, name: str) -> _Place:
        for member in self._btf.resolve(outer.type).members:
            place = _Place(outer.offset + member.bit_offset // 8, member.type)
            if member.name == name:
                return place
            if not member.name and name in self._names(member.type):
                return self._member(place, name)
        raise KeyError(name)

    def _put(self, raw: bytearray, place: _Place, what: str, values: Mapping[str, Any]) -> None:
        """Pack named members of the struct or union at a place."""
        names = [name for name in self._names(place.type) if not _is_reserved(name)]
        for name, value in values.items():
            if name not in names:
                known = " ".join(names) or "none"
                raise UsageError(f"there is no field {name!r} in {what}; the fields are: {known}")
            start, type_id = self._member(place, name)
            if isinstance(value, dict):
                self._put(raw, _Place(start, type_id), f"{name!r}", value)
                continue
            try:
                packed = self._btf.pack(type_id, value)
            except (ValueError, TypeError, KeyError) as error:
                raise UsageError(f"{name}={value!r} does not fit into {what}: {error}") from None
            raw[start : start + len(packed)] = packed

    def _put_text(self, raw: bytearray, name: str, text: bytes) -> None:
        start, type_id = self._place(name)
        size = self._btf.size(type_id)
        if len(text) >= size:
            raise UsageError(f"{name} has {len(text)} bytes, at most {size - 1} fit")
        raw[start : start + len(text)] = text
        self._put(raw, self._root, "an op", {f"{name}_len": len(text)})


def _is_reserved(name: str) -> bool:
    return name.startswith("reserved")


def _type_of(op: str) -> int:
    """What the inode is, if nothing else is said: where an op takes a file name it is the directory."""
    has_name = _N_NAMES[op] and not _FLAGS[op] & _OP_XATTR
    is_directory = has_name or op in {"opendir", "readdir", "releasedir", "fsyncdir", "tmpfile"}
    return stat.S_IFLNK if op == "readlink" else stat.S_IFDIR if is_directory else stat.S_IFREG


def _check_texts(op: str, described: Mapping[str, Any]) -> None:
    for name in TEXTS:
        if not isinstance(described.get(name, b""), bytes | str):
            raise UsageError(f"{name}={described[name]!r}: bytes or a str are wanted")
    is_file = not _FLAGS[op] & _OP_XATTR
    for number, name in enumerate(("name", "name2"), 1):
        if number <= _N_NAMES[op] and not described.get(name):
            raise UsageError(f"{op!r} takes a {name}: say {name}=b'…'")
        if number > _N_NAMES[op] and name in described:
            raise UsageError(f"{op!r} takes no {name}")
        text = os.fsencode(described.get(name, b""))
        if b"\0" in text or (is_file and (b"/" in text or text in {b".", b".."})):
            raise UsageError(f"{name}={described[name]!r} is no name: a path has path=")


def _result(op: str, described: Mapping[str, Any]) -> dict[str, Any]:
    """What the backing root is to answer; attributes are those of a plain file, but for what is said."""
    given = {name: described[name] for name in RESULTS if name in described}
    if len(given) > 1:
        raise UsageError(f"an op has one result, not {' and '.join(given)}")
    if _FLAGS[op] & (_OP_ENTRY | _OP_ATTR):
        kind = _type_of(op) if _FLAGS[op] & _OP_ATTR else stat.S_IFDIR if op == "mkdir" else stat.S_IFREG
        given.setdefault("attr", {})
        if isinstance(given["attr"], dict):
            given["attr"] = {"mode": described.get("type", kind) | 0o644, "nlink": 1, **given["attr"]}
    return given
