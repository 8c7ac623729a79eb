"""Workers that block do not stop the mount; the pool shrinks again; whoever waits can be interrupted.

Over /dev/fuse; tests/transport has it for io_uring.
"""

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import serving
import support

DEV = "transport=dev"
# A shell in the background ignores SIGINT, and what it starts does so too.
OPEN = (
    "import os, signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "print('ready', flush=True); os.open(sys.argv[1], os.O_RDONLY)"
)


Client = subprocess.Popen[bytes]


def is_waiting(client: Client) -> bool:
    """Does a client that was ready sleep, which it does in its open? Signals are to find it there."""
    return Path(f"/proc/{client.pid}/stat").read_text().rpartition(")")[2].split()[0] == "S"


@contextmanager
def blocked(served: serving.Served, count: int) -> Iterator[tuple[list[Client], Callable[[], int]]]:
    """Clients that wait for a lease on the backing file of what they open; what gives the lease back."""
    path = served.src / "f"
    path.write_text("leased")
    old = signal.signal(signal.SIGIO, signal.SIG_IGN)
    fd = os.open(path, os.O_RDWR)
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    words = [sys.executable, "-c", OPEN, str(served.path / "f")]
    clients = [subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(count)]
    try:
        for client in clients:
            assert client.stdout
            assert client.stdout.readline() == b"ready\n"
            support.wait_until(partial(is_waiting, client))
        yield clients, lambda: fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    finally:
        for client in clients:
            client.kill()
        os.close(fd)  # before they are waited for: a killed client still waits for its answer
        signal.signal(signal.SIGIO, old)
        for client in clients:
            if client.stderr and not client.stderr.closed:
                client.communicate(timeout=20)


def test_a_worker_that_blocks_does_not_stop_the_mount(directory: Path) -> None:
    with serving.serve(directory, "pool", options=DEV) as served:
        n_first = served.n_threads()
        (served.src / "other").write_text("there")
        with blocked(served, 20) as (clients, _):
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
    with serving.serve(directory, "wait", options=DEV) as served, blocked(served, 5) as (clients, give_back):
        support.wait_until(lambda: served.counters()["workers"] >= 6, seconds=20)

        give_back()

        assert [client.wait(20) for client in clients] == [0] * 5


def test_an_interrupted_client_returns_at_once(directory: Path) -> None:
    with serving.serve(directory, "interrupt", options=DEV) as served:
        with blocked(served, 3) as (clients, _):
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
    with (
        serving.serve(directory, "full", options=f"max_workers=4,{DEV}") as served,
        blocked(served, 8) as (clients, _),
    ):
        support.wait_until(lambda: served.counters()["workers"] >= 4, seconds=20)
        start = time.monotonic()

        for client in clients:
            client.send_signal(signal.SIGINT)

        for client in clients:
            assert b"KeyboardInterrupt" in client.communicate(timeout=10)[1]
        assert time.monotonic() - start < 3


def test_clients_that_are_killed_leave_nothing(directory: Path) -> None:
    with serving.serve(directory, "killed", options=DEV) as served:
        with blocked(served, 5) as (clients, _):
            support.wait_until(lambda: served.counters()["workers"] >= 6, seconds=20)
            for client in clients:
                client.kill()
                client.wait(10)
        support.wait_until(lambda: served.counters()["workers"] <= 3, seconds=20)
        assert served.counters()["handles"] == 0
