"""Several backing roots: what the mount holds of what is in them."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import support
from chain.chained import HERE


@pytest.fixture
def other_file_system(directory: Path) -> Iterator[Path]:
    """An empty directory on a file system of its own."""
    root = directory / "other"
    root.mkdir()
    support.run("mount", "-t", "tmpfs", "tmpfs", root)
    try:
        yield root
    finally:
        support.run("umount", "--lazy", root, check=False)


def test_files_of_a_root_on_another_file_system_hold_no_descriptors(
    mount: support.Mounter, other_file_system: Path
) -> None:
    for i in range(100):
        (other_file_system / f"x{i}").touch()
    mounted = mount(
        filters=[HERE / "roots.c"],
        sets={"roots.to": "1"},
        options="max_descriptors=16",
        arguments=["--root", str(other_file_system)],
    )
    idle = len(os.listdir(f"/proc/{mounted.pid}/fd"))

    done = support.run(
        "python3",
        "-c",
        "import os, sys\n"
        "held = [os.open(f'{sys.argv[1]}/x{i}', os.O_PATH) for i in range(100)]\n"
        f"print(len(os.listdir('/proc/{mounted.pid}/fd')))",
        mounted.path,
    )

    assert int(done.stdout) <= idle + 20
