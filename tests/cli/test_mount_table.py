"""The kernel's mount table as we read it; no mount is made here but a bind mount or a tmpfs."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import support

from fusebpf import mounts
from fusebpf.mounts import Mounted

PLAIN = (
    rb"36 35 98:0 /sub /mnt\040a\011b\012c\134d rw,noatime shared:7 master:1"
    rb" - ext4 /dev/root\040x rw,errors=continue"
)


def mounted(
    mount_id: int, point: str, *, root: str = "/", device: str = "8:1", peers: int = 0, master: int = 0
) -> Mounted:
    return Mounted(mount_id, 1, device, root, point, "rw", peers, master, "ext4", "disk", "rw")


@pytest.fixture
def bind(directory: Path) -> Iterator[Path]:
    """`directory`/bind, a bind mount of `directory`/real."""
    path = directory / "bind"
    (directory / "real" / "inner").mkdir(parents=True)
    path.mkdir()
    support.run("mount", "--bind", directory / "real", path)
    yield path
    support.umount(path, support.MNT_DETACH)


def test_a_line_is_parsed_with_its_octal_escapes() -> None:
    (parsed,) = mounts.parse_mountinfo(PLAIN + b"\n")

    assert parsed == Mounted(
        36,
        35,
        "98:0",
        "/sub",
        "/mnt a\tb\nc\\d",
        "rw,noatime",
        7,
        1,
        "ext4",
        "/dev/root x",
        "rw,errors=continue",
    )


def test_a_line_without_optional_fields_is_parsed() -> None:
    (parsed,) = mounts.parse_mountinfo(b"1 0 0:2 / / rw - fuse.fusebpf none rw")

    assert (parsed.peers, parsed.master, parsed.is_ours) == (0, 0, True)


def test_our_own_table_is_parsed() -> None:
    assert any(one.point == "/proc" and one.fs_type == "proc" for one in mounts.table())


def test_a_mount_shows_in_the_peers_and_slaves_of_where_it_is_made_and_not_elsewhere() -> None:
    real = mounted(1, "/real", peers=1)
    peer = mounted(2, "/peer", peers=1)
    slave = mounted(3, "/slave", peers=2, master=1)
    slave_of_slave = mounted(4, "/deep", master=2)
    private = mounted(5, "/private")
    table = [real, peer, slave, slave_of_slave, private]

    assert mounts.receivers(real, table) == [real, peer, slave, slave_of_slave]
    assert mounts.receivers(slave, table) == [slave, slave_of_slave]
    assert mounts.receivers(private, table) == [private]


def test_aliases_of_a_path_are_where_a_mount_on_it_would_show() -> None:
    real = mounted(1, "/real", peers=1)
    part = mounted(2, "/part", root="/a", peers=1)
    other = mounted(3, "/other", root="/z", peers=1)

    assert mounts.aliases("/real/a/b", real, [real, part, other]) == ["/real/a/b", "/part/b"]
    assert mounts.aliases("/part/b", part, [real, part, other]) == ["/part/b", "/real/a/b"]


def test_only_the_root_of_a_mount_is_a_mount_point(bind: Path) -> None:
    found = mounts.mount_of(bind)

    assert found is not None
    assert found.point == str(bind)
    assert mounts.mount_of(bind / "inner") is None


def test_directories_above_are_walked_through_mounts(bind: Path) -> None:
    with mounts.opened(bind / "inner") as fd, mounts.opened(bind.parent / "real") as real:
        place = mounts.place_of(real)
        assert mounts.any_above(fd, place.is_same)


def test_a_canonical_path_is_free_of_symlinks(directory: Path) -> None:
    (directory / "link").symlink_to(".")

    assert mounts.canonical(directory / "link" / "..") == os.fspath(directory.parent)


def test_a_mount_that_is_covered_is_not_taken_down(bind: Path) -> None:
    below = mounts.mount_of(bind)
    assert below is not None
    support.run("mount", "-t", "tmpfs", "cover", bind)
    try:
        for is_lazy in (False, True):
            with pytest.raises(OSError, match="another mount covers it"):
                mounts.unmount(below, is_lazy=is_lazy)

        assert mounts.by_id(below.mount_id) == below
    finally:
        support.umount(bind, support.MNT_DETACH)


def test_a_busy_mount_is_refused_and_detached_when_lazy(bind: Path) -> None:
    there = mounts.mount_of(bind)
    assert there is not None
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, cwd=bind) as user:
        with pytest.raises(OSError, match="busy"):
            mounts.unmount(there)
        assert mounts.unmount(there, is_lazy=True)
        assert user.poll() is None

    assert not mounts.unmount(there)


def test_a_name_elsewhere_that_is_no_utf_8_is_in_nobodys_way(directory: Path, mount: support.Mounter) -> None:
    odd = directory / os.fsdecode(b"odd \xff\n name")
    odd.mkdir()
    support.run("mount", "-t", "tmpfs", "tmpfs", odd)
    try:
        mounted = mount(filters=["audit"])
        listed = support.run(support.COMMAND, "list").stdout
        mounted.umount()
    finally:
        support.umount(odd, support.MNT_DETACH)

    assert str(mounted.path) in listed
