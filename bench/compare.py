"""Two commits beside each other: each in a checkout of its own, the same yardstick, in turns."""

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from tabulate import tabulate

TURNS = 2
OURS = "fusebpf"


def run(before: str, after: str, words: Sequence[str]) -> str | None:
    """Measure both by their own benchmarks with these words, print the ratios; None, or why it cannot be."""
    try:
        for commit in (before, after):
            _call("git", "cat-file", "-e", f"{commit}^{{commit}}")
        with tempfile.TemporaryDirectory(prefix="fusebpf-compare-") as place, ExitStack() as stack:
            checkouts = [
                stack.enter_context(_checkout(Path(place) / side, commit))
                for side, commit in (("a", before), ("b", after))
            ]
            found = [_measured(checkout, words) for _ in range(TURNS) for checkout in checkouts]
    except subprocess.CalledProcessError as error:
        said = (error.stderr or "").strip().splitlines()
        return f"bench: {' '.join(map(str, error.cmd))}: {said[-1] if said else 'failed'}"
    _print(before, after, found)
    return None


def _call(*argv: str | Path, cwd: Path | None = None) -> None:
    with subprocess.Popen(
        argv, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, cwd=cwd
    ) as process:
        try:
            complaint = process.communicate()[1]
        except BaseException:
            # Asked, not killed: a benchmark takes its mounts down.
            process.terminate()
            raise
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, argv, stderr=complaint)


@contextmanager
def _checkout(path: Path, commit: str) -> Iterator[Path]:
    _call("git", "worktree", "add", "--quiet", "--detach", path, commit)
    try:
        print(f"setting {commit} up", file=sys.stderr, flush=True)
        _call("make", "setup", cwd=path)
        _call("make", "bench/out/client", cwd=path)
        yield path
    finally:
        _call("git", "worktree", "remove", "--force", path)


def _measured(checkout: Path, words: Sequence[str]) -> dict[str, list[float]]:
    """Each workload's samples on the mount without filters, as parts of those on the bind mount."""
    result = checkout / "bench.json"
    command: list[str | Path] = [
        ".venv/bin/python",
        "bench/run.py",
        "--only",
        "yardstick",
        "--peers",
        "^$",
        "--json",
        result,
    ]
    print(f"measuring {checkout.name}", file=sys.stderr, flush=True)
    _call(*command, *words, cwd=checkout)
    results: list[dict[str, Any]] = json.loads(result.read_text())["results"]
    return {one["op"]: [one["ratio"][OURS]] for one in results if "ratio" in one}


def _print(before: str, after: str, found: list[dict[str, list[float]]]) -> None:
    rows = []
    for op in [op for op in found[0] if op in found[1]]:
        sides = [
            statistics.median(ratio for one in found[side::2] for ratio in one.get(op, [])) for side in (0, 1)
        ]
        rows.append([op, *(f"{side:.2f}" for side in sides), f"{sides[1] / sides[0]:.2f}"])
    print("\ntimes slower than the bind mount, and what the second takes of the first's time")
    heads = ["", before, after, "ratio"]
    print(tabulate(rows, heads, disable_numparse=True, colalign=("left", "right", "right", "right")))
