"""One side of the model test, the mount or the bare directory: two processes that do a program's steps on it.

`python side.py` is the first process; it forks the second. Programs come and results go as pickles.
"""

import os
import pickle
import select
import shutil
import signal
import stat
import subprocess
import sys
import traceback
from pathlib import Path
from typing import IO, Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from core.table import acl, content_of, facts, xattrs_of
from model.actor import Actor

Step = tuple[int, int, str, tuple[Any, ...]]
"""(process, user, name, arguments)"""

Outcome = tuple[list[Any], Any, str | None]
"""The results, the tree, and what went wrong in the side itself."""

SECONDS = 60.0
NOBODY = 0xFFFFFFFF


def send(file: IO[bytes], what: Any) -> None:
    data = pickle.dumps(what)
    file.write(len(data).to_bytes(4, "little") + data)
    file.flush()


def receive(file: IO[bytes]) -> Any:
    size = file.read(4)
    if len(size) < 4:
        raise EOFError
    return pickle.loads(file.read(int.from_bytes(size, "little")))  # noqa: S301 - our own process's


class Side:
    """Hands programs to the processes of one side."""

    def __init__(self, top: Path) -> None:
        self.top = top
        self._process: subprocess.Popen[bytes] | None = None
        self._n_programs = 0

    def start(self, program: list[Step], *, keeps_bits: bool) -> None:
        """Begin a program in a fresh directory."""
        if self._process is None:
            pipe = subprocess.PIPE
            words = [sys.executable, __file__]
            env = {**os.environ, "PYTHONHASHSEED": "0"}
            self._process = subprocess.Popen(words, stdin=pipe, stdout=pipe, env=env, start_new_session=True)
        self._n_programs += 1
        assert self._process.stdin is not None
        top = os.fsencode(self.top / f"program{self._n_programs}")
        send(self._process.stdin, (top, program, keeps_bits))

    def finish(self) -> Outcome:
        """What each step returned, the tree that is left, and what went wrong in the side itself."""
        assert self._process is not None
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], SECONDS)
        if not ready:
            self.stop()
            return [], None, f"did not end within {SECONDS} s"
        outcome: Outcome = receive(self._process.stdout)
        return outcome

    def stop(self) -> None:
        """End the processes."""
        if self._process is None:
            return
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(20)
        for file in (self._process.stdin, self._process.stdout):
            assert file is not None
            file.close()
        self._process = None


# ------------------------------------------------------------------------------- in the process


def whole_tree(top: bytes) -> dict[bytes, Any]:
    """Everything below a directory: attributes but atime, content, xattrs with ACLs, hard links."""
    found: dict[bytes, Any] = {}
    first: dict[int, bytes] = {}

    def visit(path: bytes, name: bytes) -> None:
        st = os.lstat(path)
        numbers = facts(path, follow_symlinks=False)
        is_big = stat.S_ISREG(st.st_mode) and st.st_size > 1 << 24
        content = "too big to compare" if is_big else content_of(path, st.st_mode)
        same = first.setdefault(st.st_ino, name)
        found[name] = (*numbers[:6], *numbers[7:], content, xattrs_of(path), same)
        if stat.S_ISDIR(st.st_mode):
            for entry in sorted(os.listdir(path)):
                visit(path + b"/" + entry, name + b"/" + entry)

    visit(top, b"")
    return found


def set_up(top: bytes) -> None:
    """What each program finds."""
    os.mkdir(top)
    os.chmod(top, 0o777)
    for name, mode, gid in ((b"d", 0o777, 0), (b"e", 0o1777, 0), (b"s", 0o2777, 61777), (b"x", 0o755, 0)):
        path = top + b"/" + name
        os.mkdir(path)
        os.chown(path, 0, gid)
        os.chmod(path, mode)
    owners = ((b"a", 61001, 61001, 0o666), (b"b", 61002, 61777, 0o664), (b"d/a", 0, 0, 0o644))
    for name, uid, gid, mode in owners:
        path = top + b"/" + name
        Path(os.fsdecode(path)).write_bytes(b"what stands in it at first\n" * 300)
        os.chown(path, uid, gid)
        os.chmod(path, mode)
    value = acl((1, 7, NOBODY), (2, 6, 61001), (4, 5, NOBODY), (16, 7, NOBODY), (32, 4, NOBODY))
    os.setxattr(top + b"/x", "system.posix_acl_default", value)
    os.setxattr(top + b"/x", "system.posix_acl_access", value)
    os.symlink(b"d/a", top + b"/l")


class _Second:
    """The second process, which is asked for one step at a time."""

    def __init__(self, closes: IO[bytes]) -> None:
        to_it, from_it = os.pipe(), os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            closes.close()
            os.close(to_it[1])
            os.close(from_it[0])
            _serve_steps(os.fdopen(to_it[0], "rb"), os.fdopen(from_it[1], "wb"))
        os.close(to_it[0])
        os.close(from_it[1])
        self._to, self._from = os.fdopen(to_it[1], "wb"), os.fdopen(from_it[0], "rb")

    def __call__(self, what: str, *args: Any) -> Any:
        send(self._to, (what, args))
        return receive(self._from)


def _serve_steps(requests: IO[bytes], answers: IO[bytes]) -> None:
    actor = Actor()
    while True:
        try:
            what, args = receive(requests)
            send(answers, getattr(actor, what)(*args))
        except EOFError:
            os._exit(0)
        except BaseException:  # noqa: BLE001 - the first process shows it
            send(answers, traceback.format_exc())


def _run(
    top: bytes, program: list[Step], keeps_bits: bool, actor: Actor, second: _Second
) -> tuple[list[Any], Any]:
    set_up(top)
    actor.begin(top, keeps_bits)
    second("begin", top, keeps_bits)
    results = []
    for process, user, name, args in program:
        call = second if process else lambda what, *words: getattr(actor, what)(*words)
        results.append(call("step", user, name, args))
    actor.end()
    second("end")
    return results, whole_tree(top)


def _main() -> None:
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    second = _Second(requests)
    actor = Actor()
    while True:
        try:
            top, program, keeps_bits = receive(requests)
        except EOFError:
            return
        try:
            outcome: Outcome = (*_run(top, program, keeps_bits, actor, second), None)
        except BaseException:  # noqa: BLE001 - the test shows it
            outcome = ([], None, traceback.format_exc())
        actor.end()
        second("end")
        shutil.rmtree(top, ignore_errors=True)
        send(answers, outcome)


if __name__ == "__main__":
    _main()
