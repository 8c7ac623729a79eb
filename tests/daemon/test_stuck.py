"""A daemon that does not read: the mount goes on."""

import os
import subprocess
import time
from pathlib import Path

import support
from support import Mounter

DAEMONS = Path(__file__).parent / "value_daemons.py"

FILL = """
import os, sys, threading
os.chdir(sys.argv[1])
def write(i):
    fd = os.open(f"file{i}", os.O_WRONLY)
    try:
        os.write(fd, bytes(131072))
    except OSError:
        pass
threads = [threading.Thread(target=write, args=(i,)) for i in range(100)]
for thread in threads:
    thread.start()
"""
FORGET = """
import os, sys
os.chdir(sys.argv[1])
for i in range(100):
    os.unlink(f"file{i}")
os.statvfs(".")
"""


def test_what_a_hanging_daemon_is_to_forget_holds_no_worker(mount: Mounter) -> None:
    mounted = mount(
        arguments=["--daemon", f"{DAEMONS}:Hangs", "--daemon-timeout", "1"],
        options="transport=dev,max_workers=8",
    )
    for name in [*(f"file{i}" for i in range(100)), "other"]:
        (mounted.src / name).touch()
        os.stat(mounted.path / name)

    words = ["setfattr", "-n", "user.hang", "-v", "9", str(mounted.path / "other")]
    with subprocess.Popen(words, stderr=subprocess.DEVNULL) as hang:
        time.sleep(0.3)  # the daemon has the setxattr by now; if not, the test is easier to pass
        support.run("python3", "-c", FILL, mounted.path)  # the socket, with what nobody reads
        begin = time.monotonic()
        support.run("python3", "-c", FORGET, mounted.path)
        took = time.monotonic() - begin
        hang.wait(20)
    assert took < 4
    assert support.run("ls", mounted.path).stdout == "other\n"
