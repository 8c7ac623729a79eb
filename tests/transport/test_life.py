"""What blocks, what is interrupted, what is killed, over each transport: nobody waits for nothing."""

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import serving
import support
from core.test_pool import blocked
from transport.conftest import SWITCH

pytestmark = pytest.mark.alone

# Makes, writes, reads, lists and removes files until it is killed; ends with 7 when the mount has gone.
LOAD = """
import errno, os, sys
top = os.path.join(sys.argv[1], f"load{os.getpid()}")
try:
    os.mkdir(top)
    for number in range(int(sys.argv[2])):
        path = os.path.join(top, str(number % 8))
        with open(path, "w") as file: file.write(path)
        with open(path) as file: assert file.read() == path
        assert str(number % 8) in os.listdir(top)
        os.rename(path, path + "x")
        os.unlink(path + "x")
    os.rmdir(top)
except OSError as error:
    if error.errno not in (errno.ENOTCONN, errno.ECONNABORTED, errno.ECANCELED): raise
    sys.exit(7)
"""
DELAY_ACCOUNTING = Path("/proc/sys/kernel/task_delayacct")
LOCK = """
import fcntl, os, sys
fd = os.open(sys.argv[1], os.O_RDWR)
print("opened", flush=True)
fcntl.flock(fd, fcntl.LOCK_EX)
"""


def _clients(path: Path, count: int, loops: int) -> "list[subprocess.Popen[bytes]]":
    words = ["timeout", "-s", "KILL", "60", sys.executable, "-c", LOAD, str(path), str(loops)]
    return [subprocess.Popen(words, stderr=subprocess.PIPE) for _ in range(count)]


def _ends(clients: "list[subprocess.Popen[bytes]]") -> list[tuple[int, bytes]]:
    said = [client.communicate(timeout=70)[1] for client in clients]
    return [(client.returncode, one) for client, one in zip(clients, said, strict=True)]


@pytest.mark.parametrize("on_cores", ["free", "one core"])
def test_ops_that_block_do_not_stop_the_mount(directory: Path, transport: str, on_cores: str) -> None:
    (directory / "src").mkdir()
    (directory / "src" / "other").write_text("there")
    before = os.sched_getaffinity(0)
    if on_cores == "one core":
        os.sched_setaffinity(0, {min(before)})  # so that all clients are in one queue
    try:
        with (
            serving.serve(directory, "block", options=f"transport={transport},max_workers=8") as served,
            blocked(served, 20) as (clients, give_back),
        ):
            support.wait_until(lambda: served.counters()["workers"] >= 20, seconds=30)

            assert support.run("cat", served.path / "other", seconds=10).stdout == "there"
            assert all(client.poll() is None for client in clients)
            give_back()
            assert [client.wait(20) for client in clients] == [0] * 20
    finally:
        os.sched_setaffinity(0, before)


def test_workers_that_blocked_leave_again_and_others_come_when_they_are_needed(
    directory: Path, transport: str
) -> None:
    (directory / "src").mkdir()
    waiter = ("timeout", "-s", "KILL", "60", "flock", "-x", directory / "mnt/file", "true")
    few = 5 * (os.cpu_count() or 1) + 2  # those of each core and of /dev/fuse that stay
    with serving.serve(directory, "shrink", options=f"transport={transport}") as served:
        (served.path / "file").write_text("")
        for number in range(3):
            with (served.path / "file").open() as held:
                fcntl.flock(held, fcntl.LOCK_EX)
                with support.clients(*[waiter] * 40) as clients:
                    support.wait_until(lambda: served.counters()["workers"] >= 40, seconds=30)
                    fcntl.flock(held, fcntl.LOCK_UN)
                    assert [client.wait(30) for client in clients] == [0] * 40
            support.wait_until(lambda: served.counters()["workers"] <= few, seconds=30)
            assert _ends(_clients(served.path, 4, 50)) == [(0, b"")] * 4, number


def test_no_more_workers_serve_than_may(directory: Path, transport: str) -> None:
    """Nor when they come back from waiting, or the kernel gives a parked one a request."""
    with serving.serve(directory, "most", options=f"transport={transport},max_workers=1") as served:
        clients = _clients(served.path, 12, 100)
        n_busy = []
        while any(client.poll() is None for client in clients):
            counters = served.counters()
            n_busy.append(counters["workers"] - counters["workers_parked"])

        assert _ends(clients) == [(0, b"")] * 12
        assert max(n_busy) <= 1


def test_who_waits_for_a_lock_lets_the_holder_go_on(directory: Path, transport: str) -> None:
    (directory / "src").mkdir()
    (directory / "src" / "f").write_text("locked")
    with serving.serve(directory, "locks", options=f"transport={transport},max_workers=4") as served:
        words = [sys.executable, "-c", LOCK, str(served.path / "f")]
        with (served.path / "f").open("r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            clients = [subprocess.Popen(words, stdout=subprocess.PIPE) for _ in range(24)]
            for client in clients:
                assert client.stdout is not None
                assert client.stdout.readline() == b"opened\n"
            support.wait_until(lambda: served.counters()["workers_parked"] >= 24, seconds=20)
            fcntl.flock(file, fcntl.LOCK_UN)

            for client in clients:
                client.communicate(timeout=20)
                assert client.returncode == 0
            support.wait_until(lambda: served.counters()["handles"] <= 1)


def test_interrupts_reach_what_waits(directory: Path, transport: str) -> None:
    with (
        serving.serve(directory, "interrupt", options=f"transport={transport},max_workers=4") as served,
        blocked(served, 8) as (clients, _),
    ):
        support.wait_until(lambda: served.counters()["workers"] >= 8, seconds=30)

        for client in clients:
            client.send_signal(signal.SIGINT)

        for client in clients:
            assert b"KeyboardInterrupt" in client.communicate(timeout=10)[1]


def test_an_interrupt_that_comes_before_its_request_is_taken_up_is_heeded(
    directory: Path, transport: str
) -> None:
    with serving.serve(directory, "early", options=f"transport={transport}") as served:
        support.run("ls", served.path)  # else the client waits for the server to begin, which no signal ends
        with blocked(served, 1) as (clients, _):
            os.kill(served.pid, signal.SIGSTOP)
            try:
                wchan = Path(f"/proc/{clients[0].pid}/wchan")
                support.wait_until(lambda: wchan.read_text() == "request_wait_answer", seconds=20)
                clients[0].send_signal(signal.SIGINT)
            finally:
                os.kill(served.pid, signal.SIGCONT)

            assert b"KeyboardInterrupt" in clients[0].communicate(timeout=10)[1]


def test_64_clients_at_once(directory: Path, transport: str) -> None:
    with serving.serve(directory, "many", options=f"transport={transport}") as served:
        ends = _ends(_clients(served.path, 64, 5))

        assert ends == [(0, b"")] * 64
        assert served.counters()["handles"] == 0
        assert list(served.src.iterdir()) == []


def test_a_killed_server_leaves_no_client_waiting(mount: support.Mounter, transport: str) -> None:
    mounted = mount(options=f"transport={transport}")
    (mounted.src / "there").touch()
    clients = _clients(mounted.path, 6, 1_000_000)
    support.wait_until(lambda: len(list(mounted.src.iterdir())) == 7, seconds=30)

    mounted.kill(signal.SIGKILL)

    assert _ends(clients) == [(7, b"")] * 6
    # The next mount of this machine, of whoever, takes away what a dead server left.
    with pytest.raises(OSError, match=r"not connected|No such file"):
        (mounted.path / "there").stat()
    assert support.umount(mounted.path, 0) or not support.mountpoints(mounted.path)


def test_a_server_that_ends_leaves_no_client_waiting(mount: support.Mounter, transport: str) -> None:
    mounted = mount(options=f"transport={transport}")
    clients = _clients(mounted.path, 6, 1_000_000)
    support.wait_until(lambda: len(list(mounted.src.iterdir())) == 6, seconds=30)

    os.kill(mounted.pid, signal.SIGTERM)

    ends = _ends(clients)
    assert {status for status, _ in ends} <= {1, 7}, ends
    support.wait_until(lambda: not support.is_alive(mounted.pid), seconds=30)


def test_a_core_whose_worker_may_not_run_there_is_served(directory: Path) -> None:
    """As when it goes off line: the scheduler moves its worker, and its queue goes on."""
    if not SWITCH.exists():
        pytest.skip("no FUSE over io_uring here")
    with serving.serve(directory, "moved", options="transport=uring") as served:
        for task in Path(f"/proc/{served.pid}/task").iterdir():
            os.sched_setaffinity(int(task.name), {0})
        start = time.monotonic()
        for core in os.sched_getaffinity(0):
            support.run("taskset", "-c", str(core), "touch", served.path / str(core))

        assert time.monotonic() - start < 10
        assert len(list(served.src.iterdir())) == len(os.sched_getaffinity(0))


@pytest.fixture
def accounted() -> Iterator[None]:
    """The kernel accounts how long new threads wait for disks (proc_pid_stat(5): delayacct_blkio_ticks)."""
    if not DELAY_ACCOUNTING.exists():
        pytest.skip("this kernel does not account delays (CONFIG_TASK_DELAY_ACCT)")
    with support.switched(DELAY_ACCOUNTING, "1"):
        yield


@pytest.mark.usefixtures("accounted")
def test_an_idle_mount_is_not_counted_as_waiting_for_a_disk(mount: support.Mounter, transport: str) -> None:
    """Else an idle machine shows 100% iowait, and as much I/O pressure."""
    if transport == "uring" and tuple(int(n) for n in os.uname().release.split(".")[:2]) < (6, 15):
        pytest.skip("before Linux 6.15 whoever waits on an io_uring counts so (IORING_ENTER_NO_IOWAIT)")
    mounted = mount(options=f"transport={transport}")
    end = time.monotonic() + 1
    support.wait_until(lambda: time.monotonic() > end)  # a wait counts when it is over

    for core in os.sched_getaffinity(0):
        support.run("taskset", "-c", str(core), "touch", mounted.path / str(core))

    tasks = list(Path(f"/proc/{mounted.pid}/task").iterdir())
    waited = [int((task / "stat").read_text().rpartition(")")[2].split()[39]) for task in tasks]
    assert max(waited) < os.sysconf("SC_CLK_TCK") // 2


def test_threads_of_a_server_say_in_top_what_they_do(mount: support.Mounter, transport: str) -> None:
    mounted = mount(options=f"transport={transport},cache=watch")
    names = {(task / "comm").read_text().strip() for task in Path(f"/proc/{mounted.pid}/task").iterdir()}

    workers = (
        {f"fusebpf/{core}" for core in os.sched_getaffinity(0)}
        if transport == "uring"
        else {"fusebpf/worker"}
    )
    assert names >= {"fusebpf", "fusebpf/janitor", "fusebpf/notify", "fusebpf/watch", *workers}
