"""How a mount scales, as curves: each should be linear or better.

Ops per second against clients, latency against the chain's length, memory against inodes, listing time
against entries.
"""

import re
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from bed import CLIENT, Bed, Target, client, show_progress
from filter_cost import JOIN_SECONDS
from tabulate import tabulate

CLIENTS = (1, 2, 4, 8, 16, 32, 64)
CHAIN = (0, 1, 2, 4, 8, 16)
QUICK_CHAIN = (0, 4, 16)
INODES = (10_000, 100_000, 1_000_000)
ENTRIES = (1_000, 10_000, 100_000, 1_000_000)
ROUNDS = 5
PASSING_FILTER = """#include "fusebpf.h"
FILTER(pass{n}, .altitude = {n}, .doc = "Lets every lookup pass.")
PRE(pass{n}, lookup) {{ return FB_CONTINUE; }}
"""


def measure(bed: Bed, *, is_quick: bool, wanted: re.Pattern[str]) -> list[dict[str, Any]]:
    """All curves whose name is wanted, each printed when it is done."""
    limit = 10_000 if is_quick else 1_000_000
    curves: dict[str, Callable[[], Iterator[tuple[int, float]]]] = {
        "opens per second against clients": lambda: _clients(bed, 200 if is_quick else 2000),
        "µs per lookup against filters in the chain": lambda: (
            _chain(bed, QUICK_CHAIN, 200) if is_quick else _chain(bed, CHAIN, 2000)
        ),
        "bytes of the server per inode against inodes": lambda: _inodes(bed, limit),
        "ms per listing against entries": lambda: _listings(bed, limit),
    }
    results = []
    for name, curve in curves.items():
        if not wanted.search(name):
            continue
        show_progress(f"  {name}")
        points = list(curve())
        show_progress()
        print(f"\n{name}")
        print(
            tabulate(
                [[str(x), f"{y:.2f}"] for x, y in points], disable_numparse=True, colalign=("right", "right")
            )
        )
        results.append({"curve": name, "points": points})
    return results


def _clients(bed: Bed, n: int) -> Iterator[tuple[int, float]]:
    with bed.mounted("clients", (), (), "locks=local") as target:
        files = target.path / "files"
        for count in CLIENTS:
            words = [str(CLIENT), "open", str(files), "50", str(max(1, n // 50))]
            start = time.monotonic()
            running = [subprocess.Popen(words, stdout=subprocess.DEVNULL) for _ in range(count)]
            for one in running:
                one.wait()
            yield count, count * 50 * max(1, n // 50) / (time.monotonic() - start)


def _chain(bed: Bed, lengths: Sequence[int], n: int) -> Iterator[tuple[int, float]]:
    sources = []
    for number in range(1, max(lengths) + 1):
        source = bed.directory / f"pass{number}.c"
        source.write_text(PASSING_FILTER.format(n=number))
        sources.append(source)
    for length in lengths:
        with bed.mounted("chain", sources[:length], (), "ttl=0") as target:
            time.sleep(JOIN_SECONDS if length > 1 else 0)
            runs = [client(target, "missing", target.path / "files", 50, n // 50) for _ in range(ROUNDS)]
            yield length, statistics.median(run.cpu_ns for run in runs) / 1e3


def _resident(target: Target) -> int:
    status = Path(f"/proc/{target.pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+)", status).group(1)) * 1024  # type: ignore[union-attr]


def _inodes(bed: Bed, limit: int) -> Iterator[tuple[int, float]]:
    for count in (one for one in INODES if one <= limit):
        directory = _many(bed, count)
        with bed.mounted("inodes", (), (), "ttl=3600") as target:
            before = _resident(target)
            client(target, "list", target.path / directory.name, 0)
            yield count, (_resident(target) - before) / count


def _listings(bed: Bed, limit: int) -> Iterator[tuple[int, float]]:
    with bed.mounted("listings", (), ()) as target:
        for count in (one for one in ENTRIES if one <= limit):
            directory = target.path / _many(bed, count).name
            start = time.monotonic()
            subprocess.run(["ls", "-U", directory], check=True, stdout=subprocess.DEVNULL)
            yield count, (time.monotonic() - start) * 1e3


def _many(bed: Bed, count: int) -> Path:
    """A directory of so many empty files."""
    directory = bed.src / f"many{count}"
    if not directory.is_dir():
        directory.mkdir()
        for number in range(count):
            (directory / f"f{number}").touch()
    return directory
