"""Fixtures for tests on real mounts. Whatever happens in a test, its mounts and servers are gone after it."""

import fcntl
import os
import subprocess
import tempfile
import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import support

RUN_PREFIX = f"test{os.getpid()}-"
# Held by each test, alone where it is marked so. Who waits for the first holds the second: all get a turn.
TESTS, TURN = Path("/run/lock/fusebpf-tests"), Path("/run/lock/fusebpf-tests-turn")
# The share of a test's time limit after which its mounts are aborted, so that what waits for them wakes up.
ABORT_AFTER = 0.8


def pytest_sessionstart() -> None:
    """Refuse to run where every test would fail."""
    if os.geteuid() != 0:
        pytest.exit("only root can mount and load BPF: sudo make test", returncode=1)
    if not support.COMMAND.exists():
        pytest.exit(f"{support.COMMAND} is not there: sudo make setup", returncode=1)


@pytest.hookimpl(wrapper=True, tryfirst=True)  # before the clock of pytest-timeout starts
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Tests run side by side, but for those that change or watch the machine, which have it to themselves."""
    kind = fcntl.LOCK_EX if item.get_closest_marker("alone") else fcntl.LOCK_SH
    with TESTS.open("w") as tests:
        with TURN.open("w") as turn:
            fcntl.flock(turn, fcntl.LOCK_EX)
            fcntl.flock(tests, kind)
        return (yield)


@pytest.fixture(scope="session")
def run_directory() -> Iterator[Path]:
    """Everything that this test run makes is below it; on the machine's disk, not in a tmpfs."""
    directory = Path(tempfile.mkdtemp(prefix="fusebpf-test-", dir="/var/tmp"))
    directory.chmod(0o755)
    # Spreads the directories below over the disk: ext4 is slow where inodes were deleted just now.
    subprocess.run(["chattr", "+T", directory], check=False, capture_output=True)
    yield directory
    for name, pid in list(support.servers_below(directory)):
        support.end_server(pid, seconds=1)
        support.unpin(support.PINS / name)
        for suffix in ("json", "log", "sock"):
            (support.STATE / f"{name}.{suffix}").unlink(missing_ok=True)
    for path in support.mountpoints(directory):
        support.umount(path, support.MNT_FORCE | support.MNT_DETACH)
    support.remove_tree(directory)


@pytest.fixture
def directory(run_directory: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A fresh directory of this test, on the machine's disk."""
    path = Path(tempfile.mkdtemp(prefix=f"{request.node.name[:40].replace('/', '-')}-", dir=run_directory))
    path.chmod(0o755)
    yield path
    for mounted in support.mountpoints(path):
        support.umount(mounted, support.MNT_FORCE | support.MNT_DETACH)
    support.remove_tree(path)


@pytest.fixture
def bare(directory: Path) -> Path:
    """A fresh directory without any mount, on the same file system as the mounts' sources."""
    path = directory / "bare"
    path.mkdir()
    return path


@contextmanager
def _looped(directory: Path, kind: str, mib: int, *mkfs: str) -> Iterator[Path]:
    """The root of a file system in a file, which `mkfs` makes."""
    image, path = directory / f"{kind}.img", directory / kind
    with image.open("wb") as file:
        file.truncate(mib << 20)
    path.mkdir()
    support.run(*mkfs, image)
    support.run("mount", "-o", "loop", image, path)
    try:
        yield path
    finally:
        support.umount(path, support.MNT_DETACH)


@pytest.fixture
def ext4(directory: Path) -> Iterator[Path]:
    """The root of an ext4 of 64 MiB of its own: can be filled up, remounted, made read-only."""
    with _looped(directory, "ext4", 64, "mkfs.ext4", "-q", "-F") as path:
        yield path


@pytest.fixture
def btrfs(directory: Path) -> Iterator[Path]:
    """The root of a btrfs of its own: snapshots have the numbers and times of their originals."""
    if "btrfs" not in Path("/proc/filesystems").read_text():
        pytest.skip("the kernel has no btrfs")
    with _looped(directory, "btrfs", 300, "mkfs.btrfs", "-qf") as path:
        yield path


@pytest.fixture
def tmpfs(directory: Path) -> Iterator[Path]:
    """The root of a tmpfs of 16 MiB: no file handles on older kernels, other limits than a disk."""
    path = directory / "tmpfs"
    path.mkdir()
    support.run("mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", path)
    yield path
    support.umount(path, support.MNT_DETACH)


@pytest.fixture
def mount(directory: Path, request: pytest.FixtureRequest) -> Iterator[support.Mounter]:
    """Mounts with the real command: `mount(src=None, filters=["hide"], sets={"hide.names": ".ssh"})`."""
    number = request.session.stash.setdefault(_n_mounters, 0)
    request.session.stash[_n_mounters] = number + 1
    mounter = support.Mounter(directory, f"{RUN_PREFIX}{number}-")
    yield mounter
    left = mounter.take_down()
    assert left == [], "left behind by a mount that was taken down"


@pytest.fixture(autouse=True)
def _deadline(request: pytest.FixtureRequest, run_directory: Path) -> Iterator[None]:
    """Abort the mounts of a test that hangs: what waits for a mute server heeds no signal but SIGKILL."""
    limit = float(request.config.getini("timeout"))
    if marker := request.node.get_closest_marker("timeout"):
        limit = float(marker.args[0])
    timer = threading.Timer(limit * ABORT_AFTER, _abort_mounts, [run_directory])
    timer.daemon = True
    timer.start()
    yield
    timer.cancel()


def _abort_mounts(directory: Path) -> None:
    """Fail every request that waits on a mount of this test run."""
    for path in support.mountpoints(directory):
        support.umount(path, support.MNT_FORCE | support.MNT_DETACH)


_n_mounters = pytest.StashKey[int]()
