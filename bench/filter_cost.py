"""What a filter adds to an op: runs on a mount without filters, and on the same one when it has them.

"one core": client and servers share a core, which is how a round trip is cheapest, and their CPU time
together is counted; "free": the scheduler decides, and the elapsed time is counted.
"""

import os
import re
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bed import Bed, Sample, Target, client, run_on, show_progress
from tabulate import tabulate
from workloads import Size
from yardstick import SETS as DEMO_SETS
from yardstick import human

from fusebpf import registry
from fusebpf.control import ask

FILTERS = Path(__file__).resolve().parent / "filters"
ONE_CORE = "one core"
UNCACHED = "ttl=0"  # so that every stat of a path asks the server: one lookup each
N_CALIBRATIONS = 5_000
PAIR_FILES = 250
# At first, and of the fast chain.
HOOK_TARGETS_US = (1.0, 0.6)
CHAIN_TARGET_US = 5.0
WINDOW_BYTES = 64 << 10
WINDOW_TARGET_US = WINDOW_BYTES / 1e3  # 1 GB/s
# Two mounts of one kind differ by some 0.5 µs, as their memory happens to lie: each is compared with itself.
N_MOUNTS = 4
MIN_TURNS_PER_MOUNT = 4
# Where other machines share the processor its speed changes within seconds, by a third on some: turns are
# short, and the fastest run of a turn counts.
TURN_RUNS = 4
# Until hooks that stand one after another are joined: fusebpf/joining.py.
JOIN_SECONDS = 1.0


def costs_ns(samples: dict[str, list[Sample]], mode: str) -> dict[str, list[float]]:
    """What counts in this mode.

    On one core an op takes what client and server need of it, so that is their CPU time, and what else runs
    on the machine does not come into it.
    """
    return {
        label: [one.cpu_ns if mode == ONE_CORE else one.ns for one in taken]
        for label, taken in samples.items()
    }


def calibrate(bed: Bed) -> list[dict[str, Any]]:
    """Measure what nobody can do without, the best of some runs each; print it, return it."""
    results = []
    calls = [
        ("a system call that does nothing", "syscall"),
        ("a round trip between two processes through pipes", "pingpong"),
        ("BPF_PROG_RUN of a program that does nothing", "prog"),
    ]
    if (os.cpu_count() or 1) > 1:
        calls.insert(2, ("the same, between two cores that are awake", "apart"))
    for name, op in calls:
        ns = min(client(bed.bare, op, Path(), N_CALIBRATIONS).ns for _ in range(10))
        print(f"  {human(ns):>8}  {name}")
        results.append({"op": name, "mode": ONE_CORE, "ns": ns})
    return results


def verdict(is_reached: bool) -> str:
    """What stands after a target."""
    return " reached" if is_reached else " MISSED"


@dataclass(frozen=True)
class Pair:
    """A line of the second table: a filter, and a client whose ops it hooks."""

    name: str
    filters: tuple[str | Path, ...]
    sets: tuple[str, ...]
    sample: Callable[[Target], Sample]
    options: str = ""
    base: tuple[str | Path, ...] = ()
    """The filters that the mount has before."""
    targets_us: tuple[float, ...] = HOOK_TARGETS_US
    is_chain: bool = False


def pairs(bed: Bed, size: Size) -> list[Pair]:
    """What is compared with a mount without filters."""
    n, loops = min(PAIR_FILES, size.n_files), size.loops

    def files(op: str) -> Callable[[Target], Sample]:
        return lambda target: client(target, op, target.path / "files", n, loops)

    def create(target: Target) -> Sample:
        return client(target, "create", bed.fresh(target), n)

    def read(target: Target) -> Sample:
        return client(target, "read", target.path / "big", WINDOW_BYTES, 16 * loops, "seq", "direct", 1)

    return [
        Pair("a hook on getattr", (FILTERS / "getattr.c",), (), files("getattr")),
        Pair("a hook on lookup", (FILTERS / "lookup.c",), (), files("stat"), UNCACHED),
        Pair("a hook on open", (FILTERS / "open.c",), (), files("open")),
        Pair("a hook on create", (FILTERS / "create.c",), (), create),
        Pair("hide, two names, on lookup", ("hide",), DEMO_SETS[:1], files("stat"), UNCACHED),
        Pair("readonly, one path, on open to read", ("readonly",), DEMO_SETS[2:], files("open")),
        Pair("readonly, one path, on create", ("readonly",), DEMO_SETS[2:], create),
        Pair(
            "8 hooks on getattr",
            (FILTERS / "eight.c",),
            (),
            files("getattr"),
            targets_us=(CHAIN_TARGET_US,),
            is_chain=True,
        ),
        Pair(
            "64 KiB of a read, every byte changed",
            (FILTERS / "window.c",),
            (),
            read,
            base=(FILTERS / "read.c",),
            targets_us=(WINDOW_TARGET_US,),
        ),
    ]


def measure_pairs(
    bed: Bed, size: Size, modes: dict[str, set[int]], wanted: re.Pattern[str]
) -> list[dict[str, Any]]:
    """Measure what filters add, print the table, return the samples."""
    rows, results = [], []
    for pair in filter(lambda pair: wanted.search(pair.name), pairs(bed, size)):
        row: list[str] = [pair.name]
        runs = judged = ""
        for mode, cores in modes.items():
            show_progress(f"  {mode}: {pair.name}")
            result = measure_pair(bed, size, pair, mode, cores)
            added_us, error_ns = result["added_ns"] / 1e3, result["error_ns"]
            error = "" if error_ns is None else f" ±{error_ns / 1e3:.2f}"  # one mount has none
            row += [human(result["unhooked_ns"]), f"{added_us:+.2f}{error} µs"]
            if not judged:
                runs = f"{result['runs_per_op']:.2f}"
                judged = ", ".join(
                    f"≤ {target_us:.1f} µs{verdict(added_us <= target_us)}" for target_us in pair.targets_us
                )
            results.append({"op": pair.name, "mode": mode, **result})
        rows.append([*row, runs, judged])
    show_progress()
    if not rows:
        return []
    print("\nwhat a filter adds to an op: the median of what turns with it take more than those without,")
    print("its mean over some mounts ± the standard error")
    heads = [""]
    for mode in modes:
        heads += [f"unhooked, {mode}", "added"]
    heads += ["hooks/op", f"targets ({next(iter(modes))})"]
    print(
        tabulate(rows, heads, disable_numparse=True, colalign=("left", *["right"] * (len(heads) - 2), "left"))
    )
    return results


def measure_pair(bed: Bed, size: Size, pair: Pair, mode: str, cores: set[int]) -> dict[str, Any]:
    """Runs without the pair's filters and with them by turns, on several mounts whose chain changes."""
    samples: dict[str, list[Sample]] = {"unhooked": [], "hooked": []}
    n_mounts = min(N_MOUNTS, size.pair_rounds // MIN_TURNS_PER_MOUNT)
    added, runs_per_op = [], 0.0
    for _ in range(n_mounts):
        here: dict[str, list[Sample]] = {"unhooked": [], "hooked": []}
        run_on(cores, ())
        with bed.mounted("mount", pair.base, (), pair.options) as target:
            run_on(cores, (target,))
            here["unhooked"] += warm_runs(pair, target)
            for _ in range(size.pair_rounds // n_mounts):
                with hooked(pair, target):
                    here["hooked"] += warm_runs(pair, target)
                here["unhooked"] += warm_runs(pair, target)
            with hooked(pair, target):
                runs_per_op = hook_runs_per_op(pair, target)
        added.append(statistics.median(turn_differences(costs_ns(here, mode))))
        for label, some in here.items():
            samples[label] += some
    ns = costs_ns(samples, mode)
    return {
        "unhooked_ns": statistics.median(ns["unhooked"]),
        "added_ns": statistics.mean(added),
        "error_ns": statistics.stdev(added) / len(added) ** 0.5 if len(added) > 1 else None,
        "runs_per_op": runs_per_op,
        "ns": ns,
    }


def turn_differences(ns: dict[str, list[float]]) -> list[float]:
    """What each turn's hooked runs take more than the unhooked ones before and behind them."""
    quickest = {
        label: [min(taken[at : at + TURN_RUNS]) for at in range(0, len(taken), TURN_RUNS)]
        for label, taken in ns.items()
    }
    plain = quickest["unhooked"]
    return [
        hooked - (before + behind) / 2
        for before, hooked, behind in zip(plain, quickest["hooked"], plain[1:], strict=False)
    ]


def warm_runs(pair: Pair, target: Target) -> list[Sample]:
    """The samples of one turn, behind one that fills the caches."""
    pair.sample(target)
    return [pair.sample(target) for _ in range(TURN_RUNS)]


@contextmanager
def hooked(pair: Pair, target: Target) -> Iterator[None]:
    """A mount, which goes on, has the pair's filters in place of those that it had, for a `with` block."""
    change_chain(target, pair.filters, pair.sets)
    try:
        time.sleep(JOIN_SECONDS if pair.is_chain else 0)
        yield
    finally:
        change_chain(target, pair.base)


def change_chain(target: Target, filters: Sequence[str | Path], sets: Sequence[str] = ()) -> None:
    """Detach all filters that a mount has and attach these."""
    entry = registry.find(target.name)
    for one in ask(entry, "filters")["filters"]:
        ask(entry, "detach", name=one["name"])
    if filters:
        ask(entry, "attach", filters=[str(filter_) for filter_ in filters], sets=list(sets))


def hook_runs_per_op(pair: Pair, target: Target) -> float:
    """How many hooks of a mount run for each op of the client."""
    n_runs = -target.hook_runs()
    sample = pair.sample(target)
    return (n_runs + target.hook_runs()) / sample.n_ops
