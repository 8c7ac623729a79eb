"""profile=small: no opens are sent, and pages are kept; for programs it is a file system like any other."""

import itertools
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import serving
import support
from chain.chained import chained, source
from core import table, test_like_bare
from core.variants import SMALL as VARIANTS
from core.variants import Variant

SMALL = "profile=small"
# What it does in another way; each has a test below.
OTHERWISE = {"reading_sets_atime", "an_append_only_file_is_appended_to_and_no_more"}
_numbers = itertools.count()


@pytest.fixture(scope="module", params=list(VARIANTS))
def small(run_directory: Path, request: pytest.FixtureRequest) -> Iterator[Variant]:
    made = Variant(run_directory, request.param)
    yield made
    made.take_down()


@pytest.mark.parametrize("name", sorted(set(table.SCENARIOS) - OTHERWISE))
def test_an_op_does_the_same_with_the_small_profile(small: Variant, bare: Path, name: str) -> None:
    through = small.mounted.path / f"{name[:40]}-{next(_numbers)}"
    through.mkdir()

    expected = test_like_bare.run(name, bare)

    assert expected == test_like_bare.run(name, through)


def test_to_open_read_and_close_what_is_known_costs_no_request(directory: Path) -> None:
    with serving.serve(directory, "hot", options=f"{SMALL},cache=watch") as served:
        for number in range(20):
            (served.src / f"f{number}").write_text(f"text {number}")

        def requests_of_a_round() -> int:
            before = served.counters()["requests"]
            for number in range(20):  # not by open(), which asks whether the file is a terminal: an ioctl
                fd = os.open(served.path / f"f{number}", os.O_RDONLY)
                assert os.read(fd, 100) == f"text {number}".encode()
                os.close(fd)
            return served.counters()["requests"] - before

        support.wait_until(lambda: requests_of_a_round() == 0)  # once what was written behind it is told of
        assert served.counters()["handles"] == 0


@pytest.mark.parametrize("options", ["cache=none", "ttl=0.05", "cache=watch"])
def test_what_changes_behind_the_mount_is_seen_as_the_cache_policy_says(
    mount: support.Mounter, options: str
) -> None:
    mounted = mount(options=f"{SMALL},{options}")
    (mounted.src / "f").write_text("old")
    assert (mounted.path / "f").read_text() == "old"

    (mounted.src / "f").write_text("new and longer")

    support.wait_until(lambda: (mounted.path / "f").read_text() == "new and longer")


def test_a_file_that_lost_its_name_while_it_is_open_works_on(mount: support.Mounter) -> None:
    mounted = mount(options=SMALL)
    (mounted.src / "f").write_text("kept")
    fd = os.open(mounted.path / "f", os.O_RDWR)

    (mounted.path / "f").unlink()

    assert os.pread(fd, 10, 0) == b"kept"
    assert os.pwrite(fd, b"more", 4) == 4
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    assert os.pread(fd, 10, 0) == b"keptmore"
    assert os.fstat(fd).st_nlink == 0
    os.close(fd)
    assert os.listdir(mounted.src) == []


def test_opening_to_truncate_does_truncate(mount: support.Mounter) -> None:
    mounted = mount(options=SMALL)
    (mounted.src / "f").write_text("long enough")

    os.close(os.open(mounted.path / "f", os.O_WRONLY | os.O_TRUNC))

    assert (mounted.src / "f").read_bytes() == (mounted.path / "f").read_bytes() == b""


def test_an_append_only_file_refuses_when_it_is_written(mount: support.Mounter) -> None:
    mounted = mount(options=SMALL)
    (mounted.src / "log").write_text("log")
    support.run("chattr", "+a", mounted.src / "log")
    try:
        with (mounted.path / "log").open("a") as file:
            file.write(" more")
        fd = os.open(mounted.path / "log", os.O_WRONLY)
        with pytest.raises(OSError, match="not permitted"):
            os.pwrite(fd, b"x", 0)
        os.close(fd)
        assert (mounted.src / "log").read_text() == "log more"
    finally:
        support.run("chattr", "-a", mounted.src / "log")


def _is_read_anew(mounted: support.Mounted, name: str) -> bool:
    """Read, and see whether the backing file was read, whose time of access lies before its mtime."""
    (mounted.path / name).read_text()
    return (mounted.src / name).stat().st_atime_ns > (mounted.src / name).stat().st_mtime_ns


def test_what_is_read_from_kept_pages_leaves_the_time_of_access(mount: support.Mounter, bare: Path) -> None:
    (bare / "f").write_text("x")  # before there is a watch, which would have its pages dropped later
    mounted = mount(bare, options=f"{SMALL},cache=watch")
    (mounted.path / "f").read_text()
    os.utime(mounted.src / "f", ns=(1, 2))
    support.wait_until(lambda: _is_read_anew(mounted, "f"))
    os.utime(mounted.src / "f", ns=(1, 2))

    (mounted.path / "f").read_text()

    assert (mounted.src / "f").stat().st_atime_ns == 1


@pytest.mark.parametrize("name", ["audit", "readonly", "deny"])
def test_a_filter_that_hooks_what_is_not_asked_is_refused(mount: support.Mounter, name: str) -> None:
    mounted = mount(filters=["hide"], sets={"hide.names": "secret"}, options=SMALL)

    said = support.run(support.COMMAND, "attach", mounted.path, name, check=False)

    assert said.returncode == 2
    assert f"filter '{name}' hooks open" in said.stderr
    assert said.stderr.count("\n") == 1
    (mounted.src / "secret").touch()
    with pytest.raises(FileNotFoundError):
        (mounted.path / "secret").read_text()
    assert os.listdir(mounted.path) == []


def test_a_filter_that_hooks_what_is_not_asked_is_refused_at_the_start(directory: Path) -> None:
    (directory / "src").mkdir()
    (directory / "mnt").mkdir()
    words = ("--filter", "audit", "--profile", "small")

    said = support.run(support.COMMAND, "mount", directory / "src", directory / "mnt", *words, check=False)

    assert said.returncode == 2
    assert "filter 'audit' hooks open" in said.stderr
    assert not support.mountpoints(directory)


@pytest.mark.parametrize("other", ["locks=backing", "passthrough", "nodefault_permissions"])
def test_what_does_not_go_with_it_is_refused(directory: Path, other: str) -> None:
    said = support.run(support.COMMAND, "mount", directory, directory, "-o", f"{other},{SMALL}", check=False)

    assert said.returncode == 2
    assert f"'profile=small' and {other!r} exclude one another" in said.stderr


def test_crowds_lock_and_write_the_same_files(mount: support.Mounter) -> None:
    mounted = mount(options=SMALL)
    (mounted.src / "n").write_text("0")
    script = (
        "import fcntl, sys\n"
        "for _ in range(20):\n"
        "    with open(sys.argv[1], 'r+') as file:\n"
        "        fcntl.lockf(file, fcntl.LOCK_EX)\n"
        "        number = int(file.read())\n"
        "        file.seek(0)\n"
        "        file.write(str(number + 1))\n"
    )
    words = ["timeout", "-s", "KILL", "60", "/usr/bin/python3", "-c", script, str(mounted.path / "n")]

    crowd = [subprocess.Popen(words) for _ in range(8)]

    assert [one.wait(60) for one in crowd] == [0] * 8
    assert (mounted.src / "n").read_text() == "160"


def test_no_file_is_more_than_the_disk_holds(mount: support.Mounter, ext4: Path) -> None:
    mounted = mount(src=ext4, options=SMALL)

    fd = os.open(mounted.path / "f", os.O_CREAT | os.O_WRONLY)

    assert table.attempt(lambda: [os.write(fd, bytes(1 << 20)) for _ in range(200)]) == "ENOSPC"
    os.close(fd)


def test_to_truncate_an_open_file_to_its_size_sets_its_times_on_every_file_system(
    mount: support.Mounter, tmpfs: Path
) -> None:
    mounted = mount(src=tmpfs, options=SMALL)
    stamp = mounted.path / "stamp"
    stamp.touch()

    def time_after(truncate: Callable[[], object]) -> int | str:
        os.utime(stamp, ns=(table.OLD, table.OLD))
        truncate()
        return table.when(os.stat(stamp).st_mtime_ns)

    assert time_after(lambda: stamp.write_bytes(b"")) == "now"  # as in a makefile: `: > stamp`
    with stamp.open("r+b") as file:
        assert time_after(lambda: file.truncate(0)) == "now"
        file.truncate(5)
        assert time_after(lambda: file.truncate(5)) == "now"


FLUSH_FAILS_ONCE = """
FILTER(once, .altitude = 500)
BPF_ARRAY(once__n, u32, 1);
PRE(once, flush)
{
	u32 first = 0;
	u32 *n = once__n.lookup(&first);

	return n && !(*n)++ ? -EINTR : FB_CONTINUE;
}
"""


def test_a_file_is_made_once_where_its_close_is_interrupted(directory: Path, mount: support.Mounter) -> None:
    with chained(directory, [source(directory, FLUSH_FAILS_ONCE, "once")]) as behind:
        backing, _ = behind.fresh()
        mounted = mount(src=backing, options=SMALL)

        support.run("sh", "-C", "-c", f"exec 3> {mounted.path / 'new'}")  # O_EXCL

        assert behind.map("once/n")[0] >= 1
        mount.take_down()
