"""The yardstick: every workload on the mount, on the bare directory and on every peer, in turns."""

import re
import statistics
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import Any

import limit
import peers
from bed import Bed, Sample, Target, forget_caches, run_on, show_progress
from tabulate import tabulate
from workloads import DATA, METADATA, WORK, Size, Workload, workloads

BASE = "bind mount"
FILTERS = ("hide", "readonly")
# With a ttl, since without one each use of a name asks the filter anew, which is another thing to measure.
SETS = ("hide.names=.ssh,*.key", "hide.ttl=1000", "readonly.paths=protected")
OURS = {
    "fusebpf": ((), (), "cache=watch,locks=local"),
    "fusebpf, small": ((), (), "profile=small,cache=watch"),
    "fusebpf, 2 filters": (FILTERS, SETS, "cache=watch,locks=local"),
    "fusebpf, no cache": ((), (), "cache=none,locks=local"),
}
PEERS: dict[str, Callable[[Bed, str], AbstractContextManager[Target]]] = {
    "overlayfs": peers.overlay,
    "bindfs": peers.bindfs,
    "mergerfs": peers.mergerfs,
    "fuse-overlayfs": peers.fuse_overlayfs,
    "passthrough_hp": peers.passthrough_hp,
    "passthrough_hp, io_uring": lambda bed, label: peers.passthrough_hp(bed, label, options="io_uring"),
    "passthrough_hp, no cache": lambda bed, label: peers.passthrough_hp(
        bed, label, "--nocache", options="io_uring"
    ),
    "pyfuse3": peers.plain_pyfuse3,
}
LABELS = ("bare", BASE, *OURS, *PEERS)
# Where the limit is told of: data never reaches the server.
LIMITED = (METADATA, WORK)
# How a target says that it cannot: its client fails, or what is prepared for that client.
FAILURES = (RuntimeError, OSError)
# Times slower than the bind mount, at most: docs/performance.md says where they come from.
TARGETS = {
    "fusebpf": {METADATA: 2.2, DATA: 1.0, WORK: 2.0},
    "fusebpf, small": {METADATA: 2.2, WORK: 2.0},
    "fusebpf, 2 filters": {METADATA: 2.8, DATA: 1.0, WORK: 2.5},
    "fusebpf, no cache": {METADATA: 10.0, WORK: 5.0},
}


def take_turns(
    sample: Callable[[Target], Sample], targets: Sequence[Target], rounds: int
) -> dict[str, list[Sample]]:
    """Samples by label; each round another target begins, and one round before them is not counted."""
    samples: dict[str, list[Sample]] = {target.label: [] for target in targets}
    for number in range(-1, rounds):
        for index in range(len(targets)):
            target = targets[(number + index) % len(targets)]
            taken = sample(target)
            if number >= 0:
                samples[target.label].append(taken)
    return samples


def measure_all(
    beds: Mapping[str, Bed],
    size: Size,
    modes: Mapping[str, set[int]],
    wanted: re.Pattern[str],
    peers: re.Pattern[str],
) -> list[dict[str, Any]]:
    """One result for each workload and mode; `beds` says where the lines of a group are measured."""
    found: list[dict[str, Any]] = []
    for bed in dict.fromkeys(beds.values()):
        lines = [
            one.name for one in workloads(bed, size, ()) if beds[one.group] is bed and wanted.search(one.name)
        ]
        if not lines:
            continue
        with limit.tracing(bed.directory) as limits:
            for targets in groups(bed, peers):
                for mode, cores in modes.items():
                    run_on(cores, targets)
                    found += measure(bed, size, mode, targets, lines, limits)
                run_on(modes["free"], ())
    return merge(found)


def groups(bed: Bed, wanted: re.Pattern[str]) -> Iterator[list[Target]]:
    """The targets that take turns, mounted for as long as the caller has them.

    Always the bind mount; beside it the bare directory and the wanted peers that can be had, or one of our
    mounts, alone, since one that watches is told of all that the others change.
    """
    with ExitStack() as stack:
        bind = stack.enter_context(peers.bind(bed, BASE))
        with ExitStack() as others:
            yield [bed.bare, bind, *_peers(others, bed, wanted)]
        for label, (filters, sets, options) in OURS.items():
            with bed.mounted(label, filters, sets, options) as ours:
                yield [bind, ours]


def _peers(stack: ExitStack, bed: Bed, wanted: re.Pattern[str]) -> Iterator[Target]:
    lacking = peers.install_missing()
    for label, peer in PEERS.items():
        if not wanted.search(label):
            continue
        if label in lacking:
            print(f"  {label}: its package cannot be installed; left out")
            continue
        try:
            yield stack.enter_context(peer(bed, label))
        except RuntimeError as error:
            print(f"  {label}: left out: {error}")


def merge(results: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the groups gave, one result for each workload and mode.

    The times of the bind mount are those beside the peers, the ratios those of each group.
    """
    merged: dict[tuple[str, str], dict[str, Any]] = {}
    for result in results:
        known = merged.setdefault((result["mode"], result["op"]), result)
        if known is not result:
            known["ns"] = result["ns"] | known["ns"]
            for key in ("ratio", "limit", "asked"):
                known[key] |= result[key]
    return list(merged.values())


def measure(
    bed: Bed,
    size: Size,
    mode: str,
    targets: Sequence[Target],
    lines: Collection[str],
    limits: limit.Limits | None,
) -> Iterator[dict[str, Any]]:
    """One result for each workload: samples in ns, and how much slower than the bind mount each target is.

    And of our mounts what the kernel asks, and the limit.
    """
    for workload in workloads(bed, size, targets):
        if workload.name not in lines:
            continue
        show_progress(f"  {mode}: {workload.name}")
        forget_caches(targets)  # no line is to find what the ones before it have left in servers
        samples = _turns_of_able(workload, targets, size.rounds)
        ns = {label: [one.ns for one in taken] for label, taken in samples.items()}
        yield {
            "group": workload.group,
            "op": workload.name,
            "mode": mode,
            "ns": ns,
            "ratio": {label: _slower(ns, label) for label in ns},
            **_limits(workload, targets, statistics.median(ns[BASE]), limits, list(OURS)[: size.n_limited]),
        }
    show_progress()


def _limits(
    workload: Workload,
    targets: Sequence[Target],
    base_ns: float,
    limits: limit.Limits | None,
    limited: Collection[str],
) -> dict[str, dict[str, Any]]:
    """Of our mounts, by label: what the kernel asks, and the limit."""
    if not limits or workload.group not in LIMITED:
        return {"asked": {}, "limit": {}}
    base = next(target for target in targets if target.label == BASE)
    ours = [target for target in targets if target.label in limited]
    asked = {target.label: limits.count(target, workload.sample) for target in ours}
    return {
        "asked": {label: str(requests) for label, requests in asked.items()},
        "limit": {target.label: limits.beside(base, target, asked[target.label], base_ns) for target in ours},
    }


def _turns_of_able(workload: Workload, targets: Sequence[Target], rounds: int) -> dict[str, list[Sample]]:
    """`take_turns`; a peer that cannot (some refuse O_DIRECT) is left out, and all others begin anew."""
    unable: set[str] = set()

    def sample(target: Target) -> Sample:
        try:
            return workload.sample(target)
        except FAILURES:
            if target.label in PEERS:
                unable.add(target.label)
            raise

    while True:
        n_unable = len(unable)
        try:
            return take_turns(sample, [target for target in targets if target.label not in unable], rounds)
        except FAILURES:
            if len(unable) == n_unable:
                raise


def _slower(ns: dict[str, list[float]], label: str) -> float:
    """Times slower than the bind mount: the median of the rounds' ratios."""
    return statistics.median(mine / base for base, mine in zip(ns[BASE], ns[label], strict=True))


def human(ns: float) -> str:
    """A duration with a unit that fits."""
    if ns >= 1e6:
        return f"{ns / 1e6:.1f} ms"
    return f"{ns / 1e3:.2f} µs"


def means(results: Sequence[dict[str, Any]], key: str = "ratio") -> dict[str, dict[str, float]]:
    """Geometric means of the ratios, or of the limits: by group, by label."""
    found: dict[str, dict[str, list[float]]] = {}
    for result in results:
        for label, ratio in result[key].items():
            found.setdefault(result["group"], {}).setdefault(label, []).append(ratio)
    return {
        group: {label: statistics.geometric_mean(ratios) for label, ratios in by_label.items()}
        for group, by_label in found.items()
    }


def print_tables(results: Sequence[dict[str, Any]], mode: str) -> None:
    """The workloads, and the means of their groups with our targets."""
    if not results:
        return
    labels = [label for label in LABELS if label in results[0]["ratio"] and label != BASE]
    rows = []
    for result in results:
        base = human(statistics.median(result["ns"][BASE]))
        rows.append([result["op"], base, *(_shown(result["ratio"].get(label)) for label in labels)])
    print(f"\n{mode}: elapsed time per op or run on the {BASE}, and times slower than that")
    print(
        tabulate(
            rows,
            ["", BASE, *labels],
            disable_numparse=True,
            colalign=("left", *["right"] * (len(labels) + 1)),
        )
    )
    rows = []
    for group, by_label in means(results).items():
        rows.append(
            [group, *(_judged(by_label[label], TARGETS.get(label, {}).get(group)) for label in labels)]
        )
    print(f"\n{mode}: geometric means, times slower than the {BASE}")
    print(tabulate(rows, ["", *labels], disable_numparse=True, colalign=("left", *["right"] * len(labels))))
    print_limits(results, mode)


def print_limits(results: Sequence[dict[str, Any]], mode: str) -> None:
    """What the kernel asks, and what our mounts would be at if their servers took no time."""
    labels = [label for label in OURS if any(label in result["limit"] for result in results)]
    rows = [
        [
            result["op"],
            *(f"{result['asked'][label]}: {result['limit'][label]:.2f}" for label in labels),
        ]
        for result in results
        if result["limit"]
    ]
    for group, by_label in means(results, "limit").items():
        rows.append([group, *(f"{by_label[label]:.2f}" for label in labels)])
    if rows:
        print(
            f"\n{mode}: requests of the kernel (+ those that nobody waits for): the limit, what a server that"
        )
        print(f"takes no time would be at, times slower than the {BASE}")
        heads = ["", *labels]
        print(tabulate(rows, heads, disable_numparse=True, colalign=("left", *["right"] * len(labels))))


def _shown(ratio: float | None) -> str:
    return "cannot" if ratio is None else f"{ratio:.2f}"


def _judged(ratio: float, target: float | None) -> str:
    if target is None:
        return f"{ratio:.2f}"
    return f"{ratio:.2f} ≤ {target:.1f} " + ("reached" if ratio <= target else "MISSED")
