"""A mount that is served by a Stack in a process of its own, which tells its counters: for tests of what the
command does not show. `python serving.py JSON` is that process.
"""

import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import support


class Served:
    """A mount and the process that serves it."""

    def __init__(self, process: "subprocess.Popen[str]", path: Path, src: Path, log_path: Path) -> None:
        self._process = process
        self._log_path = log_path
        self.path = path
        self.src = src
        self.pid = process.pid

    def _ask(self, what: str) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(what + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, f"the server has gone:\n{self.log}"
        return json.loads(line)

    def counters(self) -> dict[str, int]:
        """Stack.counters()."""
        return cast("dict[str, int]", self._ask("counters"))

    def stats(self) -> dict[tuple[str, str, str, str], int]:
        """Stack.stats(): (filter, phase, op, verdict) to the count."""
        return {(a, b, c, d): times for a, b, c, d, times in self._ask("stats")}

    def invalidate(self) -> None:
        """Stack.invalidate()."""
        self._ask("invalidate")

    def n_threads(self) -> int:
        """How many threads the server has."""
        return len(list(Path(f"/proc/{self.pid}/task").iterdir()))

    def n_descriptors(self) -> int:
        """How many descriptors the server has open."""
        return len(list(Path(f"/proc/{self.pid}/fd").iterdir()))

    def n_most_descriptors(self) -> int:
        """How many descriptors it may have."""
        soft, _ = resource.prlimit(self.pid, resource.RLIMIT_NOFILE)
        return soft

    @property
    def log(self) -> str:
        """What the server said so far."""
        return self._log_path.read_text()


@contextmanager
def serve(
    directory: Path,
    name: str,
    *,
    filters: Sequence[str | Path] = (),
    sets: Mapping[str, str] | None = None,
    options: str = "",
    n_files: int = 0,
) -> Iterator[Served]:
    """Mount DIRECTORY/src on DIRECTORY/mnt for the time of a block; `n_files` is its RLIMIT_NOFILE."""
    src, mnt = directory / "src", directory / "mnt"
    src.mkdir(exist_ok=True)
    mnt.mkdir(exist_ok=True)
    what = {
        "src": str(src),
        "mnt": str(mnt),
        "name": f"test{os.getpid()}-{name}",
        "filters": [str(one) for one in filters],
        "sets": [f"{key}={value}" for key, value in (sets or {}).items()],
        "options": options,
    }
    words = [sys.executable, __file__, json.dumps(what)]
    if n_files:
        words = ["prlimit", f"--nofile={n_files}:{n_files}", *words]
    log_path = directory / "server.log"
    pipe = subprocess.PIPE
    with log_path.open("w") as log:
        process = subprocess.Popen(words, stdin=pipe, stdout=pipe, stderr=log, text=True)
    served = Served(process, mnt, src, log_path)
    try:
        assert served._ask("counters"), served.log
        yield served
    finally:
        support.umount(mnt, support.MNT_DETACH)
        assert process.stdin is not None
        process.stdin.close()
        try:
            status: int | None = process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            status = None
            process.wait(20)
        assert process.stdout is not None
        process.stdout.close()
        support.unpin(support.PINS / str(what["name"]))
        (support.STATE / f"{what['name']}.json").unlink(missing_ok=True)
    assert status == 0, served.log


def _main(what: dict[str, Any]) -> None:
    """The server: answers each line on stdin until that ends."""
    import logging  # noqa: PLC0415 - the server's part alone

    import trio  # noqa: PLC0415

    from fusebpf.stack import Stack  # noqa: PLC0415

    async def run() -> None:
        logging.basicConfig(level=logging.INFO)
        stack = Stack(
            what["src"],
            what["mnt"],
            filters=what["filters"],
            sets=what["sets"],
            name=what["name"],
            options=what["options"],
        )
        async with stack:
            while line := await trio.to_thread.run_sync(sys.stdin.readline):
                answer: Any = None
                match line.strip():
                    case "counters":
                        answer = stack.counters()
                    case "stats":
                        answer = [list(row) for row in stack.stats()]
                    case "invalidate":
                        await stack.invalidate()
                print(json.dumps(answer), flush=True)

    trio.run(run)


if __name__ == "__main__":
    _main(json.loads(sys.argv[1]))
