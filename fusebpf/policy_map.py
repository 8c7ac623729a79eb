"""The maps of a filter that an administrator fills: text → typed content, and back as Python values.

The text of a map is a list, separated by commas. A backslash takes the meaning from a comma, colon, equals
sign, blank or backslash behind it; blanks around an item do not count.
"""

import itertools
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from fusebpf import bpf
from fusebpf.bpf import MapType
from fusebpf.btf import Btf, Kind, Leaf, hex_bytes, number_from_text
from fusebpf.errors import MapValueError, NoSuchElement
from fusebpf.set_text import (
    Text,
    characters,
    cut,
    escaped,
    flat,
    join,
    one_path,
    path_below,
    plain,
    split,
    strip,
    trimmed,
)
from fusebpf.tables import article

_HASHES = frozenset({MapType.HASH, MapType.LRU_HASH})
_PERCPU = frozenset({MapType.PERCPU_HASH, MapType.PERCPU_ARRAY, MapType.LRU_PERCPU_HASH})
_ARRAYS = frozenset({MapType.ARRAY, MapType.PERCPU_ARRAY})
_WITH_KEYS = _HASHES | _PERCPU | {MapType.ARRAY}
_POSSIBLE_CPUS = Path("/sys/devices/system/cpu/possible")


class PolicyMap:
    """One map of a loaded filter. It owns its descriptor."""

    def __init__(
        self,
        name: str,
        fd: int,
        btf: Btf,
        key: int,
        value: int,
        *,
        shown: str = "",
        is_asked_of_entries: bool = True,
    ) -> None:
        """Take over a descriptor.

        `name` is without the filter's (`names`), `shown` how messages call the map (`hide.names`); `key` and
        `value` are type ids in `btf`, 0 if the map has none. Its filter is asked of entries of listings if
        it has a hook on `dirent`.
        """
        info = bpf.map_info(fd)
        self.name, self.fd = name, fd
        self.type, self.max_entries = info.type, info.max_entries
        self.key_size, self.value_size = info.key_size, info.value_size
        self._btf, self._key, self._value = btf, key, value
        self._shown = shown or name
        self._is_asked_of_entries = is_asked_of_entries

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
        separator = "=" if len(keys) == len(values) == 1 else ":"
        spelled = separator.join(leaf.name for leaf in keys + values)
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
        for key in self.raw_keys():
            raw = self.lookup(key)
            if raw is not None:
                yield self.key_value(key), raw if isinstance(raw, list) else self.value_value(raw)

    def raw_keys(self) -> list[bytes]:
        """The bytes of all keys; MapValueError: a map of this kind has none."""
        self._check_keys("so it cannot be listed")
        return list(bpf.map_keys(self.fd, self.key_size))

    def _check_keys(self, consequence: str) -> None:
        if self.type not in _WITH_KEYS:
            raise MapValueError(f"{self._shown}: {article(self.describe())} has no keys, {consequence}")

    def lookup(self, key: bytes) -> bytes | list[Any] | None:
        """The bytes of a key's value, None if it is not there; of a per-CPU map a list of typed values."""
        if self.type not in _PERCPU:
            return bpf.map_lookup(self.fd, key, self.value_size)
        step = -(-self.value_size // 8) * 8
        raw = bpf.map_lookup(self.fd, key, step * _n_possible_cpus())
        if raw is None:
            return None
        return [self.value_value(raw[i : i + self.value_size]) for i in range(0, len(raw), step)]

    @property
    def shown(self) -> str:
        """How messages call it."""
        return self._shown

    @property
    def is_array(self) -> bool:
        """Whether its keys are indexes."""
        return self.type in _ARRAYS

    @property
    def is_set(self) -> bool:
        """Whether a key may be given without a value, which is 1 then."""
        try:
            return self._defaults_to_one(*self._leaves()) if self._key and self._value else False
        except ValueError:
            return False

    def item_text(self, key: str, value: Any) -> str:
        """A key and its value as an item of a `set`."""
        try:
            keys, values = self._leaves() if self._key and self._value else ([], [])
        except ValueError:
            keys, values = [], []
        key = escaped(key) if len(keys) == 1 else key
        value = escaped(value) if len(values) == 1 and isinstance(value, str) else value
        return f"{key}{':' if len(keys) + len(values) > 2 and keys else '='}{value}"

    # ------------------------------------------------------------------------------- writing

    def check_writable(self) -> None:
        """See that it is a map that is set from outside.

        Raises:
            MapValueError: It is none.
        """
        if self.type not in {*_HASHES, MapType.ARRAY}:
            raise MapValueError(
                f"{self._shown}: {article(self.describe())} cannot be set; only arrays and hashes can"
            )

    def key_bytes(self, key: Any) -> bytes:
        """One key, from its text as in `set`, a number, fields by name or in order, or bytes as they are.

        Raises:
            MapValueError: It does not fit the type.
            NoSuchElement: An array has no such index.
        """
        self._check_keys("so nothing can be asked of it")
        if self.type in _ARRAYS:
            index = key if isinstance(key, int) else number_from_text(str(key))
            if index is None:
                raise MapValueError(f"{self._shown}: {str(key)!r} is no index of an array")
            if not 0 <= index < self.max_entries:
                raise NoSuchElement(
                    f"{self._shown} has no element {index}: there are {self.max_entries}, from 0"
                )
            return index.to_bytes(4, "little")
        return self._one(key, is_key=True)

    def value_bytes(self, value: Any) -> bytes:
        """One value, given like a key.

        Raises:
            MapValueError: It does not fit the type.
        """
        return self._one(value, is_key=False)

    def _one(self, given: Any, *, is_key: bool) -> bytes:
        size = self.key_size if is_key else self.value_size
        if isinstance(given, bytes) and len(given) == size:
            return given
        if isinstance(given, bytes):
            given = os.fsdecode(given)
        shown = str(given)
        if not (self._key and self._value):
            try:
                return hex_bytes(shown, size)
            except ValueError as error:
                raise MapValueError(f"{self._shown} has no type information: {error}") from None
        leaves = self._leaves_or_refuse()[0 if is_key else 1]
        names = [leaf.name for leaf in leaves]
        if isinstance(given, Mapping):
            said = dict(flat(given))
            wrong = [name for name in said if name not in names]
            wrong = wrong or ([] if is_key else [name for name in names if name not in said])
            if wrong:
                raise MapValueError(
                    f"{self._shown}: {wrong[0]!r} in {shown}; the fields are {', '.join(names)}"
                )
            said = dict.fromkeys(names, "") | said
        elif isinstance(given, (tuple, list)):
            if len(given) != len(names):
                raise MapValueError(
                    f"{self._shown}: {shown} has {len(given)} fields, wanted are {':'.join(names)}"
                )
            said = dict(zip(names, map(plain, given), strict=True))
        elif len(leaves) == 1 and (self._btf.is_text(leaves[0].type) or "=" not in shown):
            said = {names[0]: plain(given)}
        else:
            # Fields by name may stand with commas between as well: there is only one item here.
            parts = shown.split(",")
            text = ":".join(parts) if all("=" in part for part in parts) else shown
            said = self._fields(shown, characters(text), *((leaves, []) if is_key else ([], leaves)))
        return self._packed(shown, leaves, said, size, may_be_any=is_key)

    def key_text(self, raw: bytes) -> str:
        """A key as `key_bytes` reads it."""
        if self.type in _ARRAYS:
            return str(int.from_bytes(raw, "little"))
        return self._text(raw, is_key=True)

    def value_text(self, raw: bytes) -> str:
        """A value as `value_bytes` reads it."""
        return self._text(raw, is_key=False)

    def _text(self, raw: bytes, *, is_key: bool) -> str:
        try:
            leaves = self._leaves()[0 if is_key else 1] if self._key and self._value else []
        except ValueError:
            leaves = []
        if not leaves:
            return raw.hex()
        parts = [
            self._btf.to_text(
                leaf.type, raw[leaf.offset : leaf.offset + self._btf.size(leaf.type)], may_be_any=is_key
            )
            for leaf in leaves
        ]
        return parts[0] if len(parts) == 1 else ":".join(escaped(part) for part in parts)

    def key_value(self, raw: bytes) -> Any:
        """A key as Python's view of its type."""
        return self._btf.unpack(self._key, raw) if self._key else raw

    def value_value(self, raw: bytes) -> Any:
        """A value as Python's view of its type."""
        return self._btf.unpack(self._value, raw) if self._value else raw

    @property
    def is_pattern_list(self) -> bool:
        """Whether it is one list of names or patterns: a struct fb_patterns."""
        return self._list_of_texts() is not None

    @property
    def patterns(self) -> list[str]:
        """The list, where it is one."""
        raw = bpf.map_lookup(self.fd, bytes(4), self.value_size) or b""
        n, text_type = self._list_of_texts() or (0, 0)
        step = self._btf.size(text_type)
        texts = (self._btf.to_text(text_type, raw[i * step : (i + 1) * step]) for i in range(n))
        return list(itertools.takewhile(bool, texts))

    @patterns.setter
    def patterns(self, texts: list[str]) -> None:
        items = [[(character, True) for character in text] for text in texts]
        if not all(items):
            raise MapValueError(f"{self._shown}: an empty text matches nothing")
        bpf.map_update(self.fd, bytes(4), self._text_list(items))

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
        self.check_writable()
        if not self._value or not self._key:
            raise MapValueError(f"{self._shown}: cannot be set, it has no type information")
        items = [strip(item) for item in split(characters(text), ",")] if text.strip() else []
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

    def as_pattern(self, text: str) -> str:
        """A text as the list has it: paths have no slash at their ends."""
        return trimmed(text) if self.name == "paths" else text

    def _text_list(self, items: list[Text]) -> bytes:
        n, text_type = self._list_of_texts() or (0, 0)
        if len(items) >= n:
            raise MapValueError(f"{self._shown}: {len(items)} items, at most {n - 1} fit")
        packed = b""
        for item in items:
            text = self._path(join(item)) if self.name == "paths" else join(item)
            if self.name == "names" and ("/" in text or text in {".", ".."}):
                raise MapValueError(
                    f"{self._shown}: {text!r} matches no name: names have no slash and are not . or .."
                )
            packed += self._from_text(text_type, text, "")
        return packed.ljust(self.value_size, b"\0")

    def _elements(self, items: list[Text]) -> dict[int, bytes]:
        elements: dict[int, bytes] = {}
        for position, item in enumerate(items):
            shown = join(item)
            left, right = cut(item, "=")
            index = number_from_text(join(left)) if right is not None else None
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

    def _entries(self, items: list[Text]) -> dict[bytes, bytes]:
        if len(items) > self.max_entries:
            raise MapValueError(f"{self._shown}: {len(items)} items, at most {self.max_entries} fit")
        keys, values = self._leaves_or_refuse()
        entries: dict[bytes, bytes] = {}
        for item in items:
            shown = join(item)
            said = self._fields(shown, item, keys, values)
            key = self._packed(shown, keys, said, self.key_size, may_be_any=True)
            if key in entries:
                raise MapValueError(f"{self._shown}: {shown!r}: the same key is there twice")
            entries[key] = self._packed(shown, values, said, self.value_size)
        return entries

    def _fields(self, shown: str, item: Text, keys: list[Leaf], values: list[Leaf]) -> dict[str, str]:
        """What an item says, by the names of fields."""
        names = [leaf.name for leaf in keys + values]
        parts = [cut(part, "=") for part in split(item, ":")]
        if all(right is not None and join(left) in names for left, right in parts):
            said = {join(left): join(right or []) for left, right in parts}
            missing = [
                leaf.name
                for leaf in values
                if leaf.name not in said and not self._defaults_to_one(keys, values)
            ]
            if len(said) < len(parts) or missing:
                fault = f"{missing[0]} is missing" if missing else "a field is said twice"
                raise MapValueError(f"{self._shown}: {shown!r}: {fault}; the fields are {', '.join(names)}")
            return {**{leaf.name: "" for leaf in keys}, **said}
        texts = [join(part) for part in split(item, ":")]
        if len(names) == len(texts) + 1 == 2 and keys:
            left, right = cut(item, "=")
            texts = [join(left), join(right)] if right is not None else texts
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
        packed, is_nameless = bytearray(size), False
        for leaf in leaves:
            text = said.get(leaf.name, "1")
            about = f" {leaf.name} in {shown!r}:" if text != shown else ""
            if (
                leaf.name == "path"
                and self._btf.is_text(leaf.type)
                and not (may_be_any and text in {"", "*"})
            ):
                is_nameless = not text
                # In a key filters look up what the op has: no root, and it may be a pattern to them.
                text = self._path(text, about, path_below if may_be_any else one_path) if text else text
            raw = self._from_text(leaf.type, text, about, may_be_any=may_be_any)
            if may_be_any and leaf.name == "op" and not self._is_asked_of_entries:
                self._check_op(self._btf.to_text(leaf.type, raw, may_be_any=True), about)
            packed[leaf.offset : leaf.offset + len(raw)] = raw
        if is_nameless and any(packed):  # all zero is an element that is not used
            raise MapValueError(f"{self._shown}: path in {shown!r}: '' is no path; the root is '/'")
        return bytes(packed)

    def _check_op(self, op: str, about: str) -> None:
        if op == "dirent":
            raise MapValueError(
                f"{self._shown}:{about} its filter has no hook on 'dirent', so this would hold for nothing"
            )

    def _path(self, text: str, about: str = "", read: Callable[[str], str] = path_below) -> str:
        try:
            return read(text)
        except ValueError as error:
            raise MapValueError(f"{self._shown}:{about} {error}") from None

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


def _n_possible_cpus() -> int:
    last = _POSSIBLE_CPUS.read_text().strip().split(",")[-1]
    return int(last.rpartition("-")[2]) + 1
