"""Large reads that nobody looks at go to /dev/fuse as pages, and are the same bytes."""

import mmap
import os
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import serving

OPTIONS = "transport=dev,nopassthrough,cache=none"
KIB = 1024
SIZES = (256 * KIB, 300_001, 512 * KIB, 1024 * KIB)


def content() -> bytes:
    """Data, a hole, and data up to an odd length."""
    pattern = bytes(range(1, 252)) * 6200  # no page is like another
    return pattern[: 1500 * KIB] + bytes(1500 * KIB) + pattern[5 : 700 * KIB + 128]


def write(path: Path) -> bytes:
    """Write that file with its hole."""
    data = content()
    with path.open("wb") as file:
        file.write(data[: 1500 * KIB])
        file.seek(3000 * KIB)
        file.write(data[3000 * KIB :])
    return data


@pytest.fixture
def served(directory: Path) -> Iterator[serving.Served]:
    with serving.serve(directory, "spliced", options=OPTIONS) as served:
        yield served


def n_pipes(served: serving.Served) -> int:
    """Ends of pipes that the server has."""
    n = 0
    for one in Path(f"/proc/{served.pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            n += str(one.readlink()).startswith("pipe:")
    return n


@pytest.mark.parametrize("size", SIZES)
def test_a_file_is_read_as_it_is_wherever_a_read_begins_and_ends(served: serving.Served, size: int) -> None:
    data = write(served.src / "f")
    before = n_pipes(served)
    fd = os.open(served.path / "f", os.O_RDONLY | os.O_DIRECT)
    with mmap.mmap(-1, size) as buffer:
        for at in (
            0,
            1,
            4096,
            1499 * KIB,
            2000 * KIB + 7,
            len(data) - size,
            len(data) - 5,
            len(data),
            len(data) + 9,
        ):
            n = os.preadv(fd, [buffer], at)
            assert buffer[:n] == data[at : at + size]
    os.close(fd)

    assert n_pipes(served) > before, "none was spliced"


def test_what_is_written_meanwhile_is_read_as_one_or_the_other(served: serving.Served) -> None:
    """Pages that lie in a pipe are the file's own."""
    size = 512 * KIB
    (served.src / "f").write_bytes(b"a" * size)
    stop = threading.Event()

    def rewrite() -> None:
        with (served.src / "f").open("r+b") as file:
            while not stop.is_set():
                for letter in (b"a", b"b"):
                    os.pwrite(file.fileno(), letter * size, 0)

    def cut() -> None:
        while not stop.is_set():
            os.truncate(served.src / "g", 0)
            (served.src / "g").write_bytes(b"c" * size)

    (served.src / "g").write_bytes(b"c" * size)
    writers = [threading.Thread(target=rewrite), threading.Thread(target=cut)]
    for writer in writers:
        writer.start()
    try:
        with mmap.mmap(-1, size) as buffer:
            for name, letters in (("f", b"ab"), ("g", b"c\0")):
                fd = os.open(served.path / name, os.O_RDONLY | os.O_DIRECT)
                for _ in range(300):
                    n = os.preadv(fd, [buffer], 0)
                    assert set(buffer[:n]) <= set(letters)
                os.close(fd)
    finally:
        stop.set()
        for writer in writers:
            writer.join()


def test_many_read_at_once(served: serving.Served) -> None:
    data = write(served.src / "f")
    wrong: list[int] = []

    def read(number: int) -> None:
        fd = os.open(served.path / "f", os.O_RDONLY | os.O_DIRECT)
        with mmap.mmap(-1, 1024 * KIB) as buffer:
            for turn in range(60):
                at = (number * 131_071 + turn * 400_009) % len(data)
                n = os.preadv(fd, [buffer], at)
                if buffer[:n] != data[at : at + 1024 * KIB]:
                    wrong.append(at)
        os.close(fd)

    readers = [threading.Thread(target=read, args=(number,)) for number in range(12)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join(60)

    assert wrong == []


def test_an_empty_file_is_read_as_empty(served: serving.Served) -> None:
    (served.src / "empty").touch()
    fd = os.open(served.path / "empty", os.O_RDONLY | os.O_DIRECT)
    with mmap.mmap(-1, 512 * KIB) as buffer:
        assert os.preadv(fd, [buffer], 0) == 0
    os.close(fd)
