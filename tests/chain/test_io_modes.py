"""Passthrough, direct I/O or the kernel's cache for one open, as filters ask and the kernel's rules allow."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import support
from chain.chained import HERE, Chained, chained, source
from core.table import attempt, in_child, opened, put

PASSTHROUGH, DIRECT, CACHE = 1, 2, 3
BEFORE, AFTER = 0, 1
OLD_TIME = (1_500_000_000_000_000_000, 1_500_000_000_000_000_000)


@pytest.fixture(scope="module")
def io(run_directory: Path) -> Iterator[Chained]:
    """Through io.c alone: no hook sees data."""
    with chained(run_directory, [HERE / "io.c"]) as made:
        if not _has_passthrough(made):
            pytest.skip("the kernel has no FUSE passthrough")
        yield made


def _has_passthrough(made: Chained) -> bool:
    through, behind = made.fresh()
    put(behind / "probe")
    with opened(through / "probe", os.O_RDONLY):
        return last_open(made)[0] == "FB_IO_PASSTHROUGH"


def last_open(made: Chained) -> tuple[str, str]:
    """The newest record of an open: what it got, and why not what was asked for."""

    def found() -> list[dict[str, Any]]:
        rows = [row["formatted"]["value"] for row in made.mounted.dump("recent")]
        ops = ("FB_OP_open", "FB_OP_create", "FB_OP_tmpfile")
        return [row for row in rows if row["sequence"] and row["op"] in ops]

    newest = max(support.wait_until(found), key=lambda row: row["sequence"])
    return newest["io_mode"], newest["io_reason"]


def rewrite_behind(path: Path, content: bytes) -> None:
    """Another content that nobody sees by size or times."""
    with opened(path, os.O_WRONLY) as fd:
        os.pwrite(fd, content, 0)
    os.utime(path, ns=OLD_TIME)


def is_cached(through: Path, behind: Path) -> bool:
    """Whether what was read stays in the mount's page cache, though it changed behind."""
    put(behind / "f", b"first")
    os.utime(behind / "f", ns=OLD_TIME)
    with opened(through / "f", os.O_RDONLY) as fd:
        assert os.pread(fd, 10, 0) == b"first"
        rewrite_behind(behind / "f", b"other")
        return os.pread(fd, 10, 0) == b"first"


@pytest.mark.parametrize("when", [BEFORE, AFTER])
@pytest.mark.parametrize(
    ("mode", "name", "cached"),
    [
        (PASSTHROUGH, "FB_IO_PASSTHROUGH", False),
        (DIRECT, "FB_IO_DIRECT", False),
        (CACHE, "FB_IO_CACHE", True),
    ],
)
def test_an_open_gets_the_mode_that_is_asked_for(
    io: Chained, when: int, mode: int, name: str, cached: bool
) -> None:
    through, behind = io.fresh()

    with io.map("io/want").put(when, mode):
        assert in_child(is_cached, through, behind) == cached

    assert last_open(io) == (name, "FB_IO_AS_ASKED")


@pytest.mark.parametrize("when", [BEFORE, AFTER])
def test_a_file_that_is_made_gets_the_mode_too(io: Chained, when: int) -> None:
    through, _ = io.fresh()

    def make() -> bytes:
        with opened(through / "new", os.O_CREAT | os.O_RDWR) as fd:
            os.write(fd, b"text")
            return os.pread(fd, 10, 0)

    with io.map("io/want").put(when, DIRECT):
        assert in_child(make) == b"text"
    assert last_open(io) == ("FB_IO_DIRECT", "FB_IO_AS_ASKED")


def test_a_file_without_a_name_gets_the_mode_too(io: Chained) -> None:
    through, _ = io.fresh()

    with io.map("io/want").put(BEFORE, CACHE):
        in_child(lambda: os.close(os.open(through, os.O_TMPFILE | os.O_RDWR)))
    assert last_open(io) == ("FB_IO_CACHE", "FB_IO_AS_ASKED")


def both(first: Callable[[], Any], path: Path, flags: int = os.O_RDWR) -> Any:
    """Open the file, do something, open it again, and use both."""

    def act() -> Any:
        with opened(path, os.O_RDWR) as fd:
            first()
            with opened(path, flags) as other:
                os.pwrite(fd, b"one", 0)
                seen = os.pread(other, 10, 0)
                os.pwrite(other, b"two", 3)
                return seen, os.pread(fd, 10, 0)

    return in_child(lambda: attempt(act))


SECOND = [
    (0, CACHE, "FB_IO_PASSTHROUGH", "FB_IO_OTHERS_PASSED", "another open of the file is passed through"),
    (0, DIRECT, "FB_IO_DIRECT", "FB_IO_AS_ASKED", ""),
    (CACHE, PASSTHROUGH, "FB_IO_CACHE", "FB_IO_OTHERS_SERVED", "another open of the file is not passed"),
    (DIRECT, PASSTHROUGH, "FB_IO_CACHE", "FB_IO_OTHERS_SERVED", "another open of the file is not passed"),
    (CACHE, DIRECT, "FB_IO_DIRECT", "FB_IO_AS_ASKED", ""),
    (DIRECT, CACHE, "FB_IO_CACHE", "FB_IO_AS_ASKED", ""),
]


@pytest.mark.parametrize("row", SECOND)
def test_what_the_rules_forbid_beside_another_open_is_recorded(
    io: Chained, row: tuple[int, int, str, str, str]
) -> None:
    one, two, mode, reason, words = row
    through, behind = io.fresh()
    put(behind / "f", b"")
    want = io.map("io/want")

    def second() -> None:
        want[BEFORE] = two

    with want.put(BEFORE, one):
        outcome = both(second, through / "f")

    assert outcome == (b"one", b"onetwo")
    assert last_open(io) == (mode, reason)
    if words:
        support.wait_until(lambda: "filter io: it asked for" in io.mounted.log and words in io.mounted.log)


def test_a_file_whose_suid_bit_writes_must_clear_is_not_passed_through(io: Chained) -> None:
    through, behind = io.fresh()
    put(behind / "f", mode=0o4755)

    with io.map("io/want").put(BEFORE, PASSTHROUGH):
        in_child(lambda: os.close(os.open(through / "f", os.O_WRONLY)))
    assert last_open(io) == ("FB_IO_CACHE", "FB_IO_NOT_PLAIN")


def test_a_mode_that_does_not_exist_fails_the_open(io: Chained) -> None:
    through, behind = io.fresh()
    put(behind / "f")

    for when in (BEFORE, AFTER):
        with io.map("io/want").put(when, 4):
            assert in_child(attempt, os.open, through / "f", os.O_RDONLY) == "EIO"
    support.wait_until(lambda: "I/O mode is none that there is" in io.mounted.log)


def test_without_passthrough_the_open_says_so(run_directory: Path) -> None:
    with chained(run_directory, [HERE / "io.c"], options="nopassthrough") as made:
        through, behind = made.fresh()
        put(behind / "f", b"text")
        with made.map("io/want").put(BEFORE, PASSTHROUGH):
            assert in_child((through / "f").read_bytes) == b"text"

        assert last_open(made) == ("FB_IO_CACHE", "FB_IO_UNSUPPORTED")


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        (0, ("FB_IO_DIRECT", "FB_IO_AS_ASKED")),
        (PASSTHROUGH, ("FB_IO_DIRECT", "FB_IO_DATA_HOOKED")),
        (DIRECT, ("FB_IO_DIRECT", "FB_IO_AS_ASKED")),
        (CACHE, ("FB_IO_CACHE", "FB_IO_AS_ASKED")),
    ],
)
def test_a_file_whose_data_is_hooked_is_never_passed_through(
    hooked: Chained, mode: int, expected: tuple[str, str]
) -> None:
    through, behind = hooked.fresh()
    put(behind / "f", b"\x5a" * 200_000)

    with hooked.map("io/want").put(BEFORE, mode):
        assert in_child((through / "f").read_bytes) == bytes(200_000)
        in_child(put, through / "g", bytes(200_000))

    assert last_open(hooked) == expected
    assert (behind / "g").read_bytes() == b"\x5a" * 200_000


@pytest.fixture(scope="module")
def hooked(run_directory: Path) -> Iterator[Chained]:
    """Through io.c, with a filter above it that scrambles data."""
    with chained(run_directory, [HERE / "io.c", HERE / "scramble.c"]) as made:
        yield made


MAKER = """
FILTER(maker, .altitude = 500)
BPF_ARRAY(maker__want, u32, 2);

FB_ALWAYS_INLINE int ask(struct fb_slot *ctx, u32 when)
{
	u32 *mode = maker__want.lookup(&when);

	if (!mode || !*mode || ctx->error)
		return FB_CONTINUE;
	ctx->args.create.io_mode = *mode;
	ctx->edits |= FB_EDIT_IO;
	return FB_REWRITE;
}

PRE(maker, create) { return ask(ctx, 0); }
POST(maker, create) { return ask(ctx, 1); }
"""


@pytest.mark.parametrize("when", [BEFORE, AFTER])
def test_with_the_small_profile_what_is_made_is_cached_whatever_is_asked_for(
    directory: Path, when: int
) -> None:
    with chained(directory, [source(directory, MAKER, "maker")], options="profile=small") as made:
        through, _ = made.fresh()
        for mode, reason in ((DIRECT, "FB_IO_UNSUPPORTED"), (CACHE, "FB_IO_AS_ASKED")):
            with made.map("maker/want").put(when, mode):
                put(through / f"{mode}", b"text")
            assert last_open(made) == ("FB_IO_CACHE", reason)
            assert (through / f"{mode}").read_bytes() == b"text"
