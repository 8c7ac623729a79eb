"""Every test of the command looks at what is left behind."""

from collections.abc import Iterator
from pathlib import Path

import cli_support
import pytest
import support


@pytest.fixture
def tree(directory: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory with `src` (with a file in it) and `mnt`; nothing of it may outlive the test."""
    (directory / "src").mkdir()
    (directory / "src" / "file").write_text("text\n")
    (directory / "mnt").mkdir()
    monkeypatch.setenv(cli_support.MARK, str(directory))
    pinned = orphans()
    yield directory
    left = cli_support.left_behind(directory) + sorted(orphans() - pinned)
    for path in support.mountpoints(directory):
        support.umount(path, support.MNT_DETACH)
    for pid in cli_support.processes(directory):
        support.end_server(pid, seconds=5)
    support.run(support.COMMAND, "list", check=False)
    assert left == [], "left behind"


def orphans() -> set[str]:
    """Directories of pins that no mount has."""
    pinned = {f"pins {path.name}" for path in support.PINS.glob("*")}
    return pinned - {f"pins {path.stem}" for path in support.STATE.glob("*.json")}
