"""Where the benchmark runs: a source tree on the disk, mounts over it, their servers' cores."""

import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

COMMAND = Path(sys.executable).parent / "fusebpf"
CLIENT = Path(__file__).resolve().parent / "out" / "client"
STATE = Path("/run/fusebpf")
PINS = Path("/sys/fs/bpf/fusebpf")
CLIENT_SECONDS = 120
# How many clients move data at a time, where it is more than one.
JOBS = 4
# A server that uses less CPU time than this in 20 ms has nothing left to do.
QUIET_NS = 500_000


class Sample(NamedTuple):
    """What one op cost, on average over one run of a client, and how many ops it did."""

    ns: float
    cpu_ns: float
    n_ops: int


@dataclass
class Target:
    """A view of the source tree: the bare directory or a mount of it.

    Attributes:
        label: The column's head.
        path: Its root.
        name: The mount's name, "" for the bare directory.
        pid: The mount's server, 0 for the bare directory.
        on_call: Is called before each client or program that looks at it.
    """

    label: str
    path: Path
    name: str = ""
    pid: int = 0
    on_call: Callable[[], object] = lambda: None

    def hook_runs(self) -> int:
        """How often hooks of this mount have run so far."""
        said = call("bpftool", "--json", "map", "dump", "pinned", PINS / self.name / "stats")
        return sum(row["formatted"]["value"]["count"] for row in json.loads(said))

    def cpu_ns(self) -> int:
        """CPU time that the server has used, all its threads together.

        Source: Linux, include/linux/posix-timers.h: make_process_cpuclock; 2 is CPUCLOCK_SCHED.
        """
        return time.clock_gettime_ns((~self.pid << 3) | 2) if self.pid else 0

    def pin(self, cores: set[int]) -> None:
        """Keep the server's threads off other cores. Those that chose one of these themselves keep it."""
        for task in Path(f"/proc/{self.pid}/task").iterdir() if self.pid else ():
            with suppress(ProcessLookupError):
                chosen = os.sched_getaffinity(int(task.name))
                os.sched_setaffinity(int(task.name), chosen & cores or cores)


def call(*argv: str | os.PathLike[str], ok: Collection[int] = (0,)) -> str:
    """Run a program that may touch a mount; its output. `ok` are the exit codes that mean success.

    Raises:
        RuntimeError: It failed, or it hung and was killed.
    """
    words = [os.fspath(word) for word in argv]
    with subprocess.Popen(
        ["timeout", "-s", "KILL", str(CLIENT_SECONDS), *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "GIT_CONFIG_GLOBAL": "/dev/null", "LC_ALL": "C.UTF-8"},
    ) as process:
        try:
            said, complaint = process.communicate()
        except BaseException:
            # Asked, not killed: `fusebpf mount` cleans up.
            process.terminate()
            raise
    if process.returncode not in ok:
        raise RuntimeError(f"{' '.join(words)}: exit code {process.returncode}: {complaint.strip()}")
    return said


def client(target: Target, op: str, *words: str | int | os.PathLike[str]) -> Sample:
    """Run bench/client.c once: what an op took, and the CPU time of client and server for it."""
    target.on_call()
    server_ns = target.cpu_ns()
    ns, cpu_ns, n_ops = call(CLIENT, op, *(str(word) for word in words)).split()
    server_ns = target.cpu_ns() - server_ns
    return Sample(float(ns), float(cpu_ns) + server_ns / int(n_ops), int(n_ops))


def program(target: Target, *argv: str | os.PathLike[str], ok: Collection[int] = (0,)) -> Sample:
    """Run a program: what it took as a whole. `ok` are the exit codes that mean success."""
    target.on_call()
    started_ns, cpu_ns = time.perf_counter_ns(), children_cpu_ns() + target.cpu_ns()
    call(*argv, ok=ok)
    ns = time.perf_counter_ns() - started_ns
    return Sample(ns, children_cpu_ns() + target.cpu_ns() - cpu_ns, 1)


def show_progress(text: str = "") -> None:
    """Say on a terminal what is being measured, or no longer."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def children_cpu_ns() -> float:
    """CPU time of all clients so far."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (used.ru_utime + used.ru_stime) * 1e9


def run_on(cores: set[int], targets: Sequence[Target]) -> None:
    """Let the clients that we start, and the servers, run on these cores only."""
    os.sched_setaffinity(0, cores)
    for target in targets:
        target.pin(cores)


def forget_caches(targets: Sequence[Target]) -> None:
    """Drop the machine's cached names and inodes, and wait until the servers have digested the FORGETs."""
    Path("/proc/sys/vm/drop_caches").write_text("2")
    servers = [target for target in targets if target.pid]
    end = time.monotonic() + 5
    busy_ns = 1_000_000
    while busy_ns > QUIET_NS and time.monotonic() < end:
        before_ns = sum(server.cpu_ns() for server in servers)
        time.sleep(0.02)
        busy_ns = sum(server.cpu_ns() for server in servers) - before_ns


class Bed:
    """A source tree in a temporary directory, and the mounts over it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.src = directory / "src"
        self.src.mkdir()
        self.bare = Target("bare", self.src)
        self.n_mounts = 0
        self.n_fresh = 0

    @contextmanager
    def mountpoint(self) -> Iterator[Path]:
        """An empty directory to mount on; what is still mounted there in the end goes."""
        self.n_mounts += 1
        mnt = self.directory / f"mnt{self.n_mounts}"
        mnt.mkdir()
        try:
            yield mnt
        finally:
            # A bind mount of the same file system does not show as a mount.
            subprocess.run(["umount", "-l", mnt], check=False, capture_output=True)
            mnt.rmdir()

    @contextmanager
    def mounted(
        self, label: str, filters: Sequence[str | Path], sets: Sequence[str] = (), options: str = ""
    ) -> Iterator[Target]:
        """A mount of the source tree, for the time of a `with` block."""
        with self.mountpoint() as mnt:
            name = f"bench{os.getpid()}-{self.n_mounts}"
            words: list[str | os.PathLike[str]] = [COMMAND, "mount", self.src, mnt, "--name", name]
            for source in filters:
                words += ["--filter", source]
            for assignment in sets:
                words += ["--set", assignment]
            if options:
                words += ["-o", options]
            try:
                call(*words)
                pid = json.loads((STATE / f"{name}.json").read_text())["pid"]
                yield Target(label, mnt, name, pid)
            finally:
                with suppress(RuntimeError):
                    call(COMMAND, "umount", mnt)

    def fresh(self, target: Target) -> Path:
        """A new empty directory of this target, in a block group of its own where ext4 can do that."""
        self.n_fresh += 1
        path = target.path / "fresh" / f"d{self.n_fresh}"
        path.mkdir()
        return path

    def fill(
        self, *, n_files: int, n_listed: int, n_small: int, big_bytes: int, labels: Sequence[str]
    ) -> None:
        """Make the tree: `files`, `listed`, `small`, `big`, `fresh`, `work`, `c`.

        And a git repository for each target; `tree.tar` lies beside the tree.
        """
        for name, count in (("files", n_files), ("listed", n_listed), ("small", n_small)):
            (self.src / name).mkdir()
            for number in range(count):
                (self.src / name / f"f{number}").write_bytes(b"x" * 100)
        self.fill_big(big_bytes)
        fresh = self.src / "fresh"
        fresh.mkdir()
        subprocess.run(["chattr", "+T", fresh], check=False, capture_output=True)
        tree = self.directory / "tree"
        for number in range(n_files):
            folder = tree / f"folder{number % 40}"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"file{number}.txt").write_text(f"{number}\n" * 200)
        call("tar", "cf", self.directory / "tree.tar", "-C", tree, ".")
        call("cp", "-a", tree, self.src / "work")
        self._write_c_project(self.src / "c", max(4, n_files // 50))
        git = ("git", "-c", "user.name=bench", "-c", "user.email=bench@example.org", "-C", tree)
        call(*git, "init", "--quiet")
        call(*git, "add", "--all")
        call(*git, "commit", "--quiet", "--message", "bench")
        for label in labels:
            call("cp", "-a", tree, self.repository(label))

    def fill_big(self, n_bytes: int) -> None:
        """Make `big`, and for the jobs beside the first one `big1` … of a job's share of it."""
        megabyte = os.urandom(1 << 20)
        (self.src / "big").write_bytes(megabyte * (n_bytes >> 20))
        for job in range(1, JOBS):
            (self.src / f"big{job}").write_bytes(megabyte * (n_bytes // JOBS >> 20))

    def _write_c_project(self, directory: Path, n_units: int) -> None:
        """A program of some units that all include one header and some of the system's."""
        directory.mkdir()
        (directory / "all.h").write_text(
            "#include <stdio.h>\n#include <string.h>\n"
            + "".join(f"int unit{number}(int n);\n" for number in range(n_units))
        )
        for number in range(n_units):
            text = f'#include "all.h"\nint unit{number}(int n) {{ return n + (int)strlen("{number}"); }}\n'
            (directory / f"unit{number}.c").write_text(text)
        calls = "".join(f"n = unit{number}(n); " for number in range(n_units))
        (directory / "main.c").write_text(
            f'#include "all.h"\nint main(void) {{ int n = 0; {calls}return printf("%d\\n", n) < 0; }}\n'
        )
        (directory / "Makefile").write_text(
            "program: $(patsubst %.c,%.o,$(wildcard *.c))\n\t$(CC) -o $@ $^\n"
        )

    def repository(self, label: str) -> Path:
        """The git repository that only this target looks at, in the source tree."""
        return self.src / ("repo-" + re.sub(r"\W+", "-", label))


def clean_up_on_signals() -> None:
    """Let ^C and SIGTERM take the mounts down; a second one does not disturb that."""

    def stop(number: int, _frame: object) -> None:
        for one in (signal.SIGINT, signal.SIGTERM):
            signal.signal(one, signal.SIG_IGN)
        raise SystemExit(128 + number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
