"""Mounts that a module's tests share."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from chain.chained import HERE, Chained, chained


@pytest.fixture(scope="module")
def gate(run_directory: Path) -> Iterator[Chained]:
    """Through gate.c, which does what its maps say."""
    with chained(run_directory, [HERE / "gate.c"]) as made:
        yield made


@pytest.fixture(scope="module")
def edit(run_directory: Path) -> Iterator[Chained]:
    """Through edit.c, which rewrites what its map `way` says."""
    with chained(run_directory, [HERE / "edit.c"]) as made:
        yield made
