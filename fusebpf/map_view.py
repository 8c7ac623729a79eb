"""A policy map that works, as a dictionary; what is set holds for the next op that asks.

Keys and values are Python's view of their types (btf.py), and may also be given as the text that `--set`
takes. A key that is a struct comes as such a text, since a dictionary's keys have to be hashable. A list of
names or patterns is a dictionary of its patterns, each True.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Callable, Iterator, MutableMapping
from typing import TYPE_CHECKING, Any

from fusebpf import bpf, registry
from fusebpf.btf import Btf
from fusebpf.errors import MapValueError, NoSuchElement, NoSuchFilter
from fusebpf.policy_map import PolicyMap
from fusebpf.set_text import escaped

if TYPE_CHECKING:
    from pathlib import Path

_SCAN_SECONDS = 0.005
"""Longer than a hook looks at a list of patterns."""


class MapView(MutableMapping[Any, Any]):
    """One map of a filter in a chain. Nothing is kept here: each call asks the kernel."""

    def __init__(self, find: Callable[[], PolicyMap], changed: Callable[[], None] = lambda: None) -> None:
        """`find` gives the map as it is at the time of a call: a replaced filter may have another.

        `changed` is called after each change.
        """
        self._find = find
        self._changed = changed

    def __getitem__(self, key: Any) -> Any:
        found = self._find()
        if found.is_pattern_list:
            if _pattern(found, key) not in found.patterns:
                raise NoSuchElement(f"{found.shown} has no pattern {key!r}")
            return True
        raw = found.lookup(found.key_bytes(key))
        if raw is None:
            raise NoSuchElement(f"{found.shown} has no {key!r}")
        return raw if isinstance(raw, list) else found.value_value(raw)

    def __setitem__(self, key: Any, value: Any) -> None:
        self._set(key, value)
        self._changed()

    def __delitem__(self, key: Any) -> None:
        self._delete(key)
        self._changed()

    def _set(self, key: Any, value: Any) -> None:
        found = self._find()
        if found.is_pattern_list:
            if str(value).lower() not in {"true", "1"}:
                raise MapValueError(f"{found.shown}: a pattern is there or not, so its value is True or 1")
            with registry.locked():
                if _pattern(found, key) not in (there := found.patterns):
                    found.patterns = [*there, _text(key)]
            return
        found.check_writable()
        raw_key = found.key_bytes(key)
        raw_value = found.value_bytes(value)
        with _in_words(found):
            bpf.map_update(found.fd, raw_key, raw_value)

    def _delete(self, key: Any) -> None:
        found = self._find()
        if found.is_pattern_list:
            with registry.locked():
                _remove_pattern(found, _pattern(found, key))
            return
        found.check_writable()
        if found.is_array:
            raise MapValueError(f"{found.shown}: an element of an array cannot be deleted; set it to 0")
        raw_key = found.key_bytes(key)
        if found.lookup(raw_key) is None:
            raise NoSuchElement(f"{found.shown} has no {key!r}")
        with _in_words(found):
            bpf.map_delete(found.fd, raw_key)

    def __iter__(self) -> Iterator[Any]:
        found = self._find()
        if found.is_pattern_list:
            yield from found.patterns
            return
        for raw in found.raw_keys():
            key = found.key_value(raw)
            yield found.key_text(raw) if isinstance(key, dict) else key

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __repr__(self) -> str:
        return f"<{self._find().shown} {dict(self)!r}>"

    # ------------------------------------------------------------------------- for the command

    def rows(self) -> list[Any]:
        """The content for JSON: patterns, or {"key": …, "value": …} with structs as objects."""
        found = self._find()
        if found.is_pattern_list:
            return found.patterns
        rows = []
        for raw in found.raw_keys():
            value = found.lookup(raw)
            if value is not None:
                shown = value if isinstance(value, list) else found.value_value(value)
                rows.append({"key": for_json(found.key_value(raw)), "value": for_json(shown)})
        return rows

    def items_as_text(self) -> list[str]:
        """The content in the form that `--set` takes, an item each."""
        found = self._find()
        if found.is_pattern_list:
            return [escaped(pattern) for pattern in found.patterns]
        lines = []
        for raw in found.raw_keys():
            value = found.lookup(raw)
            if value is not None:
                texts = value if isinstance(value, list) else found.value_text(value)
                lines.append(found.item_text(found.key_text(raw), texts))
        return lines

    def get_as_text(self, key: str) -> str:
        """One value in the form that `--set` takes.

        Raises:
            NoSuchElement: There is no such key or pattern.
            MapValueError: The key does not fit the map's type.
        """
        found = self._find()
        if found.is_pattern_list:
            return "1" if self[key] else ""
        raw = found.lookup(found.key_bytes(key))
        if raw is None:
            raise NoSuchElement(f"{found.shown} has no {key!r}")
        return str(raw) if isinstance(raw, list) else found.value_text(raw)


def _pattern(found: PolicyMap, key: Any) -> str:
    return found.as_pattern(_text(key))


def _text(key: Any) -> str:
    return os.fsdecode(key) if isinstance(key, bytes) else str(key)


def _remove_pattern(found: PolicyMap, pattern: str) -> None:
    """Take a pattern out; all others match at every moment, for hooks that look at the list meanwhile too."""
    there = found.patterns
    if pattern not in there:
        raise NoSuchElement(f"{found.shown} has no pattern {pattern!r}")
    *_, last = there
    if pattern != last:
        there[there.index(pattern)] = last
        found.patterns = there
        time.sleep(_SCAN_SECONDS)
    found.patterns = there[:-1]


def for_json(value: Any) -> Any:
    """A value of Python's view of a type; bytes in hexadecimal digits."""
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, dict):
        return {key: for_json(one) for key, one in value.items()}
    return [for_json(one) for one in value] if isinstance(value, list) else value


@contextlib.contextmanager
def _in_words(found: PolicyMap) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        is_full = error.errno == errno.E2BIG
        why = f"it is full, with {found.max_entries} items" if is_full else error.strerror
        raise MapValueError(f"{found.shown}: the kernel refuses it: {why}") from error


def check_filter(pins: Path, name: str) -> None:
    """See that a mount has a filter, by its pins.

    Raises:
        NoSuchFilter: It has not.
    """
    filters = sorted(path.name for path in pins.iterdir() if path.is_dir()) if pins.is_dir() else []
    if name not in filters:
        raise NoSuchFilter(f"the mount has no filter {name!r}, it has: {', '.join(filters) or 'none'}")


def pinned(pins: Path, filter_name: str, map_name: str) -> PolicyMap:
    """A map of a filter, by its pin; the caller closes it.

    Raises:
        NoSuchFilter: There is no such filter.
        MapValueError: It has no such map.
    """
    check_filter(pins, filter_name)
    maps = sorted(path.name for path in (pins / filter_name).iterdir() if _is_map(path))
    if map_name not in maps:
        raise MapValueError(
            f"the filter {filter_name!r} has no map {map_name!r}, it has: {', '.join(maps) or 'none'}"
        )
    fd = bpf.obj_get(pins / filter_name / map_name)
    info = bpf.map_info(fd)
    raw = bpf.btf_raw(info.btf_id) if info.btf_id else b""
    return PolicyMap(
        map_name,
        fd,
        Btf(raw) if raw else Btf.empty(),
        info.btf_key,
        info.btf_value,
        shown=f"{filter_name}.{map_name}",
        is_asked_of_entries=(pins / filter_name / "post_dirent").exists(),
    )


def _is_map(path: Path) -> bool:
    """Whether a pin is a map's; programs are pinned beside them."""
    try:
        fd = bpf.obj_get(path)
    except OSError:
        return False
    try:
        return bpf.is_map(fd)
    finally:
        os.close(fd)
