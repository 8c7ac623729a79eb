"""The stock filters that judge: `worm`, `noexec`, `limit`."""

import errno
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import support

from fusebpf.testing import Chain

KNOWN_EXEC = 1 << 3


# ------------------------------------------------------------------------------------ worm


@pytest.fixture
def kept(mount: support.Mounter) -> support.Mounted:
    mounted = mount(filters=["worm"], sets={"worm.paths": "log", "worm.names": "*.rec"})
    (mounted.src / "log").mkdir()
    (mounted.src / "log" / "old").write_text("old")
    (mounted.src / "a.rec").write_text("record")
    (mounted.src / "free").write_text("free")
    return mounted


def overwrite(path: Path) -> None:
    with path.open("r+b", buffering=0) as file:
        file.write(b"X")


@pytest.mark.parametrize("name", ["log/old", "a.rec"])
def test_worm_keeps_a_file(kept: support.Mounted, name: str) -> None:
    path, before = kept.path / name, (kept.src / name).read_text()

    ways = {
        "unlink": support.refused(path.unlink),
        "rename": support.refused(path.rename, kept.path / "moved"),
        "rename over": support.refused((kept.path / "free").replace, path),
        "link": support.refused(os.link, path, kept.path / "second"),
        "truncate": support.refused(os.truncate, path, 1),
        "open to truncate": support.refused(path.write_text, "new"),
        "overwrite": support.refused(overwrite, path),
    }

    over = errno.EEXIST if name.startswith("log") else errno.EPERM
    assert ways == {**dict.fromkeys(ways, errno.EPERM), "rename over": over}
    assert (kept.src / name).read_text() == before
    assert (kept.src / "free").read_text() == "free"


@pytest.mark.parametrize("name", ["log/old", "a.rec", "log/new", "new.rec"])
def test_worm_lets_a_file_grow(kept: support.Mounted, name: str) -> None:
    path = kept.path / name
    before = path.read_text() if path.exists() else ""

    with path.open("a") as file:
        file.write("more")
        file.flush()
        file.write(" and more")
    fd = os.open(path, os.O_WRONLY)
    os.pwrite(fd, b"!", len(before) + 13)
    assert support.refused(os.pwrite, fd, b"?", len(before) + 13) == errno.EPERM
    os.close(fd)

    assert (kept.src / name).read_text() == before + "more and more!"


def test_worm_leaves_the_rest_alone(kept: support.Mounted) -> None:
    (kept.path / "free").write_text("changed")
    (kept.path / "free").rename(kept.path / "log" / "came-in")
    assert support.refused((kept.path / "log" / "came-in").unlink) == errno.EPERM
    assert support.refused((kept.path / "log").rename, kept.path / "other") == errno.EPERM
    (kept.path / "d").mkdir()
    (kept.path / "d").rmdir()


def test_worm_without_maps_keeps_all() -> None:
    with Chain("worm") as chain:
        assert chain.run("unlink", name="x", path="x").error == errno.EPERM
        assert chain.run("lookup", name="x", path="x", attr={"size": 9}).slot["tag"] == 10
        older = chain.run("lookup", name="x", path="x", tag=15, attr={"size": 9})
        assert older.slot["tag"] == 15, "a lookup that is older than a write does not take it back"
        assert chain.run("write", tag=10, args={"offset": 8, "size": 1}).error == errno.EPERM
        assert chain.run("write", tag=10, args={"offset": 9, "size": 5}, count=5).slot["tag"] == 15
        assert chain.run("fallocate", tag=10, args={"mode": 3}).error == errno.EPERM
        assert chain.run("fallocate", tag=10, args={"mode": 1}).error == 0


def test_worm_does_not_let_go_by_another_name(kept: support.Mounted) -> None:
    os.link(kept.src / "log" / "old", kept.src / "other")
    os.link(kept.src / "free", kept.src / "free2")

    with (kept.path / "log" / "old").open():
        assert support.refused(overwrite, kept.path / "other") == errno.EPERM
    overwrite(kept.path / "free")
    overwrite(kept.path / "free2")


# ---------------------------------------------------------------------------------- noexec


@pytest.fixture(scope="module")
def noexec() -> Iterator[Chain]:
    with Chain("noexec", maps={"noexec.paths": "tmp,home/*/bin", "noexec.uids": "1000"}) as chain:
        yield chain


@pytest.mark.parametrize(
    ("path", "uid", "error"),
    [("tmp/a", 0, 13), ("home/x/bin/y", 0, 13), ("bin/a", 0, 0), ("bin/a", 1000, 13), ("tmpx", 5, 0)],
)
def test_noexec_judges_paths_and_users(noexec: Chain, path: str, uid: int, error: int) -> None:
    assert noexec.run("open", path=path, uid=uid, flags=KNOWN_EXEC).error == error
    assert noexec.run("open", path=path, uid=uid).error == 0, "opened to be read"


def test_noexec_on_a_mount(mount: support.Mounter) -> None:
    mounted = mount(filters=["noexec"], sets={"noexec.paths": "tmp"})
    for directory in ("tmp", "bin"):
        (mounted.src / directory).mkdir()
        (mounted.src / directory / "true").write_bytes(Path("/bin/true").read_bytes())
        (mounted.src / directory / "true").chmod(0o755)

    support.run(mounted.path / "bin" / "true")
    with pytest.raises(PermissionError):
        os.execv(mounted.path / "tmp" / "true", ["true"])
    support.run("cat", mounted.path / "tmp" / "true")


# ----------------------------------------------------------------------------------- limit


def test_limit_refuses_what_is_over() -> None:
    maps = {"limit.ops": "5:1:2,*:1000000:1000000", "limit.answer": "EAGAIN"}
    with Chain("limit", maps=maps) as chain:
        errors = [chain.run("statfs", uid=5).error for _ in range(6)]
        assert errors[:3] == [0, 0, 0], "a burst of two, and the one that is paid off"
        assert errors[4:] == [errno.EAGAIN] * 2
        assert [chain.run("statfs", uid=6).error for _ in range(6)] == [0] * 6
        assert chain.run("statfs", uid=5, flags=1).error == 0, "the kernel's own request"


def test_limit_holds_up_what_is_over() -> None:
    with Chain("limit", maps={"limit.bytes": "5:1000:0"}) as chain:
        assert chain.run("write", uid=5, args={"size": 2000}).slot["delay_ns"] == 0
        waits = [chain.run("write", uid=5, args={"size": 1000}).slot["delay_ns"] / 1e9 for _ in range(2)]
        assert 1 < waits[0] <= 2 < waits[1] <= 3
        assert chain.run("statfs", uid=5).slot["delay_ns"] == 0
        assert chain.run("write", uid=6, args={"size": 1 << 20}).slot["delay_ns"] == 0


def test_limit_takes_a_burst_that_no_clock_could_pay_off() -> None:
    for burst in ((1 << 64) // 10**9, (1 << 64) // 10**9 + 1, (1 << 64) - 1):
        with Chain("limit", maps={"limit.bytes": f"5:1M:{burst}"}) as chain:
            for _ in range(3):
                assert chain.run("write", uid=5, args={"size": 1 << 20}).slot["delay_ns"] == 0


def test_limit_on_a_mount(mount: support.Mounter) -> None:
    mounted = mount(filters=["limit"], sets={"limit.bytes": "0:100k:0"})
    start = time.monotonic()

    (mounted.path / "file").write_bytes(bytes(20 << 10))
    (mounted.path / "file").write_bytes(bytes(20 << 10))

    assert time.monotonic() - start >= 0.2
