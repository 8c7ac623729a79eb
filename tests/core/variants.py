"""The ways to mount that all ops are tried in."""

import itertools
import os
from pathlib import Path

import support

VARIANTS: dict[str, tuple[tuple[str, ...], str]] = {
    "passed_through": ((), ""),
    "served": ((), "nopassthrough"),
    "audited": (("audit",), ""),
}
# Not for tests of locks that both sides see, and of opens that are judged.
SMALL: dict[str, tuple[tuple[str, ...], str]] = {
    "small": ((), "profile=small"),
    "small_watched": ((), "profile=small,cache=watch"),
}
_numbers = itertools.count()


class Variant:
    """One mount for all tests of a module; made anew if a test has broken it."""

    def __init__(self, top: Path, name: str, options: str = "") -> None:
        self.name = name
        self._filters, own = (VARIANTS | SMALL)[name]
        self._options = ",".join(filter(None, (own, options)))
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
