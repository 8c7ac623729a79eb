"""State files, names, and dead servers, without a mount: below a directory of the test."""

import errno
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import support

from fusebpf import registry
from fusebpf.errors import MountError, PlatformError, UsageError
from fusebpf.registry import Entry

pytestmark = pytest.mark.alone


@pytest.fixture(autouse=True)
def state(directory: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = directory / "state"
    monkeypatch.setattr(registry, "DIRECTORY", path)
    monkeypatch.setattr(registry, "PINS", directory / "pins")
    return path


def entry(name: str = "", mnt: str = "/a/mnt") -> Entry:
    return registry.own_entry(name=name, src="/a/src", mnt=mnt, under=1, is_server=True)


def dead_entry(name: str, mnt: str = "/a/mnt") -> Entry:
    """An entry whose process has ended."""
    with subprocess.Popen(["true"]) as ended:
        pass
    one = entry(name, mnt)
    one.pid = ended.pid
    return one


def test_a_reserved_name_is_written_for_root_alone_and_released_without_a_trace(state: Path) -> None:
    one = registry.reserve(entry("one"))

    assert json.loads((state / "one.json").read_text())["pid"] == os.getpid()
    assert (state / "one.json").stat().st_mode & 0o777 == 0o600
    assert state.stat().st_mode & 0o777 == 0o700
    assert [found.state for found in registry.entries()] == ["starting"]

    registry.release(one)

    assert list(state.iterdir()) == []


@pytest.mark.parametrize(
    ("mnt", "name"),
    [
        ("/a/mnt", "mnt"),
        ("/a/my files", "my_files"),
        ("/", "root"),
        ("/" + "x" * 90, "x" * 63),
        ("/a/ä.b", "__b"),
    ],
)
def test_a_name_is_made_from_the_mount_point(mnt: str, name: str) -> None:
    assert registry.name_for(mnt, set()) == name


def test_a_name_that_is_taken_gets_a_number_and_stays_within_its_limit() -> None:
    long = "x" * 63

    assert registry.name_for("/m", {"m"}) == "m-2"
    assert registry.name_for("/m", {"m", "m-2"}) == "m-3"
    assert registry.name_for(f"/{long}", {long}) == "x" * 61 + "-2"


@pytest.mark.parametrize("name", ["a/b", "..", "a b", "x" * 64, "a\n", "ä"])
def test_a_name_that_cannot_be_one_is_a_usage_error(name: str) -> None:
    with pytest.raises(UsageError, match="cannot be a mount's name"):
        registry.reserve(entry(name))


def test_a_name_in_use_is_refused_and_says_for_what() -> None:
    registry.reserve(entry("one"))

    with pytest.raises(MountError, match="'one' is in use, for the mount on '/a/mnt'"):
        registry.reserve(entry("one", "/b"))


def test_a_mount_point_that_is_being_mounted_is_refused() -> None:
    registry.reserve(entry("one"))

    with pytest.raises(MountError, match="is being mounted by another"):
        registry.reserve(entry("two"))


def test_what_a_dead_server_left_goes_with_the_next_reservation(state: Path) -> None:
    registry.reserve(entry("keeps", "/other"))
    registry.write(dead_entry("one"))
    registry.pins("one").mkdir(parents=True)
    (registry.pins("one") / "stats").touch()

    registry.reserve(entry("one"))

    assert {path.name for path in state.iterdir()} == {"keeps.json", "one.json"}
    assert not registry.pins("one").exists()


def test_a_pid_that_was_used_again_does_not_keep_an_entry_alive(state: Path) -> None:
    with reserving(state) as process:
        support.wait_until((state / "one.json").exists)
        process.kill()
        process.wait()
    one = registry.entries()[0]
    one.pid = os.getpid()

    assert one.state == "dead"
    with one.process() as fds:
        assert fds == []


def test_a_zombie_is_dead(state: Path) -> None:
    with reserving(state) as process:
        support.wait_until((state / "one.json").exists)
        assert registry.entries()[0].state == "starting"
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)

        assert registry.entries()[0].state == "dead"


@pytest.mark.parametrize("namespace", [(), ("unshare", "-p", "-f", "--mount-proc", "--kill-child")])
def test_an_entry_of_a_living_process_in_another_pid_namespace_stays(
    state: Path, namespace: tuple[str, ...]
) -> None:
    """From within, and from outside."""
    with reserving(state, *namespace):
        support.wait_until((state / "one.json").exists)
        look = _program(
            state, "print([one.state for one in registry.entries()], len(registry.clean_dead()))\n"
        )
        other = () if namespace else ("unshare", "-p", "-f", "--mount-proc")

        said = support.run(*other, sys.executable, "-c", look).stdout

        assert said == "['starting'] 0\n"
        with registry.entries()[0].process() as fds:
            assert len(fds) == (0 if namespace else 1)
    support.wait_until(lambda: registry.entries()[0].state == "dead")


def test_where_nobody_can_look_nobody_is_taken_for_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    registry.reserve(entry("one"))

    def none_left() -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(registry, "_open_directory", none_left)

    with pytest.raises(OSError, match=os.strerror(errno.EMFILE)):
        registry.clean_dead()
    assert [path.name for path in registry.DIRECTORY.iterdir()] == ["one.json"]


def test_a_process_may_reserve_and_release_again_and_again() -> None:
    before = set(Path("/proc/self/fd").iterdir())
    for _ in range(3):
        registry.release(registry.reserve(entry("one")))

    assert set(Path("/proc/self/fd").iterdir()) == before


@contextmanager
def reserving(state: Path, *before: str) -> Iterator["subprocess.Popen[bytes]"]:
    """A process that has reserved the name `one`, or is about to."""
    reserve = (
        "registry.reserve(registry.own_entry(name='one', src='/s', mnt='/m', under=1, is_server=True))\n"
        "sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [*before, sys.executable, "-c", _program(state, reserve)], stdin=subprocess.PIPE
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def _program(state: Path, text: str) -> str:
    return (
        "import sys\nfrom pathlib import Path\nfrom fusebpf import registry\n"
        f"registry.DIRECTORY = Path({os.fspath(state)!r})\n{text}"
    )


def test_an_unreadable_state_file_counts_as_dead_and_is_removed(state: Path) -> None:
    registry.reserve(entry("keeps"))
    (state / "one.json").write_text("{")
    (state / "two.json").write_text('{"pid": 1}')

    with registry.locked():
        removed = registry.clean_dead()

    assert {one.name for one in removed} == {"one", "two"}
    assert [one.name for one in registry.entries()] == ["keeps"]


def test_a_log_that_says_something_outlives_its_mount_and_goes_with_the_next(state: Path) -> None:
    one = registry.reserve(entry("one"))
    registry.log_path("one").write_text("it broke\n")
    two = registry.reserve(entry("two", "/two"))
    registry.log_path("two").touch()

    registry.release(one)
    registry.release(two)

    assert [path.name for path in state.iterdir()] == ["one.log"]

    registry.reserve(entry("one"))

    assert [path.name for path in state.iterdir()] == ["one.json"]


def test_a_state_directory_of_others_is_not_used(state: Path) -> None:
    state.mkdir(mode=0o755)

    with pytest.raises(PlatformError, match="not root's alone"):
        registry.reserve(entry("one"))


def test_a_state_directory_that_is_a_symlink_is_not_used(state: Path) -> None:
    (state.parent / "elsewhere").mkdir(mode=0o700)
    state.symlink_to("elsewhere")

    with pytest.raises(PlatformError, match="cannot be used"):
        registry.reserve(entry("one"))


def test_two_processes_cannot_take_one_name(state: Path) -> None:
    """Twenty at once, each with the lock: one wins."""
    program = (
        "import sys, time\nfrom pathlib import Path\nfrom fusebpf import registry, errors\n"
        f"registry.DIRECTORY = Path({os.fspath(state)!r})\n"
        "one = registry.own_entry(name='one', src='/s', mnt=sys.argv[1], under=1, is_server=True)\n"
        "try:\n    registry.reserve(one)\nexcept errors.MountError:\n    sys.exit(3)\n"
        "sys.stdin.read()\n"
    )
    words = [sys.executable, "-c", program]
    racers = [subprocess.Popen([*words, f"/m{number}"], stdin=subprocess.PIPE) for number in range(20)]
    try:
        support.wait_until(lambda: sum(racer.poll() == 3 for racer in racers) == len(racers) - 1, 60)
    finally:
        for racer in racers:
            racer.communicate()

    assert sorted(racer.returncode for racer in racers) == [0] + [3] * 19
