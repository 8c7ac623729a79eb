"""Many inodes in little memory, large directories, long names and paths, files of terabytes.
The millions are in `make soak`."""

import os
import re
from pathlib import Path

import pytest
import serving
import support

MOST_BYTES_PER_INODE = 400


def rss_of(served: serving.Served) -> int:
    """Bytes of the server's memory that are in use; what does not count is shared with others."""
    status = Path(f"/proc/{served.pid}/status").read_text()
    return sum(int(number) * 1024 for number in re.findall(r"^RssAnon:\s+(\d+) kB", status, re.MULTILINE))


def fill(directory: Path, count: int, name: str = "file-with-a-name-{}") -> None:
    """Empty files, 10,000 to a directory; hard links would be one inode."""
    for start in range(0, count, 10_000):
        place = directory / f"part{start // 10_000}"
        place.mkdir(parents=True)
        fd = os.open(place, os.O_RDONLY)
        for number in range(start, min(start + 10_000, count)):
            os.close(os.open(name.format(number), os.O_CREAT | os.O_WRONLY, dir_fd=fd))
        os.close(fd)


def bytes_per_inode(served: serving.Served, count: int) -> float:
    """How much the server grows by each inode that the kernel gets to know."""
    os.listdir(served.path)
    before, known = rss_of(served), served.counters()["inodes"]
    client = (
        "import os, sys\nfor top, _, names in os.walk(sys.argv[1]):\n  for n in names: os.stat(top + '/' + n)"
    )
    for _ in range(3):  # others on the machine may make the kernel drop its caches
        support.run("python3", "-c", client, served.path, seconds=400)
        now = served.counters()["inodes"] - known
        if now >= count:
            break
    assert now >= count
    return (rss_of(served) - before) / now


def test_an_inode_takes_little_memory_and_descriptors_are_bounded(directory: Path) -> None:
    fill(directory / "src", 50_000)
    with serving.serve(directory, "memory", options="max_descriptors=1000") as served:
        each = bytes_per_inode(served, 50_000)

        assert each <= MOST_BYTES_PER_INODE
        assert served.counters()["descriptors"] <= 1000


@pytest.mark.soak
@pytest.mark.timeout(1500)
def test_a_million_inodes(directory: Path) -> None:
    fill(directory / "src", 1_000_000)
    with serving.serve(directory, "million") as served:
        each = bytes_per_inode(served, 1_000_000)

        print(f"{each:.0f} bytes each")
        assert each <= MOST_BYTES_PER_INODE
        assert served.counters()["descriptors"] <= served.n_most_descriptors() // 2


def listing(directory: Path, count: int) -> None:
    """A directory is listed whole, with each entry once, in memory that does not depend on its size."""
    place = directory / "src" / "large"
    place.mkdir(parents=True)
    fd = os.open(place, os.O_RDONLY)
    os.close(os.open("0", os.O_CREAT, dir_fd=fd))
    for number in range(1, count):
        if number % 60_000 == 0:  # ext4 has at most 65,000 links to a file
            os.close(os.open(str(number), os.O_CREAT, dir_fd=fd))
        else:
            os.link(str(number // 60_000 * 60_000), str(number), src_dir_fd=fd, dst_dir_fd=fd)
    os.close(fd)
    with serving.serve(directory, "large") as served:
        os.listdir(served.path)
        before = rss_of(served)
        seen = sorted(int(name) for name in os.listdir(served.path / "large"))

        assert seen == list(range(count))
        assert rss_of(served) - before < 8 << 20


def test_a_large_directory_is_listed(directory: Path) -> None:
    listing(directory, 30_000)


@pytest.mark.soak
@pytest.mark.timeout(1500)
def test_a_directory_of_a_million_entries_is_listed(directory: Path) -> None:
    listing(directory, 1_000_000)


def test_names_of_255_bytes_of_any_kind(directory: Path) -> None:
    names = [b"n" * 255, b"\xff" * 255, bytes(range(1, 47)) + bytes(range(48, 256)), "ü".encode() * 127]
    with serving.serve(directory, "names") as served:
        src, path = os.fsencode(served.src), os.fsencode(served.path)
        for name in names:
            with open(path + b"/" + name, "wb") as file:
                file.write(name)
            assert os.stat(src + b"/" + name).st_size == len(name)
        assert sorted(os.listdir(path)) == sorted(names)
        os.rename(path + b"/" + names[0], path + b"/" + b"\xfe" * 255)
        os.mkdir(path + b"/" + names[0])
        os.symlink(names[1], path + b"/" + names[0] + b"/" + b"l" * 255)
        assert os.readlink(path + b"/" + names[0] + b"/" + b"l" * 255) == names[1]
        with pytest.raises(OSError, match="too long"):
            os.stat(path + b"/" + b"n" * 256)


@pytest.mark.parametrize("filters", [[], ["audit"]], ids=["plain", "audited"])
def test_paths_at_the_limit_and_beyond(directory: Path, filters: list[str]) -> None:
    with serving.serve(directory, "paths", filters=filters) as served:
        path = os.fsencode(served.path)
        while len(path) < 4095 - 201:
            path += b"/" + b"d" * min(200, 4095 - 201 - len(path))
            os.mkdir(path)
        path += b"/" + b"f" * (4095 - 1 - len(path))
        assert len(path) == 4095
        with open(path, "wb") as file:
            file.write(b"at the limit")
        assert os.stat(path).st_size == 12
        # Deeper than any path can say.
        fd = os.open(os.path.dirname(path), os.O_RDONLY)
        for _ in range(30):
            os.mkdir(b"e" * 255, dir_fd=fd)
            deeper = os.open(b"e" * 255, os.O_RDONLY, dir_fd=fd)
            os.close(fd)
            fd = deeper
        os.close(os.open("deep", os.O_CREAT, dir_fd=fd))
        assert os.listdir(fd) == ["deep"]
        os.close(fd)


@pytest.mark.parametrize("options", ["", "nopassthrough"])
def test_sparse_files_of_terabytes(directory: Path, tmpfs: Path, options: str) -> None:
    (directory / "src").symlink_to(tmpfs)
    far = (1 << 42) + 12345
    with serving.serve(directory, "sparse", options=options) as served:
        fd = os.open(served.path / "f", os.O_CREAT | os.O_RDWR)
        try:
            assert os.pwrite(fd, b"far away", far) == 8
            assert os.fstat(fd).st_size == far + 8
            assert os.pread(fd, 100, far - 4) == bytes(4) + b"far away"
            assert os.lseek(fd, 0, os.SEEK_DATA) == far & ~4095
            os.ftruncate(fd, 1 << 43)
            assert (tmpfs / "f").stat().st_size == 1 << 43
            assert os.lseek(fd, far & ~4095, os.SEEK_HOLE) == (far & ~4095) + 4096
        finally:
            os.close(fd)
