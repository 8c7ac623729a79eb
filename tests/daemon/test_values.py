"""Bytes between filters, the daemon and the backing root: values of xattrs, and what is read."""

import ctypes
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support import Mounted, Mounter

HERE = Path(__file__).parent
DAEMONS = HERE / "value_daemons.py"
FILTERS = HERE / "values.c"

Made = Callable[..., Mounted]


def size_of(path: Path, name: bytes) -> int:
    """What getxattr(2) says to a buffer of no bytes."""
    libc = ctypes.CDLL(None, use_errno=True)
    size = int(libc.getxattr(bytes(path), name, None, 0))
    if size < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return size


@pytest.fixture
def with_daemon(mount: Mounter) -> Made:
    """Mount with a daemon of value_daemons.py."""

    def made(name: str, *arguments: str, filters: tuple[str, ...] = ()) -> Mounted:
        src = mount.new_directory("src")
        (src / "file").write_text("a file\n")
        words = ["--daemon", f"{DAEMONS}:{name}", *arguments]
        return mount(src=src, arguments=words, filters=filters)

    return made


def test_a_value_that_a_filter_rewrote_is_set_when_the_daemon_lets_it_go_on(
    with_daemon: Made,
) -> None:
    mounted = with_daemon("LetsGoOn", "--route", "setxattr=daemon", filters=(f"{FILTERS}:value",))
    value = bytes(range(65, 91)) * 4

    os.setxattr(mounted.path / "file", "user.a", value)
    assert os.getxattr(mounted.src / "file", "user.a") == b"X" + value[1:]


def test_the_daemon_says_how_long_its_value_is(with_daemon: Made) -> None:
    mounted = with_daemon("HasValue")

    assert os.getxattr(mounted.path / "file", "user.own") == b"a value"
    assert size_of(mounted.path / "file", b"user.own") == len("a value")


def test_a_value_that_the_daemon_looks_at_has_a_size(with_daemon: Made) -> None:
    mounted = with_daemon("LooksAtValue")
    for name in ("user.short", "user.long"):
        os.setxattr(mounted.src / "file", name, b"short")

    assert size_of(mounted.path / "file", b"user.short") == 5
    assert size_of(mounted.path / "file", b"user.long") == len("longer than it was")


def test_the_daemon_looks_once_at_a_read_of_several_windows(with_daemon: Made) -> None:
    mounted = with_daemon("Counts", filters=(f"{FILTERS}:look",))
    (mounted.src / "big").write_bytes(b"b" * 131072)

    fd = os.open(mounted.path / "big", os.O_RDONLY)
    try:
        assert os.read(fd, 131072) == b"b" * 131072
    finally:
        os.close(fd)
    said = (mounted.src.parent / "asked").read_text().splitlines()
    assert len(said) == len(set(said)), said


def test_a_look_that_comes_too_late_changes_no_other_read(with_daemon: Made) -> None:
    mounted = with_daemon("Late", "--daemon-timeout", "0.4")
    (mounted.src / "slow").write_bytes(b"s" * 4096)
    names = [f"fast{i}" for i in range(8)]
    for name in names:
        (mounted.src / name).write_bytes(b"f" * 4096)
    for name in [*names, "slow"]:
        os.stat(mounted.path / name)
    fds = {name: os.open(mounted.path / name, os.O_RDONLY) for name in [*names, "slow"]}
    found: dict[str, bytes | int | None] = {}

    def read(name: str, wait: float) -> None:
        time.sleep(wait)
        try:
            found[name] = os.read(fds[name], 4096)
        except OSError as error:
            found[name] = error.errno

    threads = [threading.Thread(target=read, args=("slow", 0.0))]
    threads += [threading.Thread(target=read, args=(name, 0.7)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    for fd in fds.values():
        os.close(fd)
    assert [found[name] for name in names if found[name] != b"f" * 4096] == []
