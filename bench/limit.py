"""The limit: how much slower than a bind mount one of ours is if its server takes no time at all.

What remains is what the kernel takes: a round trip for each request that it waits for, and the caller's part
of those that nobody waits for. Requests are counted, and a round trip is measured, beside each line.
"""

import os
import re
import statistics
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bed import Sample, Target, call, client

# Linux 6.12 and newer: fs/fuse/fuse_trace.h. FORGETs are not traced.
EVENT = "events/fuse/fuse_request_send"
NOBODY_WAITS = {"FUSE_RELEASE", "FUSE_RELEASEDIR"}
BUFFER_KIB = 16 << 10  # of each core
N_ROUND_TRIPS = 1_000
N_OPENS = 50
TRIES = 5


@dataclass(frozen=True)
class Asked:
    """Requests of the kernel for one op or run: those that it waits for, and the others."""

    waited: float
    others: float

    def __str__(self) -> str:
        return f"{self.waited:.4g}" + (f" + {self.others:.4g}" if self.others >= 0.01 else "")


@contextmanager
def tracing(directory: Path) -> Iterator[Path | None]:
    """A place of its own in tracefs, which is mounted in `directory`; None where requests are not traced."""
    tracefs = directory / "tracefs"
    tracefs.mkdir()
    call("mount", "-t", "tracefs", "tracefs", tracefs)
    instance = tracefs / "instances" / f"fusebpf-bench{os.getpid()}"
    try:
        instance.mkdir()
        try:
            (instance / "buffer_size_kb").write_text(str(BUFFER_KIB))
            yield instance if (instance / EVENT).exists() else None
        finally:
            instance.rmdir()
    finally:
        subprocess.run(["umount", "-l", tracefs], check=False)
        tracefs.rmdir()


def count(trace: Path, target: Target, sample: Callable[[Target], Sample]) -> Asked:
    """What the kernel asks a mount for an op of the last call of `sample`; caches are as it leaves them."""
    sample(target)
    switch = trace / EVENT / "enable"
    (trace / EVENT / "filter").write_text(f"connection == {os.minor(target.path.stat().st_dev)}")
    on_call, target.on_call = target.on_call, lambda: (trace / "trace").write_text("")
    switch.write_text("1")
    try:
        n_ops = sample(target).n_ops
    finally:
        switch.write_text("0")
        target.on_call = on_call
    names = Counter(re.findall(r"\((FUSE_\w+)\)", (trace / "trace").read_text()))
    n_others = sum(names[name] for name in NOBODY_WAITS)
    return Asked((names.total() - n_others) / n_ops, n_others / n_ops)


def beside(trace: Path, base: Target, target: Target, asked: Asked, base_ns: float) -> float:
    """The limit of a line: times slower than the bind mount `base`, where the line takes `base_ns`.

    A round trip is a LOOKUP that the server refuses without a look at anything: the name is too long. What a
    RELEASE takes is what is left of open + close.
    """

    def files(one: Target, op: str, *words: int) -> Sample:
        return client(one, op, one.path / "files", *words)

    def more_ns(op: str, *words: int) -> float:
        return statistics.median(
            files(target, op, *words).ns - files(base, op, *words).ns for _ in range(TRIES)
        )

    refused, opened = ("refused", 1, N_ROUND_TRIPS), ("open", N_OPENS, N_ROUND_TRIPS // N_OPENS)
    # Where the kernel keeps no modes it asks for the directory's, too.
    trip_ns = more_ns(*refused) / count(trace, target, lambda one: files(one, *refused)).waited
    of_open = count(trace, target, lambda one: files(one, *opened))
    # With profile=small none.
    left_ns = more_ns(*opened) - of_open.waited * trip_ns if of_open.others else 0.0
    return 1 + (asked.waited * trip_ns + asked.others * max(0.0, left_ns)) / base_ns
