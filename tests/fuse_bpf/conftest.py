"""One mount through the filters of this folder, and one without any, for all its tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from chain.chained import Chained, chained

FILTERS = Path(__file__).with_name("filters.c")


@pytest.fixture(scope="session")
def filtered(run_directory: Path) -> Iterator[Chained]:
    with chained(run_directory, [FILTERS, "hide"], sets={"hide.names": "hidden*"}) as made:
        yield made


@pytest.fixture(scope="session")
def plain(run_directory: Path) -> Iterator[Chained]:
    with chained(run_directory, []) as made:
        yield made
