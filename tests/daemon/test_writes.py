"""Files whose data is the daemon's: truncating, and set-id bits, which the kernel leaves to the server."""

from collections.abc import Callable

import pytest
import support
from support import Mounted, Mounter

DAEMONS = support.CHECKOUT / "tests/daemon/daemons.py"

Made = Callable[[], Mounted]


@pytest.fixture
def stores(mount: Mounter) -> Made:
    """Mount with the daemon Stores, over a backing root with a program that has set-id bits."""

    def made() -> Mounted:
        src = mount.new_directory("src")
        (src / "program").write_bytes(b"program")
        (src / "program").chmod(0o6777)
        return mount(src=src, arguments=["--daemon", f"{DAEMONS}:Stores"])

    return made


def test_continue_leaves_out_an_attribute_that_is_none(stores: Made) -> None:
    mounted = stores()

    support.run("truncate", "-s", "3", mounted.path / "program")
    assert (mounted.src / "program").read_bytes() == b"prog"


def test_opening_with_o_trunc_truncates_by_the_daemon(stores: Made) -> None:
    mounted = stores()

    support.run("sh", "-c", ': > "$0"', mounted.path / "program")
    assert (mounted.src.parent / "asked").read_text() == "truncate 0\n"
    assert (mounted.src / "program").stat().st_size == 1


@pytest.mark.parametrize(
    "code",
    [
        "os.pwrite(os.open(sys.argv[1], os.O_WRONLY), b'x', 0)",
        "os.truncate(sys.argv[1], 3)",
        "os.open(sys.argv[1], os.O_WRONLY | os.O_TRUNC)",
    ],
)
def test_a_change_by_a_user_takes_the_set_id_bits(stores: Made, code: str) -> None:
    program = stores().path / "program"

    support.run("/usr/bin/python3", "-c", f"import os, sys; {code}", program, user=1000)
    assert program.stat().st_mode & 0o7777 == 0o777


def test_a_change_by_root_leaves_the_set_id_bits(stores: Made) -> None:
    program = stores().path / "program"

    support.run("sh", "-c", 'printf x 1<> "$0"', program)
    assert program.stat().st_mode & 0o7777 == 0o6777
