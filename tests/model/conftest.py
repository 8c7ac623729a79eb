"""Mounts that a module's tests share."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from core.variants import SMALL, VARIANTS, Variant


@pytest.fixture(scope="module", params=list(VARIANTS | SMALL))
def variant(run_directory: Path, request: pytest.FixtureRequest) -> Iterator[Variant]:
    """A mount of each kind, with all that a bare directory allows."""
    made = Variant(run_directory, request.param, "dev,suid")
    yield made
    made.take_down()
