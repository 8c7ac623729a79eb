"""Which transport a mount gets, and what it says about it."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import serving
import support
from transport.conftest import SWITCH

pytestmark = pytest.mark.alone

has_uring = pytest.mark.skipif(not SWITCH.exists(), reason="no FUSE over io_uring here")
N_CORES = os.cpu_count()

SETUP, ENTER, REGISTER = 425, 426, 427
# Runs the rest of its command line without one call of io_uring: seccomp's answer is EPERM, as where an
# administrator has turned io_uring off.
WITHOUT_IO_URING = """
import ctypes, os, struct, sys
filter = b"".join(struct.pack("HBBI", *step) for step in (
    (0x20, 0, 0, 0),             # the call's number
    (0x15, 0, 1, int(sys.argv[1])),
    (0x06, 0, 0, 0x00050001),    # EPERM
    (0x06, 0, 0, 0x7FFF0000),    # else: go on
))
buffer = ctypes.create_string_buffer(filter)
program = struct.pack("HxxxxxxP", 4, ctypes.addressof(buffer))
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(22, 2, program, 0, 0) == 0, os.strerror(ctypes.get_errno())
os.execv(sys.argv[2], sys.argv[2:])
"""


@pytest.fixture
def turned_off() -> Iterator[None]:
    """FUSE over io_uring is off on this machine for the time of a test."""
    if not SWITCH.exists():
        pytest.skip("no FUSE over io_uring here")
    with support.switched(SWITCH, "N"):
        yield


@pytest.fixture
def its_log() -> Iterator[Path]:
    """Where the server of `_mount_without_io_uring` says what it has to; it would stay there."""
    path = support.STATE / f"test{os.getpid()}-no.log"
    yield path
    path.unlink(missing_ok=True)


def _mount_without_io_uring(directory: Path, transport: str, call: int) -> tuple[str, int]:
    for name in ("src", "mnt"):
        (directory / name).mkdir()
    (directory / "src" / "f").write_text("there")
    name = f"test{os.getpid()}-no"
    words = [str(support.COMMAND), "mount", str(directory / "src"), str(directory / "mnt")]
    words += ["--transport", transport, "--name", name]
    done = support.run(sys.executable, "-c", WITHOUT_IO_URING, str(call), *words, check=False, seconds=30)
    return done.stderr, done.returncode


@has_uring
def test_uring_has_a_queue_for_each_core(directory: Path) -> None:
    with serving.serve(directory, "queues", options="transport=uring") as served:
        (served.path / "f").write_text("here")

        assert served.counters()["queues"] == 1 + (N_CORES or 0)
        assert (served.src / "f").read_text() == "here"


@has_uring
@pytest.mark.parametrize("options", ["", "transport=auto"])
def test_auto_is_the_default_and_uring_where_there_is_one(directory: Path, options: str) -> None:
    with serving.serve(directory, "auto", options=options) as served:
        assert served.counters()["queues"] > 1


def test_dev_has_one_queue(directory: Path) -> None:
    with serving.serve(directory, "dev", options="transport=dev") as served:
        assert served.counters()["queues"] == 1


@pytest.mark.usefixtures("turned_off")
@pytest.mark.parametrize("transport", ["auto", "uring"])
def test_it_is_turned_on_and_that_is_said(mount: support.Mounter, transport: str) -> None:
    for _ in range(5):  # another mount of this machine may be the one that turns it on
        SWITCH.write_text("N")
        log = mount(options=f"transport={transport}").log
        assert SWITCH.read_text() == "Y\n"
        if log:
            break

    assert f"is on now ({SWITCH})" in log


@pytest.mark.usefixtures("turned_off")
def test_dev_leaves_it_off(mount: support.Mounter) -> None:
    assert not mount(options="transport=dev").log


@pytest.mark.parametrize("call", [SETUP, ENTER, REGISTER])
def test_auto_does_without_where_there_can_be_none(directory: Path, its_log: Path, call: int) -> None:
    said, status = _mount_without_io_uring(directory, "auto", call)

    assert (said, status) == ("", 0)
    assert support.run("cat", directory / "mnt" / "f").stdout == "there"
    assert "served over /dev/fuse, not over io_uring: " in its_log.read_text()
    support.run(support.COMMAND, "umount", directory / "mnt")


@pytest.mark.usefixtures("its_log")
@pytest.mark.parametrize("call", [SETUP, ENTER, REGISTER])
def test_uring_fails_clearly_where_there_can_be_none(directory: Path, call: int) -> None:
    said, status = _mount_without_io_uring(directory, "uring", call)

    assert status == 1
    assert said.count("\n") == 1
    assert "FUSE over io_uring: " in said
    assert "transport=auto does without" in said
    assert support.mountpoints(directory) == []
    assert not (support.STATE / f"test{os.getpid()}-no.json").exists()


@has_uring
@pytest.mark.parametrize("filters", [[], ["audit"]], ids=["plain", "audited"])
def test_each_core_is_served_where_fewer_workers_than_cores_may_be_busy(
    directory: Path, filters: list[str]
) -> None:
    """As on a machine with more cores than there are verdict rings: those that wait have none."""
    cores = sorted(os.sched_getaffinity(0))
    with serving.serve(directory, "few", filters=filters, options="transport=uring,max_workers=1") as served:
        for count in range(3):
            for core in cores:
                support.run("taskset", "-c", str(core), "touch", served.path / f"{core}-{count}")
            for core in cores:
                support.run("taskset", "-c", str(core), "rm", served.path / f"{core}-{count}")

        assert served.counters()["queues"] == 1 + os.sysconf("SC_NPROCESSORS_CONF")
        assert list(served.src.iterdir()) == []


def test_the_command_refuses_other_transports() -> None:
    done = support.run(support.COMMAND, "mount", "/", "/mnt", "--transport", "tcp", check=False)

    assert done.returncode == 2
    assert "'auto', 'uring', 'dev'" in done.stderr
