"""Mounts that a module's tests share: each variant once, made anew if a test has broken it."""

import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import support

VARIANTS = {
    "passed_through": ((), ""),
    "served": ((), "nopassthrough"),
    "audited": (("audit",), ""),
}
_numbers = itertools.count()


class Variant:
    """One mount for all tests of a module."""

    def __init__(self, top: Path, name: str) -> None:
        self.name = name
        self._filters, self._options = VARIANTS[name]
        number = next(_numbers)
        directory = top / f"{name}-{number}"
        directory.mkdir(mode=0o755)
        self._mounter = support.Mounter(directory, f"test{os.getpid()}-core{number}-")
        self._mounted: support.Mounted | None = None

    @property
    def mounted(self) -> support.Mounted:
        """The mount, which is there."""
        old = self._mounted
        if old is None or not support.is_alive(old.pid) or old.path not in support.mountpoints(old.path):
            self._mounted = self._mounter(filters=self._filters, options=self._options)
        assert self._mounted is not None
        return self._mounted

    def take_down(self) -> None:
        assert self._mounter.take_down() == [], "left behind"


@pytest.fixture(scope="module", params=list(VARIANTS))
def variant(run_directory: Path, request: pytest.FixtureRequest) -> Iterator[Variant]:
    """A mount with passthrough, without it, and with a filter that hooks everything."""
    made = Variant(run_directory, request.param)
    yield made
    made.take_down()
