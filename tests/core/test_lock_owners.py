"""Whose a lock of a range is, and for how long: as on the bare directory, whatever goes on beside it."""

import errno
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import serving
import support
from core.comparing import compare
from core.locking import WRITE, Lock, another, elsewhere, is_waited_for, ofd, posix, whole
from core.table import attempt, opened, put
from core.variants import Variant

N_WAITERS = 1024  # fusebpf/_core/worker.h: MAX_LOCK_WAITERS
CROWD = f"""
import fcntl, os, sys, threading

said = []
def wait():
    fd = os.open(sys.argv[1], os.O_RDWR)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        fcntl.flock(fd, fcntl.LOCK_UN)
        said.append(0)
    except OSError as error:
        said.append(error.errno)
        print(error.errno, flush=True)
    os.close(fd)

threading.stack_size(1 << 16)
threads = [threading.Thread(target=wait) for _ in range({N_WAITERS + 50})]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print("got", said.count(0), flush=True)
"""


EMBEDDED = """
import os, sys, trio, fusebpf

def open_below(top):
    fds = [f"/proc/self/fd/{name}" for name in os.listdir("/proc/self/fd")]
    return [path for path in (os.readlink(fd) for fd in fds if os.path.lexists(fd)) if path.startswith(top)]

async def main():
    src, mnt, name = sys.argv[1:]
    async with fusebpf.Stack(src, mnt, name=name):
        print("mounted", flush=True)
        await trio.to_thread.run_sync(sys.stdin.readline)
    print(open_below(src), flush=True)
    sys.stdin.readline()

trio.run(main)
"""


def test_a_lock_that_is_waited_for_outlives_the_close_of_another_descriptor(
    variant: Variant, bare: Path
) -> None:
    def act(p: Path) -> Any:
        path = put(p / "f")
        got: list[Any] = []
        with opened(path, os.O_RDWR) as fd:
            with another(path, lambda other: posix(other, WRITE)):
                waiter = threading.Thread(target=lambda: got.append(posix(fd, WRITE, waits=True)))
                waiter.start()
                support.wait_until(lambda: is_waited_for(path))
                os.close(os.open(path, os.O_RDONLY))
            waiter.join(10)
            return got, elsewhere(path, lambda other: posix(other, WRITE))

    assert compare(variant, bare, act) == ([None], "EAGAIN")


def test_an_open_file_has_no_lock_of_one_that_was_closed_before(variant: Variant) -> None:
    kept_out = []
    for number in range(100):
        path = put(variant.mounted.path / f"reused{number}")
        with opened(path, os.O_RDWR) as fd:
            assert ofd(fd, WRITE, 0, 10) is None
        with opened(path, os.O_RDWR) as fd:  # the kernel's struct file, and so the owner, is often the same
            assert ofd(fd, WRITE, 100, 10) is None
            time.sleep(0.002)
            with opened(path, os.O_RDWR) as other:
                said = ofd(other, WRITE, 0, 10)
                end = time.monotonic() + 5  # RELEASE of the first may come late
                while said and time.monotonic() < end:
                    time.sleep(0.01)
                    said = ofd(other, WRITE, 0, 10)
                kept_out.append(said)
                assert ofd(other, WRITE, 100, 10) == "EAGAIN"

    assert kept_out == [None] * 100


@pytest.mark.alone  # with locks=local nobody tells of a close but RELEASE, which comes late on a busy machine
@pytest.mark.parametrize("options", ["", "transport=dev", "locks=local", "idle=leave", "idle=poll"])
@pytest.mark.parametrize("lock", [whole, ofd])
def test_the_lock_of_a_file_that_was_closed_is_in_nobodys_way(
    directory: Path, lock: Lock, options: str
) -> None:
    with serving.serve(directory, "closed", options=options) as served:
        path = put(served.path / "f")
        refused = []
        for _ in range(1000):
            with opened(path, os.O_RDWR) as second, opened(path, os.O_RDWR) as first:
                refused += [lock(first, WRITE), lock(second, WRITE)]
            with opened(path, os.O_RDWR) as third:
                refused.append(lock(third, WRITE))
        with opened(path, os.O_RDWR) as first, opened(path, os.O_RDWR) as second:
            refused += [lock(first, WRITE)]
            os.close(os.dup(first))
            refused += [lock(second, WRITE), None]

        assert refused == [None, "EAGAIN", None] * 1001


def test_what_is_append_only_is_locked_to_write(variant: Variant, bare: Path) -> None:
    def act(p: Path) -> Any:
        path = put(p / "f")
        support.run("chattr", "+a", path)
        try:
            with opened(path, os.O_RDWR | os.O_APPEND) as fd:
                return attempt(posix, fd, WRITE), attempt(ofd, fd, WRITE, 0, 10)
        finally:
            support.run("chattr", "-a", path)

    compare(variant, bare, act)


def test_no_lock_outlives_the_mount_in_a_program_that_goes_on(directory: Path) -> None:
    src, mnt = directory / "src", directory / "mnt"
    src.mkdir()
    mnt.mkdir()
    put(src / "f")
    words = [sys.executable, "-c", EMBEDDED, str(src), str(mnt), f"test{os.getpid()}-embedded"]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        assert program.stdin is not None
        assert program.stdout.readline() == "mounted\n"
        with another(mnt / "f", lambda fd: (posix(fd, WRITE, 0, 5), ofd(fd, WRITE, 10, 5))):
            assert elsewhere(src / "f", lambda fd: (ofd(fd, WRITE, 0, 5), ofd(fd, WRITE, 10, 5))) == (
                "EAGAIN",
                "EAGAIN",
            )
            program.stdin.write("\n")
            program.stdin.flush()

            assert program.stdout.readline() == "[]\n"
            assert elsewhere(src / "f", lambda fd: ofd(fd, WRITE)) is None
        program.stdin.write("\n")
    assert program.returncode == 0


@pytest.mark.parametrize("transport", ["dev", "auto"])
def test_more_who_wait_for_locks_than_may_are_told_so_and_others_are_served(
    directory: Path, transport: str
) -> None:
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(limit[0], 8192), max(limit[1], 8192)))
    try:
        with serving.serve(directory, "crowd", options=f"transport={transport}") as served:
            path = put(served.path / "f")
            words = [sys.executable, "-I", "-S", "-c", CROWD, str(path)]
            with another(path, lambda fd: whole(fd, WRITE)) as holder:
                crowd = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
                try:
                    assert crowd.stdout is not None
                    told = [int(crowd.stdout.readline()) for _ in range(50)]
                    for core in os.sched_getaffinity(0):
                        support.run("taskset", "-c", str(core), "touch", served.path / "new", seconds=10)
                    os.kill(holder, signal.SIGKILL)
                    last = crowd.stdout.readline()
                    assert crowd.wait(60) == 0
                finally:
                    crowd.kill()
                    crowd.communicate(timeout=20)
            assert told == [errno.ENOLCK] * 50
            assert last == f"got {N_WAITERS}\n"
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limit)
