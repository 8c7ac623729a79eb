"""Every test of the command looks at what is left behind."""

from collections.abc import Iterator
from pathlib import Path

import cli_support
import pytest
import support


@pytest.fixture
def tree(directory: Path) -> Iterator[Path]:
    """A directory with `src` (with a file in it) and `mnt`; nothing that has to do with it may outlive the test."""
    (directory / "src").mkdir()
    (directory / "src" / "file").write_text("text\n")
    (directory / "mnt").mkdir()
    yield directory
    left = cli_support.left_behind(directory)
    for path in support.mountpoints(directory):
        support.umount(path, support.MNT_DETACH)
    for pid in cli_support.processes(str(directory)):
        support.end_server(pid, seconds=5)
    support.run(support.COMMAND, "list", check=False)
    assert left == [], "left behind"
