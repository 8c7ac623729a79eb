"""What a mount costs against the bare directory, and what a filter adds to an op.

Run it with `make bench` (ARGS='--quick', ARGS='--json FILE'). Every figure is the median of rounds in which
the targets take turns; a ratio is the median of the rounds' own ratios. "one core": client and servers share
a core, which is how a round trip is cheapest, and their CPU time together is counted; "free": the scheduler
decides, and the elapsed time is counted.
"""

import argparse
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bed import PINS, Bed, Sample, Target, clean_up_on_signals, client, forget_caches, program, run_on
from tabulate import tabulate

FILTERS = Path(__file__).resolve().parent / "filters"
ONE_CORE = "one core"
LABELS = ("bare", "no filter", "hide+readonly")
DEMO_FILTERS = ("hide", "readonly")
DEMO_SETS = ("hide.names=.ssh,*.key", "readonly.paths=protected")
UNCACHED = "ttl=0"  # so that every stat of a path asks the server: one lookup each
N_CALIBRATIONS = 5_000
PAIR_FILES = 250
DATA_TARGET = 0.95
HOOK_TARGET_US = 1.0
DISK = "/var/tmp"  # noqa: S108 - a directory of random name is made there


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    n_files: int
    big_bytes: int
    rounds: int
    pair_rounds: int
    loops: int


FULL = Size(n_files=1000, big_bytes=64 << 20, rounds=11, pair_rounds=60, loops=10)
QUICK = Size(n_files=300, big_bytes=16 << 20, rounds=3, pair_rounds=20, loops=10)


@dataclass(frozen=True)
class Op:
    """One line of the table, and how a sample of it is taken."""

    name: str
    sample: Callable[[Target], Sample]
    target: float | None = None


def ops(bed: Bed, size: Size, targets: Sequence[Target]) -> list[Op]:
    """The table's lines."""
    n, loops = size.n_files, size.loops

    def cold(op: str, *words: int) -> Callable[[Target], Sample]:
        def sample(target: Target) -> Sample:
            forget_caches(targets)
            return client(target, op, target.path / "files", *words)

        return sample

    def files(op: str, *words: int) -> Callable[[Target], Sample]:
        return lambda target: client(target, op, target.path / "files", *words)

    def create(target: Target) -> Sample:
        return client(target, "create", bed.fresh(target), n)

    def unlink(target: Target) -> Sample:
        directory = bed.fresh(target)
        client(target, "create", directory, n)
        return client(target, "unlink", directory, n)

    def data(op: str, block: int, order: str, total_bytes: int) -> Callable[[Target], Sample]:
        return lambda target: client(target, op, target.path / "big", block, total_bytes // block, order)

    def git_status(target: Target) -> Sample:
        repository = target.path / bed.repository(target.label).name
        return program(target, "git", "-C", repository, "status", "--porcelain")

    def tar_x(target: Target) -> Sample:
        return program(target, "tar", "xf", bed.directory / "tree.tar", "-C", bed.fresh(target))

    sequential, scattered = 2 * size.big_bytes, size.big_bytes
    return [
        Op("stat, cold", cold("stat", n, 0)),
        Op("stat, cached", files("stat", n, loops)),
        Op("open + close", files("open", n, loops)),
        Op("create", create),
        Op("unlink", unlink),
        Op("readdir + stat, cold, per entry", cold("list", 0)),
        Op("readdir + stat, cached, per entry", files("list", loops)),
        Op("read 128 KiB sequential", data("read", 128 << 10, "seq", sequential), DATA_TARGET),
        Op("write 128 KiB sequential", data("write", 128 << 10, "seq", sequential), DATA_TARGET),
        Op("read 4 KiB random", data("read", 4 << 10, "rand", scattered), DATA_TARGET),
        Op("write 4 KiB random", data("write", 4 << 10, "rand", scattered), DATA_TARGET),
        Op("git status", git_status),
        Op("tar x", tar_x),
    ]


def take_turns(op: Op, targets: Sequence[Target], rounds: int) -> dict[str, list[Sample]]:
    """Samples by label; each round another target begins, and one round before them is not counted."""
    samples: dict[str, list[Sample]] = {target.label: [] for target in targets}
    for number in range(-1, rounds):
        for index in range(len(targets)):
            target = targets[(number + index) % len(targets)]
            taken = op.sample(target)
            if number >= 0:
                samples[target.label].append(taken)
    return samples


def costs_ns(samples: dict[str, list[Sample]], mode: str) -> dict[str, list[float]]:
    """What counts in this mode.

    On one core an op takes what client and server need of it, so that is their CPU time, and what else runs
    on the machine does not come into it.
    """
    return {
        label: [one.cpu_ns if mode == ONE_CORE else one.ns for one in taken]
        for label, taken in samples.items()
    }


def human(ns: float) -> str:
    """A duration with a unit that fits."""
    if ns >= 1e6:
        return f"{ns / 1e6:.1f} ms"
    return f"{ns / 1e3:.2f} µs"


def speed(samples: dict[str, list[float]], label: str) -> float:
    """Of the bare directory's speed: the median of the rounds' ratios."""
    return statistics.median(bare / mine for bare, mine in zip(samples["bare"], samples[label], strict=True))


def calibrate(bed: Bed) -> list[dict[str, Any]]:
    """Measure what nobody can do without, the best of some runs each; print it, return it."""
    results = []
    with bed.mounted("hooked", (FILTERS / "getattr.c",)) as hooked:
        pinned = PINS / hooked.name / "bench_getattr" / "pre_getattr"
        for name, op, where in (
            ("a system call that does nothing", "syscall", Path()),
            ("a round trip between two processes through pipes", "pingpong", Path()),
            ("BPF_PROG_RUN of a hook that decides nothing", "prog", pinned),
        ):
            ns = min(client(bed.bare, op, where, N_CALIBRATIONS).ns for _ in range(10))
            print(f"  {human(ns):>8}  {name}")
            results.append({"op": name, "mode": ONE_CORE, "ns": ns})
    return results


def measure_table(
    bed: Bed, size: Size, mode: str, targets: Sequence[Target], wanted: re.Pattern[str]
) -> list[dict[str, Any]]:
    """Measure all lines, print the table, return the samples."""
    rows, results = [], []
    for op in filter(lambda op: wanted.search(op.name), ops(bed, size, targets)):
        print(f"\r\033[K  {mode}: {op.name}", end="", file=sys.stderr, flush=True)
        samples = costs_ns(take_turns(op, targets, size.rounds), mode)
        speeds = {label: speed(samples, label) for label in LABELS[1:]}
        row = [op.name, human(statistics.median(samples["bare"]))]
        for label in LABELS[1:]:
            row += [human(statistics.median(samples[label])), f"{speeds[label]:.2f}"]
        row.append(
            "" if op.target is None else f"≥ {op.target:.2f}" + verdict(min(speeds.values()) >= op.target)
        )
        rows.append(row)
        results.append({"op": op.name, "mode": mode, "ns": samples, "speed": speeds, "target": op.target})
    print("\r\033[K", end="", file=sys.stderr)
    counted = "CPU time of client and server" if mode == ONE_CORE else "elapsed time"
    print(f"\n{mode}: {counted} per op, and speed as a part of the bare directory's")
    heads = ["", "bare", "no filter", "of bare", "hide+readonly", "of bare", "target"]
    print(tabulate(rows, heads, disable_numparse=True, colalign=("left", *["right"] * 5, "left")))
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


def pairs(bed: Bed, size: Size) -> list[Pair]:
    """What is compared with a mount without filters."""
    n, loops = PAIR_FILES, size.loops

    def files(op: str) -> Callable[[Target], Sample]:
        return lambda target: client(target, op, target.path / "files", n, loops)

    def create(target: Target) -> Sample:
        return client(target, "create", bed.fresh(target), n)

    return [
        Pair("a hook on getattr", (FILTERS / "getattr.c",), (), files("getattr")),
        Pair("a hook on lookup", (FILTERS / "lookup.c",), (), files("stat"), UNCACHED),
        Pair("a hook on open", (FILTERS / "open.c",), (), files("open")),
        Pair("a hook on create", (FILTERS / "create.c",), (), create),
        Pair("hide, two names, on lookup", ("hide",), DEMO_SETS[:1], files("stat"), UNCACHED),
        Pair("readonly, one path, on open to read", ("readonly",), DEMO_SETS[1:], files("open")),
        Pair("readonly, one path, on create", ("readonly",), DEMO_SETS[1:], create),
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
            print(f"\r\033[K  {mode}: {pair.name}", end="", file=sys.stderr, flush=True)
            result = measure_pair(bed, size, pair, mode, cores)
            added_us = result["added_ns"] / 1e3
            row += [human(result["unhooked_ns"]), f"{added_us:+.2f} ±{result['spread_ns'] / 1e3:.2f} µs"]
            row.append(f"{result['fastest_ns'] / 1e3:+.2f} µs")
            if not judged:
                runs = f"{result['runs_per_op']:.2f}"
                judged = f"≤ {HOOK_TARGET_US:.1f} µs" + verdict(added_us <= HOOK_TARGET_US)
            results.append({"op": pair.name, "mode": mode, **result})
        rows.append([*row, runs, judged])
    print("\r\033[K", end="", file=sys.stderr)
    print(
        "\nwhat a filter adds to an op: median of the differences in pairs of runs, ± half the middle half;"
    )
    print("beside it the difference of the fastest runs, which other work on the machine disturbed least")
    heads = [""]
    for mode in modes:
        heads += [f"unhooked, {mode}", "added", "fastest"]
    heads += ["hooks/op", f"target ({next(iter(modes))})"]
    print(tabulate(rows, heads, disable_numparse=True, colalign=("left", *["right"] * 7, "left")))
    return results


def measure_pair(bed: Bed, size: Size, pair: Pair, mode: str, cores: set[int]) -> dict[str, Any]:
    """Alternate runs on a mount without filters and on one with the pair's."""
    with (
        bed.mounted("unhooked", (), (), pair.options) as unhooked,
        bed.mounted("hooked", pair.filters, pair.sets, pair.options) as hooked,
    ):
        run_on(cores, (unhooked, hooked))
        n_runs = hooked.hook_runs()
        samples = take_turns(Op(pair.name, pair.sample), (unhooked, hooked), size.pair_rounds)
        n_runs = hooked.hook_runs() - n_runs
    ns = costs_ns(samples, mode)
    added = [with_hook - without for without, with_hook in zip(*ns.values(), strict=True)]
    quarters = statistics.quantiles(added, n=4)
    n_ops = samples["hooked"][0].n_ops * (size.pair_rounds + 1)
    return {
        "unhooked_ns": statistics.median(ns["unhooked"]),
        "added_ns": statistics.median(added),
        "spread_ns": (quarters[2] - quarters[0]) / 2,
        "fastest_ns": min(ns["hooked"]) - min(ns["unhooked"]),
        "runs_per_op": n_runs / n_ops,
        "ns": ns,
    }


def main() -> None:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="less of everything: a minute, rough figures")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write all samples there")
    parser.add_argument("--dir", metavar="DIR", default=DISK, help="a directory on the disk to measure")
    parser.add_argument("--only", choices=("table", "filters"), help="one of the two parts")
    parser.add_argument("--match", metavar="REGEX", default="", help="only the lines whose name it matches")
    arguments = parser.parse_args()
    clean_up_on_signals()
    wanted = re.compile(arguments.match)
    size = QUICK if arguments.quick else FULL
    all_cores = os.sched_getaffinity(0)
    modes = {ONE_CORE: {min(all_cores)}, "free": all_cores}
    results: list[dict[str, Any]] = []
    directory = Path(tempfile.mkdtemp(prefix="fusebpf-bench-", dir=arguments.dir))
    subprocess.run(["chattr", "+T", directory], check=False, capture_output=True)
    print(f"{platform.node()}: Linux {platform.release()}, {len(all_cores)} cores, {directory}")
    try:
        bed = Bed(directory)
        bed.fill(n_files=size.n_files, big_bytes=size.big_bytes, labels=LABELS)
        print("what this machine takes on one core, the best of ten runs:")
        run_on(modes[ONE_CORE], ())
        results += calibrate(bed)
        if arguments.only != "filters":
            with ExitStack() as stack:
                targets = [
                    bed.bare,
                    stack.enter_context(bed.mounted("no filter", ())),
                    stack.enter_context(bed.mounted("hide+readonly", DEMO_FILTERS, DEMO_SETS)),
                ]
                for mode, cores in modes.items():
                    run_on(cores, targets)
                    results += measure_table(bed, size, mode, targets, wanted)
        if arguments.only != "table":
            results += measure_pairs(bed, size, modes, wanted)
    except RuntimeError as error:
        sys.exit(f"\nbench: {error}")
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    if arguments.json:
        arguments.json.write_text(json.dumps({"kernel": platform.release(), "results": results}, indent=1))


if __name__ == "__main__":
    main()
