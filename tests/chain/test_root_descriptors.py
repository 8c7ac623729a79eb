"""Several backing roots: what the mount holds of what is in them, and what a listing says of it."""

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


KEPT = """
#include "fusebpf.h"

FILTER(kept, .altitude = FB_VIEW, .doc = "All names are in root 1, and may be kept.")

PRE(kept, lookup)
{
	ctx->backing = 1;
	ctx->ttl_ns = 60000000000ull;
	ctx->edits |= FB_EDIT_BACKING | FB_EDIT_TTL;
	return FB_REWRITE;
}
"""


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


def test_an_entry_that_is_listed_with_its_attributes_has_the_type_of_what_it_leads_to(
    mount: support.Mounter, directory: Path
) -> None:
    (directory / "kept.c").write_text(KEPT)
    root = mount.new_directory("root")
    mounted = mount(filters=[directory / "kept.c"], arguments=["--root", str(root)])
    (mounted.src / "x").mkdir()
    (mounted.src / "y").touch()
    (root / "x").touch()
    (root / "y").mkdir()
    (mounted.path / "x").stat()  # from here on it is known that names may be kept

    types = {entry.name: entry.is_dir(follow_symlinks=False) for entry in os.scandir(mounted.path)}

    assert types == {"x": False, "y": True}
