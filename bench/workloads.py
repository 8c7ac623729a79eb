"""What is measured: one line of the yardstick each, in the groups whose geometric means count."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product

from bed import JOBS, Bed, Sample, Target, client, forget_caches, program

# What the aims name, and what is measured beside.
METADATA, DATA, WORK, FURTHER = "metadata", "data", "real work", "further lines"
# Jobs that all write to one file: what its lock costs them.
SHARED = "writes to one file"
# Servers in Python are slow enough for a tenth of the ops to say as much.
SLOW = {"pyfuse3": 10}


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    n_files: int
    n_listed: int
    n_small: int
    big_bytes: int
    rounds: int
    pair_rounds: int
    loops: int
    n_limited: int
    """Of how many of our mounts the limit is told."""

    def with_rounds(self, rounds: int) -> "Size":
        """The same with another number of rounds."""
        return replace(self, rounds=rounds)


FULL = Size(
    n_files=1000,
    n_listed=10_000,
    n_small=20_000,
    big_bytes=64 << 20,
    rounds=7,
    pair_rounds=60,
    loops=5,
    n_limited=4,
)
QUICK = Size(
    n_files=100, n_listed=500, n_small=500, big_bytes=4 << 20, rounds=2, pair_rounds=4, loops=2, n_limited=1
)


@dataclass(frozen=True)
class Workload:
    """One line of the table, and how a sample of it is taken."""

    group: str
    name: str
    sample: Callable[[Target], Sample]


def workloads(bed: Bed, size: Size, targets: Sequence[Target]) -> list[Workload]:
    """All lines."""
    return [*_metadata(bed, size, targets), *_data(size), *_work(bed, size, targets)]


def _fewer(target: Target, n: int) -> int:
    return max(1, n // SLOW.get(target.label, 1))


def _metadata(bed: Bed, size: Size, targets: Sequence[Target]) -> list[Workload]:
    n, loops = size.n_files, size.loops

    def known(op: str) -> Callable[[Target], Sample]:
        return lambda target: client(target, op, target.path / "files", _fewer(target, n), loops)

    def made(op: str, first: str = "") -> Callable[[Target], Sample]:
        def sample(target: Target) -> Sample:
            directory, count = bed.fresh(target), _fewer(target, n)
            if first:
                client(target, first, directory, count)
            return client(target, op, directory, count)

        return sample

    def cold(op: str, directory: str, *words: int) -> Callable[[Target], Sample]:
        def sample(target: Target) -> Sample:
            forget_caches(targets)
            return client(target, op, target.path / directory, *words)

        return sample

    return [
        Workload(METADATA, "stat, cold", cold("stat", "files", n, 0)),
        Workload(METADATA, "stat, cached", known("stat")),
        Workload(METADATA, "open + close", known("open")),
        Workload(METADATA, "create", made("create")),
        Workload(FURTHER, "write 4 KiB + close", made("save")),
        Workload(METADATA, "unlink", made("unlink", first="create")),
        Workload(METADATA, "mkdir + rmdir", made("mkdir")),
        Workload(METADATA, "rename", made("rename", first="create")),
        Workload(METADATA, "readdir + stat, cold", cold("list", "listed", 0)),
        Workload(
            METADATA,
            "readdir + stat, again",
            lambda target: client(target, "list", target.path / "listed", 1),
        ),
    ]


def _data(size: Size) -> list[Workload]:
    orders = (("seq", 128 << 10), ("rand", 4 << 10))
    lines = product(orders, ("read", "write"), ("buffered", "direct", "mmap"), (1, JOBS))
    shared = product(orders, ("write",), ("buffered", "direct"))
    return [
        *(_moved(size, DATA, *order, op, io, jobs) for order, op, io, jobs in lines),
        *(_moved(size, SHARED, *order, op, io, JOBS) for order, op, io in shared),
    ]


def _moved(size: Size, group: str, order: str, block: int, op: str, io: str, jobs: int) -> Workload:
    share = 8 if io == "direct" else 1
    n = max(16, size.big_bytes // block // share // jobs)
    of_one = ("shared",) if group == SHARED else ()

    def sample(target: Target) -> Sample:
        count = _fewer(target, n)
        return client(target, op, target.path / "big", block, count, order, io, jobs, *of_one)

    kind = {"seq": "sequential", "rand": "random"}[order]
    name = f"{op}, {kind} {block >> 10} KiB, {io}, {jobs} job{'s' if jobs > 1 else ''}"
    return Workload(group, name + (", one file" if of_one else ""), sample)


def _work(bed: Bed, size: Size, targets: Sequence[Target]) -> list[Workload]:
    def repository(target: Target) -> str:
        return str(target.path / bed.repository(target.label).name)

    def small_files(target: Target) -> Sample:
        forget_caches(targets)
        return client(target, "readfile", target.path / "small", _fewer(target, size.n_small), 0)

    def tar_x(target: Target) -> Sample:
        return program(target, "tar", "xf", bed.directory / "tree.tar", "-C", bed.fresh(target))

    def copy(target: Target) -> Sample:
        return program(target, "cp", "-r", target.path / "work", bed.fresh(target))

    def remove(target: Target) -> Sample:
        directory = bed.fresh(target)
        program(target, "cp", "-r", target.path / "work", directory)
        return program(target, "rm", "-rf", directory / "work")

    def build(target: Target) -> Sample:
        directory = bed.fresh(target)
        program(target, "cp", "-r", target.path / "c", directory)
        return program(target, "make", "-s", "-j2", "-C", directory / "c")

    def clone(target: Target) -> Sample:
        return program(target, "git", "clone", "-q", repository(target), bed.fresh(target) / "clone")

    return [
        Workload(FURTHER, "read small files", small_files),
        Workload(WORK, "tar x", tar_x),
        Workload(WORK, "find", lambda t: program(t, "find", t.path / "work", "-newer", t.path / "big")),
        Workload(WORK, "grep -r", lambda t: program(t, "grep", "-rc", "77777", t.path / "work", ok=(0, 1))),
        Workload(
            WORK, "git status", lambda t: program(t, "git", "-C", repository(t), "status", "--porcelain")
        ),
        Workload(FURTHER, "git clone", clone),
        Workload(WORK, "cp -r", copy),
        Workload(WORK, "rm -rf", remove),
        Workload(FURTHER, "C build, -j2", build),
    ]
