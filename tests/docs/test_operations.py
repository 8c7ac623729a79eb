"""docs/operations.md: every request is in it, and each row of it is so on a real mount."""

import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import CHECKOUT, Mounted, Mounter, is_alive, run, wait_until

from fusebpf._core import OPS

TEXT = (CHECKOUT / "docs/operations.md").read_text()
N_REQUESTS = 53
UNUSED = {7, 19}
# Does nothing to the ops, so that `stats` tells which of them came.
SEES_ALL = """
#include "fusebpf.h"

FILTER(seen, .altitude = FB_WATCH, .doc = "sees every op")

PRE(seen, any) { return FB_CONTINUE; }
POST(seen, any) { return FB_CONTINUE; }
POST(seen, dirent) { return FB_CONTINUE; }
"""
HEAD = """
import ctypes, errno, fcntl, os, select, struct
libc = ctypes.CDLL(None, use_errno=True)
LOCK = struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 0, 0, 0)
GET_FLAGS = 0x80086601

def check(result):
    assert result == 0, os.strerror(ctypes.get_errno())

def attempt(call, *args):
    try:
        return call(*args)
    except OSError as error:
        return errno.errorcode[error.errno]
"""
# What a client does in a directory of its own of the mount, with a `file` and a `link` in it.
CLIENTS = {
    "lookup": "os.path.lexists('nosuch')",
    "getattr": "os.fstat(os.open('file', os.O_RDONLY))",
    "setattr": "os.chmod('file', 0o600)",
    "readlink": "assert os.readlink('link') == 'file'",
    "symlink": "os.symlink('a', 'b')",
    "mknod": "os.mkfifo('fifo')",
    "mkdir": "os.mkdir('d')",
    "unlink": "os.unlink('file')",
    "rmdir": "os.mkdir('d'); os.rmdir('d')",
    "rename": "os.rename('file', 'other')",
    "rename2": "libc.renameat2(-100, b'file', -100, b'other', 1)",
    "link": "os.link('file', 'other')",
    "open": "open('file')",
    "read": "assert open('file').read() == 'text'",
    "write": "open('file', 'w').write('more')",
    "statfs": "os.statvfs('file')",
    "release": "open('file').close()",
    "fsync": "os.fsync(os.open('file', os.O_RDWR))",
    "setxattr": "os.setxattr('file', 'user.a', b'1')",
    "getxattr": "os.setxattr('file', 'user.a', b'1'); assert os.getxattr('file', 'user.a') == b'1'",
    "listxattr": "os.listxattr('file')",
    "removexattr": "os.setxattr('file', 'user.a', b'1'); os.removexattr('file', 'user.a')",
    "flush": "open('file').close()",
    "opendir": "os.listdir('.')",
    "readdir": "os.listdir('.')",
    "readdirplus": "os.listdir('.')",
    "releasedir": "os.listdir('.')",
    "fsyncdir": "os.fsync(os.open('.', os.O_RDONLY))",
    "access": "assert os.access('file', os.R_OK)",
    "create": "open('new', 'x')",
    "getlk": "fcntl.fcntl(os.open('file', os.O_RDWR), fcntl.F_GETLK, LOCK)",
    "setlk": "fcntl.lockf(os.open('file', os.O_RDWR), fcntl.LOCK_EX | fcntl.LOCK_NB)",
    "setlkw": "fcntl.lockf(os.open('file', os.O_RDWR), fcntl.LOCK_EX)",
    "flock": "fcntl.flock(os.open('file', os.O_RDWR), fcntl.LOCK_EX)",
    "ioctl": "fcntl.ioctl(os.open('file', os.O_RDONLY), GET_FLAGS, bytes(8))",
    "poll": "poll = select.poll(); poll.register(os.open('file', os.O_RDONLY)); assert poll.poll(1000)",
    "fallocate": "os.posix_fallocate(os.open('file', os.O_RDWR), 0, 4096)",
    "lseek": "assert os.lseek(os.open('file', os.O_RDONLY), 0, os.SEEK_HOLE) == 4",
    "copy_file_range": "os.copy_file_range(os.open('file', os.O_RDONLY), os.open('new', 65, 0o600), 9)",
    "tmpfile": "os.open('.', os.O_TMPFILE | os.O_RDWR)",
    "statx": "check(libc.statx(-100, b'file', 0, 0xFFF, ctypes.create_string_buffer(256)))",
    "dirent": "assert sorted(os.listdir('.')) == ['file', 'link']",
}
SHOWN = [(name, of or name) for name, _, _, _, kind, of in OPS if kind != "plain"]


@pytest.fixture(scope="module")
def mounter(run_directory: Path) -> Iterator[Mounter]:
    """Mounts that last as long as this module's tests."""
    directory = run_directory / "operations"
    directory.mkdir(mode=0o755)
    made = Mounter(directory, f"docs-{os.getpid()}-operations-")
    yield made
    assert made.take_down() == []


@pytest.fixture(scope="module")
def seen(mounter: Mounter) -> Mounted:
    """A mount whose filter sees every op; without default_permissions, or no ACCESS would come."""
    source = mounter.directory / "seen.c"
    source.write_text(SEES_ALL)
    return mounter(filters=[source], options="nodefault_permissions")


@pytest.fixture(scope="module")
def plain(mounter: Mounter) -> Mounted:
    """A mount without any filter."""
    return mounter()


def client(code: str, cwd: Path) -> str:
    """Run Python in a process of its own; returns what it printed."""
    return run(sys.executable, "-I", "-c", HEAD + code, cwd=cwd).stdout.strip()


def place(mounted: Mounted, name: str) -> Path:
    """A directory of the mount for one test, with a file and a link."""
    source = mounted.src / name
    source.mkdir()
    (source / "file").write_text("text")
    (source / "link").symlink_to("file")
    return mounted.path / name


@pytest.mark.parametrize(("op", "hook"), SHOWN, ids=[name for name, _ in SHOWN])
def test_an_op_reaches_its_hooks(op: str, hook: str, seen: Mounted) -> None:
    cwd = place(seen, op)
    before = seen.stats()

    client(CLIENTS[op], cwd)

    # RELEASE and RELEASEDIR come after close(2) has returned.
    def is_seen() -> bool:
        after = seen.stats()
        keys = [("seen", f"FB_{phase}", f"FB_OP_{hook}", "FB_CONTINUE") for phase in ("PRE", "POST")]
        if op == "dirent":
            keys = keys[1:]
        return all(after.get(key, 0) > before.get(key, 0) for key in keys)

    wait_until(is_seen)


def test_a_mount_speaks_the_kernels_protocol(plain: Mounted) -> None:
    assert {path.name for path in plain.path.iterdir()} == {path.name for path in plain.src.iterdir()}


def test_forgotten_inodes_are_freed(directory: Path) -> None:
    (directory / "src").mkdir()
    (directory / "mnt").mkdir()
    name = f"docs-{os.getpid()}-forget"
    code = f"""
import subprocess, sys, trio, fusebpf
many = "for i in range(100): open(str(i), 'x').close()"
none = "for i in range(100): os.unlink(str(i))"
async def main():
    async with fusebpf.Stack("src", "mnt", name={name!r}) as stack:
        for code in (many, none):
            await trio.run_process(
                ["timeout", "-s", "KILL", "10", sys.executable, "-c", "import os\\n" + code], cwd="mnt"
            )
            with trio.fail_after(10):
                while (stack.counters()["inodes"] > 100) == (code == none):
                    await trio.sleep(0.01)
trio.run(main)
"""
    run(sys.executable, "-c", code, cwd=directory, seconds=40)


def test_an_unmount_ends_the_server(mount: Mounter) -> None:
    mounted = mount()

    mounted.umount()

    assert not is_alive(mounted.pid)


# ----------------------------------------------------------- requests that are not there or do not come


def test_copy_file_range_copies(plain: Mounted) -> None:
    cwd = place(plain, "copy")
    code = """
source, target = os.open("file", os.O_RDONLY), os.open("copy", os.O_RDWR | os.O_CREAT, 0o600)
print(os.copy_file_range(source, target, 100))
"""

    assert client(code, cwd) == "4"
    assert (plain.src / "copy/copy").read_text() == "text"


def test_clone_and_dedupe_are_refused(plain: Mounted) -> None:
    cwd = place(plain, "clone")
    code = """
source, target = os.open("file", os.O_RDONLY), os.open("copy", os.O_RDWR | os.O_CREAT, 0o600)
os.write(target, b"text")
print(attempt(fcntl.ioctl, target, 0x40049409, source))
print(attempt(fcntl.ioctl, source, 0xC0189436, struct.pack("QQHHIqQQiI", 0, 4, 1, 0, 0, target, 0, 0, 0, 0)))
"""

    assert client(code, cwd).split() == ["ENOTSUP", "ENOTSUP"]


def test_collapse_and_insert_range_never_come(plain: Mounted) -> None:
    cwd = place(plain, "collapse")
    code = """
fd = os.open("file", os.O_RDWR)
os.truncate(fd, 1 << 20)
for mode in (8, 32, 64):
    result = libc.fallocate(fd, mode, ctypes.c_long(4096), ctypes.c_long(4096))
    print(result, errno.errorcode[ctypes.get_errno()])
"""

    assert client(code, cwd).split() == ["-1", "ENOTSUP"] * 3


def test_dontcache_is_refused(plain: Mounted) -> None:
    cwd = place(plain, "dontcache")
    code = "print(attempt(os.preadv, os.open('file', os.O_RDONLY), [bytearray(4)], 0, 0x80))"

    assert client(code, cwd) == "ENOTSUP"


def test_where_blocks_lie_and_quotas_are_not_told(plain: Mounted) -> None:
    cwd = place(plain, "blocks")
    code = """
fd = os.open("file", os.O_RDONLY)
print(attempt(fcntl.ioctl, fd, 0xC020660B, struct.pack("QQIIII", 0, 1 << 62, 0, 0, 0, 0)))
syscall_quotactl_fd, q_getfmt = 443, 0x800004 << 8
print(libc.syscall(syscall_quotactl_fd, fd, q_getfmt, 0, ctypes.create_string_buffer(8)))
print(errno.errorcode[ctypes.get_errno()])
"""

    assert client(code, cwd).split() == ["ENOTSUP", "-1", "ENOSYS"]


def test_a_file_is_no_swap_space(plain: Mounted) -> None:
    cwd = place(plain, "swap")
    code = """
page = os.sysconf("SC_PAGESIZE")
with open("swap", "wb", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
    file.write(bytes(1024) + struct.pack("=III", 1, 63, 0) + bytes(page - 1046) + b"SWAPSPACE2")
    file.write(bytes(63 * page))
    os.fsync(file.fileno())
print(libc.swapon(b"swap", 0), errno.errorcode.get(ctypes.get_errno()))
libc.swapoff(b"swap")
"""

    assert client(code, cwd).split() == ["-1", "EINVAL"]


def test_syncfs_succeeds(plain: Mounted) -> None:
    cwd = place(plain, "syncfs")

    assert client("print(libc.syncfs(os.open('file', os.O_RDONLY)))", cwd) == "0"


def test_fibmap_finds_no_block(plain: Mounted) -> None:
    cwd = place(plain, "bmap")
    code = "print(fcntl.ioctl(os.open('file', os.O_RDONLY), 1, bytes(4)) == bytes(4))"

    assert client(code, cwd) == "True"


def test_nothing_is_retrieved_from_the_page_cache() -> None:
    core = (CHECKOUT / "fusebpf/_core").glob("*.[ch]")
    asking = {file.name: file.read_text() for file in core if "NOTIFY_RETRIEVE" in file.read_text()}

    assert list(asking) == ["uring.c"]
    assert "retrieve.size" not in asking["uring.c"]  # it stays 0: what counts is that an answer comes


def test_files_are_not_mapped_by_the_server(plain: Mounted) -> None:
    cwd = place(plain, "dax")
    code = """
data, is_dax = ctypes.create_string_buffer(256), 0x00200000
check(libc.statx(-100, b"file", 0, 0x7ff, data))
attributes = struct.unpack_from("Q", data, 8)[0]
print(attributes & is_dax)
"""

    assert client(code, cwd) == "0"


def test_the_server_is_no_character_device(plain: Mounted) -> None:
    links = [str(path.readlink()) for path in Path(f"/proc/{plain.pid}/fd").iterdir()]

    assert "/dev/fuse" in links
    assert "/dev/cuse" not in links


# --------------------------------------------------------------------------------- the document


def test_every_request_has_a_row() -> None:
    numbers = {int(number) for number in re.findall(r"^\| (\d+) \|", TEXT, re.MULTILINE)}

    assert set(range(1, N_REQUESTS + 1)) - UNUSED <= numbers


def test_every_request_of_the_running_kernel_has_a_row() -> None:
    rows = set(re.findall(r"^\| (\d+) \| (\w+) \|", TEXT, re.MULTILINE))
    said = run("bpftool", "--json", "btf", "dump", "file", "/sys/kernel/btf/vmlinux", seconds=60).stdout
    types = json.loads(said)
    requests = next(one for one in types["types"] if one["kind"] == "ENUM" and one["name"] == "fuse_opcode")

    here = {(str(one["val"]), one["name"].removeprefix("FUSE_")) for one in requests["values"]}
    assert sorted(here - rows) == []


def test_every_request_names_the_test_that_shows_it() -> None:
    rows = [line for line in TEXT.splitlines() if re.match(r"\| \d+ \|", line)]

    assert [row for row in rows if not re.search(r"`tests/\S+\.py::test_\w+(\[\w+\])?` \|$", row)] == []


def test_nothing_is_to_come() -> None:
    assert re.search(r"not\syet", TEXT) is None


def test_every_op_of_the_core_has_a_row() -> None:
    rows = set(re.findall(r"^\| (\d+) \| (\w+) \|", TEXT, re.MULTILINE))

    assert {(str(opcode), name.upper()) for name, opcode, *_ in OPS} <= rows


def test_the_tests_that_are_named_are_here() -> None:
    assert re.findall(r"`test_\w+", TEXT) == [], "without its file"
    for file, name in re.findall(r"`(tests/\S+\.py)::(\w+)", TEXT):
        assert f"def {name}(" in (CHECKOUT / file).read_text()


def test_the_generated_blocks_are_fresh() -> None:
    done = run(sys.executable, CHECKOUT / "scripts/docs.py", "--check", check=False)

    assert (done.stdout, done.returncode) == ("", 0)
