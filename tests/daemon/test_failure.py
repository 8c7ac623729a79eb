"""A daemon that goes wrong: the ops that wait for it fail with a clear errno, all others go on."""

import errno
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import support
from cli_support import assert_refused, fusebpf
from support import Mounted, Mounter

DAEMONS = Path(__file__).parent / "daemons.py"


def failing(mount: Mounter, *arguments: str) -> Mounted:
    """A mount with the daemon Fails, with a file in it."""
    mounted = mount(arguments=["--daemon", f"{DAEMONS}:Fails", *arguments])
    (mounted.src / "file").write_text("text\n")
    return mounted


def stat_says(mounted: Mounted, name: str) -> str:
    """What a client is told of a name."""
    return (
        support.run("stat", "-c", "%s", mounted.path / name, check=False).stderr.rpartition(": ")[2].strip()
    )


def test_each_failure_has_its_errno_and_its_line(mount: Mounter) -> None:
    mounted = failing(mount)

    assert stat_says(mounted, "raises") == os.strerror(errno.EIO)
    assert stat_says(mounted, "denies") == os.strerror(errno.EDQUOT)
    assert stat_says(mounted, "absurd") == os.strerror(errno.EIO)
    assert stat_says(mounted, "nonsense") == os.strerror(errno.EIO)
    assert stat_says(mounted, "mute") == os.strerror(errno.EIO)
    assert stat_says(mounted, "stranger") == os.strerror(errno.EIO)
    assert stat_says(mounted, "typeless") == os.strerror(errno.EIO)
    assert "Input/output error" in support.run("cat", mounted.path / "file", check=False).stderr
    assert stat_says(mounted, "file") == ""
    log = mounted.log
    assert "RuntimeError: something is wrong in here" in log
    assert "Traceback" in log
    assert "the daemon's lookup returned 'a string', and EntryAttributes is wanted" in log
    assert "the daemon's answer to lookup makes no sense" in log
    assert "the daemon's answer to read makes no sense" in log


def test_a_look_that_leaves_nonsense_fails_its_op_and_no_other(mount: Mounter) -> None:
    mounted = mount(arguments=["--daemon", f"{DAEMONS}:LeavesNonsense"])
    names = ("text", "none", "size", "number", "huge", "gone")
    for name in names:
        (mounted.src / name).touch()
        os.setxattr(mounted.src / name, "user.kind", name.encode())

    for name in names[:3]:
        assert stat_says(mounted, name) == os.strerror(errno.EIO), name
    for name in names[3:]:
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            os.getxattr(mounted.path / name, "user.kind")
    (mounted.src / "link").symlink_to("somewhere")
    assert "Input/output error" in support.run("python3", "-c", READLINK, mounted.path, check=False).stderr
    (mounted.src / "file").touch()
    assert stat_says(mounted, "file") == ""
    assert "post_getattr left a result that makes no sense" in mounted.log


READLINK = "import os, sys; os.readlink(sys.argv[1] + '/link')"


def test_a_handler_that_hangs_is_cancelled_after_the_timeout(mount: Mounter) -> None:
    mounted = failing(mount, "--daemon-timeout", "0.5")

    assert stat_says(mounted, "hangs") == os.strerror(errno.ETIMEDOUT)
    asked = mounted.src.parent / "asked"
    support.wait_until(lambda: asked.exists() and "hangs cancelled" in asked.read_text())
    assert "did not answer lookup within 500 ms" in mounted.log
    assert stat_says(mounted, "deaf") == os.strerror(errno.ETIMEDOUT)
    assert stat_says(mounted, "file") == ""


def test_a_handler_may_use_nurseries_and_fail_in_them(mount: Mounter) -> None:
    mounted = mount(arguments=["--daemon", f"{DAEMONS}:Groups", "--daemon-timeout", "0.5"])
    (mounted.src / "goes-on").touch()

    assert stat_says(mounted, "badly") == os.strerror(errno.ETIMEDOUT)
    assert stat_says(mounted, "both") == os.strerror(errno.EIO)
    assert stat_says(mounted, "late") == os.strerror(errno.EIO)
    assert stat_says(mounted, "refuses") == os.strerror(errno.EDQUOT)
    assert stat_says(mounted, "goes-on") == ""
    assert stat_says(mounted, "badly") == os.strerror(errno.ETIMEDOUT)
    assert "ValueError: cleaning up went wrong" in mounted.log
    assert "the daemon has ended" not in mounted.log


def test_the_callers_interrupt_cancels_the_handler(mount: Mounter) -> None:
    mounted = failing(mount)
    client = subprocess.Popen(
        [
            "timeout",
            "-s",
            "KILL",
            "30",
            "python3",
            "-c",
            f"import os; os.stat({str(mounted.path / 'hangs')!r})",
        ],
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    # The client is in the kernel when the daemon was asked: nothing else makes the mount serve a request.
    support.wait_until(lambda: _waits_in_fuse(client.pid))

    os.killpg(client.pid, signal.SIGINT)
    client.wait(timeout=20)
    asked = mounted.src.parent / "asked"
    support.wait_until(lambda: asked.exists() and "hangs cancelled" in asked.read_text())
    assert stat_says(mounted, "file") == ""


INTERRUPTED = """
import ctypes, os, signal, sys
libc = ctypes.CDLL(None, use_errno=True)
os.chdir(sys.argv[1])
signal.signal(signal.SIGINT, lambda *_: None)  # and no SA_RESTART
done = eval(sys.argv[2])
print(done, ctypes.get_errno() if done < 0 else 0)
"""
DONE: dict[str, tuple[str, int, Callable[[Path], bool]]] = {
    "mkdir": ("libc.mkdir(b'new', 0o755)", 0, lambda src: (src / "new").is_dir()),
    "symlink": ("libc.symlink(b'x', b'new')", 0, lambda src: (src / "new").is_symlink()),
    "mknod": ("libc.mknod(b'new', 0o10644, 0)", 0, lambda src: (src / "new").is_fifo()),
    "link": ("libc.link(b'file', b'new')", 0, lambda src: (src / "new").exists()),
    "unlink": ("libc.unlink(b'file')", 0, lambda src: not (src / "file").exists()),
    "rmdir": ("libc.rmdir(b'd')", 0, lambda src: not (src / "d").exists()),
    "rename": ("libc.rename(b'file', b'new')", 0, lambda src: (src / "new").exists()),
    "setattr": ("libc.chmod(b'file', 0o600)", 0, lambda src: (src / "file").stat().st_mode & 0o777 == 0o600),
    "setxattr": (
        "libc.setxattr(b'file', b'user.new', b'x', 1, 0)",
        0,
        lambda src: "user.new" in os.listxattr(src / "file"),
    ),
    "removexattr": ("libc.removexattr(b'file', b'user.x')", 0, lambda src: not os.listxattr(src / "file")),
    "write": (
        "libc.write(os.open('file', os.O_WRONLY), b'new', 3)",
        3,
        lambda src: (src / "file").read_text() == "new",
    ),
    "fsync": ("libc.fsync(os.open('file', os.O_WRONLY))", 0, lambda _: True),
}


def _interrupted(mounted: Mounted, call: str) -> list[int]:
    """What a call returns, and its errno, that is interrupted while the daemon ponders."""
    words = ["timeout", "-s", "KILL", "60", "python3", "-c", INTERRUPTED, str(mounted.path), call]
    client = subprocess.Popen(words, stdout=subprocess.PIPE, start_new_session=True, text=True)
    asked = mounted.src.parent / "asked"
    support.wait_until(lambda: asked.exists() and "ponders" in asked.read_text(), 30)
    os.killpg(client.pid, signal.SIGINT)
    out = client.communicate(timeout=60)[0].split()
    return [int(word) for word in out]


@pytest.mark.parametrize("op", DONE)
def test_what_is_done_is_answered_as_done_when_the_caller_interrupts_the_look_at_it(
    mount: Mounter, op: str
) -> None:
    mounted = pondering(mount)
    call, returned, is_done = DONE[op]

    assert _interrupted(mounted, call) == [returned, 0]
    assert is_done(mounted.src)


def test_what_is_done_is_answered_as_done_when_the_look_at_it_heeds_no_interrupt(mount: Mounter) -> None:
    mounted = pondering(mount)

    assert _interrupted(mounted, "libc.mkdir(b'deaf', 0o755)") == [0, 0]


@pytest.mark.parametrize(
    "call",
    [
        "libc.open(b'new', os.O_CREAT | os.O_RDWR, 0o600)",
        "libc.readlink(b'symlink', ctypes.create_string_buffer(9), 9)",
        "libc.getxattr(b'file', b'user.x', ctypes.create_string_buffer(9), 9)",
    ],
)
def test_what_the_daemon_has_not_judged_is_not_handed_out_to_who_interrupts_it(
    mount: Mounter, call: str
) -> None:
    mounted = pondering(mount)

    assert _interrupted(mounted, call) == [-1, errno.EINTR]


def pondering(mount: Mounter) -> Mounted:
    """A mount with the daemon Ponders, with some things in it."""
    mounted = mount(arguments=["--daemon", f"{DAEMONS}:Ponders"])
    (mounted.src / "file").touch()
    (mounted.src / "d").mkdir()
    (mounted.src / "symlink").symlink_to("secret")
    os.setxattr(mounted.src / "file", "user.x", b"secret")
    return mounted


def _waits_in_fuse(parent: int) -> bool:
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    return any("request_wait" in Path(f"/proc/{child}/wchan").read_text() for child in children)


def test_hundreds_that_wait_leave_the_rest_alone(mount: Mounter) -> None:
    mounted = failing(mount, "--daemon-timeout", "20", "-o", "max_workers=4", "--route", "lookup=daemon")
    (mounted.src / "d").mkdir()
    directory = os.open(mounted.path / "d", os.O_RDONLY)
    script = "for i in $(seq 150); do (stat hangs >/dev/null 2>&1 &) ; done"
    crowd = subprocess.Popen(["timeout", "-s", "KILL", "60", "sh", "-c", script], cwd=mounted.path)
    crowd.wait(timeout=60)

    assert os.fstat(directory).st_size >= 0
    assert os.listdir(directory) == []
    support.run("timeout", "-s", "KILL", "10", "stat", "-f", mounted.path)
    os.close(directory)


def test_a_dead_daemon_fails_its_waiters_and_later_ops(mount: Mounter) -> None:
    mounted = failing(mount)
    waiter = subprocess.Popen(
        ["timeout", "-s", "KILL", "30", "stat", mounted.path / "hangs"], stderr=subprocess.PIPE, text=True
    )
    support.wait_until(lambda: _waits_in_fuse(waiter.pid))

    assert stat_says(mounted, "dies") == os.strerror(errno.ENOTCONN)
    assert os.strerror(errno.ENOTCONN) in waiter.communicate(timeout=20)[1]
    assert stat_says(mounted, "file") == os.strerror(errno.ENOTCONN)
    assert support.run("ls", mounted.path, check=False).returncode == 0
    assert "the daemon has ended" in mounted.log
    assert "SystemExit: the end" in mounted.log


def test_a_dead_daemon_may_leave_its_ops_to_the_backing_root(mount: Mounter) -> None:
    mounted = failing(mount, "--on-daemon-failure", "backing")

    assert stat_says(mounted, "dies") == os.strerror(errno.ENOTCONN)
    support.wait_until(lambda: stat_says(mounted, "file") == "")
    assert support.run("cat", mounted.path / "file").stdout == "text\n"


def test_what_cannot_be_is_refused_in_one_line(directory: Path) -> None:
    (directory / "src").mkdir()
    (directory / "mnt").mkdir()

    def refused(exit_code: int, *words: str, says: str) -> None:
        done = fusebpf("mount", directory / "src", directory / "mnt", *words)
        assert_refused(done, exit_code, says)
        assert support.mountpoints(directory) == []

    refused(2, "--daemon", "nonsense", says="MODULE:CLASS is wanted")
    refused(2, "--daemon", "no.such.module:Mine", says="ModuleNotFoundError")
    refused(2, "--daemon", "./none.py:Mine", says="no such file: ./none.py")
    refused(2, "--daemon", f"{DAEMONS}:None", says="AttributeError")
    refused(2, "--daemon", f"{DAEMONS}:Refuses", says="ValueError: no such luck")
    refused(2, "--daemon", f"{DAEMONS}:own_file", says="TypeError")
    refused(2, "--route", "read=daemon", says="the mount has no daemon")
    daemon = ("--daemon", f"{DAEMONS}:Upper")
    refused(2, *daemon, "--route", "read", says="OP=daemon or OP=backing is wanted")
    refused(2, *daemon, "--route", "raed=daemon", says="there is no op 'raed'")
    refused(2, *daemon, "--route", "lseek=daemon", says="pyfuse3 cannot express lseek")
    refused(2, *daemon, "--route", "post_read=daemon", says="no handler post_read")
    refused(
        2, *daemon, "--route", "post_release=daemon", says="results are shown of what pyfuse3 can express"
    )
    looks = f"{DAEMONS}:LooksInVain"
    refused(2, "--daemon", looks, says="LooksInVain.post_lseek would never be called")
    refused(
        2,
        *daemon,
        "--daemon-timeout",
        "0",
        says="'--daemon-timeout': '0' is not a number from 0.001 to 1000000",
    )
    refused(2, *daemon, "--on-daemon-failure", "maybe", says="maybe")


def test_a_second_daemon_of_a_process_is_refused_by_name(directory: Path) -> None:
    code = """
import sys, trio, fusebpf
sys.path.insert(0, sys.argv[1])
import daemons

async def main():
    async with fusebpf.Stack("a", "ma", daemon=daemons.Upper(), name="first" + sys.argv[2]) as first:
        try:
            async with fusebpf.Stack("b", "mb", daemon=daemons.Upper(), name="second" + sys.argv[2]):
                print("mounted")
        except fusebpf.MountError as error:
            print(error)
        async with fusebpf.Stack("b", "mb", name="second" + sys.argv[2]):
            print("one without is fine")
    async with fusebpf.Stack("b", "mb", daemon=daemons.Upper(), name="third" + sys.argv[2]):
        print(open("mb/file").read())

trio.run(main)
"""
    for name in ("a", "b", "ma", "mb"):
        (directory / name).mkdir()
    (directory / "b" / "file").write_text("text")
    code = code.replace(
        'print(open("mb/file").read())',
        'print((await trio.run_process(["cat", "mb/file"], capture_stdout=True)).stdout)',
    )
    mark = str(os.getpid())
    done = support.run(
        support.CHECKOUT / ".venv/bin/python", "-c", code, DAEMONS.parent, mark, cwd=directory, seconds=60
    )

    first, second, third = done.stdout.splitlines()
    assert f"'second{mark}' cannot have a daemon: the mount 'first{mark}'" in first
    assert second == "one without is fine"
    assert third == "b'TEXT'"


@pytest.mark.parametrize(
    "op", ["lseek", "fallocate", "copy_file_range", "setlk", "ioctl", "tmpfile", "statx", "any"]
)
def test_a_filter_that_may_route_what_pyfuse3_cannot_express_is_refused(directory: Path, op: str) -> None:
    (directory / "src").mkdir()
    (directory / "mnt").mkdir()
    path = directory / "sends.c"
    path.write_text(
        '#include "fusebpf.h"\n'
        "FILTER(sends, .altitude = 500, .wants = FB_WANTS_DAEMON)\n"
        f"PRE(sends, {op}) {{ return FB_DAEMON; }}\n"
    )

    words = ("--daemon", f"{DAEMONS}:Upper", "--filter", path)
    done = fusebpf("mount", directory / "src", directory / "mnt", *words)
    assert_refused(done, 1, "'sends'", f"PRE(sends, {op})", "pyfuse3 cannot express")


def test_a_filter_that_does_not_declare_it_fails_its_op(mount: Mounter, directory: Path) -> None:
    path = directory / "sends.c"
    path.write_text(
        '#include "fusebpf.h"\nFILTER(sends, .altitude = 500)\nPRE(sends, mkdir) { return FB_DAEMON; }\n'
    )
    mounted = mount(filters=[path], arguments=["--daemon", f"{DAEMONS}:Order"])

    assert "Input/output error" in support.run("mkdir", mounted.path / "d", check=False).stderr
    assert "does not declare FB_WANTS_DAEMON" in mounted.log
