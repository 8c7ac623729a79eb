"""Hooks find what they are asked by the number of the thread that runs them, whoever and wherever that is."""

import errno
import fcntl
import os
import shlex
import threading
from pathlib import Path

import serving
import support

N_WAITERS = 150


def test_in_a_pid_namespace_where_threads_have_other_numbers_hooks_are_asked(directory: Path) -> None:
    src, mnt = directory / "src", directory / "mnt"
    src.mkdir()
    mnt.mkdir()
    (src / "secret").touch()
    (src / "file").touch()
    name = f"test{os.getpid()}-namespace"
    words = ["mount", src, mnt, "--name", name, "--filter", "hide", "--set", "hide.names=secret"]
    script = [
        f"{shlex.join(map(str, [support.COMMAND, *words]))} || exit",
        f"ls {mnt}",
        f"touch {mnt}/secret || echo refused",
        f"{support.COMMAND} umount {mnt}",
    ]

    said = support.run("unshare", "-p", "-f", "--mount-proc", "bash", "-c", "\n".join(script), seconds=60)

    assert said.stdout.split() == ["file", "refused"]


def test_more_threads_than_run_hooks_at_a_time_are_asked_when_they_have_waited(directory: Path) -> None:
    (directory / "src").mkdir()
    (directory / "src" / "file").touch()
    (directory / "audit.c").write_text(
        '#include "fusebpf.h"\nFILTER(locks, .altitude = 500)\n'
        "PRE(locks, flock) { return FB_CONTINUE; }\nPOST(locks, flock) { return FB_CONTINUE; }\n"
    )
    with serving.serve(directory, "places", filters=[directory / "audit.c"]) as served:
        said: list[int] = []

        def lock() -> None:
            with (served.path / "file").open() as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_SH)
                except OSError as error:
                    said.append(error.errno or errno.EIO)
                else:
                    said.append(0)

        with (served.path / "file").open() as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            waiters = [threading.Thread(target=lock, daemon=True) for _ in range(N_WAITERS)]
            for waiter in waiters:
                waiter.start()
            support.wait_until(lambda: _n_asked(served, "pre") > N_WAITERS)
        for waiter in waiters:
            waiter.join(30)

        assert said == [0] * N_WAITERS
        assert served.counters()["failed_closed"] == 0


def _n_asked(served: serving.Served, phase: str) -> int:
    return sum(n for (_, at, op, _), n in served.stats().items() if (at, op) == (phase, "flock"))
