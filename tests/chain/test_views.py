"""Views: callers that see one file differently, at the same time, without a leak."""

import mmap
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import support
from chain.chained import HERE, OPCODES, Chained, chained
from core.table import attempt, in_child, user

from fusebpf import bpf

FULL, SHORT = 0, 2000
"""The users: one sees all of a file, one the first three bytes."""
OWNED_BY_ONE_WHO_HIDES = 3000
DATA = b"abcdefghij" * 1000


def put_in(made: Chained, name: str, uid: int, view: int) -> None:
    fd = bpf.obj_get(made.mounted.pins / "view" / name)
    bpf.map_update(fd, uid.to_bytes(4, "little"), view.to_bytes(4, "little"))
    os.close(fd)


@pytest.fixture(scope="module")
def views(run_directory: Path) -> Iterator[Chained]:
    with chained(run_directory, [HERE / "views.c"]) as made:
        put_in(made, "by_uid", SHORT, 7)
        put_in(made, "by_owner", OWNED_BY_ONE_WHO_HIDES, 9)
        yield made


@pytest.fixture
def shared(views: Chained) -> Path:
    """A directory that all may write to, with a file."""
    p, behind = views.fresh()
    behind.chmod(0o777)
    (behind / "f").write_bytes(DATA)
    (behind / "f").chmod(0o666)
    return p


def as_user(uid: int, call: Callable[..., Any], *args: Any) -> Any:
    with user(uid):
        return attempt(call, *args)


def behind(views: Chained, p: Path) -> Path:
    return views.mounted.src / p.name


def seen(views: Chained, op: str) -> int:
    """The view that the hook after an op saw last; only root may read a pinned map."""
    uid = os.geteuid()
    os.seteuid(0)
    try:
        return views.map("view/seen")[OPCODES[op]]
    finally:
        os.seteuid(uid)


def test_two_callers_see_a_file_differently_at_the_same_time(shared: Path) -> None:
    def act() -> Any:
        opened = {}
        for uid in (FULL, SHORT):
            with user(uid):
                opened[uid] = os.open(shared / "f", os.O_RDONLY)
        found = []
        maps = {
            FULL: mmap.mmap(opened[FULL], 4096, prot=mmap.PROT_READ),
            SHORT: mmap.mmap(opened[SHORT], 3, prot=mmap.PROT_READ),
        }
        for _ in range(20):
            for uid in (FULL, SHORT, SHORT, FULL):
                shown = maps[uid]
                stat_path, stat_fd = as_user(uid, os.stat, shared / "f"), os.fstat(opened[uid])
                content = as_user(uid, (shared / "f").read_bytes)
                found.append(
                    (uid, stat_path.st_size, stat_fd.st_size, content, os.pread(opened[uid], 20000, 0),
                     shown[:3], shown.size(), stat_path.st_ino)
                )  # fmt: skip
        return found

    found = in_child(act)

    assert len({row[-1] for row in found}) == 1, "the file's number is the same"
    for uid, *what, _ in found:
        size = 3 if uid == SHORT else len(DATA)
        assert what == [size, size, DATA[:size], DATA[:size], DATA[:3], size]


def test_what_is_in_the_page_cache_of_one_view_is_not_read_through_another(shared: Path) -> None:
    def act() -> Any:
        with user(FULL):
            full = os.open(shared / "f", os.O_RDONLY)
        everything = mmap.mmap(full, 0, prot=mmap.PROT_READ)
        before = everything[:]
        with user(SHORT):
            short = os.open(shared / "f", os.O_RDONLY)
        page = mmap.mmap(short, 3, prot=mmap.PROT_READ)
        return before == DATA, page[:3], os.pread(short, 100, 2), everything[:] == DATA

    assert in_child(act) == (True, b"abc", b"c", True)


def test_entries_with_views_are_asked_for_each_time(views: Chained, shared: Path) -> None:
    def act() -> Any:
        return [as_user(uid, lambda: os.stat(shared / "f").st_size) for uid in (SHORT, FULL) * 4]

    in_child(act)
    with views.map("view/ttl", 8).put(0, 3600 * 10**9):
        assert in_child(act) == [3, len(DATA)] * 4


@pytest.mark.parametrize(("writer", "reader"), [(FULL, SHORT), (SHORT, FULL)])
def test_what_one_view_writes_the_other_reads(shared: Path, writer: int, reader: int) -> None:
    def act() -> Any:
        opened, maps = {}, {}
        for uid in (writer, reader):
            with user(uid):
                opened[uid] = os.open(shared / "f", os.O_RDWR)
            maps[uid] = mmap.mmap(opened[uid], 3)
        before = maps[reader][:], os.pread(opened[reader], 3, 0)
        os.pwrite(opened[writer], b"XYZ", 0)
        support.wait_until(lambda: maps[reader][:] == b"XYZ")
        at_once = os.pread(opened[reader], 3, 0)
        os.ftruncate(opened[writer], 2)
        size = os.fstat(opened[reader]).st_size
        os.close(os.open(shared / "f", os.O_RDWR | os.O_TRUNC))
        return before, at_once, size, os.fstat(opened[reader]).st_size, os.pread(opened[reader], 3, 0)

    assert in_child(act) == ((b"abc", b"abc"), b"XYZ", 2, 0, b"")


def test_what_a_mapping_of_one_view_writes_the_other_reads(shared: Path) -> None:
    def act() -> Any:
        with user(FULL):
            full = mmap.mmap(os.open(shared / "f", os.O_RDWR), 4096)
        with user(SHORT):
            short = os.open(shared / "f", os.O_RDONLY)
        before = os.pread(short, 3, 0)
        full[0:3] = b"MAP"
        full.flush()
        return before, os.pread(short, 3, 0)

    assert in_child(act) == (b"abc", b"MAP")


def test_files_are_made_through_a_view(views: Chained, shared: Path) -> None:
    def act() -> Any:
        with user(SHORT):
            fd = os.open(shared / "new", os.O_CREAT | os.O_RDWR | os.O_EXCL, 0o644)
            made = seen(views, "create")
            os.write(fd, b"0123456789")
            mine = os.fstat(fd).st_size
            os.mkdir(shared / "d")
            of_directory = seen(views, "mkdir")
            os.mkfifo(shared / "fifo")
            os.symlink("new", shared / "s")
            through_link = (shared / "s").read_bytes()
        return made, of_directory, mine, through_link, as_user(FULL, (shared / "new").read_bytes)

    assert in_child(act) == (7, 7, 3, b"012", b"0123456789")


def test_what_is_below_a_directory_of_a_view_is_of_that_view(views: Chained, shared: Path) -> None:
    def act() -> Any:
        with user(SHORT):
            os.makedirs(shared / "a/b")
            (shared / "a/b/f").write_bytes(DATA)
            directory = os.open(shared / "a/b", os.O_RDONLY)
            as_seen = seen(views, "opendir")
        # Another user by that descriptor: the directory's view goes on, since no hook says another.
        by_descriptor = os.stat("f", dir_fd=directory).st_size
        return as_seen, by_descriptor, as_user(FULL, lambda: os.stat(shared / "a/b/f").st_size)

    assert in_child(act) == (7, 3, len(DATA))


def test_a_view_by_what_was_found(views: Chained, shared: Path) -> None:
    os.chown(behind(views, shared) / "f", OWNED_BY_ONE_WHO_HIDES, -1)

    def act() -> Any:
        fd = os.open(shared / "f", os.O_RDONLY)
        return seen(views, "open"), os.fstat(fd).st_size, os.read(fd, 100)

    assert in_child(act) == (9, 3, b"abc")


def test_links_renames_and_removal_in_views(views: Chained, shared: Path) -> None:
    def act() -> Any:
        opened = {}
        for uid in (FULL, SHORT):
            with user(uid):
                opened[uid] = os.open(shared / "f", os.O_RDONLY)
        with user(SHORT):
            os.link(shared / "f", shared / "link")
            linked = seen(views, "link"), os.stat(shared / "link").st_size
        counts = [os.fstat(fd).st_nlink for fd in opened.values()]
        os.rename(shared / "f", shared / "g")
        renamed = [as_user(uid, lambda: os.stat(shared / "g").st_size) for uid in (FULL, SHORT)]
        gone = [as_user(uid, lambda: os.stat(shared / "f").st_size) for uid in (FULL, SHORT)]
        os.unlink(shared / "g")
        os.unlink(shared / "link")
        # Their descriptors are closed and opened again by handle, unless they were pinned.
        left = [os.fstat(fd).st_nlink for fd in opened.values()]
        return linked, counts, renamed, gone, left, [len(os.pread(fd, 20000, 0)) for fd in opened.values()]

    assert in_child(act) == ((7, 3), [2, 2], [len(DATA), 3], ["ENOENT"] * 2, [0, 0], [len(DATA), 3])


@pytest.mark.alone
def test_an_unlinked_file_can_be_asked_through_each_view(shared: Path) -> None:
    """O_PATH descriptors hold the kernel's inode alone: the server has to reach the file itself."""

    def act() -> Any:
        held = []
        for uid in (FULL, SHORT):
            with user(uid):
                held.append(os.open(shared / "f", os.O_PATH))
        os.unlink(shared / "f")
        os.sync()
        Path("/proc/sys/vm/drop_caches").write_text("2")
        return [os.stat(f"/proc/self/fd/{fd}").st_size for fd in held]

    assert in_child(act) == [len(DATA), 3]


def test_listings_with_attributes_bring_no_shared_inodes(shared: Path) -> None:
    def act() -> Any:
        found = []
        for uid in (FULL, SHORT, FULL, SHORT):
            with user(uid):
                found.append([entry.stat().st_size for entry in os.scandir(shared) if entry.name == "f"])
        return found

    assert in_child(act) == [[len(DATA)], [3]] * 2


def test_many_callers_at_once(shared: Path) -> None:
    def look(uid: int, n: int) -> Any:
        with user(uid):
            return {(len((shared / "f").read_bytes()), os.stat(shared / "f").st_size) for _ in range(n)}

    def act() -> Any:
        pids = []
        for number in range(6):
            pid = os.fork()
            if pid == 0:
                uid = (FULL, SHORT)[number % 2]
                size = 3 if uid == SHORT else len(DATA)
                os._exit(0 if look(uid, 300) == {(size, size)} else 1)
            pids.append(pid)
        return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]

    assert in_child(act) == [0] * 6
