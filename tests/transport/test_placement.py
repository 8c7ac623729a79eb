"""Over io_uring callers stay on their core: workers give way to those that come and go between cores."""

import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import support

pytestmark = pytest.mark.alone

# More than a core's workers give as SCHED_IDLE (N_ANSWERS of fusebpf/_core/placement.c).
MANY = 5000


@pytest.fixture
def cores() -> Iterator[list[int]]:
    """Two cores that the calling thread may run on; it gets all of them back."""
    before = os.sched_getaffinity(0)
    if len(before) < 2:
        pytest.skip("one core: nobody moves")
    yield sorted(before)[:2]
    os.sched_setaffinity(0, before)


def _policies(mounted: support.Mounted) -> list[int]:
    """Of all threads of the server."""
    return [os.sched_getscheduler(int(task.name)) for task in Path(f"/proc/{mounted.pid}/task").iterdir()]


def _ask(path: Path, core: int, n: int = 1) -> None:
    """Make requests from one core."""
    os.sched_setaffinity(0, {core})
    for _ in range(n):
        assert os.statvfs(path).f_namemax == 255


def _move_about(path: Path, cores: list[int]) -> None:
    for number in range(8):
        _ask(path, cores[number % 2])


def _is_idle_after_moves(mounted: support.Mounted, cores: list[int]) -> bool:
    """Move about, and see whether a worker gives way: not in a moment in which another program runs, too."""
    _move_about(mounted.path, cores)
    return os.SCHED_IDLE in _policies(mounted)


@pytest.mark.usefixtures("quiet")
def test_workers_are_idle_ones_for_the_scheduler_while_a_caller_moves_between_cores(
    uring: support.Mounted, cores: list[int]
) -> None:
    _ask(uring.path, cores[0], MANY)
    assert os.SCHED_IDLE not in _policies(uring)

    support.wait_until(lambda: _is_idle_after_moves(uring, cores))


@pytest.mark.usefixtures("quiet")
def test_workers_are_ordinary_again_when_a_caller_stays(
    uring: support.Mounted, mount: support.Mounter, cores: list[int]
) -> None:
    assert uring.pid, "there is io_uring"
    # One for each core, so that no other one is left as it was when it last answered.
    few = os.sysconf("SC_NPROCESSORS_CONF") + 1
    mounted = mount(options=f"transport=uring,idle=leave,max_workers={few}")
    support.wait_until(lambda: _is_idle_after_moves(mounted, cores))

    _ask(mounted.path, cores[1], MANY)
    _ask(mounted.path, cores[0], MANY)  # one more move

    assert os.SCHED_IDLE not in _policies(mounted)


def test_what_other_workers_answer_meanwhile_is_right(uring: support.Mounted, cores: list[int]) -> None:
    for number in range(1200):
        os.sched_setaffinity(0, {cores[number // 3 % 2]})
        path = uring.path / f"f{number % 7}"
        path.write_text(str(number))

        assert path.read_text() == str(number)


def test_on_dev_fuse_workers_are_ordinary(mount: support.Mounter, cores: list[int]) -> None:
    mounted = mount(options="transport=dev")

    _move_about(mounted.path, cores)

    assert set(_policies(mounted)) == {os.SCHED_OTHER}


def _is_batch(mounted: support.Mounted, core: int) -> bool:
    """Ask a little, and see whether a worker is one that preempts nobody."""
    _ask(mounted.path, core)
    return os.SCHED_BATCH in _policies(mounted)


def _hogs() -> list[tuple[str, str, str]]:
    """Programs that compute, more than there are cores."""
    return [("sh", "-c", "ulimit -t 60; while :; do :; done")] * 2 * (os.cpu_count() or 1)


@pytest.mark.usefixtures("quiet")
def test_workers_preempt_nobody_while_the_machine_has_little_else_to_do(
    uring: support.Mounted, cores: list[int]
) -> None:
    support.wait_until(lambda: _is_batch(uring, cores[0]))

    with support.clients(*_hogs()):
        support.wait_until(lambda: not _is_batch(uring, cores[0]))

    support.wait_until(lambda: _is_batch(uring, cores[0]))


@pytest.mark.usefixtures("quiet")
def test_workers_that_nobody_asks_are_ordinary_beside_programs_that_compute(
    uring: support.Mounted, cores: list[int]
) -> None:
    support.wait_until(lambda: _is_batch(uring, cores[0]))

    with support.clients(*_hogs()):
        support.wait_until(lambda: os.SCHED_BATCH not in _policies(uring))


def _wait_for_lock(file: Path, core: int, n: int) -> None:
    """That many clients on one core wait at once, so that as many workers are busy."""
    waiter = ("timeout", "-s", "KILL", "20", "taskset", "-c", str(core), "flock", "-x", file, "true")
    with file.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with support.clients(*[waiter] * n) as waiting:
            support.wait_until(lambda: Path("/proc/locks").read_text().count("-> FLOCK") >= n)
            fcntl.flock(held, fcntl.LOCK_UN)
            assert [client.wait(20) for client in waiting] == [0] * n


def test_workers_that_yielding_ones_start_are_ordinary_again_too(
    uring: support.Mounted, cores: list[int]
) -> None:
    file = uring.path / "locked"
    file.write_text("")
    _move_about(uring.path, cores)
    _wait_for_lock(file, cores[1], 3)

    for core in cores:
        _ask(uring.path, core, MANY)
        _wait_for_lock(file, core, 8)  # each worker has something to answer

    assert os.SCHED_IDLE not in _policies(uring)
