"""Compiled once for all; and after each test nothing is open, pinned or running that was not before it."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import loader_support
import pytest
import support

from fusebpf import bpf, loader
from fusebpf.loader import Compiled, Filter, SharedMaps


@pytest.fixture(scope="session")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    """A file with four of the stock filters, compiled."""
    path = tmp_path_factory.mktemp("stock") / "filters.c"
    path.write_text("".join(loader.stock(name).read_text() for name in loader_support.STOCK))
    return loader.compile_source(path)


@pytest.fixture(scope="session")
def shared(stock: Compiled) -> Iterator[SharedMaps]:
    """The shared maps of a mount with two threads."""
    with SharedMaps.create(2, stock) as made:
        yield made


@pytest.fixture(scope="session")
def runner(
    shared: SharedMaps, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[loader_support.HookRunner]:
    """Runs hooks."""
    path = loader_support.write(tmp_path_factory.mktemp("types"), loader_support.TYPES)
    with loader_support.HookRunner(shared, loader.compile_source(path).btf) as made:
        yield made


@pytest.fixture
def load_text(tmp_path: Path, shared: SharedMaps) -> Iterator[Callable[[str], Filter]]:
    """Loads the one filter of a source text."""
    loaded: list[Filter] = []

    def load(text: str) -> Filter:
        loaded.extend(loader.load(loader_support.write(tmp_path, text), shared))
        return loaded[-1]

    yield load
    for each in loaded:
        each.close()


@pytest.fixture
def pins(tmp_path: Path) -> Iterator[Path]:
    """A directory of pins that is not there yet."""
    directory = bpf.ensure_bpffs() / "fusebpf-tests" / tmp_path.name
    yield directory
    support.unpin(directory)
    if directory.parent.is_dir():
        directory.parent.rmdir()


@pytest.fixture(autouse=True)
def _nothing_left(runner: loader_support.HookRunner) -> Iterator[None]:
    before = (loader_support.descriptors(), _children())
    yield
    assert runner
    assert before == (loader_support.descriptors(), _children()), "left behind"


def _children() -> str:
    return Path(f"/proc/self/task/{os.getpid()}/children").read_text()
