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
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from bed import Sample, Target, call, client

# Linux 6.12 and newer: fs/fuse/fuse_trace.h. FORGETs are not traced.
EVENT = "events/fuse/fuse_request_send"
NOBODY_WAITS = {"FUSE_RELEASE", "FUSE_RELEASEDIR"}
BUFFER_KIB = 16 << 10  # of each core
# Clients, and over how much they go how often.
REFUSED = ("refused", 1, 1_000)
OPENED = ("open", 50, 20)
TRIES = 3


@dataclass(frozen=True)
class Asked:
    """Requests of the kernel for one op or run: those that it waits for, and the others."""

    waited: float
    others: float

    def __str__(self) -> str:
        return f"{self.waited:.4g}" + (f" + {self.others:.4g}" if self.others >= 0.01 else "")


@contextmanager
def tracing(directory: Path) -> Iterator["Limits | None"]:
    """What tells limits, by a place of its own in tracefs, which is mounted in `directory`.

    None, with a line that says why, where there can be none.
    """
    tracefs = directory / "tracefs"
    tracefs.mkdir()
    with ExitStack() as undo:
        undo.callback(tracefs.rmdir)
        yield _limits(tracefs, undo)


def _limits(tracefs: Path, undo: ExitStack) -> "Limits | None":
    instance = tracefs / "instances" / f"fusebpf-bench{os.getpid()}"
    try:
        call("mount", "-t", "tracefs", "tracefs", tracefs)
        undo.callback(lambda: subprocess.run(["umount", "-l", tracefs], check=False))
        instance.mkdir()
        undo.callback(instance.rmdir)
        (instance / "buffer_size_kb").write_text(str(BUFFER_KIB))
        (instance / EVENT / "enable").read_text()
    except (OSError, RuntimeError) as error:
        print(f"  requests cannot be traced, so nothing is said of the limit: {error}")
        return None
    return Limits(instance)


def _files(target: Target, op: str, *words: int) -> Sample:
    return client(target, op, target.path / "files", *words)


class Limits:
    """Counts requests with a trace of its own, and says what a server that takes no time would be at."""

    def __init__(self, trace: Path) -> None:
        self._trace = trace
        self._of_trips: dict[str, tuple[Asked, Asked]] = {}

    def count(self, target: Target, sample: Callable[[Target], Sample]) -> Asked:
        """What the kernel asks a mount for an op of the last call of `sample`; caches are as it leaves them.

        Raises:
            RuntimeError: There were more requests than the trace has room for.
        """
        sample(target)
        switch, text = self._trace / EVENT / "enable", self._trace / "trace"
        minor = os.minor(target.path.stat().st_dev)
        (self._trace / EVENT / "filter").write_text(f"connection == {minor}")
        on_call, target.on_call = target.on_call, lambda: text.write_text("")
        switch.write_text("1")
        try:
            n_ops = sample(target).n_ops
        finally:
            switch.write_text("0")
            target.on_call = on_call
        traced = text.read_text()
        kept, written = re.findall(r"entries-in-buffer/entries-written: (\d+)/(\d+)", traced)[0]
        if kept != written:
            raise RuntimeError(f"{written} requests are more than the trace keeps ({kept})")
        names = Counter(re.findall(r"\((FUSE_\w+)\)", traced))
        n_others = sum(names[name] for name in NOBODY_WAITS)
        return Asked((names.total() - n_others) / n_ops, n_others / n_ops)

    def beside(self, base: Target, target: Target, asked: Asked, base_ns: float) -> float:
        """The limit of a line: times slower than the bind mount `base`, where the line takes `base_ns`.

        A round trip is a LOOKUP that the server refuses without a look at anything: the name is too long.
        What a RELEASE takes is what is left of open + close.
        """
        of_refused, of_open = self._of_trips.get(target.name) or self._count_trips(target)
        # Where the kernel keeps no modes it asks for the directory's, too.
        trip_ns = _more_ns(base, target, REFUSED) / of_refused.waited
        # With profile=small there is none.
        left_ns = _more_ns(base, target, OPENED) - of_open.waited * trip_ns if of_open.others else 0.0
        return 1 + (asked.waited * trip_ns + asked.others * max(0.0, left_ns)) / base_ns

    def _count_trips(self, target: Target) -> tuple[Asked, Asked]:
        counts = (
            self.count(target, lambda one: _files(one, *REFUSED)),
            self.count(target, lambda one: _files(one, *OPENED)),
        )
        self._of_trips[target.name] = counts
        return counts


def _more_ns(base: Target, target: Target, words: tuple[str, int, int]) -> float:
    return statistics.median(_files(target, *words).ns - _files(base, *words).ns for _ in range(TRIES))
