"""What filters did, in words: from the difference of a mount's `stats` map before and after a program."""

import json
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

N_OPS = 4

Stats = Counter[tuple[str, str, str, str]]
"""(filter, phase, op, verdict), as BTF names them without their FB_, to how often."""


def dump(path: Path) -> list[dict[str, Any]]:
    """The entries of a pinned map, as bpftool formats them by the map's BTF."""
    command = ["bpftool", "--json", "map", "dump", "pinned", str(path)]
    rows = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    return [row["formatted"] for row in rows]


def read_stats(pins: Path) -> Stats:
    """All counts of a mount so far."""
    names = {row["key"]: row["value"]["name"] for row in dump(pins / "filters")}
    counts: Stats = Counter()
    for row in dump(pins / "stats"):
        key = row["key"]
        phase, op, verdict = (
            key[field].removeprefix("FB_").removeprefix("OP_") for field in ("phase", "op", "verdict")
        )
        counts[names[key["filter"]], phase, op, verdict] = row["value"]["count"]
    return counts


def tell(name: str, did: Stats) -> str:
    """One filter's part in what happened."""
    mine: Stats = Counter({key: count for key, count in did.items() if key[0] == name and count})
    return "; ".join(_sentences(mine)) or "was not asked"


def _sentences(did: Stats) -> Iterator[str]:
    entries = {key: count for key, count in did.items() if key[2] == "dirent"}
    if entries:
        dropped = sum(count for key, count in entries.items() if key[3] == "DROP")
        yield f"left {dropped or 'none'} of {_n(sum(entries.values()), 'entry', 'entries')} out of listings"
    if absent := did[next(iter(did))[0], "PRE", "lookup", "NEGATIVE"] if did else 0:
        yield f"said “no such name” to {_n(absent, 'lookup')}"
    for verdict, words in (
        ("REPLY", "refused"),
        ("BACKING", "sent straight to the backing directory"),
        ("BROKEN", "broke a rule in"),
        ("CONTINUE", "let pass"),
    ):
        ops: Counter[str] = Counter()
        for (_, phase, op, said), count in did.items():
            if (phase, said) == ("PRE", verdict):
                ops[op] += count
        if ops:
            told = [f"{count} {op}" for op, count in ops.most_common(N_OPS)]
            if others := ops.total() - sum(count for _, count in ops.most_common(N_OPS)):
                told.append(f"{others} others")
            yield f"{words} " + ", ".join(told)


def _n(count: int, one: str, many: str = "") -> str:
    return f"{count} {one if count == 1 else many or one + 's'}"
