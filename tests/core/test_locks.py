"""Locks of ranges and of whole files: as on the bare directory, and shared with what is behind the mount."""

import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import serving
import support
from core.comparing import compare, fresh
from core.locking import (
    ALL,
    READ,
    TO_END,
    UNLOCK,
    WRITE,
    Lock,
    another,
    elsewhere,
    getlk,
    is_waited_for,
    lock_in_the_end,
    n_waiting,
    ofd,
    posix,
    whole,
)
from core.table import in_child, opened, put
from core.variants import Variant

OP = {"posix": "FB_OP_setlk", "flock": "FB_OP_flock"}


@pytest.fixture(params=list(ALL))
def lock(request: pytest.FixtureRequest) -> Lock:
    """One way to lock."""
    return ALL[request.param]


# ---------------------------------------------------------------------------- what conflicts


@pytest.mark.parametrize("first", [READ, WRITE])
@pytest.mark.parametrize("second", [READ, WRITE])
def test_who_is_kept_out(variant: Variant, bare: Path, lock: Lock, first: int, second: int) -> None:
    def act(p: Path) -> Any:
        with opened(put(p / "f"), os.O_RDWR) as fd:
            said = [lock(fd, first), elsewhere(p / "f", lambda other: lock(other, second))]
            said += [lock(fd, UNLOCK), elsewhere(p / "f", lambda other: lock(other, second))]
            return said

    compare(variant, bare, act)


@pytest.mark.parametrize("lock", [posix, ofd], ids=["posix", "ofd"])
def test_ranges_are_cut_and_joined(variant: Variant, bare: Path, lock: Lock) -> None:
    def act(p: Path) -> Any:
        steps = [
            (WRITE, 10, 80), (UNLOCK, 30, 20), (READ, 60, 10), (WRITE, 0, 5), (READ, 5, 15), (UNLOCK, 15, 1),
            (WRITE, 1 << 40, TO_END), (UNLOCK, 1 << 41, 10), (READ, 0, TO_END), (UNLOCK, 0, TO_END),
        ]  # fmt: skip
        places = [*range(0, 100, 5), (1 << 40) - 1, 1 << 40, 1 << 41, (1 << 41) + 10, (1 << 62)]

        def look(fd: int) -> Any:
            return [[lock(fd, kind, at, 1) for kind in (READ, WRITE)] for at in places]

        with opened(put(p / "f"), os.O_RDWR) as fd:
            return [(lock(fd, *step), elsewhere(p / "f", look)) for step in steps]

    compare(variant, bare, act)


def test_a_lock_needs_the_access_that_it_is_for(variant: Variant, bare: Path, lock: Lock) -> None:
    def act(p: Path) -> Any:
        put(p / "f")
        return [
            elsewhere(p / "f", lambda fd, kind=kind: lock(fd, kind), flags)  # type: ignore[misc]
            for flags in (os.O_RDONLY, os.O_WRONLY)
            for kind in (READ, WRITE)
        ]

    compare(variant, bare, act)


def test_directories_are_locked(variant: Variant, bare: Path) -> None:
    def act(p: Path) -> Any:
        (p / "d").mkdir()
        with opened(p / "d", os.O_RDONLY) as fd:
            refused = [whole(fd, WRITE), elsewhere(p / "d", lambda other: whole(other, READ), os.O_RDONLY)]
        return refused, elsewhere(p / "d", lambda other: whole(other, READ), os.O_RDONLY)

    compare(variant, bare, act)


def test_two_open_files_of_one_process(variant: Variant, bare: Path, lock: Lock) -> None:
    def act(p: Path) -> Any:
        put(p / "f")
        with opened(p / "f", os.O_RDWR) as one, opened(p / "f", os.O_RDWR) as two:
            return lock(one, WRITE, 0, 10), lock(two, WRITE, 5, 10), lock(two, READ, 20, 10)

    compare(variant, bare, act)


def test_posix_and_flock_do_not_see_each_other(variant: Variant, bare: Path) -> None:
    def act(p: Path) -> Any:
        with opened(put(p / "f"), os.O_RDWR) as fd:
            said = [posix(fd, WRITE), elsewhere(p / "f", lambda other: whole(other, WRITE))]
            return said, elsewhere(p / "f", lambda other: ofd(other, WRITE))

    assert compare(variant, bare, act) == ([None, None], "EAGAIN")


# ---------------------------------------------------------------------------------- GETLK


def test_getlk_names_what_is_in_the_way_and_who(variant: Variant, bare: Path) -> None:
    def act(p: Path) -> Any:
        put(p / "f")

        def take(fd: int) -> None:
            assert posix(fd, WRITE, 10, 10) is None
            assert posix(fd, READ, 100, TO_END) is None

        with opened(p / "f", os.O_RDWR) as fd, another(p / "f", take) as pid:
            found = [
                getlk(fd, kind, start, length)
                for kind in (READ, WRITE)
                for start, length in ((0, 10), (0, 11), (15, 1), (19, TO_END), (150, 1), (0, TO_END))
            ]
            return [(*one[:3], *(each == pid for each in one[3:])) for one in found]

    found = compare(variant, bare, act)
    assert (WRITE, 10, 10, True) in found
    assert (READ, 100, 0, True) in found


def test_getlk_of_an_open_files_own_lock(variant: Variant) -> None:
    def act(p: Path) -> Any:
        put(p / "f")
        with opened(p / "f", os.O_RDWR) as one, opened(p / "f", os.O_RDWR) as two:
            ofd(one, WRITE, 5, 5)
            answers = [getlk(fd, WRITE, command=fcntl.F_OFD_GETLK) for fd in (one, two)]
            return answers, getlk(one, WRITE)[:3]

    answers, by_posix = in_child(act, fresh(variant)[0])

    assert answers[0] == (UNLOCK,)
    assert answers[1][:3] == (WRITE, 5, 5)
    assert by_posix == (WRITE, 5, 5)


def test_getlk_of_own_locks_finds_nothing(variant: Variant, bare: Path) -> None:
    def act(p: Path) -> Any:
        with opened(put(p / "f"), os.O_RDWR) as fd:
            return posix(fd, WRITE), getlk(fd, WRITE), getlk(fd, READ, 5, 5)

    compare(variant, bare, act)


# ------------------------------------------------------------------------------ letting go


def test_any_descriptors_close_lets_posix_locks_go(variant: Variant, bare: Path, lock: Lock) -> None:
    def act(p: Path) -> Any:
        put(p / "f")
        with opened(p / "f", os.O_RDWR) as one:
            lock(one, WRITE)
            with opened(p / "f", os.O_RDONLY):
                before = elsewhere(p / "f", lambda other: lock(other, WRITE))
            return before, elsewhere(p / "f", lambda other: lock(other, WRITE))

    compare(variant, bare, act)


def test_a_duplicates_close(variant: Variant, bare: Path, lock: Lock) -> None:
    def act(p: Path) -> Any:
        with opened(put(p / "f"), os.O_RDWR) as fd:
            lock(fd, WRITE)
            os.close(os.dup(fd))
            return elsewhere(p / "f", lambda other: lock(other, WRITE))

    compare(variant, bare, act)


@pytest.mark.parametrize("way", ["close", "exit", "kill"])
def test_locks_end_with_their_holder(variant: Variant, bare: Path, lock: Lock, way: str) -> None:
    def act(p: Path) -> Any:
        put(p / "f")
        if way == "close":
            with opened(p / "f", os.O_RDWR) as fd:
                lock(fd, WRITE)
        elif way == "exit":
            elsewhere(p / "f", lambda fd: lock(fd, WRITE))
        else:
            with another(p / "f", lambda fd: lock(fd, WRITE)):
                assert elsewhere(p / "f", lambda other: lock(other, READ)) == "EAGAIN"
        return lock_in_the_end(p / "f", lock)

    assert compare(variant, bare, act) is None


def test_a_child_has_its_parents_open_file_but_not_its_posix_locks(
    variant: Variant, bare: Path, lock: Lock
) -> None:
    def act(p: Path) -> Any:
        with opened(put(p / "f"), os.O_RDWR) as fd:
            lock(fd, WRITE)
            by_child = in_child(lambda: lock(fd, WRITE), seconds=10)
            after_its_exit = elsewhere(p / "f", lambda other: lock(other, WRITE))
            released = in_child(lambda: lock(fd, UNLOCK), seconds=10)
            return by_child, after_its_exit, released, elsewhere(p / "f", lambda other: lock(other, WRITE))

    compare(variant, bare, act)


def test_the_last_of_those_who_share_an_open_file_lets_it_go(variant: Variant, bare: Path) -> None:
    def act(p: Path) -> Any:
        fd = os.open(put(p / "f"), os.O_RDWR)
        whole(fd, WRITE)
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(writer)
            os.read(reader, 1)
            os._exit(0)
        os.close(fd)
        held = elsewhere(p / "f", lambda other: whole(other, WRITE))
        os.close(writer)
        os.waitpid(pid, 0)
        return held, lock_in_the_end(p / "f", whole)

    assert compare(variant, bare, act) == ("EAGAIN", None)


# -------------------------------------------------------------------------------- waiting


def test_who_waits_is_let_in(variant: Variant, bare: Path, lock: Lock) -> None:
    def act(p: Path) -> Any:
        put(p / "f")
        with opened(p / "f", os.O_RDWR) as fd:
            lock(fd, WRITE)
            threading.Timer(0.3, lambda: lock(fd, UNLOCK)).start()
            start = time.monotonic()
            said = elsewhere(p / "f", lambda other: lock(other, WRITE, waits=True))
            return said, 0.1 < time.monotonic() - start < 8

    assert compare(variant, bare, act) == (None, True)


def test_who_waits_is_let_in_when_the_holder_is_killed(variant: Variant, bare: Path, lock: Lock) -> None:
    def act(p: Path) -> Any:
        put(p / "f")
        with another(p / "f", lambda fd: lock(fd, WRITE)) as pid:
            threading.Timer(0.3, lambda: os.kill(pid, signal.SIGKILL)).start()
            return elsewhere(p / "f", lambda other: lock(other, WRITE, waits=True))

    assert compare(variant, bare, act) is None


class _Alarm(Exception):  # noqa: N818
    pass


def test_a_signal_ends_the_wait(variant: Variant, bare: Path, lock: Lock) -> None:
    def wait(fd: int) -> Any:
        def ring(*_: Any) -> None:
            raise _Alarm

        signal.signal(signal.SIGALRM, ring)
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        start = time.monotonic()
        try:
            said = lock(fd, WRITE, waits=True)
        except _Alarm:
            said = "interrupted"
        return said, time.monotonic() - start < 3

    def act(p: Path) -> Any:
        put(p / "f")
        with opened(p / "f", os.O_RDWR) as fd:
            lock(fd, WRITE)
            said = elsewhere(p / "f", wait)
            lock(fd, UNLOCK)
            return said, elsewhere(p / "f", lambda other: lock(other, WRITE))

    assert compare(variant, bare, act) == (("interrupted", True), None)


def test_a_waiter_that_is_killed_leaves_nothing(variant: Variant, bare: Path, lock: Lock) -> None:
    def act(p: Path) -> Any:
        put(p / "f")
        with opened(p / "f", os.O_RDWR) as fd:
            lock(fd, WRITE)
            pid = os.fork()
            if pid == 0:
                other = os.open(p / "f", os.O_RDWR)
                lock(other, WRITE, waits=True)
                os._exit(0)
            support.wait_until(lambda: is_waited_for(p / "f"))
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            lock(fd, UNLOCK)
            return lock_in_the_end(p / "f", lock)

    assert compare(variant, bare, act) is None


# ------------------------------------------------------------------- shared with the backing


@pytest.mark.parametrize("holder", ["through", "behind"])
def test_locks_are_seen_on_both_sides(variant: Variant, lock: Lock, holder: str) -> None:
    through, behind = fresh(variant)
    put(behind / "f")
    holds, looks = (through, behind) if holder == "through" else (behind, through)

    with another(holds / "f", lambda fd: lock(fd, WRITE, 0, 10)):
        kept_out = elsewhere(looks / "f", lambda fd: (lock(fd, READ, 5, 1), lock(fd, WRITE, 5, 1)))
        found = elsewhere(looks / "f", lambda fd: getlk(fd, WRITE)[:3])
        let_in = [elsewhere(looks / "f", lambda fd: lock(fd, WRITE, 10, 5))] if lock is not whole else []

    assert kept_out == ("EAGAIN", "EAGAIN")
    assert found == ((UNLOCK,) if lock is whole else (WRITE, 0, 10))
    assert let_in in ([], [None])


def test_getlk_names_a_process_of_the_other_side(variant: Variant) -> None:
    through, behind = fresh(variant)
    put(behind / "f")

    with another(behind / "f", lambda fd: posix(fd, WRITE)) as pid:
        assert elsewhere(through / "f", lambda fd: getlk(fd, WRITE)) == (WRITE, 0, 0, pid)


def test_who_waits_on_one_side_is_let_in_by_the_other(variant: Variant, lock: Lock) -> None:
    through, behind = fresh(variant)
    put(behind / "f")
    for holds, waits in ((through, behind), (behind, through)):
        with another(holds / "f", lambda fd: lock(fd, WRITE)) as pid:
            threading.Timer(0.3, os.kill, (pid, signal.SIGKILL)).start()

            assert elsewhere(waits / "f", lambda fd: lock(fd, WRITE, waits=True)) is None


def test_local_locks_are_not_seen_behind(directory: Path) -> None:
    with serving.serve(directory, "local-locks", options="locks=local") as served:
        put(served.src / "f")
        with another(served.path / "f", lambda fd: (posix(fd, WRITE), ofd(fd, WRITE))) as pid:
            assert elsewhere(served.path / "f", lambda fd: posix(fd, READ)) == "EAGAIN"
            assert elsewhere(served.path / "f", lambda fd: getlk(fd, WRITE)[3]) == pid
            assert elsewhere(served.src / "f", lambda fd: posix(fd, WRITE)) is None


# ------------------------------------------------------------------------------ many waiters

WAIT = """
import fcntl, os, sys, time
fd = os.open(sys.argv[1], os.O_RDWR)
lock = fcntl.flock if sys.argv[2] == "flock" else fcntl.lockf
print("at it", flush=True)
lock(fd, fcntl.LOCK_EX)
os.write(os.open(sys.argv[1] + ".count", os.O_WRONLY | os.O_APPEND), b"x")
lock(fd, fcntl.LOCK_UN)
"""


@contextmanager
def waiters(path: Path, kind: str, count: int) -> Iterator[list["subprocess.Popen[bytes]"]]:
    """Processes that wait for the lock."""
    words = [sys.executable, "-I", "-S", "-c", WAIT, str(path), kind]
    clients = [subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(count)]
    try:
        for client in clients:
            assert client.stdout is not None
            assert client.stdout.readline() == b"at it\n"
        yield clients
    finally:
        for client in clients:
            client.kill()
            client.communicate(timeout=20)


@pytest.mark.parametrize("filters", [(), ("audit",)], ids=["plain", "audited"])
@pytest.mark.parametrize("kind", ["posix", "flock"])
def test_a_hundred_waiters_do_not_stop_the_mount_and_all_get_the_lock(
    directory: Path, kind: str, filters: tuple[str, ...]
) -> None:
    options = "max_workers=8,transport=dev"  # over io_uring: tests/transport/test_life.py
    with serving.serve(directory, f"waiters-{kind}", filters=filters, options=options) as served:
        path = put(served.path / "f")
        put(served.path / "f.count", b"")
        fd = os.open(path, os.O_RDWR)
        ALL[kind](fd, WRITE)
        with waiters(path, kind, 100) as clients:
            support.wait_until(lambda: served.counters()["workers"] > 100, seconds=20)
            start = time.monotonic()
            assert support.run("ls", served.path, seconds=5).stdout.split() == ["f", "f.count"]
            assert support.run("cat", path, seconds=5).stdout == "text\n"
            assert time.monotonic() - start < 2

            ALL[kind](fd, UNLOCK)

            assert [(client.wait(30), client.communicate()[1]) for client in clients] == [(0, b"")] * 100
        assert (served.src / "f.count").read_bytes() == b"x" * 100
        os.close(fd)
        support.wait_until(lambda: served.counters()["workers"] <= 8, seconds=20)
        support.wait_until(lambda: served.counters()["handles"] == 0)


@pytest.mark.parametrize("kind", ["posix", "flock"])
def test_the_end_of_the_server_is_told_to_those_who_wait(mount: support.Mounter, kind: str) -> None:
    """Not as EINTR: without a signal the kernel would hand its own errno, 512, to the caller."""
    mounted = mount(filters=["audit"])
    path = put(mounted.path / "f")
    put(mounted.path / "f.count", b"")
    hold = ALL[kind]
    with another(mounted.src / "f", lambda fd: hold(fd, WRITE)), waiters(path, kind, 3) as clients:
        support.wait_until(lambda: mounted.stats().get(("audit", "FB_PRE", OP[kind], "FB_CONTINUE"), 0) >= 3)

        os.kill(mounted.pid, signal.SIGTERM)
        said = [client.communicate(timeout=20)[1] for client in clients]

    assert all(b"[Errno 107] Transport endpoint is not connected" in text for text in said), said
    support.wait_until(lambda: not support.is_alive(mounted.pid), seconds=20)


def test_a_filters_eintr_on_a_lock_is_no_errno_of_the_kernels_own(mount: support.Mounter) -> None:
    mounted = mount(filters=["deny"], sets={"deny.rules": "setlk:*:*:EINTR,flock:*:*:EINTR"})
    path = put(mounted.path / "f")

    def lock_in_every_way(fd: int) -> list[object]:
        return [hold(fd, WRITE) for hold in ALL.values()]

    assert elsewhere(path, lock_in_every_way) == ["EIO", "EIO", "EIO"]


def test_an_unmount_ends_those_who_wait(mount: support.Mounter) -> None:
    mounted = mount()
    path = put(mounted.path / "f")
    put(mounted.path / "f.count", b"")
    with another(mounted.src / "f", lambda fd: posix(fd, WRITE)), waiters(path, "posix", 5) as clients:
        support.wait_until(lambda: n_waiting(mounted.src / "f") == 5)
        support.umount(mounted.path, support.MNT_FORCE | support.MNT_DETACH)
        assert all(client.wait(20) for client in clients)
    support.wait_until(lambda: not support.is_alive(mounted.pid), seconds=20)
