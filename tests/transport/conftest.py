"""The transports, and whether this machine has the one that not every kernel has."""

from pathlib import Path

import pytest
import support

SWITCH = Path("/sys/module/fuse/parameters/enable_uring")
TRANSPORTS = [
    pytest.param("uring", marks=pytest.mark.skipif(not SWITCH.exists(), reason="no FUSE over io_uring here")),
    "dev",
]


@pytest.fixture(params=TRANSPORTS)
def transport(request: pytest.FixtureRequest) -> str:
    """Each of them."""
    return str(request.param)


@pytest.fixture
def uring(mount: support.Mounter) -> support.Mounted:
    """A mount over io_uring."""
    if not SWITCH.exists():
        pytest.skip("no FUSE over io_uring here")
    return mount(options="transport=uring,idle=leave")


@pytest.fixture
def quiet() -> None:
    """The machine has little else to do, as the core wants it: fusebpf/_core/placement.c."""
    try:
        support.wait_until(lambda: Path("/proc/loadavg").read_text().split()[3].startswith("1/"), 20)
    except AssertionError:
        pytest.skip("other programs keep this machine busy")
