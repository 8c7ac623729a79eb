"""Two commits beside each other: each in a checkout of its own, the same yardstick, in turns."""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tabulate import tabulate

TURNS = 2
OURS = "fusebpf"


def run(before: str, after: str, *, is_quick: bool) -> str | None:
    """Measure both, print the ratios; None, or why it could not be done."""
    try:
        with tempfile.TemporaryDirectory(prefix="fusebpf-compare-") as place:
            checkouts = [
                _checkout(Path(place) / side, commit) for side, commit in (("a", before), ("b", after))
            ]
            try:
                found = [
                    _measured(checkout, is_quick=is_quick) for _ in range(TURNS) for checkout in checkouts
                ]
            finally:
                for checkout in checkouts:
                    _call("git", "worktree", "remove", "--force", checkout)
    except subprocess.CalledProcessError as error:
        said = (error.stderr or "").strip().splitlines()
        return f"bench: {' '.join(map(str, error.cmd))}: {said[-1] if said else 'failed'}"
    _print(before, after, found)
    return None


def _call(*argv: str | Path, cwd: Path | None = None) -> str:
    done = subprocess.run(argv, check=True, capture_output=True, text=True, cwd=cwd)
    return done.stdout


def _checkout(path: Path, commit: str) -> Path:
    _call("git", "worktree", "add", "--quiet", "--detach", path, commit)
    print(f"setting {commit} up", file=sys.stderr, flush=True)
    _call("make", "setup", cwd=path)
    _call("make", "bench/out/client", cwd=path)
    return path


def _measured(checkout: Path, *, is_quick: bool) -> dict[str, list[float]]:
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
    command += ["--quick"] if is_quick else []
    print(f"measuring {checkout.name}", file=sys.stderr, flush=True)
    subprocess.run(
        command,
        check=True,
        cwd=checkout,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ,
    )
    results: list[dict[str, Any]] = json.loads(result.read_text())["results"]
    return {one["op"]: [one["ratio"][OURS]] for one in results if "ratio" in one}


def _print(before: str, after: str, found: list[dict[str, list[float]]]) -> None:
    rows = []
    for op in found[0]:
        sides = [
            statistics.median(ratio for one in found[side::2] for ratio in one.get(op, [])) for side in (0, 1)
        ]
        rows.append([op, *(f"{side:.2f}" for side in sides), f"{sides[1] / sides[0]:.2f}"])
    print("\ntimes slower than the bind mount, and what the second takes of the first's time")
    heads = ["", before, after, "ratio"]
    print(tabulate(rows, heads, disable_numparse=True, colalign=("left", "right", "right", "right")))
