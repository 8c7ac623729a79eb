"""While requests come in numbers idle cores are kept awake, and serve the requests of others."""

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import support

LATENCY = Path("/dev/cpu_dma_latency")
DRIVER = Path("/sys/devices/system/cpu/cpuidle/current_driver")
STATE = Path("/sys/devices/system/cpu/cpu0/cpuidle/state0/name")
AWAKE = 0
CORES = len(os.sched_getaffinity(0))
ASKS = "import os, sys\nwhile True: os.statvfs(sys.argv[1])"
FORGETS = """
import os, sys, time
while True:
    for number in range(20):
        os.close(os.open(f"{sys.argv[1]}/gone{number}", os.O_CREAT | os.O_WRONLY))
        os.unlink(f"{sys.argv[1]}/gone{number}")
    time.sleep(0.01)
"""

HOG: tuple[str, ...] = ("sh", "-c", "ulimit -t 60; while :; do :; done")

# Forks while a mount of its own is busy, which ends then; the child stays.
FORKS = """
import os, subprocess, sys, time
from pathlib import Path
import trio
import fusebpf
from fusebpf.options import MountOptions

async def main():
    async with fusebpf.Stack(sys.argv[1], sys.argv[2], options=MountOptions(idle="poll")):
        client = subprocess.Popen([sys.executable, "-c", sys.argv[3], sys.argv[2]], stderr=subprocess.DEVNULL)
        try:
            while Path("/dev/cpu_dma_latency").read_bytes() != bytes(4):
                await trio.sleep(0.01)
            child = os.fork()
            if not child:
                for fd in (0, 1, 2):
                    os.close(fd)
                time.sleep(60)
                os._exit(0)
        except BaseException:
            client.kill()
            raise
    client.kill()
    print(child)

trio.run(main)
"""

# Six mounts begin at once, while another thread forks.
SEVERAL = """
import os, sys, threading
import trio
import fusebpf

children = []

have_begun = threading.Event()

def fork():
    while len(children) < 200 and not have_begun.wait(0.001):
        child = os.fork()
        if not child:
            threading.Event().wait(60)
            os._exit(0)
        children.append(child)

async def one(name):
    src, mnt = (f"{sys.argv[1]}/{kind}{name}" for kind in "sm")
    async with fusebpf.Stack(src, mnt, name=f"{os.getpid()}-{name}"):
        pass

async def main():
    thread = threading.Thread(target=fork)
    thread.start()
    async with trio.open_nursery() as nursery:
        for name in range(6):
            nursery.start_soon(one, name)
    have_begun.set()
    thread.join()

try:
    trio.run(main)
finally:
    for child in children:
        os.kill(child, 9)
"""

pytestmark = [
    pytest.mark.alone,
    pytest.mark.skipif(not LATENCY.exists(), reason="the kernel has no PM QoS for cores"),
]
has_two_cores = pytest.mark.skipif(CORES < 2, reason="there is no other core")
has_idle_times = pytest.mark.skipif(
    not STATE.exists() or STATE.read_text() != "POLL\n",
    reason="the kernel does not tell how long cores look for work",
)


def _may_take() -> int:
    """How long waking up a core may take now, in µs: the least that anybody asked for."""
    with LATENCY.open("rb") as file:
        return int.from_bytes(file.read(4), sys.byteorder)


def _is_awake() -> bool:
    return _may_take() == AWAKE


@contextmanager
def _asked(path: Path) -> Iterator[None]:
    """A client that makes requests all the time."""
    with support.clients((sys.executable, "-c", ASKS, path)):
        yield


def _n_looks(mounted: support.Mounted) -> int:
    """How often the thread that keeps cores awake has waited: other mounts may keep them awake, too."""
    tasks = Path(f"/proc/{mounted.pid}/task").iterdir()
    task = next(task for task in tasks if (task / "comm").read_text() == "fusebpf/idle\n")
    said = (task / "status").read_text()
    return int(said.partition("\nvoluntary_ctxt_switches:")[2].split()[0])


def _is_away(mounted: support.Mounted) -> bool:
    """May a worker not run on the core whose requests it serves?"""
    for task in Path(f"/proc/{mounted.pid}/task").iterdir():
        core = (task / "comm").read_text().strip().removeprefix("fusebpf/")
        if core.isdigit() and int(core) not in os.sched_getaffinity(int(task.name)):
            return True
    return False


def test_idle_cores_are_awake_while_requests_come_in_numbers(mount: support.Mounter, transport: str) -> None:
    mounted = mount(options=f"transport={transport},idle=poll")

    with _asked(mounted.path):
        support.wait_until(_is_awake)

    support.wait_until(lambda: not _is_awake())


def test_a_few_requests_wake_nobody(mount: support.Mounter) -> None:
    mounted = mount(options="idle=poll")
    before = _n_looks(mounted)

    for _ in range(3):
        os.statvfs(mounted.path)
        time.sleep(0.02)

    assert _n_looks(mounted) == before


def test_cores_idle_as_they_like_where_that_is_said(mount: support.Mounter) -> None:
    mounted = mount(options="idle=leave")

    with pytest.raises(StopIteration):
        _n_looks(mounted)


@pytest.mark.skipif(not 2 <= CORES <= 8, reason="left alone on one core or many")
@pytest.mark.skipif(
    not DRIVER.exists() or DRIVER.read_text() != "haltpoll\n", reason="no virtual machine that may poll"
)
def test_a_virtual_machine_polls_where_the_scheduler_chooses_cores(mount: support.Mounter) -> None:
    mounted = mount(options="transport=dev")

    with _asked(mounted.path):
        support.wait_until(_is_awake)


@has_two_cores
def test_what_a_mount_tries_out_leaves_nothing_behind(mount: support.Mounter) -> None:
    """Over io_uring it is tried whether another core answers sooner (fusebpf/_core/away.c)."""
    mounted = mount(options="transport=uring,idle=auto")

    tasks = Path(f"/proc/{mounted.pid}/task")
    assert [(task / "children").read_text() for task in tasks.iterdir()] == [""] * len(list(tasks.iterdir()))
    assert len(os.sched_getaffinity(mounted.pid)) == CORES
    assert not _is_awake()


@has_two_cores
def test_mounts_of_one_process_that_begin_at_once_try_it_at_once(directory: Path, tmp_path: Path) -> None:
    for name in range(6):
        (directory / f"s{name}").mkdir()
        (directory / f"m{name}").mkdir()
    program = tmp_path / "several.py"
    program.write_text(SEVERAL)

    for _ in range(5):
        support.run("timeout", "-s", "KILL", "30", sys.executable, program, directory)


def test_nothing_stays_awake_when_the_mount_ends(mount: support.Mounter) -> None:
    mounted = mount(options="idle=poll")

    with _asked(mounted.path):
        support.wait_until(_is_awake)
        support.run("umount", "-l", mounted.path)

    support.wait_until(lambda: not _is_awake())


def test_nothing_stays_awake_when_the_server_is_killed(mount: support.Mounter) -> None:
    mounted = mount(options="idle=poll")

    with _asked(mounted.path):
        support.wait_until(_is_awake)
        mounted.kill(signal.SIGKILL)

        support.wait_until(lambda: not _is_awake())


def test_nothing_stays_awake_for_what_a_program_has_forked(directory: Path) -> None:
    (directory / "src").mkdir()
    (directory / "mnt").mkdir()
    paths = (directory / "src", directory / "mnt")

    child = int(support.run(sys.executable, "-c", FORKS, *paths, ASKS).stdout)

    try:
        assert support.is_alive(child)
        support.wait_until(lambda: not _is_awake(), 5)
    finally:
        os.kill(child, signal.SIGKILL)


@has_two_cores
@has_idle_times
@pytest.mark.usefixtures("quiet")
def test_workers_serve_from_another_core_while_one_is_idle(mount: support.Mounter) -> None:
    mounted = mount(options="transport=uring,idle=poll")
    assert not _is_away(mounted)

    with _asked(mounted.path):
        support.wait_until(lambda: _is_away(mounted), 60)

    support.wait_until(lambda: not _is_away(mounted))


@has_two_cores
@has_idle_times
@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize(
    "others",
    [[(sys.executable, "-c", FORGETS)], [HOG] * 2 * CORES],
    ids=["they forget files", "they compute"],
)
def test_workers_come_home_for_others(mount: support.Mounter, others: list[tuple[str, ...]]) -> None:
    mounted = mount(options="transport=uring,idle=poll")

    with _asked(mounted.path):
        support.wait_until(lambda: _is_away(mounted), 60)
        with support.clients(*[(*words, str(mounted.path)) for words in others]):
            support.wait_until(lambda: not _is_away(mounted), 30)
