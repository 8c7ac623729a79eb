"""Several backing roots: what the mount holds of what is in them."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import support
from chain.chained import HERE, Array


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


def test_a_directory_that_changes_its_root_while_an_op_is_in_it_keeps_its_descriptor(
    mount: support.Mounter,
) -> None:
    below = mount(filters=["fault"], sets={"fault.delays": "unlink:*:*:1500,rename:*:*:2000"})
    one, two = below.path / "one", below.path / "two"
    for each in (one, two):
        each.mkdir()
    mounted = mount(one, filters=[HERE / "roots.c"], arguments=["--root", str(two)])
    led, to = mounted.path / "xd", Array(mounted.pins / "roots" / "to")
    led.mkdir()
    (led / "xf").touch()

    def runs_below(op: str) -> bool:
        return any(key[0] == "fault" and key[2] == f"FB_OP_{op}" for key in below.stats())

    with support.clients(("mv", "-T", one / "xd", two / "xd")) as (mover,):
        support.wait_until(lambda: runs_below("rename"))
        with support.clients(("unlink", led / "xf")) as (
            remover,
        ):  # waits for the rename, and then once more
            assert mover.wait(20) == 0
            support.wait_until(lambda: runs_below("unlink"))
            to[0] = 1
            assert led.is_dir()
            assert remover.wait(20) == 0
    to.close()

    for _ in range(20):
        assert os.listdir(led) == []
        (led / "in").mkdir()
        (led / "in").rmdir()
