"""What the way to a daemon costs: the same handlers on bare pyfuse3 and behind a stack, in turns.

And what a daemon that computes costs the ops that are not its own: pairs of runs with an idle daemon and with
a busy one. Beside it, what any other program that computes costs them, since it takes a core as well.
"""

import re
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import peers
from bed import Bed, Sample, Target, client, show_progress
from filter_cost import verdict
from tabulate import tabulate
from workloads import Size
from yardstick import human, take_turns

RATIO_TARGET, RATE_TARGET = 1.25, 0.9
N_FILES, BLOCK = 100, 4096
UNCACHED = "0"  # seconds: each use of a name is a lookup
CALLS_DAEMON = "import os, sys\nprint(flush=True)\nwhile True: os.statvfs(sys.argv[1])"
COMPUTES = "print(flush=True)\nwhile True: pass"
Sampler = Callable[[Target], Sample]


def measure(bed: Bed, size: Size, wanted: re.Pattern[str]) -> list[dict[str, Any]]:
    """Measure both, print the tables, return the samples."""
    return [*_routed(bed, size, wanted), *_beside_busy(bed, size, wanted)]


def _by_name(op: str, loops: int, n: int = N_FILES) -> Sampler:
    return lambda target: client(target, op, target.path / "files", n, loops)


def _read(n: int) -> Sampler:
    return lambda target: client(target, "read", target.path / "big", BLOCK, n, "rand", "direct", 1)


# ----------------------------------------------------------------------------------- the route


def _routed(bed: Bed, size: Size, wanted: re.Pattern[str]) -> Iterator[dict[str, Any]]:
    """Lines of the first table."""
    lines: dict[str, tuple[Sampler, bool]] = {
        "getattr": (_by_name("getattr", size.loops), False),
        "lookup": (_by_name("stat", size.loops), True),
        "lookup, not there": (_by_name("missing", size.loops), False),
        "open + read + release": (_by_name("readfile", size.loops), False),
        "read, 4 KiB": (_read(N_FILES * size.loops), False),
    }
    rows = []
    for name, (sample, is_uncached) in lines.items():
        if not wanted.search(name):
            continue
        show_progress(f"  {name}")
        words = (UNCACHED,) if is_uncached else ()
        with (
            peers.plain_pyfuse3(bed, "bare", *words) as bare,
            peers.routed_pyfuse3(bed, "routed", *words) as routed,
        ):
            samples = take_turns(sample, (bare, routed), size.pair_rounds)
        ns = {label: [one.ns for one in taken] for label, taken in samples.items()}
        cpu_ns = {label: [one.cpu_ns for one in taken] for label, taken in samples.items()}
        ratio, cpu_ratio = _ratio(ns["bare"], ns["routed"]), _ratio(cpu_ns["bare"], cpu_ns["routed"])
        rows.append(
            [
                name,
                *(human(statistics.median(ns[label])) for label in ("bare", "routed")),
                f"{ratio:.2f} ≤ {RATIO_TARGET}" + verdict(ratio <= RATIO_TARGET),
                f"{min(ns['routed']) / min(ns['bare']):.2f}",
                f"{cpu_ratio:.2f}",
            ]
        )
        yield {"op": name, "mode": "daemon", "ns": ns, "cpu_ns": cpu_ns, "ratio": ratio}
    show_progress()
    if rows:
        print("\nan op that a handler answers: medians, and the median of the pairs' ratios;")
        print("beside it the ratio of the fastest runs, and that of CPU time, client and server together")
        heads = ["", "bare pyfuse3", "daemon route", "ratio", "fastest", "CPU"]
        print(tabulate(rows, heads, disable_numparse=True, colalign=("left", *["right"] * 5)))


def _ratio(base: list[float], mine: list[float]) -> float:
    return statistics.median(one / other for other, one in zip(base, mine, strict=True))


# ------------------------------------------------------------------------------ a busy daemon


@contextmanager
def _running(program: str, *words: str) -> Iterator[None]:
    """Have a Python program run for the time of a `with` block; it prints a line when it has begun."""
    argv = [sys.executable, "-c", program, *words]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None  # noqa: S101 - it is a pipe
        try:
            process.stdout.readline()
            yield
        finally:
            process.kill()


def _beside_busy(bed: Bed, size: Size, wanted: re.Pattern[str]) -> Iterator[dict[str, Any]]:
    """Lines of the second table."""

    def create(target: Target) -> Sample:
        return client(target, "create", bed.fresh(target), N_FILES * size.loops)

    lines: dict[str, Sampler] = {
        "lookup": _by_name("stat", 10 * size.loops),
        "open + release": _by_name("open", 10 * size.loops),
        "create + release": create,
        "read, 4 KiB": _read(10 * N_FILES * size.loops),
    }
    rows = []
    with peers.busy_daemon(bed, "busy") as target:
        states: dict[str, Callable[[], AbstractContextManager[None]]] = {
            "idle": nullcontext,
            "busy": lambda: _running(CALLS_DAEMON, str(target.path)),
            "other": lambda: _running(COMPUTES),
        }
        for name, sample in lines.items():
            if not wanted.search(f"{name}, busy daemon"):
                continue
            show_progress(f"  {name}, busy daemon")
            ns: dict[str, list[float]] = {state: [] for state in states}
            for _ in range(size.pair_rounds):
                for state, enter in states.items():
                    with enter():
                        ns[state].append(sample(target).ns)
            rate, beside_other = (_ratio(ns[state], ns["idle"]) for state in ("busy", "other"))
            rows.append(
                [
                    name,
                    human(statistics.median(ns["idle"])),
                    f"{rate:.2f} ≥ {RATE_TARGET}" + verdict(rate >= RATE_TARGET),
                    f"{min(ns['idle']) / min(ns['busy']):.2f}",
                    f"{beside_other:.2f}",
                ]
            )
            yield {"op": f"{name}, busy daemon", "mode": "daemon", "ns": ns, "rate": rate}
    show_progress()
    if rows:
        print(
            "\nan op of the backing root beside a daemon that computes 100 ms at a time: its rate, as part of"
        )
        print("the rate beside an idle one; of the fastest runs; and beside any other program that computes")
        heads = ["", "idle", "busy", "fastest", "other program"]
        print(tabulate(rows, heads, disable_numparse=True, colalign=("left", *["right"] * 4)))
