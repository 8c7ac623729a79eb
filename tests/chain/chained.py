"""Mounts through filters of this folder, and their maps."""

import itertools
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import support

from fusebpf import bpf
from fusebpf._core import OPS

HERE = Path(__file__).parent
OPCODES = {name: opcode for name, opcode, *_ in OPS}
_numbers = itertools.count()


class Array:
    """A pinned array map of numbers."""

    def __init__(self, path: Path, size: int = 4) -> None:
        self._fd = bpf.obj_get(path)
        self._size = size

    def __getitem__(self, index: int) -> int:
        value = bpf.map_lookup(self._fd, index.to_bytes(4, "little"), self._size)
        assert value is not None
        return int.from_bytes(value, "little", signed=True)

    def __setitem__(self, index: int, value: int) -> None:
        data = value.to_bytes(self._size, "little", signed=value < 0)
        bpf.map_update(self._fd, index.to_bytes(4, "little"), data)

    def close(self) -> None:
        os.close(self._fd)

    @contextmanager
    def put(self, index: int, value: int) -> Iterator[None]:
        """This value for the time of a block, then 0."""
        self[index] = value
        try:
            yield
        finally:
            self[index] = 0


class Chained:
    """One mount, and the maps of its filters."""

    def __init__(self, mounted: support.Mounted) -> None:
        self.mounted = mounted
        self._maps: dict[str, Array] = {}

    def map(self, path: str, size: int = 4) -> Array:
        """A filter's map, such as "gate/pre"."""
        if path not in self._maps:
            self._maps[path] = Array(self.mounted.pins / path, size)
        return self._maps[path]

    def fresh(self) -> tuple[Path, Path]:
        """A new directory, through the mount and behind it."""
        name = f"d{next(_numbers)}"
        (self.mounted.src / name).mkdir()
        return self.mounted.path / name, self.mounted.src / name

    def close(self) -> None:
        for each in self._maps.values():
            each.close()


@contextmanager
def chained(
    top: Path, filters: Sequence[str | Path], options: str = "", **keywords: Any
) -> Iterator[Chained]:
    """A mount for the time of a block."""
    number = next(_numbers)
    directory = top / f"chain-{number}"
    directory.mkdir(mode=0o755)
    mounter = support.Mounter(directory, f"test{os.getpid()}-chain{number}-")
    try:
        made = Chained(mounter(filters=filters, options=options, **keywords))
        try:
            yield made
        finally:
            made.close()
    finally:
        left = mounter.take_down()
        support.remove_tree(directory)
    assert left == [], "left behind"


def source(directory: Path, text: str, name: str = "mine") -> Path:
    """A file with filters."""
    path = directory / f"{name}.c"
    path.write_text('#include "fusebpf.h"\n' + text)
    return path
