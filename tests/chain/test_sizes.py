"""What hooks are told of the size of a file before and after an op, and of what has lost its last name."""

import errno
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import support
from core.table import attempt, checked, libc

from fusebpf.testing import Chain

# The sizes that the last hook of each phase saw; ino and nodeid of what was looked up and of what has gone.
SOURCE = """
#include "fusebpf.h"
FILTER(sizes, .altitude = 600, .wants = FB_WANTS_SIZES)
struct seen { u64 old_size; u64 size; u64 gone; };
BPF_ARRAY(sizes__seen, struct seen, 2);
BPF_ARRAY(sizes__numbers, u64, 4);
FB_ALWAYS_INLINE int note(struct fb_slot *ctx, u32 at)
{
	struct seen seen = { .old_size = ctx->old_size, .size = ctx->size, .gone = !!(ctx->flags & FB_GONE) };

	sizes__seen.update(&at, &seen);
	return FB_CONTINUE;
}
PRE(sizes, write) { return note(ctx, 0); }
POST(sizes, write) { return note(ctx, 1); }
PRE(sizes, setattr) { return note(ctx, 0); }
POST(sizes, setattr) { return note(ctx, 1); }
PRE(sizes, fallocate) { return note(ctx, 0); }
POST(sizes, fallocate) { return note(ctx, 1); }
PRE(sizes, open) { return note(ctx, 0); }
POST(sizes, open) { return note(ctx, 1); }
COPY
POST(sizes, lookup)
{
	u32 first = 0, second = 1;

	if (!ctx->error) {
		sizes__numbers.update(&first, &ctx->result.attr.ino);
		sizes__numbers.update(&second, &ctx->result.attr.nodeid);
	}
	return FB_CONTINUE;
}
POST(sizes, unlink)
{
	u32 third = 2, fourth = 3;

	if (ctx->flags & FB_GONE) {
		sizes__numbers.update(&third, &ctx->result.attr.ino);
		sizes__numbers.update(&fourth, &ctx->result.attr.nodeid);
	}
	return FB_CONTINUE;
}
"""
COPY = """
PRE(sizes, copy_file_range) { return note(ctx, 0); }
POST(sizes, copy_file_range) { return note(ctx, 1); }
"""


@pytest.fixture
def sized(mount: support.Mounter, tmp_path: Path) -> support.Mounted:
    source = tmp_path / "sizes.c"
    source.write_text(SOURCE.replace("COPY", ""))
    return mount(filters=[source])


def seen(mounted: support.Mounted) -> list[tuple[int, ...]]:
    """(size before, size) in pre and in post, and whether the file had no name."""
    rows = [row["formatted"]["value"] for row in mounted.dump("sizes/seen")]
    return [(row["old_size"], row["size"], row["gone"]) for row in rows]


@pytest.fixture
def fd(sized: support.Mounted) -> Iterator[int]:
    """A file of 100 bytes."""
    (sized.src / "f").write_bytes(bytes(100))
    fd = os.open(sized.path / "f", os.O_RDWR)
    yield fd
    os.close(fd)


ACTS: dict[str, tuple[Callable[[int], Any], int]] = {
    "write": (lambda fd: os.pwrite(fd, bytes(50), 80), 130),
    "write within": (lambda fd: os.pwrite(fd, bytes(50), 20), 100),
    "truncate": (lambda fd: os.ftruncate(fd, 7), 7),
    "fallocate": (lambda fd: os.posix_fallocate(fd, 0, 300), 300),
    "keep size": (lambda fd: checked(libc.fallocate(fd, 1, 0, 300)), 100),
    "open": (lambda fd: os.close(os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_TRUNC)), 0),
    "fails": (lambda fd: attempt(os.ftruncate, fd, 1 << 62), 100),
}


@pytest.mark.parametrize("name", ACTS)
def test_hooks_see_the_size_before_and_after(sized: support.Mounted, fd: int, name: str) -> None:
    act, size = ACTS[name]

    act(fd)

    assert seen(sized) == [(100, 100, 0), (100, size, 0)]


def test_hooks_see_that_a_file_has_no_name_any_more(sized: support.Mounted, fd: int) -> None:
    (sized.path / "f").unlink()

    os.ftruncate(fd, 7)

    assert seen(sized) == [(100, 100, 1), (100, 7, 1)]


def test_an_op_that_changes_no_size_has_none(sized: support.Mounted, fd: int) -> None:
    os.ftruncate(fd, 7)
    os.fchmod(fd, 0o600)
    assert seen(sized) == [(0, 0, 0)] * 2
    os.ftruncate(fd, 9)
    os.close(os.open(sized.path / "f", os.O_RDWR))
    assert seen(sized) == [(0, 0, 0)] * 2


def test_of_a_copy_the_size_is_that_of_what_is_copied_to(mount: support.Mounter, tmp_path: Path) -> None:
    source = tmp_path / "sizes.c"
    text = SOURCE.replace("COPY", COPY).replace("PRE(sizes, write) { return note(ctx, 0); }\n", "")
    source.write_text(text.replace("POST(sizes, write) { return note(ctx, 1); }\n", ""))
    mounted = mount(filters=[source])
    for name, size in (("from", 500), ("to", 20)):
        (mounted.src / name).write_bytes(bytes(size))

    with (mounted.path / "from").open("rb") as old, (mounted.path / "to").open("r+b") as new:
        assert os.copy_file_range(old.fileno(), new.fileno(), 300) == 300

    assert seen(mounted) == [(20, 20, 0), (20, 300, 0)]


def test_writes_beside_each_other_see_one_size_after_the_other(sized: support.Mounted, fd: int) -> None:
    """The last one's size is the file's, so no two were under way at once."""
    threads = [
        threading.Thread(target=lambda: [os.pwrite(fd, b"x", 100 + n) for n in range(200)]) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert seen(sized)[1] == (300, 300, 0)


def test_what_has_gone_has_the_number_that_it_was_looked_up_with(sized: support.Mounted, tmpfs: Path) -> None:
    """Also below another mount, whose numbers are shown as others."""
    (sized.src / "below").mkdir()
    support.run("mount", "--bind", tmpfs, sized.src / "below")
    try:
        (tmpfs / "f").touch()
        ino = (sized.path / "below" / "f").stat().st_ino

        (sized.path / "below" / "f").unlink()

        numbers = [row["formatted"]["value"] for row in sized.dump("sizes/numbers")]
        assert numbers[0] == numbers[2] == ino
        assert numbers[1] == numbers[3] != 0
    finally:
        support.umount(sized.src / "below", support.MNT_DETACH)


def test_sizes_can_be_rehearsed() -> None:
    with Chain(["quota"], maps={"quota.rules": "/:1000:0:950:0"}) as chain:
        write = {"offset": 900, "size": 101}
        assert chain.run("write", tag=1, old_size=950, size=1001, args=write).error == errno.EDQUOT
        assert chain.run("write", tag=1, old_size=951, size=1001, args=write).error == 0
