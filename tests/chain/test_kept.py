"""What a pre hook hands its own post hook, and the path of each op, open files' among them."""

import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
import support
from chain.chained import HERE, OPCODES, Chained, chained
from chain.triggers import prepared
from core.table import attempt, in_child

from fusebpf import bpf
from fusebpf._core import OP_FLAGS, OPS

UNREFUSABLE = OP_FLAGS["UNREFUSABLE"]
HOOKED = {name: flags for name, _, _, flags, kind, _ in OPS if kind == "hook" and name != "access"}
HAS_PATH, PATH_LOST = 1 << 1, 1 << 2
IN_DIRECTORY = {"statfs": "", "readdir": "", "tmpfile": "", "lookup": "/f", "readlink": "/link"}
"""Where the path of an op is not that of the file that triggers.py opens."""
NEW = {"symlink", "mknod", "mkdir", "create"}
ON_D = {"rmdir", "opendir", "releasedir", "fsyncdir"}


@pytest.fixture(scope="module")
def kept(run_directory: Path) -> Iterator[Chained]:
    with chained(run_directory, [HERE / "kept.c"]) as made:
        yield made


def path_of(kept: Chained, op: str, which: str = "paths") -> tuple[int, str]:
    """Flags and path that the op's pre hook saw last."""
    fd = bpf.obj_get(kept.mounted.pins / "kept" / which)
    try:
        value = bpf.map_lookup(fd, OPCODES[op].to_bytes(4, "little"), 64)
    finally:
        os.close(fd)
    assert value is not None
    flags, length, text = struct.unpack("2I56s", value)
    assert text[length : length + 1] in {b"\0", b""}
    return flags & (HAS_PATH | PATH_LOST), text[:length].decode()


@pytest.mark.parametrize("op", HOOKED)
def test_a_cookie_goes_from_pre_to_the_same_filters_post(kept: Chained, op: str) -> None:
    good, bad = kept.map("kept/good"), kept.map("kept/bad")
    p, _ = kept.fresh()

    with prepared(op, p) as call:
        before = good[OPCODES[op]]
        if HOOKED[op] & UNREFUSABLE:
            call()
            support.wait_until(lambda: good[OPCODES[op]] > before)
        else:
            in_child(attempt, call)

    assert good[OPCODES[op]] > before
    assert bad[OPCODES[op]] == 0


@pytest.mark.parametrize("op", [name for name in HOOKED if name != "dirent"])
def test_every_op_has_its_path(kept: Chained, op: str) -> None:
    p, _ = kept.fresh()
    end = "/new" if op in NEW else "/d" if op in ON_D else IN_DIRECTORY.get(op, "/f")
    expected = (HAS_PATH, p.name + end)

    with prepared(op, p) as call:
        if HOOKED[op] & UNREFUSABLE:
            call()
            support.wait_until(lambda: path_of(kept, op) == expected)
            return
        in_child(attempt, call)

    assert path_of(kept, op) == expected
    if op in {"rename", "link"}:
        assert path_of(kept, op, "paths2") == (HAS_PATH, p.name + "/new")


def test_an_open_files_path_follows_renames_of_what_is_above(kept: Chained) -> None:
    p, behind = kept.fresh()
    (behind / "a/b").mkdir(parents=True)
    (behind / "a/b/f").write_text("x")
    fd = os.open(p / "a/b/f", os.O_RDWR)
    try:
        for old, new, now in (("a", "A", "A/b/f"), ("A/b", "B", "B/f"), ("B/f", "g", "g")):
            os.rename(p / old, p / new)
            os.pwrite(fd, b"y", 0)
            os.fsync(fd)
            assert path_of(kept, "write") == path_of(kept, "fsync") == (HAS_PATH, f"{p.name}/{now}")
    finally:
        os.close(fd)


@pytest.mark.parametrize("where", ["through", "behind"])
def test_what_is_made_in_a_directory_has_its_path_as_renames_above_left_it(kept: Chained, where: str) -> None:
    p, behind = kept.fresh()
    (behind / "a0/b/c").mkdir(parents=True)
    cores = os.sched_getaffinity(0)
    fd = os.open(p / "a0/b/c", os.O_RDONLY | os.O_DIRECTORY)
    try:
        for number in range(1, 6):
            # Over io_uring each core has workers of its own: those that make it hear nothing of the renames.
            os.sched_setaffinity(0, {min(cores)})
            for name in ("x", "y"):
                os.mkdir(f"{name}{number}", dir_fd=fd)
                assert path_of(kept, "mkdir") == (HAS_PATH, f"{p.name}/a{number - 1}/b/c/{name}{number}")
            os.sched_setaffinity(0, {max(cores)})
            root = p if where == "through" else behind
            os.rename(root / f"a{number - 1}", root / f"a{number}")
            support.wait_until((p / f"a{number}/b/c").is_dir)
    finally:
        os.sched_setaffinity(0, cores)
        os.close(fd)


def test_an_unlinked_files_path_is_its_last(kept: Chained) -> None:
    p, behind = kept.fresh()
    (behind / "f").write_text("x")
    fd = os.open(p / "f", os.O_RDWR)
    try:
        os.unlink(p / "f")
        os.pwrite(fd, b"y", 0)
        assert path_of(kept, "write") == (HAS_PATH, f"{p.name}/f")
    finally:
        os.close(fd)


def test_a_file_with_links_has_the_path_by_which_it_was_looked_up_last(kept: Chained) -> None:
    p, behind = kept.fresh()
    for name in ("a", "b"):
        (behind / name).mkdir()
    (behind / "a/f").write_text("x")
    os.link(behind / "a/f", behind / "b/g")
    fd = os.open(p / "a/f", os.O_RDWR)
    try:
        for name in ("a/f", "b/g", "a/f"):
            in_child(os.stat, p / name)
            os.pwrite(fd, b"y", 0)
            assert path_of(kept, "write") == (HAS_PATH, f"{p.name}/{name}")
    finally:
        os.close(fd)


def test_the_roots_path_is_empty(kept: Chained) -> None:
    in_child(os.listdir, kept.mounted.path)
    assert path_of(kept, "opendir") == (HAS_PATH, "")


def test_a_path_that_is_too_long_is_lost(kept: Chained) -> None:
    p, _ = kept.fresh()

    def act() -> None:
        os.chdir(p)
        for _ in range(17):
            os.mkdir("n" * 250)
            os.chdir("n" * 250)
        os.mkdir("last")

    in_child(act)
    flags, text = path_of(kept, "mkdir")
    assert (flags, text) == (HAS_PATH | PATH_LOST, "")
