"""BTF, the type information of maps: bytes ↔ Python values, and single values from text.

Python's view of a type: integers are int, bool for _Bool; enums the name of the value, int where it has none;
arrays of char are str up to the first zero byte (undecodable bytes as surrogates, as file names are); other
arrays are lists; structs and unions are dicts, the members of unnamed ones among their parent's.
"""

import difflib
import errno
import os
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, NamedTuple

ANY = 0xFFFFFFFF
"""FB_ANY: what `*` means for a 32-bit number or an enum."""

_MAGIC = 0xEB9F
_HEADER = struct.Struct("<HBBIIIII")
_TYPE = struct.Struct("<III")
_POINTER_BYTES = 8
_INT_SIGNED, _INT_BOOL = 1, 4
_ANY_WORDS = frozenset({"", "*", "any"})
_SUFFIXES = {"": 0, "k": 10, "m": 20, "g": 30}
_NUMBER = re.compile(r"([+-]?)(0x[0-9a-f]+|[0-9]+)([kmg]?)", re.IGNORECASE | re.ASCII)
_BOOLS = {"0": 0, "1": 1, "false": 0, "true": 1, "no": 0, "yes": 1, "off": 0, "on": 1}
_N_SUGGESTIONS = 6
_USUAL_ERRNOS = ("EPERM", "EACCES", "EROFS", "ENOENT")


class Kind(IntEnum):
    """Kinds of types (linux/btf.h)."""

    VOID = 0
    INT = 1
    PTR = 2
    ARRAY = 3
    STRUCT = 4
    UNION = 5
    ENUM = 6
    FWD = 7
    TYPEDEF = 8
    VOLATILE = 9
    CONST = 10
    RESTRICT = 11
    FUNC = 12
    FUNC_PROTO = 13
    VAR = 14
    DATASEC = 15
    FLOAT = 16
    DECL_TAG = 17
    TYPE_TAG = 18
    ENUM64 = 19


_MODIFIERS = frozenset({Kind.TYPEDEF, Kind.VOLATILE, Kind.CONST, Kind.RESTRICT, Kind.TYPE_TAG})
_COMPOUNDS = frozenset({Kind.STRUCT, Kind.UNION})
_ENUMS = frozenset({Kind.ENUM, Kind.ENUM64})
# Bytes that follow a type: fixed ones, and for each of its `vlen` parts.
_TRAILS = {
    Kind.INT: (4, 0),
    Kind.ARRAY: (12, 0),
    Kind.STRUCT: (0, 12),
    Kind.UNION: (0, 12),
    Kind.ENUM: (0, 8),
    Kind.FUNC_PROTO: (0, 8),
    Kind.VAR: (4, 0),
    Kind.DATASEC: (0, 12),
    Kind.DECL_TAG: (4, 0),
    Kind.ENUM64: (0, 12),
}


class Member(NamedTuple):
    """A member of a struct or union; `n_bits` is 0 but for bit fields."""

    name: str
    type: int
    bit_offset: int
    n_bits: int


@dataclass(frozen=True)
class Type:
    """One type, as BTF has it."""

    id: int
    kind: Kind
    name: str
    size: int = 0
    """In bytes, where the kind has one."""
    of: int = 0
    """The type that an array, pointer or modifier is of."""
    n: int = 0
    """Elements of an array."""
    is_signed: bool = False
    is_bool: bool = False
    members: tuple[Member, ...] = ()
    values: Mapping[str, int] = field(default_factory=dict)


class Leaf(NamedTuple):
    """A part of a value that one text can say: `name` is its path in the struct, "" for the whole value."""

    name: str
    type: int
    offset: int


class Btf:
    """The types of one compiled file."""

    def __init__(self, raw: bytes) -> None:
        magic, _, _, header, type_offset, type_bytes, string_offset, string_bytes = _HEADER.unpack_from(raw)
        if magic != _MAGIC:
            raise ValueError("not BTF of this machine's byte order")
        self._strings = raw[header + string_offset : header + string_offset + string_bytes]
        types = raw[header + type_offset : header + type_offset + type_bytes]
        self._types = [Type(0, Kind.VOID, "void"), *self._parse(types)]

    @classmethod
    def empty(cls) -> "Btf":
        """No types at all."""
        return cls(_HEADER.pack(_MAGIC, 1, 0, _HEADER.size, 0, 0, 0, 0))

    def find(self, kind: Kind, name: str) -> int:
        """The id of a type.

        Raises:
            KeyError: There is none.
        """
        for each in self._types:
            if each.kind == kind and each.name == name:
                return each.id
        raise KeyError(f"{kind.name.lower()} {name}")

    def resolve(self, type_id: int) -> Type:
        """The type behind typedefs and qualifiers."""
        found = self._types[type_id]
        while found.kind in _MODIFIERS:
            found = self._types[found.of]
        return found

    def size(self, type_id: int) -> int:
        """In bytes."""
        found = self.resolve(type_id)
        if found.kind == Kind.ARRAY:
            return found.n * self.size(found.of)
        return _POINTER_BYTES if found.kind == Kind.PTR else found.size

    def is_text(self, type_id: int) -> bool:
        """Is it an array of char, or a struct of nothing but one?"""
        found = self.resolve(type_id)
        if found.kind in _COMPOUNDS and len(found.members) == 1:
            return self.is_text(found.members[0].type)
        return found.kind == Kind.ARRAY and self._is_char(found.of)

    def name(self, type_id: int) -> str:
        """The type's name as C writes it."""
        found = self._types[type_id]
        if found.kind == Kind.ARRAY:
            return f"{self.name(found.of)}[{found.n}]"
        if found.kind in _COMPOUNDS | _ENUMS:
            word = "enum" if found.kind in _ENUMS else found.kind.name.lower()
            return f"{word} {found.name or '(unnamed)'}"
        return found.name or self.name(found.of)

    def shape(self, type_id: int) -> Any:
        """What tells types apart that are laid out or named differently, also those of different files."""
        found = self.resolve(type_id)
        if found.kind in _COMPOUNDS:
            members = [(one.name, one.bit_offset, one.n_bits, self.shape(one.type)) for one in found.members]
            return (found.kind, found.name, found.size, tuple(members))
        if found.kind == Kind.ARRAY:
            return (found.kind, found.n, self.shape(found.of))
        return (found.kind, found.size, found.is_signed, found.is_bool, tuple(sorted(found.values.items())))

    def leaves(self, type_id: int, name: str = "", offset: int = 0) -> list[Leaf]:
        """What a struct is made of, flattened, of a union the first member; other types are one leaf."""
        found = self.resolve(type_id)
        if found.kind not in _COMPOUNDS or self.is_text(type_id):
            return [Leaf(name, type_id, offset)]
        members = found.members[:1] if found.kind == Kind.UNION else found.members
        inner: list[Leaf] = []
        for member in members:
            if member.n_bits:
                raise ValueError(f"the bit field {member.name} cannot be set from text")
            path = f"{name}.{member.name}" if name and member.name else name or member.name
            inner += self.leaves(member.type, path, offset + member.bit_offset // 8)
        return inner

    # ------------------------------------------------------------------------- bytes ↔ values

    def unpack(self, type_id: int, raw: bytes) -> Any:
        """Bytes to Python's view of the type."""
        found = self.resolve(type_id)
        if found.kind in _COMPOUNDS:
            return dict(self._unpack_members(found, raw))
        if found.kind == Kind.ARRAY:
            if self._is_char(found.of):
                return os.fsdecode(raw.partition(b"\0")[0])
            step = self.size(found.of)
            return [self.unpack(found.of, raw[i * step : (i + 1) * step]) for i in range(found.n)]
        number = int.from_bytes(raw[: self.size(type_id)], "little", signed=found.is_signed)
        return self._number_value(found, number)

    def pack(self, type_id: int, value: Any) -> bytes:
        """Python's view of a type to bytes; what a dict leaves out is zero.

        Raises:
            ValueError: The value does not fit.
        """
        found, size = self.resolve(type_id), self.size(type_id)
        if found.kind in _COMPOUNDS:
            return self._pack_members(found, value)
        if found.kind == Kind.ARRAY and isinstance(value, str):
            text = os.fsencode(value)
            if len(text) >= size:
                raise ValueError(f"{value!r} has {len(text)} bytes, at most {size - 1} fit")
            return text.ljust(size, b"\0")
        if found.kind == Kind.ARRAY:
            if len(value) > found.n:
                raise ValueError(f"{len(value)} elements, at most {found.n} fit")
            return b"".join(self.pack(found.of, each) for each in value).ljust(size, b"\0")
        number = found.values[value] if isinstance(value, str) else int(value)
        return _number_bytes(number, size, is_signed=found.is_signed or number < 0)

    def _unpack_members(self, found: Type, raw: bytes) -> Iterator[tuple[str, Any]]:
        for member in found.members:
            start = member.bit_offset // 8
            if member.n_bits:
                whole = int.from_bytes(raw[start : start + 8], "little") >> (member.bit_offset % 8)
                yield member.name, whole & ((1 << member.n_bits) - 1)
                continue
            value = self.unpack(member.type, raw[start : start + self.size(member.type)])
            if member.name:
                yield member.name, value
            else:
                yield from value.items()

    def _pack_members(self, found: Type, value: Mapping[str, Any]) -> bytes:
        packed = bytearray(found.size)
        for member in found.members:
            start, size = member.bit_offset // 8, self.size(member.type)
            inner = self.resolve(member.type)
            if not member.name and inner.kind in _COMPOUNDS:
                names = self._member_names(inner)
                part: Any = {name: given for name, given in value.items() if name in names}
                is_given = bool(part)
            else:
                part, is_given = value.get(member.name), member.name in value
            if is_given and not member.n_bits:
                packed[start : start + size] = self.pack(member.type, part)
        return bytes(packed)

    def _member_names(self, found: Type) -> set[str]:
        names: set[str] = set()
        for member in found.members:
            names |= {member.name} if member.name else self._member_names(self.resolve(member.type))
        return names

    def _number_value(self, found: Type, number: int) -> int | str | bool:
        if found.kind in _ENUMS:
            return next((name for name, value in found.values.items() if value == number), number)
        return bool(number) if found.is_bool else number

    # ------------------------------------------------------------------------- text → bytes

    def from_text(self, type_id: int, text: str, *, may_be_any: bool = False) -> bytes:
        """One leaf's bytes from text: a number (0x…, suffixes k M G: powers of 1024), an enum's name, a text.

        With `may_be_any`, `*`, `any` and nothing at all stand for any value.

        Raises:
            ValueError: The text does not fit; the message quotes it and says what would.
        """
        found, size = self.resolve(type_id), self.size(type_id)
        is_any = may_be_any and text in _ANY_WORDS
        if self.is_text(type_id):
            raw = b"" if is_any else os.fsencode(text)
            if len(raw) >= size:
                raise ValueError(f"{text!r} has {len(raw)} bytes, at most {size - 1} fit")
            return raw.ljust(size, b"\0")
        if is_any and size == 4 and (found.kind in _ENUMS or not found.is_bool):
            return ANY.to_bytes(4, "little")
        if found.kind in _ENUMS:
            return _number_bytes(_enum_number(found, text), size, is_signed=found.is_signed)
        if found.kind == Kind.ARRAY and self.size(found.of) == 1:
            return hex_bytes(text, size)
        if found.kind != Kind.INT:
            raise ValueError(f"a value of type {self.name(type_id)} cannot be said in text")
        if found.is_bool:
            if text.lower() not in _BOOLS:
                raise ValueError(f"{text!r} is not yes or no")
            return bytes([_BOOLS[text.lower()]])
        return _int_bytes(text, size, is_signed=found.is_signed)

    def to_text(self, type_id: int, raw: bytes, *, may_be_any: bool = False) -> str:
        """One leaf as `from_text` reads it."""
        found = self.resolve(type_id)
        if self.is_text(type_id):
            text = os.fsdecode(raw.partition(b"\0")[0])
            return "*" if may_be_any and not text else text
        if found.kind in {Kind.ARRAY, *_COMPOUNDS}:
            return raw.hex()
        number = int.from_bytes(raw, "little", signed=found.is_signed)
        if may_be_any and len(raw) == 4 and not found.is_bool and number & ANY == ANY:
            return "*"
        if found.kind not in _ENUMS:
            return str(number)
        names = {value: name for name, value in _short_names(found).items()}
        return names.get(number, str(number))

    # --------------------------------------------------------------------------------- reading

    def _is_char(self, type_id: int) -> bool:
        found = self.resolve(type_id)
        return found.kind == Kind.INT and found.name == "char"

    def _string(self, offset: int) -> str:
        return self._strings[offset : self._strings.index(b"\0", offset)].decode()

    def _parse(self, types: bytes) -> Iterator[Type]:
        position, number = 0, 0
        while position < len(types):
            name_offset, info, last = _TYPE.unpack_from(types, position)
            position, number = position + _TYPE.size, number + 1
            kind, vlen, kflag = Kind(info >> 24 & 0x1F), info & 0xFFFF, info >> 31
            fixed, each = _TRAILS.get(kind, (0, 0))
            trail = types[position : position + fixed + vlen * each]
            position += len(trail)
            yield self._type(Type(number, kind, self._string(name_offset)), vlen, kflag, last, trail)

    def _type(self, bare: Type, vlen: int, kflag: int, last: int, trail: bytes) -> Type:
        number, kind, name = bare.id, bare.kind, bare.name
        if kind == Kind.INT:
            (encoding,) = struct.unpack("<I", trail)
            is_signed, is_bool = bool(encoding >> 24 & _INT_SIGNED), bool(encoding >> 24 & _INT_BOOL)
            return Type(number, kind, name, size=last, is_signed=is_signed, is_bool=is_bool)
        if kind == Kind.ARRAY:
            of, _, n = struct.unpack("<III", trail)
            return Type(number, kind, name, of=of, n=n)
        if kind in _COMPOUNDS:
            members = []
            for i in range(vlen):
                name_offset, of, offset = struct.unpack_from("<III", trail, i * 12)
                bit_offset, n_bits = (offset & 0xFFFFFF, offset >> 24) if kflag else (offset, 0)
                members.append(Member(self._string(name_offset), of, bit_offset, n_bits))
            return Type(number, kind, name, size=last, members=tuple(members))
        if kind in _ENUMS:
            values = {}
            for i in range(vlen):
                if kind == Kind.ENUM:
                    name_offset, value = struct.unpack_from("<Ii" if kflag else "<II", trail, i * 8)
                else:
                    name_offset, low, high = struct.unpack_from("<III", trail, i * 12)
                    value = low | high << 32
                    value -= (1 << 64) if kflag and value >> 63 else 0
                values[self._string(name_offset)] = value
            return Type(number, kind, name, size=last, is_signed=bool(kflag), values=values)
        if kind == Kind.FLOAT:
            return Type(number, kind, name, size=last)
        return Type(number, kind, name, of=last)


def number_from_text(text: str) -> int | None:
    """An integer, with 0x and the suffixes k, M, G; None if it is none."""
    match = _NUMBER.fullmatch(text)
    if not match:
        return None
    number = int(match[2], 0 if match[2].lower().startswith("0x") else 10) << _SUFFIXES[match[3].lower()]
    return -number if match[1] == "-" else number


def _number_bytes(number: int, size: int, *, is_signed: bool) -> bytes:
    try:
        return number.to_bytes(size, "little", signed=is_signed)
    except OverflowError:
        raise ValueError(f"{number} does not fit into {size} bytes") from None


def _int_bytes(text: str, size: int, *, is_signed: bool) -> bytes:
    number = number_from_text(text)
    if number is None:
        raise ValueError(f"{text!r} is not a number")
    low = -(1 << size * 8 - 1) if is_signed else 0
    high = (1 << size * 8 - (1 if is_signed else 0)) - 1
    if not low <= number <= high:
        raise ValueError(f"{text!r} is out of range, {low} to {high}")
    return _number_bytes(number, size, is_signed=is_signed)


def hex_bytes(text: str, size: int) -> bytes:
    """Bytes from hexadecimal digits, two for each; blanks between them do not count."""
    try:
        raw = bytes.fromhex(text.removeprefix("0x"))
    except ValueError:
        raise ValueError(f"{text!r} is not in hexadecimal digits") from None
    if len(raw) != size:
        raise ValueError(f"{text!r} has {len(raw)} bytes, {size} are wanted")
    return raw


def _short_names(found: Type) -> dict[str, int]:
    """An enum's names without the prefix that they share."""
    names_in_order = sorted(found.values)
    first, last = names_in_order[0], names_in_order[-1]
    n_shared = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    prefix = first[: first.rfind("_", 0, n_shared) + 1]
    return {name.removeprefix(prefix): value for name, value in found.values.items()}


def _enum_number(found: Type, text: str) -> int:
    """The value of an enum's name, given with or without the prefix that its names share, or as a number."""
    number = number_from_text(text)
    bits = 0
    for value in found.values.values():
        bits |= value
    are_bits = all(value > 0 and value & (value - 1) == 0 for value in found.values.values())
    if number is not None and (number in found.values.values() or (are_bits and number & ~bits == 0)):
        return number
    short = _short_names(found)
    for names in (found.values, short, {name.removeprefix("FB_"): v for name, v in found.values.items()}):
        if text in names:
            return names[text]
    by_lower = {name.lower(): value for name, value in [*found.values.items(), *short.items()]}
    if text.lower() in by_lower:
        return by_lower[text.lower()]
    alias = getattr(errno, text.removeprefix("FB_"), None) if found.name == "fb_errno" else None
    if isinstance(alias, int) and alias in found.values.values():
        return alias
    usual = [name for name in _USUAL_ERRNOS if name in short] or list(short)
    near = difflib.get_close_matches(text, short, _N_SUGGESTIONS, 0.5) or usual[:_N_SUGGESTIONS]
    kind = found.name.removeprefix("fb_") or "known name"
    raise ValueError(f"{text!r} is no {kind}; say for example {', '.join(near)}")
