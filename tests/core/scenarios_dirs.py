"""Scenarios of listings: opendir, readdir, telldir, seekdir, many entries, entries that go away."""

import ctypes
import os
from pathlib import Path
from typing import Any

from core.table import attempt, facts, libc, opened, put, scenario

libc.opendir.restype = libc.readdir.restype = ctypes.c_void_p
libc.opendir.argtypes = [ctypes.c_char_p]
libc.readdir.argtypes = libc.closedir.argtypes = libc.rewinddir.argtypes = [ctypes.c_void_p]
libc.telldir.argtypes = [ctypes.c_void_p]
libc.telldir.restype = ctypes.c_long
libc.seekdir.argtypes = [ctypes.c_void_p, ctypes.c_long]

D_NAME = 19  # offset in struct dirent


class Stream:
    """opendir(3) and its family."""

    def __init__(self, path: Path) -> None:
        self.stream = libc.opendir(os.fsencode(path))
        assert self.stream

    def next(self) -> str | None:
        entry = libc.readdir(self.stream)
        return None if not entry else os.fsdecode(ctypes.string_at(entry + D_NAME))

    def rest(self) -> list[str]:
        return list(iter(self.next, None))

    def tell(self) -> int:
        return int(libc.telldir(self.stream))

    def seek(self, place: int) -> None:
        libc.seekdir(self.stream, place)

    def rewind(self) -> None:
        libc.rewinddir(self.stream)

    def close(self) -> None:
        libc.closedir(self.stream)


def fill(path: Path, count: int) -> set[str]:
    """Make entries, all of one file: an inode for each is what takes time."""
    names = sorted(f"entry-{index:05}" for index in range(count))
    put(path / names[0])
    for name in names[1:]:
        os.link(path / names[0], path / name)
    return set(names)


def clear(path: Path) -> None:
    """Remove the entries again: what is left is compared one by one."""
    for name in os.listdir(path):
        os.unlink(path / name)


@scenario
def listing_of_an_empty_directory(p: Path) -> Any:
    stream = Stream(p)
    names = sorted(stream.rest())
    after = stream.next()
    stream.close()
    return names, after, os.listdir(p)


@scenario
def listing_says_the_type_of_each_entry(p: Path) -> Any:
    put(p / "file")
    os.mkdir(p / "dir")
    os.symlink("file", p / "link")
    os.mkfifo(p / "fifo")
    entries = sorted(os.scandir(p), key=lambda entry: entry.name)
    kinds = [(e.name, e.is_file(follow_symlinks=False), e.is_dir(), e.is_symlink()) for e in entries]
    return kinds, [entry.inode() == os.lstat(entry.path).st_ino for entry in entries]


@scenario
def listing_of_5000_entries_is_complete(p: Path) -> Any:
    names = fill(p, 5000)
    first, second = os.listdir(p), os.listdir(p)
    clear(p)
    return len(first), set(first) == names, first == second


@scenario
def listing_after_seekdir_goes_on_there(p: Path) -> Any:
    fill(p, 3000)
    stream = Stream(p)
    places, names = [], []
    while True:
        place = stream.tell()
        name = stream.next()
        if name is None:
            break
        places.append(place)
        names.append(name)
    good = []
    for index in (2500, 10, 2999, 0, 1, 1500, 700, 699):
        stream.seek(places[index])
        good.append(stream.next() == names[index] and stream.next() == names[index + 1])
    stream.seek(places[1000])
    rest = stream.rest() == names[1000:]
    stream.close()
    clear(p)
    return len(names), good, rest


@scenario
def listing_after_rewinddir_sees_what_is_new(p: Path) -> Any:
    put(p / "a")
    stream = Stream(p)
    first = sorted(stream.rest())
    put(p / "b")
    os.unlink(p / "a")
    stream.rewind()
    second = sorted(stream.rest())
    stream.close()
    return first, second


@scenario
def listing_while_its_entries_are_removed(p: Path) -> Any:
    names = fill(p, 5000)
    stream = Stream(p)
    seen = []
    while (name := stream.next()) is not None:
        if name not in {".", ".."}:
            os.unlink(p / name)
            seen.append(name)
    stream.close()
    return len(seen) == len(set(seen)), set(seen) == names, os.listdir(p)


@scenario
def listing_while_others_are_removed_shows_each_that_stays_once(p: Path) -> Any:
    names = sorted(fill(p, 3000))
    stream = Stream(p)
    seen = [stream.next() for _ in range(100)]
    for name in names[::2]:
        os.unlink(p / name)
    seen += stream.rest()
    stream.close()
    clear(p)
    return len(seen) == len(set(seen)), set(names[1::2]) <= set(seen)


@scenario
def listing_with_two_descriptors_and_a_duplicate(p: Path) -> Any:
    names = fill(p, 500)
    a, b = Stream(p), Stream(p)
    mixed: list[set[str | None]] = [set(), set()]
    for _ in range(502):
        mixed[0].add(a.next())
        mixed[1].add(b.next())
    a.close()
    b.close()
    clear(p)
    return [names <= found for found in mixed], [len(found) for found in mixed]


@scenario
def listing_of_a_deep_tree(p: Path) -> Any:
    path = p
    for index in range(60):
        path /= f"level{index}"
        os.mkdir(path)
    put(path / "bottom", b"deep")
    found = [(os.path.relpath(top, p), dirs, files) for top, dirs, files in os.walk(p)]
    return found, (path / "bottom").read_bytes(), facts(path)


@scenario
def listing_then_stat_agrees(p: Path) -> Any:
    for index in range(300):
        put(p / f"f{index}", b"x" * index)
    sizes = {entry.name: entry.stat().st_size for entry in os.scandir(p)}
    return sizes == {f"f{index}": index for index in range(300)}


@scenario
def tree_is_made_and_removed(p: Path) -> Any:
    for a in range(10):
        for b in range(10):
            os.makedirs(p / f"a{a}" / f"b{b}")
            put(p / f"a{a}" / f"b{b}" / "file")
    links = [facts(p)[1], facts(p / "a3")[1]]
    for top, dirs, files in os.walk(p, topdown=False):
        for name in files:
            os.unlink(os.path.join(top, name))
        for name in dirs:
            os.rmdir(os.path.join(top, name))
    return links, os.listdir(p), facts(p)[1]


@scenario
def opendir_errors(p: Path) -> Any:
    put(p / "f")
    return [attempt(os.listdir, p / name) for name in ("f", "missing", "f/x")]


@scenario
def descriptors_of_directories(p: Path) -> Any:
    os.mkdir(p / "d")
    put(p / "d" / "f")
    with opened(p / "d", os.O_RDONLY | os.O_DIRECTORY) as fd:
        names = os.listdir(fd)
        os.unlink("f", dir_fd=fd)
        os.fchdir(fd)
        put(Path("g"))
        return names, os.listdir(fd), attempt(os.fsync, fd), os.lseek(fd, 0, os.SEEK_SET), os.listdir(".")
