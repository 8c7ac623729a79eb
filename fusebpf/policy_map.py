"""The maps of a filter that an administrator fills: text → typed content, and back as Python values.

The text of a map is a list, separated by commas. A backslash takes the meaning from a comma, colon, equals
sign, blank or backslash behind it; blanks around an item do not count.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fusebpf import bpf
from fusebpf.bpf import MapType
from fusebpf.btf import Btf, Kind, Leaf, number_from_text
from fusebpf.errors import MapValueError

_HASHES = frozenset({MapType.HASH, MapType.LRU_HASH})
_PERCPU = frozenset({MapType.PERCPU_HASH, MapType.PERCPU_ARRAY, MapType.LRU_PERCPU_HASH})
_WITH_KEYS = _HASHES | _PERCPU | {MapType.ARRAY}
_ESCAPABLE = frozenset(",:= \\")
_POSSIBLE_CPUS = Path("/sys/devices/system/cpu/possible")

_Text = list[tuple[str, bool]]
"""Characters, and whether each stands for itself because a backslash says so."""


class PolicyMap:
    """One map of a loaded filter. It owns its descriptor."""

    def __init__(self, name: str, fd: int, btf: Btf, key: int, value: int, *, shown: str = "") -> None:
        """Take over a descriptor.

        `name` is without the filter's (`names`), `shown` how messages call the map (`hide.names`); `key` and
        `value` are type ids in `btf`, 0 if the map has none.
        """
        info = bpf.map_info(fd)
        self.name, self.fd = name, fd
        self.type, self.max_entries = info.type, info.max_entries
        self.key_size, self.value_size = info.key_size, info.value_size
        self._btf, self._key, self._value = btf, key, value
        self._shown = shown or name

    def close(self) -> None:
        """Give the descriptor back; a pin keeps the map."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    # ------------------------------------------------------------------------------- reading

    def describe(self) -> str:
        """What kind of map this is and how an item of it is spelled, for people."""
        try:
            kind = MapType(self.type).name.lower().replace("_", " ").replace("percpu", "per-CPU")
        except ValueError:
            kind = f"map of type {self.type}"
        if not self._value or self.type not in _WITH_KEYS:
            return kind
        if self._list_of_texts() is not None:
            return "list of names or patterns"
        try:
            keys, values = self._leaves()
        except ValueError:
            return f"{kind} of {self._btf.name(self._value)}"
        spelled = ":".join(leaf.name for leaf in keys + values)
        if self.type == MapType.ARRAY:
            spelled = ":".join(leaf.name for leaf in values)
            types = self._btf.name(self._value)
            return f"array of {self.max_entries} {types}" + (f" ({spelled})" if len(values) > 1 else "")
        return f"{kind} of {spelled}"

    @property
    def shape(self) -> tuple[Any, Any]:
        """The types of key and value, to be compared with others'."""
        return self._btf.shape(self._key), self._btf.shape(self._value)

    def keys(self) -> list[Any]:
        """All keys."""
        return [key for key, _ in self.items()]

    def values(self) -> list[Any]:
        """All values."""
        return [value for _, value in self.items()]

    def items(self) -> Iterator[tuple[Any, Any]]:
        """Keys and values as Python's view of their types (see btf.py), bytes where the map has none.

        A value of a per-CPU map is a list, one for each possible CPU.
        """
        if self.type not in _WITH_KEYS:
            return
        is_percpu = self.type in _PERCPU
        step = -(-self.value_size // 8) * 8
        size = step * _n_possible_cpus() if is_percpu else self.value_size
        for key in list(bpf.map_keys(self.fd, self.key_size)):
            raw = bpf.map_lookup(self.fd, key, size)
            if raw is None:
                continue
            parts = [raw[i : i + self.value_size] for i in range(0, size, step)] if is_percpu else [raw]
            shown = [self._btf.unpack(self._value, part) if self._value else part for part in parts]
            shown_key = self._btf.unpack(self._key, key) if self._key else key
            yield shown_key, shown if is_percpu else shown[0]

    # ------------------------------------------------------------------------------- writing

    def clear(self) -> None:
        """Take everything out; an array is zeroed."""
        self.set("")

    def set(self, text: str) -> None:
        """Replace the whole content. A text that is wrong leaves the map as it was.

        Args:
            text: A list of names or patterns; KEY or KEY=VALUE of a hash, the fields of structs separated by
                `:` in their order or said as field=value, `*` for any; an array's elements or INDEX=VALUE.

        Raises:
            MapValueError: The text does not fit the map's types.
            OSError: The kernel refused an element.
        """
        if self.type not in {*_HASHES, MapType.ARRAY}:
            raise MapValueError(
                f"{self._shown}: a {self.describe()} cannot be set; only arrays and hashes can"
            )
        if not self._value or not self._key:
            raise MapValueError(f"{self._shown}: cannot be set, it has no type information")
        items = [_strip(item) for item in _split(_characters(text), ",")] if text.strip() else []
        for item in items:
            if not item:
                raise MapValueError(
                    f"{self._shown}: an empty item in {text!r}; separate items by single commas"
                )
        if self._list_of_texts() is not None:
            self._fill_array({0: self._text_list(items)})
        elif self.type == MapType.ARRAY:
            self._fill_array(self._elements(items))
        else:
            self._fill_hash(self._entries(items))

    def _fill_array(self, elements: dict[int, bytes]) -> None:
        zero = bytes(self.value_size)
        bpf.array_fill(self.fd, [elements.get(index, zero) for index in range(self.max_entries)])

    def _fill_hash(self, entries: dict[bytes, bytes]) -> None:
        stale = [key for key in bpf.map_keys(self.fd, self.key_size) if key not in entries]
        has_room = len(stale) + len(entries) <= self.max_entries
        # Where there is room the new content is complete before the old one goes.
        for key in [] if has_room else stale:
            bpf.map_delete(self.fd, key)
        for key, value in entries.items():
            bpf.map_update(self.fd, key, value)
        for key in stale if has_room else []:
            bpf.map_delete(self.fd, key)

    # -------------------------------------------------------------------------- the three forms

    def _list_of_texts(self) -> tuple[int, int] | None:
        """(number, type) of the texts, if the map is one struct of only an array of them: fb_patterns."""
        if self.type != MapType.ARRAY or self.max_entries != 1 or not self._value:
            return None
        found = self._btf.resolve(self._value)
        if found.kind != Kind.STRUCT or len(found.members) != 1:
            return None
        inner = self._btf.resolve(found.members[0].type)
        is_list = inner.kind == Kind.ARRAY and self._btf.is_text(inner.of)
        return (inner.n, inner.of) if is_list else None

    def _text_list(self, items: list[_Text]) -> bytes:
        n, text_type = self._list_of_texts() or (0, 0)
        if len(items) >= n:
            raise MapValueError(f"{self._shown}: {len(items)} items, at most {n - 1} fit")
        packed = b""
        for item in items:
            text = _join(item)
            if self.name == "paths":
                text = text.removeprefix("/").removesuffix("/")
                if not text:
                    raise MapValueError(
                        f"{self._shown}: {_join(item)!r} is the root itself; name what is below it"
                    )
            elif self.name == "names" and ("/" in text or text in {".", ".."}):
                raise MapValueError(
                    f"{self._shown}: {text!r} matches no name: names have no slash and are not . or .."
                )
            packed += self._from_text(text_type, text, "")
        return packed.ljust(self.value_size, b"\0")

    def _elements(self, items: list[_Text]) -> dict[int, bytes]:
        elements: dict[int, bytes] = {}
        for position, item in enumerate(items):
            shown = _join(item)
            left, right = _cut(item, "=")
            index = number_from_text(_join(left)) if right is not None else None
            if index is None or right is None:
                index, right = position, item
            if not 0 <= index < self.max_entries:
                raise MapValueError(
                    f"{self._shown}: {shown!r} would be element {index}; there are {self.max_entries}, from 0"
                )
            if index in elements:
                raise MapValueError(f"{self._shown}: {shown!r}: element {index} is set twice")
            _, values = self._leaves_or_refuse()
            said = self._fields(shown, right, [], values)
            elements[index] = self._packed(shown, values, said, self.value_size)
        return elements

    def _entries(self, items: list[_Text]) -> dict[bytes, bytes]:
        if len(items) > self.max_entries:
            raise MapValueError(f"{self._shown}: {len(items)} items, at most {self.max_entries} fit")
        keys, values = self._leaves_or_refuse()
        entries: dict[bytes, bytes] = {}
        for item in items:
            shown = _join(item)
            said = self._fields(shown, item, keys, values)
            key = self._packed(shown, keys, said, self.key_size, may_be_any=True)
            if key in entries:
                raise MapValueError(f"{self._shown}: {shown!r}: the same key is there twice")
            entries[key] = self._packed(shown, values, said, self.value_size)
        return entries

    def _fields(self, shown: str, item: _Text, keys: list[Leaf], values: list[Leaf]) -> dict[str, str]:
        """What an item says, by the names of fields."""
        names = [leaf.name for leaf in keys + values]
        parts = [_cut(part, "=") for part in _split(item, ":")]
        if all(right is not None and _join(left) in names for left, right in parts):
            said = {_join(left): _join(right or []) for left, right in parts}
            missing = [
                leaf.name
                for leaf in values
                if leaf.name not in said and not self._defaults_to_one(keys, values)
            ]
            if len(said) < len(parts) or missing:
                fault = f"{missing[0]} is missing" if missing else "a field is said twice"
                raise MapValueError(f"{self._shown}: {shown!r}: {fault}; the fields are {', '.join(names)}")
            return {**{leaf.name: "" for leaf in keys}, **said}
        texts = [_join(part) for part in _split(item, ":")]
        if len(names) == len(texts) + 1 == 2 and keys:
            left, right = _cut(item, "=")
            texts = [_join(left), _join(right)] if right is not None else texts
        if len(texts) == len(keys) and self._defaults_to_one(keys, values):
            texts.append("1")
        if len(texts) != len(names):
            found = "1 field" if len(texts) == 1 else f"{len(texts)} fields"
            raise MapValueError(f"{self._shown}: {shown!r} has {found}, wanted are {':'.join(names)}")
        return dict(zip(names, texts, strict=True))

    def _defaults_to_one(self, keys: list[Leaf], values: list[Leaf]) -> bool:
        """A hash whose value is a plain integer is also a set: an item without a value gets 1."""
        return bool(keys) and len(values) == 1 and self._btf.resolve(values[0].type).kind == Kind.INT

    def _packed(
        self, shown: str, leaves: list[Leaf], said: dict[str, str], size: int, *, may_be_any: bool = False
    ) -> bytes:
        packed = bytearray(size)
        for leaf in leaves:
            text = said.get(leaf.name, "1")
            about = f" {leaf.name} in {shown!r}:" if text != shown else ""
            raw = self._from_text(leaf.type, text, about, may_be_any=may_be_any)
            packed[leaf.offset : leaf.offset + len(raw)] = raw
        return bytes(packed)

    def _from_text(self, type_id: int, text: str, about: str, *, may_be_any: bool = False) -> bytes:
        try:
            return self._btf.from_text(type_id, text, may_be_any=may_be_any)
        except ValueError as error:
            raise MapValueError(f"{self._shown}:{about} {error}") from None

    def _leaves_or_refuse(self) -> tuple[list[Leaf], list[Leaf]]:
        try:
            return self._leaves()
        except ValueError as error:
            raise MapValueError(f"{self._shown}: {error}") from None

    def _leaves(self) -> tuple[list[Leaf], list[Leaf]]:
        keys = [leaf._replace(name=leaf.name or "key") for leaf in self._btf.leaves(self._key)]
        taken = {leaf.name for leaf in keys}
        values = []
        for leaf in self._btf.leaves(self._value):
            name = leaf.name or "value"
            values.append(leaf._replace(name=f"value.{name}" if name in taken else name))
        return keys if self.type != MapType.ARRAY else [], values


# ------------------------------------------------------------------------------ lists with escapes


def _characters(text: str) -> _Text:
    found: _Text = []
    position = 0
    while position < len(text):
        is_escape = text[position] == "\\" and text[position + 1 : position + 2] in {*_ESCAPABLE}
        position += is_escape
        found.append((text[position], is_escape))
        position += 1
    return found


def _split(text: _Text, separator: str) -> list[_Text]:
    parts: list[_Text] = [[]]
    for character in text:
        if character == (separator, False):
            parts.append([])
        else:
            parts[-1].append(character)
    return parts


def _cut(text: _Text, separator: str) -> tuple[_Text, _Text | None]:
    """What stands before and after the first separator; None if there is none."""
    mark = (separator, False)
    if mark not in text:
        return text, None
    return text[: text.index(mark)], text[text.index(mark) + 1 :]


def _strip(text: _Text) -> _Text:
    blank = (" ", False)
    while text and text[0] == blank:
        text = text[1:]
    while text and text[-1] == blank:
        text = text[:-1]
    return text


def _join(text: _Text) -> str:
    return "".join(character for character, _ in text)


def _n_possible_cpus() -> int:
    last = _POSSIBLE_CPUS.read_text().strip().split(",")[-1]
    return int(last.rpartition("-")[2]) + 1
