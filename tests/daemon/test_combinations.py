"""All ways of one op through filters, the daemon and the backing root."""

from collections.abc import Sequence
from pathlib import Path

import support
from support import Mounted, Mounter

HERE = Path(__file__).parent


def mounted_with(mount: Mounter, filters: Sequence[str], *arguments: str) -> Mounted:
    """A mount with the daemon Order and filters of order.c."""
    words = ["--daemon", f"{HERE}/daemons.py:Order", *arguments]
    return mount(filters=[f"{HERE}/order.c:{name}" for name in filters], arguments=words)


def asked(mounted: Mounted) -> list[str]:
    """What the daemon was asked."""
    path = mounted.src.parent / "asked"
    return path.read_text().splitlines() if path.exists() else []


def mkdir(mounted: Mounted, name: str) -> None:
    """Make a directory."""
    support.run("mkdir", mounted.path / name)


def ids(mounted: Mounted, name: str) -> tuple[int, int, int]:
    """What mkdir's answer said, as the kernel keeps it: uid, gid, links."""
    st = (mounted.path / name).stat()
    return st.st_uid, st.st_gid, st.st_nlink


def test_daemon_only(mount: Mounter) -> None:
    mounted = mounted_with(mount, [], "--route", "mkdir=daemon")

    mkdir(mounted, "daemon-only")
    assert asked(mounted) == ["daemon pre daemon-only"]
    assert list(mounted.src.iterdir()) == []


def test_backing_only(mount: Mounter) -> None:
    mounted = mounted_with(mount, ["straight"], "--route", "post_mkdir=backing")

    mkdir(mounted, "d")
    assert asked(mounted) == []
    assert [path.name for path in mounted.src.iterdir()] == ["d"]


def test_daemon_pre_then_backing(mount: Mounter) -> None:
    mounted = mounted_with(mount, [], "--route", "mkdir=daemon")

    mkdir(mounted, "d")
    assert asked(mounted) == ["daemon pre d"]
    assert [path.name for path in mounted.src.iterdir()] == ["d-d"]


def test_the_filter_sends_to_the_daemon_then_backing_then_its_own_post(mount: Mounter) -> None:
    mounted = mounted_with(mount, ["before"], "-o", "ttl=60")

    mkdir(mounted, "d")
    assert asked(mounted) == ["daemon pre d"]
    assert ids(mounted, "d")[1] == 4321
    assert [path.name for path in mounted.src.iterdir()] == ["d-d"]


def test_backing_then_bpf_post(mount: Mounter) -> None:
    mounted = mounted_with(
        mount, ["top"], "-o", "ttl=60", "--route", "mkdir=backing", "--route", "post_mkdir=backing"
    )

    mkdir(mounted, "d")
    assert asked(mounted) == []
    assert ids(mounted, "d")[0] == 1234


def test_backing_then_daemon_post(mount: Mounter) -> None:
    mounted = mounted_with(mount, ["after"], "-o", "ttl=60")

    mkdir(mounted, "d")
    assert asked(mounted) == ["daemon post d"]
    assert ids(mounted, "d")[2] == 42


def test_all_of_them_in_one_op(mount: Mounter) -> None:
    mounted = mounted_with(mount, ["before", "after", "top"], "-o", "ttl=60")

    mkdir(mounted, "d")
    assert asked(mounted) == ["daemon pre d", "daemon post d-d"]
    assert ids(mounted, "d") == (1234, 4321, 42)
    assert [path.name for path in mounted.src.iterdir()] == ["d-d"]
    record = [row for row in mounted.stats().items() if row[0][2] == "FB_OP_mkdir"]
    assert len(record) == 4


def test_a_post_hook_above_sees_what_the_daemon_alone_answered(mount: Mounter) -> None:
    mounted = mounted_with(mount, ["before", "top"], "-o", "ttl=60")

    mkdir(mounted, "daemon-only")
    assert asked(mounted) == ["daemon pre daemon-only"]
    assert list(mounted.src.iterdir()) == []
