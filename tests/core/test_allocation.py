"""fallocate, holes, unnamed files and copies, against the bare directory."""

import ctypes
import errno
import os
from pathlib import Path
from typing import Any

import pytest
from core.comparing import compare, fresh
from core.table import attempt, checked, facts, in_child, libc, opened, put, user
from core.variants import Variant

KEEP_SIZE, PUNCH_HOLE, COLLAPSE_RANGE, ZERO_RANGE, INSERT_RANGE = 1, 2, 8, 16, 32
AT_EMPTY_PATH, AT_SYMLINK_FOLLOW, AT_FDCWD = 0x1000, 0x400, -100
BLOCK = 4096

libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long]


def fallocate(fd: int, mode: int, offset: int, length: int) -> Any:
    return attempt(lambda: checked(libc.fallocate(fd, mode, offset, length)))


# ------------------------------------------------------------------------------- fallocate


@pytest.mark.parametrize(
    "mode",
    [0, KEEP_SIZE, PUNCH_HOLE | KEEP_SIZE, ZERO_RANGE, ZERO_RANGE | KEEP_SIZE, PUNCH_HOLE, KEEP_SIZE | 0x100],
)
@pytest.mark.parametrize(
    ("offset", "length"),
    [(0, BLOCK), (BLOCK, BLOCK), (100, 5000), (2 * BLOCK, 10 * BLOCK), (1 << 20, BLOCK), (0, 0), (-1, 1)],
)
def test_fallocate(variant: Variant, bare: Path, mode: int, offset: int, length: int) -> None:
    def act(p: Path) -> Any:
        with opened(put(p / "f", b"x" * (3 * BLOCK)), os.O_RDWR) as fd:
            done = fallocate(fd, mode, offset, length)
            st = os.fstat(fd)
            return done, st.st_size, st.st_blocks, os.pread(fd, 1 << 21, 0)

    compare(variant, bare, act)


def test_fallocate_needs_a_file_that_is_open_for_writing(variant: Variant, bare: Path) -> None:
    def act(p: Path) -> Any:
        with opened(put(p / "f"), os.O_RDONLY) as fd, opened(p, os.O_RDONLY) as directory:
            return fallocate(fd, 0, 0, BLOCK), fallocate(directory, 0, 0, BLOCK)

    assert compare(variant, bare, act) == ("EBADF", "EBADF")


@pytest.mark.parametrize("mode", [0, PUNCH_HOLE | KEEP_SIZE, ZERO_RANGE])
def test_fallocate_by_a_user_clears_set_user_id(variant: Variant, bare: Path, mode: int) -> None:
    def act(p: Path) -> Any:
        os.chmod(put(p / "f", b"x" * BLOCK), 0o6777)
        with user(1000), opened(p / "f", os.O_RDWR) as fd:
            return fallocate(fd, mode, 0, BLOCK), oct(os.fstat(fd).st_mode)

    compare(variant, bare, act)


@pytest.mark.parametrize("mode", [COLLAPSE_RANGE, INSERT_RANGE])
def test_collapse_and_insert_range_are_refused(variant: Variant, mode: int) -> None:
    def act(p: Path) -> Any:
        with opened(put(p / "f", b"x" * (3 * BLOCK)), os.O_RDWR) as fd:
            return fallocate(fd, mode, BLOCK, BLOCK), os.fstat(fd).st_size

    assert in_child(act, fresh(variant)[0]) == ("ENOTSUP", 3 * BLOCK)


def test_what_a_hole_shows_after_it_was_read(variant: Variant, bare: Path) -> None:
    def act(p: Path) -> Any:
        with opened(put(p / "f", b"x" * (4 * BLOCK)), os.O_RDWR) as fd:
            before = os.pread(fd, 4 * BLOCK, 0)
            fallocate(fd, PUNCH_HOLE | KEEP_SIZE, BLOCK, BLOCK)
            return before, os.pread(fd, 4 * BLOCK, 0)

    compare(variant, bare, act)


# ----------------------------------------------------------------------------------- holes


@pytest.mark.parametrize("whence", [os.SEEK_DATA, os.SEEK_HOLE])
@pytest.mark.parametrize("offset", [0, 1, 64 * 1024, 1 << 20, (1 << 20) + 5, (2 << 20) - 1, 2 << 20, 1 << 40])
def test_holes_are_found(variant: Variant, bare: Path, whence: int, offset: int) -> None:
    def act(p: Path) -> Any:
        with opened(p / "f", os.O_CREAT | os.O_RDWR) as fd:
            os.truncate(fd, 2 << 20)
            os.pwrite(fd, b"x" * 65536, 1 << 20)
            os.fsync(fd)
            return attempt(os.lseek, fd, offset, whence), os.lseek(fd, 0, os.SEEK_CUR)

    compare(variant, bare, act)


# ---------------------------------------------------------------------------- unnamed files


def test_an_unnamed_file_is_used_and_goes(variant: Variant, bare: Path) -> None:
    def act(p: Path) -> Any:
        with opened(p, os.O_TMPFILE | os.O_RDWR, 0o640) as fd:
            os.write(fd, b"unnamed")
            os.fchmod(fd, 0o600)
            os.setxattr(fd, "user.a", b"1")
            os.truncate(fd, 3)
            return facts(fd), os.pread(fd, 10, 0), os.listxattr(fd), os.listdir(p)

    compare(variant, bare, act)


@pytest.mark.parametrize("excl", [0, os.O_EXCL])
@pytest.mark.parametrize("way", ["descriptor", "proc"])
def test_an_unnamed_file_gets_a_name(variant: Variant, bare: Path, excl: int, way: str) -> None:
    def act(p: Path) -> Any:
        def name(target: str) -> int:
            place = os.fsencode(p / target)
            if way == "descriptor":
                return checked(libc.linkat(fd, b"", AT_FDCWD, place, AT_EMPTY_PATH))
            source = f"/proc/self/fd/{fd}".encode()
            return checked(libc.linkat(AT_FDCWD, source, AT_FDCWD, place, AT_SYMLINK_FOLLOW))

        (p / "d").mkdir()
        with opened(p, os.O_TMPFILE | os.O_RDWR | excl, 0o640) as fd:
            os.write(fd, b"unnamed")
            links = attempt(name, "named"), attempt(name, "d/second"), attempt(name, "named")
            os.write(fd, b" no more")
            return links, facts(fd), [(q / "named").read_bytes() for q in (p,) if not excl]

    compare(variant, bare, act)


def test_an_unnamed_file_belongs_to_who_made_it(variant: Variant, bare: Path) -> None:
    def act(p: Path) -> Any:
        (p / "open").mkdir()
        (p / "shut").mkdir(mode=0o755)
        os.chmod(p / "open", 0o777)
        with user(1000):
            refused = attempt(os.open, p / "shut", os.O_TMPFILE | os.O_RDWR, 0o666)
            with opened(p / "open", os.O_TMPFILE | os.O_RDWR, 0o666) as fd:
                return refused, facts(fd)

    assert compare(variant, bare, act)[0] == "EACCES"


def test_an_unnamed_file_cannot_be_read_only(variant: Variant, bare: Path) -> None:
    assert compare(variant, bare, lambda p: attempt(os.open, p, os.O_TMPFILE | os.O_RDONLY)) == "EINVAL"


def test_nothing_is_left_of_unnamed_files(variant: Variant) -> None:
    through, behind = fresh(variant)

    def act(p: Path) -> None:
        for _ in range(50):
            with opened(p, os.O_TMPFILE | os.O_WRONLY) as fd:
                os.write(fd, b"x" * BLOCK)

    in_child(act, through)

    assert os.listdir(behind) == []


# ---------------------------------------------------------------------------------- copies


@pytest.mark.parametrize(
    ("offset", "to", "count"),
    [(0, 0, 1 << 20), (0, 0, 10), (10, 100, 50_000), (0, 1 << 20, 1000), (1 << 30, 0, 10), (0, 0, 0)],
)
def test_copies(variant: Variant, bare: Path, offset: int, to: int, count: int) -> None:
    def act(p: Path) -> Any:
        data = bytes(range(256)) * 400
        put(p / "g", b"-" * 200)
        with opened(put(p / "f", data), os.O_RDONLY) as old, opened(p / "g", os.O_RDWR) as new:
            os.pread(new, 200, 0)
            done = os.copy_file_range(old, new, count, offset, to)
            return done, os.fstat(new).st_size, os.pread(new, 1 << 21, 0), os.lseek(old, 0, os.SEEK_CUR)

    compare(variant, bare, act)


def test_a_copy_within_a_file(variant: Variant, bare: Path) -> None:
    def act(p: Path) -> Any:
        with opened(put(p / "f", b"0123456789" * 100), os.O_RDWR) as fd:
            done = attempt(os.copy_file_range, fd, fd, 500, 0, 1000)
            overlapping = attempt(os.copy_file_range, fd, fd, 500, 0, 100)
            return done, overlapping, os.pread(fd, 2000, 0)

    assert compare(variant, bare, act)[:2] == (500, "EINVAL")


def test_copies_that_are_refused(variant: Variant, bare: Path) -> None:
    def act(p: Path) -> Any:
        with (
            opened(put(p / "f"), os.O_RDONLY) as old,
            opened(put(p / "g"), os.O_WRONLY) as new,
            opened(p / "g", os.O_WRONLY | os.O_APPEND) as appending,
            opened(p, os.O_RDONLY) as directory,
        ):
            return [
                attempt(os.copy_file_range, *pair, 10)
                for pair in ((new, new), (old, old), (old, appending), (directory, new))
            ]

    compare(variant, bare, act)


def test_a_copy_of_more_than_one_request_takes_is_finished_by_the_program(variant: Variant) -> None:
    def act(p: Path) -> Any:
        size = 100 << 20
        with opened(p / "f", os.O_CREAT | os.O_RDWR) as old, opened(p / "g", os.O_CREAT | os.O_RDWR) as new:
            os.truncate(old, size)
            os.pwrite(old, b"end", size - 3)
            copied = 0
            while part := os.copy_file_range(old, new, size - copied):
                copied += part
            return copied, os.pread(new, 3, size - 3)

    assert in_child(act, fresh(variant)[0]) == (100 << 20, b"end")


def test_a_clone_is_refused_since_no_server_is_asked(variant: Variant) -> None:
    import fcntl  # noqa: PLC0415 - for this alone

    def act(p: Path) -> Any:
        with opened(put(p / "f"), os.O_RDONLY) as old, opened(p / "g", os.O_CREAT | os.O_RDWR) as new:
            return attempt(fcntl.ioctl, new, 0x40049409, old)

    assert in_child(act, fresh(variant)[0]) in {errno.errorcode[errno.EOPNOTSUPP], "ENOTTY"}
