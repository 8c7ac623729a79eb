"""fuse-bpf's cases about the mount and the tree behind it: locks, data between files, mounts below."""

import ctypes
import fcntl
import os
import select
import struct
from pathlib import Path

import pytest
import support
from chain.chained import Chained

IN_MODIFY, IN_CREATE = 0x2, 0x100
_libc = ctypes.CDLL(None, use_errno=True)


def test_flock_between_mount_and_backing(plain: Chained, filtered: Chained) -> None:
    for chained in (plain, filtered):
        path, src = chained.fresh()
        (src / "file").touch()
        with (path / "file").open() as seen, (src / "file").open() as real:
            fcntl.flock(seen, fcntl.LOCK_EX)
            with pytest.raises(BlockingIOError):
                fcntl.flock(real, fcntl.LOCK_EX | fcntl.LOCK_NB)
            fcntl.flock(seen, fcntl.LOCK_UN)
            fcntl.flock(real, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with pytest.raises(BlockingIOError):
                fcntl.flock(seen, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_splice(plain: Chained, filtered: Chained) -> None:
    content = os.urandom(300_000)
    for chained in (plain, filtered):
        path, src = chained.fresh()
        (src / "from").write_bytes(content)
        read_end, write_end = os.pipe()
        with (path / "from").open("rb") as source, (path / "to").open("wb") as target:
            while n := os.splice(source.fileno(), write_end, 65536):
                while n:
                    n -= os.splice(read_end, target.fileno(), n)
        os.close(read_end)
        os.close(write_end)
        assert (src / "to").read_bytes() == content


@pytest.mark.parametrize("source", ["plain", "filtered"])
@pytest.mark.parametrize("target", ["plain", "filtered"])
def test_copy_file_range_of_all_four_route_combinations(
    source: str, target: str, request: pytest.FixtureRequest
) -> None:
    """`plain` is passed through; the filters of the other mount hook read, so there the core serves."""
    from_path, from_src = request.getfixturevalue(source).fresh()
    to_path, to_src = request.getfixturevalue(target).fresh()
    content = os.urandom(300_000)
    (from_src / "from").write_bytes(content)

    with (from_path / "from").open("rb") as one, (to_path / "to").open("wb") as other:
        left = len(content)
        while left:
            left -= os.copy_file_range(one.fileno(), other.fileno(), left)

    assert (to_src / "to").read_bytes() == content


def inotify_of(path: Path, mask: int) -> int:
    fd: int = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    assert _libc.inotify_add_watch(fd, os.fsencode(path), mask) >= 0
    return fd


def names_of(fd: int, seconds: float) -> list[bytes]:
    """The names of the events that come until one is there, or time is up."""
    names = []
    if select.select([fd], [], [], seconds)[0]:
        events = os.read(fd, 65536)
        while events:
            _, _, _, length = struct.unpack_from("iIII", events)
            names.append(events[16 : 16 + length].rstrip(b"\0"))
            events = events[16 + length :]
    return names


def test_inotify_for_a_change_made_on_the_backing(plain: Chained) -> None:
    """The kernel tells watchers of the inode that a change was made through, on either side."""
    path, src = plain.fresh()
    on_mount, on_backing = inotify_of(path, IN_CREATE), inotify_of(src, IN_CREATE)
    try:
        (src / "behind").touch()
        assert names_of(on_backing, 10) == [b"behind"]
        assert names_of(on_mount, 0.05) == []
        assert (path / "behind").exists(), "the change itself is there at once"

        (path / "through").touch()
        assert names_of(on_mount, 10) == [b"through"]
        assert names_of(on_backing, 10) == [b"through"]
    finally:
        os.close(on_mount)
        os.close(on_backing)


def test_following_mounts(directory: Path, mount: support.Mounter) -> None:
    src = directory / "tree"
    (src / "below").mkdir(parents=True)
    support.run("mount", "-t", "tmpfs", "tmpfs", src / "below")
    try:
        mounted = mount(src)
        (mounted.path / "below" / "file").write_text("on the tmpfs")

        assert (src / "below" / "file").read_text() == "on the tmpfs"
        assert [path.name for path in (mounted.path / "below").iterdir()] == ["file"]
        mounted.umount()
    finally:
        support.umount(src / "below", support.MNT_DETACH)


def test_stack_depth_refused(mount: support.Mounter) -> None:
    """The kernel refuses passthrough of what is stacked too deep: those files are served."""
    first = mount()
    second = mount(first.path)
    third = mount(second.path)
    content = os.urandom(100_000)

    (third.path / "file").write_bytes(content)

    assert (first.src / "file").read_bytes() == content
    assert (third.path / "file").read_bytes() == content
    for one in (third, second, first):
        one.umount()


def test_the_mediaprovider_pattern(
    mount: support.Mounter, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An easy decision in BPF, by owner and mode; the hard one elsewhere, here in a daemon."""
    here, asked = Path(__file__).parent, directory / "asked"
    monkeypatch.setenv("MEDIA_ASKED", str(asked))
    mounted = mount(filters=[here / "media.c"], arguments=["--daemon", f"{here}/media.py:Media"])
    for name, mode in (("song", 0o664), ("film", 0o660), ("diary", 0o600)):
        (mounted.src / name).write_text(name)
        (mounted.src / name).chmod(mode)
        os.chown(mounted.src / name, 1000, 2000)

    def read(name: str, uid: int) -> str:
        who = ("setpriv", "--reuid", str(uid), "--regid", "2000", "--clear-groups")
        return support.run(*who, "cat", mounted.path / name, check=False).stdout

    assert [read("song", uid) for uid in (1000, 1001, 1002)] == ["song"] * 3
    assert [read("diary", uid) for uid in (1000, 1001)] == ["diary", ""]
    assert read("film", 1000) == "film"
    assert not asked.exists(), "what is easy was not asked for"
    assert [read("film", uid) for uid in (1001, 1002)] == ["film", ""]
    assert asked.read_text().split() == ["1001", "1002"]
    assert len((here / "media.c").read_text().splitlines()) <= 40
