"""What tests share: clients that cannot hang, mounts that are always taken down. Fixtures: conftest.py."""

import ctypes
import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

CHECKOUT = Path(__file__).resolve().parent.parent
COMMAND = CHECKOUT / ".venv" / "bin" / "fusebpf"
STATE = Path("/run/fusebpf")
PINS = Path("/sys/fs/bpf/fusebpf")
FILE_SYSTEM_TYPE = "fuse.fusebpf"

MNT_FORCE = 1
MNT_DETACH = 2

T = TypeVar("T")
_libc = ctypes.CDLL(None, use_errno=True)


def run(
    *argv: str | os.PathLike[str],
    check: bool = True,
    seconds: float = 20,
    cwd: Path | None = None,
    stdin: str = "",
    env: Mapping[str, str] | None = None,
    user: int | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a client under `timeout -s KILL`; one that had to be killed fails the test.

    Args:
        argv: The client and its arguments.
        check: Fail the test if the client fails, showing what it said.
        seconds: After which it is killed.
        cwd: Where it runs; None: where the tests do.
        stdin: What it reads.
        env: Added to our environment.
        user: Its uid and gid, without other groups; None: ours.
    """
    client = [os.fspath(word) for word in argv]
    done = subprocess.run(
        ["timeout", "-s", "KILL", str(seconds), *client],
        check=False,
        capture_output=True,
        text=True,
        errors="surrogateescape",
        input=stdin,
        cwd=cwd,
        env={**os.environ, "LC_ALL": "C.UTF-8", **(env or {})},
        user=user,
        group=user,
        extra_groups=None if user is None else [],
        timeout=seconds + 10,
    )
    if done.returncode in {128 + signal.SIGKILL, -signal.SIGKILL}:
        raise AssertionError(f"killed after {seconds} s: {client}\n{done.stdout}{done.stderr}")
    if check and done.returncode != 0:
        raise AssertionError(f"exit code {done.returncode}: {client}\n{done.stdout}{done.stderr}")
    return done


def wait_until(condition: Callable[[], T], seconds: float = 10) -> T:
    """Call `condition` until what it returns is true, and return that; fail the test after `seconds`."""
    end = time.monotonic() + seconds
    pause = 0.001
    while not (value := condition()):
        if time.monotonic() > end:
            raise AssertionError(f"not within {seconds} s: {getattr(condition, '__name__', condition)}")
        time.sleep(pause)
        pause = min(pause * 2, 0.02)
    return value


@contextmanager
def clients(*argvs: tuple[str | os.PathLike[str], ...]) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Clients in the background, which say nothing; those left at the end of the block are killed."""
    started = [subprocess.Popen(argv, stderr=subprocess.DEVNULL) for argv in argvs]
    try:
        yield started
    finally:
        for client in started:
            client.kill()
        for client in started:
            client.wait(20)


@contextmanager
def switched(switch: Path, value: str) -> Iterator[None]:
    """A switch of the kernel, a file, has this value for the time of a block."""
    before = switch.read_text()
    switch.write_text(value)
    try:
        yield
    finally:
        switch.write_text(before)


def refused(call: Callable[..., object], *arguments: object) -> int | None:
    """The errno of a call that is refused; None: it succeeds."""
    try:
        call(*arguments)
    except OSError as error:
        return error.errno
    return None


def umount(path: Path, flags: int) -> bool:
    """umount2(2) without a child process; False if it was refused."""
    return bool(_libc.umount2(os.fsencode(path), flags) == 0)


def is_alive(pid: int) -> bool:
    """Whether the process runs; a zombie does not, unless threads of it are still to end."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        return state not in {"Z", "X"} or len(list(Path(f"/proc/{pid}/task").iterdir())) > 1
    except (FileNotFoundError, ProcessLookupError):
        return False


def mountpoints(below: Path | None = None, kind: str = FILE_SYSTEM_TYPE) -> list[Path]:
    """Where file systems of this kind are mounted, newest first; "" is every kind. Touches no mount."""
    found = []
    for line in Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines():
        head, _, tail = line.partition(" - ")
        path = Path(re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), head.split()[4]))
        if kind in {tail.split()[0], ""} and (below is None or path.is_relative_to(below)):
            found.append(path)
    return found[::-1]


def remove_tree(directory: Path) -> None:
    """Remove a directory with everything in it, unless something is still mounted there."""
    if not mountpoints(directory, ""):
        shutil.rmtree(directory, ignore_errors=True)


def unpin(directory: Path) -> None:
    """Remove a directory of pins with everything in it."""
    with suppress(FileNotFoundError):
        shutil.rmtree(directory)


def end_server(pid: int, seconds: float = 10) -> None:
    """End one of our servers whose mount is detached already: asked first, then killed."""
    for number in (None, signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            if number is not None:
                os.kill(pid, number)
        with suppress(AssertionError):
            wait_until(lambda: not is_alive(pid), seconds)
            return


@dataclass
class Mounted:
    """One mount made by the real command.

    Attributes:
        path: Its mount point.
        src: The directory that it is stacked on.
        name: Its name, which state, log and pins have too.
        pid: Its server.
    """

    path: Path
    src: Path
    name: str
    pid: int
    is_expected_dead: bool = field(default=False, init=False)

    @property
    def pins(self) -> Path:
        """Its directory in the BPF file system."""
        return PINS / self.name

    @property
    def state(self) -> dict[str, Any]:
        """What it wrote about itself."""
        state: dict[str, Any] = json.loads((STATE / f"{self.name}.json").read_text())
        return state

    @property
    def log(self) -> str:
        """What the server said so far."""
        return (STATE / f"{self.name}.log").read_text()

    def dump(self, map_path: str) -> Any:
        """A pinned map of this mount through bpftool, e.g. "stats" or "hide/names"."""
        return json.loads(run("bpftool", "--json", "map", "dump", "pinned", self.pins / map_path).stdout)

    def stats(self) -> dict[tuple[str, str, str, str], int]:
        """The map `stats`: (filter, phase, op, verdict) to the count, by the names in BTF."""
        names = {
            row["formatted"]["key"]: bytes_of(row["formatted"]["value"]["name"])
            for row in self.dump("filters")
        }
        counts = {}
        for row in self.dump("stats"):
            key, value = row["formatted"]["key"], row["formatted"]["value"]
            counts[names[key["filter"]], key["phase"], key["op"], key["verdict"]] = value["count"]
        return counts

    def kill(self, number: signal.Signals) -> None:
        """Send the server a signal that it will not survive, and wait for its end."""
        self.is_expected_dead = True
        os.kill(self.pid, number)
        wait_until(lambda: not is_alive(self.pid))

    def umount(self) -> None:
        """Unmount with the command, and wait for the server's end."""
        run(COMMAND, "umount", self.path)
        wait_until(lambda: not is_alive(self.pid))

    def take_down(self) -> list[str]:
        """End it in any state, never hanging; returns what an orderly end should have removed and did not."""
        umount(self.path, MNT_DETACH)
        end_server(self.pid)
        left = [str(path) for path in (self.pins, STATE / f"{self.name}.json") if path.exists()]
        unpin(self.pins)
        for suffix in ("json", "log", "sock"):
            (STATE / f"{self.name}.{suffix}").unlink(missing_ok=True)
        return [] if self.is_expected_dead else left


def bytes_of(value: str | Sequence[str]) -> str:
    """A char array as bpftool prints it: a string, or a list of bytes; without the padding."""
    if isinstance(value, str):
        return value.rstrip("\0")
    return bytes(int(byte, 0) for byte in value).rstrip(b"\0").decode()


class Mounter:
    """Mounts with the real command; what the fixture `mount` gives. One for each test."""

    def __init__(self, directory: Path, prefix: str) -> None:
        self.directory = directory
        self.prefix = prefix
        self.mounts: list[Mounted] = []

    def __call__(
        self,
        src: Path | None = None,
        mnt: Path | None = None,
        *,
        filters: Sequence[str | Path] = (),
        sets: Mapping[str, str] | None = None,
        options: str = "",
        name: str | None = None,
        arguments: Sequence[str] = (),
    ) -> Mounted:
        """Mount and return when it is usable.

        Args:
            src: The directory below; None: a new empty one.
            mnt: The mount point; None: a new directory.
            filters: For --filter: stock names, paths, each with @altitude if not its own.
            sets: For --set: {"hide.names": ".ssh,*.key"}.
            options: For -o.
            name: The mount's name; None: one that only this test run uses.
            arguments: Further words for the command line.
        """
        number = len(self.mounts)
        src = src or self.new_directory(f"src{number}")
        mnt = mnt or self.new_directory(f"mnt{number}")
        name = name or f"{self.prefix}{number}"
        words = ["--name", name]
        for source in filters:
            words += ["--filter", str(source)]
        for target, value in (sets or {}).items():
            words += ["--set", f"{target}={value}"]
        if options:
            words += ["-o", options]
        run(COMMAND, "mount", src, mnt, *words, *arguments, seconds=60)
        pid = json.loads((STATE / f"{name}.json").read_text())["pid"]
        self.mounts.append(Mounted(mnt, src, name, pid))
        return self.mounts[-1]

    def new_directory(self, name: str) -> Path:
        """A fresh directory of this test."""
        path = self.directory / name
        path.mkdir(mode=0o755)
        return path

    def take_down(self) -> list[str]:
        """Take all mounts down; what they left behind."""
        return [left for mounted in reversed(self.mounts) for left in mounted.take_down()]


def servers_below(directory: Path) -> Iterator[tuple[str, int]]:
    """(name, pid) of all mounts that say that their mount point is below `directory`."""
    for path in STATE.glob("*.json"):
        with suppress(OSError, ValueError, KeyError):
            state = json.loads(path.read_text())
            if Path(state["mnt"]).is_relative_to(directory):
                yield path.stem, int(state["pid"])
