"""Mounts that a module's tests share."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from core.variants import VARIANTS, Variant


@pytest.fixture(scope="module", params=list(VARIANTS))
def variant(run_directory: Path, request: pytest.FixtureRequest) -> Iterator[Variant]:
    """A mount with passthrough, without it, and with a filter that hooks everything."""
    made = Variant(run_directory, request.param)
    yield made
    made.take_down()
