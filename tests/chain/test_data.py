"""Payload windows: what hooks are shown, and what becomes of their edits. The numbers are those of data.c."""

import fcntl
import mmap
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import support
from chain.chained import HERE, Chained, chained, source
from chain.test_rewrites import a_file, a_link, fd_call, n_broken, nothing
from core.table import attempt, in_child, opened, put

BIG = bytes(range(251)) * 1200  # 301,200 bytes: five windows, the last one of 39,056
WINDOW = 65536
LAST = len(BIG) - 4 * WINDOW


@pytest.fixture(scope="module")
def data(run_directory: Path) -> Iterator[Chained]:
    """Through data.c, which edits payloads as its map `way` says."""
    with chained(run_directory, [HERE / "data.c"]) as made:
        yield made


def scrambled(content: bytes) -> bytes:
    return bytes(byte ^ 0x5A for byte in content)


def zeroed(content: bytes) -> bytes:
    """Each window's bytes from 5 on, but the last, are zeros."""
    windows = [content[at : at + WINDOW] for at in range(0, len(content), WINDOW)]
    return b"".join(w[:5] + bytes(len(w) - 6) + w[-1:] for w in windows)


def big(p: Path) -> None:
    put(p / "name", BIG)


def apply(data: Chained, way: int, prepare: Callable[[Path], Any], act: Callable[[Path], Any]) -> Any:
    """The outcome of an act while the filter edits in this way, and the directory behind."""
    through, behind = data.fresh()
    prepare(behind)
    with data.map("data/way").put(0, way):
        return in_child(lambda: attempt(act, through), seconds=10), behind


def read(size: int) -> Callable[[Path], Any]:
    return fd_call(os.O_RDONLY, lambda fd: os.pread(fd, size, 0))


def write(content: bytes) -> Callable[[Path], Any]:
    return fd_call(os.O_WRONLY, lambda fd: os.pwrite(fd, content, 0))


# what, way, what is there, what is done, the outcome, the file behind (None: as it was)
EDITS: list[tuple[str, int, Callable[[Path], Any], Callable[[Path], Any], Any, bytes | None]] = [
    ("read", 1, a_file, read(100), scrambled(b"0123456789"), None),
    ("read nothing", 1, lambda b: put(b / "name", b""), read(100), b"", None),
    ("read windows", 1, big, read(len(BIG)), scrambled(BIG), None),
    ("read zeros", 2, big, read(len(BIG)), zeroed(BIG), None),
    ("read undeclared", 3, big, read(len(BIG)), BIG, None),
    ("read shortened", 4, big, read(len(BIG)), BIG[:-2], None),
    ("read shortened inside", 5, big, read(len(BIG)), "EIO", None),
    ("read lengthened", 6, a_file, read(100), "EIO", None),
    ("read lengthened a window", 6, big, read(len(BIG)), "EIO", None),
    ("read of no length", 7, a_file, read(100), "EIO", None),
    ("read refused at its second window", 8, big, read(len(BIG)), "EACCES", None),
    ("read of one window not refused", 8, big, read(WINDOW), BIG[:WINDOW], None),
    ("read count", 9, big, read(len(BIG)), BIG[:5], None),
    ("write", 1, a_file, write(b"ABC"), 3, scrambled(b"ABC") + b"3456789"),
    ("write windows", 1, nothing, write(BIG), len(BIG), scrambled(BIG)),
    ("write zeros", 2, nothing, write(BIG), len(BIG), zeroed(BIG)),
    ("write undeclared", 3, nothing, write(BIG), len(BIG), BIG),
    ("write shortened", 4, nothing, write(BIG), len(BIG) - 2, BIG[:-2]),
    ("write shortened inside", 5, a_file, write(BIG), "EIO", b"0123456789"),
    ("write lengthened", 6, a_file, write(b"ABC"), "EIO", b"0123456789"),
    ("write refused at its second window", 8, a_file, write(BIG), "EACCES", b"0123456789"),
    ("write straight to the backing root", 10, nothing, write(BIG), len(BIG),
     b"".join(b"X" + BIG[at + 1:at + WINDOW] for at in range(0, len(BIG), WINDOW))),
    ("write swallowed", 11, a_file, write(BIG), len(BIG), b"0123456789"),
    ("write by a filter that is shown none", 40, a_file, write(b"ABC"), "EIO", b"0123456789"),
    ("read answered", 20, a_file, read(100), b"made" + bytes(96), None),
    ("read answered in windows", 20, a_file, read(len(BIG)),
     b"".join((b"made" + bytes(WINDOW))[:n] for n in (WINDOW,) * 4 + (LAST,)), None),
    ("read answered in part", 21, a_file, read(len(BIG)), "EIO", None),
    ("read answered shortly", 22, a_file, read(len(BIG)), b"mad", None),
    ("read answered beyond", 23, a_file, read(100), "EIO", None),
    ("read answered with nothing", 24, a_file, read(100), b"", None),
    ("read answered, then refused", 25, a_file, read(len(BIG)), "EDQUOT", None),
    ("readlink", 35, a_link, lambda p: os.readlink(p / "name"), "EIO", None),
    ("readlink shorter", 32, a_link, lambda p: os.readlink(p / "name"), "targe", None),
    ("readlink longer", 31, a_link, lambda p: os.readlink(p / "name"), "target!", None),
    ("readlink beyond", 33, a_link, lambda p: os.readlink(p / "name"), "EIO", None),
    ("readlink answered", 36, a_link, lambda p: os.readlink(p / "name"), "v" * 4000, None),
]  # fmt: skip


@pytest.mark.parametrize("row", EDITS, ids=[row[0] for row in EDITS])
def test_an_edit_of_data_is_used_or_fails_the_op(data: Chained, row: Any) -> None:
    _, way, prepare, act, expected, expected_behind = row
    before = n_broken(data)

    def prepared(b: Path) -> None:
        prepare(b)
        if prepare is nothing:
            put(b / "name", b"")

    outcome, behind = apply(data, way, prepared, act)

    assert outcome == expected
    assert (n_broken(data) > before) == (expected == "EIO")
    if expected_behind is not None:
        assert (behind / "name").read_bytes() == expected_behind


def looks(data: Chained, act: Callable[[], Any]) -> tuple[list[int], Any]:
    """What the filter was shown meanwhile: runs, bytes, last offset, last length, more; runs without data."""
    seen = data.map("data/looks", 8)
    for index in range(6):
        seen[index] = 0
    outcome = in_child(act)
    return [seen[index] for index in range(6)], outcome


def test_a_hook_is_shown_each_window_with_its_place(data: Chained) -> None:
    through, behind = data.fresh()
    big(behind)
    with opened(through / "name", os.O_RDWR) as fd:
        shown, _ = looks(data, lambda: os.pread(fd, len(BIG), 100))
        assert shown == [5, len(BIG) - 100, 100 + 4 * WINDOW, LAST - 100, 0, 0]
        shown, _ = looks(data, lambda: os.pwrite(fd, BIG[: 2 * WINDOW], 7))
        assert shown == [2, 2 * WINDOW, 7 + WINDOW, WINDOW, 0, 0]
        shown, _ = looks(data, lambda: os.pread(fd, 10, 1 << 20))
        assert shown == [1, 0, 1 << 20, 0, 0, 0]
    with opened(through / "name", os.O_WRONLY) as fd:
        shown, _ = looks(data, lambda: attempt(os.pread, fd, 10, 0))
        assert shown == [0] * 6


VALUE = bytes(range(1, 251)) * 12  # 3,000 bytes: what ext4 takes


def value(name: str = "user.v", size: int = len(VALUE)) -> Callable[[Path], None]:
    def prepare(p: Path) -> None:
        put(p / "name")
        os.setxattr(p / "name", name, VALUE[:size])

    return prepare


def getxattr(p: Path) -> bytes:
    return os.getxattr(p / "name", "user.v")


VALUES: list[tuple[str, int, Callable[[Path], Any], Callable[[Path], Any], Any]] = [
    ("get", 30, value(), getxattr, scrambled(VALUE)),
    ("get longer", 31, value(), getxattr, VALUE + b"!"),
    ("get longer than text", 31, value(size=200), getxattr, VALUE[:200] + b"!"),
    ("get shorter", 32, value(), getxattr, VALUE[:-1]),
    ("get beyond", 33, value(), getxattr, "EIO"),
    ("get both ways", 34, value(), getxattr, "EIO"),
    ("get answered", 36, a_file, getxattr, b"v" * 10000),
    ("set", 30, a_file, lambda p: os.setxattr(p / "name", "user.v", VALUE), scrambled(VALUE)),
    ("set longer", 31, a_file, lambda p: os.setxattr(p / "name", "user.v", VALUE[:50]), VALUE[:50] + b"!"),
    ("set shorter", 32, a_file, lambda p: os.setxattr(p / "name", "user.v", VALUE), VALUE[:-1]),
    ("set beyond", 33, a_file, lambda p: os.setxattr(p / "name", "user.v", VALUE), "EIO"),
    ("list unended", 32, value(), lambda p: os.listxattr(p / "name"), "EIO"),
    ("list renamed", 35, value(), lambda p: os.listxattr(p / "name"), ["u", "er.v"]),
    ("list with an empty name", 37, value(), lambda p: os.listxattr(p / "name"), "EIO"),
]  # fmt: skip


@pytest.mark.parametrize("row", VALUES, ids=[row[0] for row in VALUES])
def test_an_edit_of_a_value_is_used_or_fails_the_op(data: Chained, row: Any) -> None:
    name, way, prepare, act, expected = row

    outcome, behind = apply(data, way, prepare, act)

    if name.startswith("set") and expected != "EIO":
        assert outcome is None
        assert os.getxattr(behind / "name", "user.v") == expected
    else:
        assert outcome == expected


def test_the_size_of_a_value_is_that_of_the_edited_one(data: Chained) -> None:
    through, behind = data.fresh()
    value()(behind)

    for way, size in ((31, 3001), (32, 2999), (36, 10000)):
        with data.map("data/way").put(0, way):
            shown = support.run(
                "getfattr", "--absolute-names", "-e", "hex", "-n", "user.v", through / "name", check=False
            )
        assert len(shown.stdout.partition("user.v=0x")[2].strip()) == 2 * size


# ---------------------------------------------------------------------- all ways to the data


def splice_out(p: Path) -> bytes:
    reader, writer = os.pipe()
    fcntl.fcntl(writer, 1031, 1 << 20)  # F_SETPIPE_SZ
    got = b""
    with opened(p / "name", os.O_RDONLY) as fd:
        while n := os.splice(fd, writer, 60000):
            got += os.read(reader, n)
    return got


def sendfile_out(p: Path) -> bytes:
    with opened(p / "name", os.O_RDONLY) as fd, opened(p.parent / "sent", os.O_CREAT | os.O_RDWR) as out:
        at = 0
        while n := os.sendfile(out, fd, at, 100000):
            at += n
    return b""


def mapped(p: Path) -> bytes:
    with opened(p / "name", os.O_RDONLY) as fd, mmap.mmap(fd, 0, prot=mmap.PROT_READ) as m:
        return bytes(m)


def mapped_private(p: Path) -> bytes:
    private = {"flags": mmap.MAP_PRIVATE, "prot": mmap.PROT_READ}
    with opened(p / "name", os.O_RDONLY) as fd, mmap.mmap(fd, 0, **private) as m:
        return bytes(m)


def o_direct(p: Path) -> bytes:
    with opened(p / "name", os.O_RDONLY | os.O_DIRECT) as fd, mmap.mmap(-1, 1 << 20) as buffer:
        n = os.preadv(fd, [buffer], 0)
        return buffer[:n]


def by_vector(p: Path) -> bytes:
    buffers = [bytearray(1000), bytearray(100000), bytearray(300000)]
    with opened(p / "name", os.O_RDONLY) as fd:
        n = os.readv(fd, buffers)
    return b"".join(buffers)[:n]


def copied(p: Path) -> bytes:
    """The copy goes through write hooks too, which undo what the read hooks did."""
    with opened(p / "name", os.O_RDONLY) as fd, opened(p / "copy", os.O_CREAT | os.O_RDWR) as out:
        at = 0
        while n := os.copy_file_range(fd, out, 200000, at):
            at += n
    return b""


READERS = [splice_out, mapped, mapped_private, o_direct, by_vector, lambda p: (p / "name").read_bytes()]


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: getattr(reader, "__name__", ""))
def test_no_way_of_reading_gets_past_the_filter(data: Chained, reader: Callable[[Path], bytes]) -> None:
    outcome, _ = apply(data, 1, big, reader)

    assert outcome == scrambled(BIG)


def test_copies_inside_the_mount_go_through_both_hooks(data: Chained) -> None:
    outcome, behind = apply(data, 1, big, copied)

    assert outcome == b""
    assert (behind / "copy").read_bytes() == BIG
    outcome, behind = apply(data, 2, big, copied)
    assert (behind / "copy").read_bytes() != BIG


def test_sendfile_gets_what_the_filter_left(data: Chained) -> None:
    through, behind = data.fresh()
    big(behind)
    with data.map("data/way").put(0, 1):
        in_child(sendfile_out, through)

    # Through the mount on both sides: read scrambled, and written scrambled again.
    assert (behind.parent / "sent").read_bytes() == BIG


def test_a_shared_mapping_is_written_back_through_the_filter(data: Chained) -> None:
    def act(p: Path) -> None:
        with opened(p / "name", os.O_RDWR) as fd, mmap.mmap(fd, 0) as m:
            assert m[:] == scrambled(BIG)
            m[70000:70004] = b"EDIT"
            m.flush()

    outcome, behind = apply(data, 1, big, act)

    assert outcome is None
    assert (behind / "name").read_bytes() == BIG[:70000] + scrambled(b"EDIT") + BIG[70004:]


def test_a_write_appends_what_the_filter_left(data: Chained) -> None:
    act = fd_call(os.O_WRONLY | os.O_APPEND, lambda fd: os.write(fd, b"abc") + os.write(fd, b"def"))

    outcome, behind = apply(data, 1, a_file, act)

    assert outcome == 6
    assert (behind / "name").read_bytes() == b"0123456789" + scrambled(b"abcdef")


URING = Path("/sys/module/fuse/parameters/enable_uring")


@pytest.mark.skipif(not URING.exists(), reason="no FUSE over io_uring here")
def test_payloads_that_come_by_io_uring_are_shown_too(run_directory: Path) -> None:
    with chained(run_directory, [HERE / "scramble.c"], options="transport=uring") as made:
        through, behind = made.fresh()

        assert in_child(lambda: put(through / "name", BIG).read_bytes()) == BIG
        in_child(os.setxattr, through / "name", "user.v", VALUE)
        assert (behind / "name").read_bytes() == scrambled(BIG)
        assert os.getxattr(behind / "name", "user.v") == scrambled(VALUE)


def test_two_filters_see_what_the_one_before_left(run_directory: Path, directory: Path) -> None:
    text = """
FILTER(high, .altitude = 310, .wants = FB_WANTS_DATA, .doc = "adds 1 to each byte that is written")
FILTER(low, .altitude = 300, .wants = FB_WANTS_DATA, .doc = "swaps the bits of each byte that is written")
PRE(high, write)
{
	struct fb_window *data = fb_data(ctx);
	if (!data)
		return -EIO;
	FB_EACH_WORD(i, ctx->data_len)
		*fb_word(data, i) += FB_EVERY_BYTE(1);
	ctx->edits |= FB_EDIT_DATA;
	return FB_REWRITE;
}
PRE(low, write)
{
	struct fb_window *data = fb_data(ctx);
	if (!data)
		return -EIO;
	FB_EACH_WORD(i, ctx->data_len)
		*fb_word(data, i) = ~*fb_word(data, i);
	ctx->edits |= FB_EDIT_DATA;
	return FB_REWRITE;
}
"""
    with chained(run_directory, [source(directory, text)]) as made:
        through, behind = made.fresh()
        content = bytes(range(1, 201)) * 1000
        in_child(put, through / "name", content)

        assert (behind / "name").read_bytes() == bytes(~(byte + 1) & 0xFF for byte in content)


def test_many_readers_at_a_time_get_their_own_data(data: Chained) -> None:
    through, behind = data.fresh()
    contents = [struct.pack("<Q", number) * 40000 for number in range(24)]
    for number, content in enumerate(contents):
        put(behind / f"f{number}", content)

    def read_all(number: int) -> bool:
        path, expected = through / f"f{number}", scrambled(contents[number])
        return all(path.read_bytes() == expected for _ in range(5))

    with data.map("data/way").put(0, 1):
        children = []
        for number in range(len(contents)):
            pid = os.fork()
            if not pid:
                os._exit(0 if read_all(number) else 1)
            children.append(pid)
        assert [os.waitpid(pid, 0)[1] for pid in children] == [0] * len(contents)
