"""Workers that block do not stop the mount; the pool shrinks again; whoever waits can be interrupted."""

# ruff: noqa: PTH - what is tested is system calls
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import serving
import support

OPEN = "import os, sys; os.open(sys.argv[1], os.O_RDONLY)"


@contextmanager
def leased(path: Path) -> Iterator[None]:
    """Hold a write lease on a file: whoever opens it waits until the lease is given back or breaks."""
    path.write_text("leased")
    old = signal.signal(signal.SIGIO, signal.SIG_IGN)
    fd = os.open(path, os.O_RDWR)
    try:
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        yield
    finally:
        os.close(fd)
        signal.signal(signal.SIGIO, old)


@contextmanager
def clients_of(path: Path, count: int) -> Iterator[list["subprocess.Popen[bytes]"]]:
    """Processes that open a file."""
    words = ["timeout", "-s", "KILL", "40", sys.executable, "-c", OPEN, str(path)]
    clients = [subprocess.Popen([*words[4:]], stderr=subprocess.PIPE) for _ in range(count)]
    try:
        yield clients
    finally:
        for client in clients:
            client.kill()
        for client in clients:
            client.communicate(timeout=20)


def test_a_worker_that_blocks_does_not_stop_the_mount(directory: Path) -> None:
    with serving.serve(directory, "pool") as served:
        n_first = served.n_threads()
        (served.src / "other").write_text("there")
        with leased(served.src / "f"), clients_of(served.path / "f", 20) as clients:
            support.wait_until(lambda: served.counters()["workers"] >= 21, seconds=20)

            start = time.monotonic()
            assert support.run("ls", served.path, seconds=5).stdout.split() == ["f", "other"]
            assert support.run("cat", served.path / "other", seconds=5).stdout == "there"
            support.run("stat", served.path / "f", seconds=5)

            assert time.monotonic() - start < 2
            assert all(client.poll() is None for client in clients)
        support.wait_until(lambda: served.counters()["workers"] <= 3, seconds=20)
        support.wait_until(lambda: served.n_threads() <= n_first + 2, seconds=20)
        assert served.counters()["handles"] == 0


def test_what_waits_goes_on_when_the_backing_does(directory: Path) -> None:
    with serving.serve(directory, "wait") as served:
        with leased(served.src / "f"), clients_of(served.path / "f", 5) as clients:
            support.wait_until(lambda: served.counters()["workers"] >= 6, seconds=20)
            signal.pthread_sigmask(signal.SIG_BLOCK, [])
            os.kill(os.getpid(), 0)
            _give_back(served.src / "f")
            for client in clients:
                assert client.wait(20) == 0


def _give_back(path: Path) -> None:
    """Give the lease back that this process holds on a file."""
    for entry in os.listdir("/proc/self/fd"):
        fd = int(entry)
        try:
            is_it = os.readlink(f"/proc/self/fd/{fd}") == str(path)
        except OSError:
            continue
        if is_it:
            fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)


def test_an_interrupted_client_returns_at_once(directory: Path) -> None:
    with serving.serve(directory, "interrupt") as served:
        with leased(served.src / "f"), clients_of(served.path / "f", 3) as clients:
            support.wait_until(lambda: served.counters()["workers"] >= 4, seconds=20)
            start = time.monotonic()

            for client in clients:
                client.send_signal(signal.SIGINT)

            for client in clients:
                assert b"KeyboardInterrupt" in client.communicate(timeout=10)[1]
            assert time.monotonic() - start < 3
            assert served.counters()["interrupts"] >= 3
        support.wait_until(lambda: served.counters()["handles"] == 0)


def test_interrupts_and_other_ops_come_through_when_every_worker_blocks(directory: Path) -> None:
    with serving.serve(directory, "full", options="max_workers=4") as served:
        with leased(served.src / "f"), clients_of(served.path / "f", 8) as clients:
            support.wait_until(lambda: served.counters()["workers"] == 4, seconds=20)
            start = time.monotonic()

            for client in clients:
                client.send_signal(signal.SIGINT)

            for client in clients:
                assert b"KeyboardInterrupt" in client.communicate(timeout=10)[1]
            assert time.monotonic() - start < 3


def test_clients_that_are_killed_leave_nothing(directory: Path) -> None:
    with serving.serve(directory, "killed") as served:
        with leased(served.src / "f"), clients_of(served.path / "f", 5) as clients:
            support.wait_until(lambda: served.counters()["workers"] >= 6, seconds=20)
            for client in clients:
                client.kill()
                client.wait(10)
        support.wait_until(lambda: served.counters()["workers"] <= 3, seconds=20)
        assert served.counters()["handles"] == 0
