"""Mounts with `--cache watch`, and what the kernel is told and asks."""

import time
from contextlib import AbstractContextManager
from pathlib import Path

import serving
import support

MODES = ["cache=watch", "cache=watch,nopassthrough"]
# After which everything has been told again that the kernel is told again (notify_again.c): 50 ms and 1 s.
AGAIN_SECONDS = 1.1


def watched(directory: Path, options: str = "cache=watch") -> AbstractContextManager[serving.Served]:
    return serving.serve(directory, "watch", options=options)


def has(path: Path, field: str, value: int) -> bool:
    return bool(getattr(path.stat(), field) == value)


def requests_of(served: serving.Served) -> int:
    return served.counters()["requests"]


def settled(served: serving.Served) -> int:
    """How many requests there were, when no more come and all is told that was to be told."""

    def is_settled() -> dict[str, int]:
        before = served.counters()
        time.sleep(AGAIN_SECONDS)  # what comes in this time is what is looked for
        after = served.counters()
        same = all(before[key] == after[key] for key in ("requests", "notifications", "changes_behind"))
        return after if same else {}

    return support.wait_until(is_settled)["requests"]


def is_stopped(pid: int) -> bool:
    """Whether no thread of a process runs any more: one that is told to stop does when it next would run."""
    threads = Path(f"/proc/{pid}/task").iterdir()
    return all((thread / "stat").read_text().rpartition(")")[2].split()[0] == "T" for thread in threads)
