"""Locks at a close(2) that fails, or is cut short: they go, as on a bare directory."""

import fcntl
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from support import Mounter

HERE = Path(__file__).parent
DAEMON = ["--daemon", f"{HERE / 'value_daemons.py'}:FailsToFlush"]
LOCK = "import fcntl, os, sys; fd = int(sys.argv[1]); fcntl.lockf(fd, fcntl.LOCK_EX); print(flush=True); os.close(fd)"  # noqa: E501


@pytest.mark.parametrize("way", ["daemon fails", "daemon hangs", "delay"])
def test_a_lock_goes_though_the_close_of_its_holder_fails(mount: Mounter, way: str) -> None:
    filters = [f"{HERE / 'values.c'}:slow"] if way == "delay" else []
    mounted = mount(arguments=[] if way == "delay" else DAEMON, filters=filters)
    (mounted.src / "file").touch()
    if way == "daemon hangs":
        (mounted.src.parent / "slow").touch()
    fd = os.open(mounted.path / "file", os.O_RDWR)
    words = [sys.executable, "-c", LOCK, str(fd)]
    try:
        with subprocess.Popen(
            words, stdout=subprocess.PIPE, pass_fds=[fd], stderr=subprocess.DEVNULL
        ) as holder:
            assert holder.stdout is not None
            assert holder.stdout.readline()
            time.sleep(0.5)  # it is in its close by now, which nothing outside tells
            holder.send_signal(signal.SIGKILL)
            holder.wait(15)
        with (mounted.src / "file").open("r+") as there:
            fcntl.lockf(there, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        with suppress(OSError):
            os.close(fd)
