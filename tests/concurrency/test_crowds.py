"""Many processes at the same names: nothing but the expected errors, one winner, and nothing leaks."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import serving
import support
from concurrency import crowd
from core.table import in_child

N_PROCESSES = 16
N_RACERS = 20
WAYS = {"passed_through": ([], ""), "served": ([], "nopassthrough"), "audited": (["audit"], "cache=none")}


@pytest.fixture(params=list(WAYS))
def served(directory: Path, request: pytest.FixtureRequest) -> Iterator[serving.Served]:
    """A mount that tells its counters."""
    filters, options = WAYS[request.param]
    with serving.serve(directory, f"crowd-{request.param}", filters=filters, options=options) as made:
        yield made


def held(served: serving.Served) -> tuple[int, int]:
    """What the core holds for the kernel: inodes, and open files."""
    counters = served.counters()
    return counters["inodes"], counters["handles"]


def let_loose(served: serving.Served, seconds: float) -> None:
    """Run the crowd; every unexpected error fails, and so does what is left behind."""
    before, n_descriptors = held(served), served.n_descriptors()
    top = served.path / "top"
    for number in range(crowd.N_DIRECTORIES):
        (top / str(number)).mkdir(parents=True)
    words = ["timeout", "-s", "KILL", str(seconds + 60), sys.executable, crowd.__file__, str(top)]
    pipe = subprocess.PIPE
    crowds = [
        subprocess.Popen([*words, str(seed), str(seconds)], stdout=pipe, stderr=subprocess.STDOUT, text=True)
        for seed in range(N_PROCESSES)
    ]
    said = [process.communicate()[0] for process in crowds]
    assert [process.returncode for process in crowds] == [0] * N_PROCESSES, "".join(said)

    shutil.rmtree(top)

    # RELEASE and FORGET come after close(2) and unlink(2) have returned. A few descriptors more are workers'.
    support.wait_until(lambda: held(served) == before, 20)
    n_workers = served.counters()["workers"]
    support.wait_until(lambda: served.n_descriptors() <= n_descriptors + n_workers + 8, 20)


def test_a_crowd_at_the_same_names_sees_only_the_expected_errors(served: serving.Served) -> None:
    let_loose(served, 1.5)


@pytest.mark.soak
@pytest.mark.timeout(300)
def test_a_crowd_goes_on_for_a_minute(served: serving.Served) -> None:
    let_loose(served, 60)


def race(top: Path, number: int) -> int:
    """How many of the racers made the file. Each starts when the pipe that all read from is closed."""
    reader, writer = os.pipe()
    pids = []
    for _ in range(N_RACERS):
        pid = os.fork()
        if pid == 0:
            status = 2
            try:
                signal.alarm(60)
                os.close(writer)
                os.read(reader, 1)
                os.open(top / f"raced{number}", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
                status = 0
            except FileExistsError:
                status = 1
            finally:
                os._exit(status)
        pids.append(pid)
    os.close(reader)
    os.close(writer)
    ends = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    assert set(ends) <= {0, 1}, ends
    return ends.count(0)


def test_of_those_who_race_for_one_name_one_wins(served: serving.Served) -> None:
    before = held(served)

    winners = [in_child(race, served.path, number, seconds=60) for number in range(5)]

    assert winners == [1] * 5
    for number in range(5):
        (served.path / f"raced{number}").unlink()
    support.wait_until(lambda: held(served) == before, 20)
