"""Paths that filters are shown of nodes of the daemon's own."""

import ctypes
import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from chain.chained import HERE, OPCODES, Chained, chained

from fusebpf import bpf

DAEMONS = Path(__file__).parent / "daemons.py"
RENAME_EXCHANGE = 2
N_FILES = 16
_libc = ctypes.CDLL(None, use_errno=True)


@pytest.fixture
def kept(directory: Path) -> Iterator[Chained]:
    """A mount with the daemon Nodes behind a filter that keeps the path of the last op of each kind."""
    with chained(directory, [HERE / "kept.c"], arguments=["--daemon", f"{DAEMONS}:Nodes"]) as made:
        yield made


def path_written(kept: Chained, fd: int) -> str:
    """The path that a write to an open file has."""
    os.pwrite(fd, b"x", 0)
    array = bpf.obj_get(kept.mounted.pins / "kept/paths")
    try:
        value = bpf.map_lookup(array, OPCODES["write"].to_bytes(4, "little"), 64)
    finally:
        os.close(array)
    assert value is not None
    _, length, text = struct.unpack("II56s", value)
    return bytes(text[:length]).decode()


def make(path: Path) -> int:
    """An open file."""
    return os.open(path, os.O_RDWR | os.O_CREAT, 0o644)


def test_a_file_that_replaced_an_open_one_has_its_path_after_another_rename(kept: Chained) -> None:
    own = kept.mounted.path / "own"
    for number in range(N_FILES):
        name = f"n{number}"
        old, new = make(own / name), make(own / "fresh")

        os.rename(own / "fresh", own / name)
        os.rename(own / name, own / f"moved{number}")

        assert path_written(kept, new) == f"own/moved{number}"
        os.close(old)
        os.close(new)


def test_files_that_a_daemon_exchanges_have_each_others_path(kept: Chained) -> None:
    own = kept.mounted.path / "own"
    a, b = make(own / "a"), make(own / "b")

    names = os.fsencode(own / "a"), os.fsencode(own / "b")
    assert _libc.renameat2(-100, names[0], -100, names[1], RENAME_EXCHANGE) == 0

    assert (path_written(kept, a), path_written(kept, b)) == ("own/b", "own/a")
    os.close(a)
    os.close(b)
