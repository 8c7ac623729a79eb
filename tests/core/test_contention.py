"""Locks that are fought for do not make the mount deaf: whoever reads requests never leaves last."""

import fcntl
import os
import random
import sys
import time
from pathlib import Path

import support

SECONDS = 8.0
N_PROCESSES = 6


def fight(seconds: float, path: str, seed: int) -> None:
    """Take and let go of one lock, with pauses that let idle workers retire in between."""
    pauses = random.Random(seed)  # noqa: S311 - the same in every run
    end = time.monotonic() + seconds
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    while time.monotonic() < end:
        fcntl.flock(fd, fcntl.LOCK_EX)
        if pauses.random() < 0.3:
            time.sleep(pauses.random() * 0.02)
        fcntl.flock(fd, fcntl.LOCK_UN)
        for number in range(pauses.randrange(20)):
            Path(f"{path}-{number}").exists()
        time.sleep(pauses.random() * 0.05)


def test_a_fight_for_one_lock_ends(mount: support.Mounter) -> None:
    mounted = mount(filters=["hide"], sets={"hide.names": "x"}, options="max_workers=4")

    support.run(
        *("timeout", "-s", "KILL", str(SECONDS * 4), sys.executable, "-c"),
        "import os, sys\n"
        f"sys.path[:0] = {sys.path!r}\n"
        "from core.test_contention import fight\n"
        f"pids = [os.fork() or (fight({SECONDS}, {str(mounted.path / 'lock')!r}, n), os._exit(0))[0]\n"
        f"        for n in range({N_PROCESSES})]\n"
        "sys.exit(any(os.waitpid(pid, 0)[1] for pid in pids))\n",
    )

    assert (mounted.path / "lock").exists()
