"""What a filter that replaces another takes over: maps of the same name and type, with their content."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fusebpf import bpf
from fusebpf.bpf import MapType
from fusebpf.btf import Btf
from fusebpf.errors import MapValueError

if TYPE_CHECKING:
    from collections.abc import Container

    from fusebpf.compiler import Compiled, MapDefinition
    from fusebpf.loader import Filter
    from fusebpf.policy_map import PolicyMap

_COPIED = frozenset({MapType.HASH, MapType.LRU_HASH, MapType.ARRAY})


def alike(old: Filter, compiled: Compiled, name: str, but: Container[str]) -> dict[str, PolicyMap]:
    """The maps of a filter that the filter `name` of a compiled file has too, by their names in that file.

    Alike are those of one name, kind, and type of key and value; `but` are names that shall not be.
    """
    btf = Btf(compiled.btf)
    found = {}
    for short, policy_map in old.maps.items():
        full = next((one for one in (f"{name}__{short}", short) if one in compiled.maps), None)
        if full is None or short in but:
            continue
        definition = compiled.maps[full]
        is_same_size = definition.max_entries == policy_map.max_entries
        if _is_same_type(policy_map, definition, btf) and (is_same_size or policy_map.type in _COPIED):
            found[full] = policy_map
    return found


def _is_same_type(old: PolicyMap, definition: MapDefinition, btf: Btf) -> bool:
    numbers = (old.type, old.key_size, old.value_size)
    if numbers != (definition.type, definition.key_size, definition.value_size):
        return False
    return old.shape == (btf.shape(definition.btf_key), btf.shape(definition.btf_value))


def as_they_are(found: dict[str, PolicyMap], compiled: Compiled) -> dict[str, int]:
    """Those that the kernel's map itself can go over, by their descriptors: the same size as well."""
    return {full: one.fd for full, one in found.items() if compiled.maps[full].max_entries == one.max_entries}


def copy(old: PolicyMap, new: PolicyMap) -> None:
    """Put the content of a map into one of another size; zeros at an array's end may be cut off.

    Raises:
        MapValueError: A smaller one cannot hold it.
    """
    for key in list(bpf.map_keys(old.fd, old.key_size)):
        value = bpf.map_lookup(old.fd, key, old.value_size)
        if value is None:
            continue
        if old.type == MapType.ARRAY and int.from_bytes(key, "little") >= new.max_entries:
            if any(value):
                raise _too_many(new)
            continue
        try:
            bpf.map_update(new.fd, key, value)
        except OSError as error:
            raise _too_many(new, f" ({error.strerror})") from error


def _too_many(new: PolicyMap, why: str = "") -> MapValueError:
    return MapValueError(
        f"the map {new.name!r} holds {new.max_entries} elements now, and had more: "
        f"take some out, or replace with fresh maps{why}"
    )
