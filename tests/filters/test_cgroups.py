"""The stock filters that go by the caller's cgroup: `noexec`, `limit`. On real cgroups, version 2."""

import errno
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import support
from core.table import in_child

from fusebpf.testing import Chain

KNOWN_EXEC, CALLER_KNOWN = 1 << 3, 1 << 5


@contextmanager
def cgroups_mounted(directory: Path) -> Iterator[Path]:
    """Where cgroups of version 2 are: a mount of our own, as some machines have theirs elsewhere."""
    directory.mkdir()
    done = support.run("mount", "-t", "cgroup2", "none", directory, check=False)
    if done.returncode:
        pytest.skip(f"no cgroup2 can be mounted here: {done.stderr.strip()}")
    try:
        yield directory
    finally:
        support.run("umount", "-l", directory)


@pytest.fixture
def cgroup(directory: Path) -> Iterator[Path]:
    """A cgroup of our own with nobody in it."""
    with cgroups_mounted(directory / "cgroups") as top:
        made = top / f"fusebpf-test-{os.getpid()}"
        made.mkdir()
        try:
            yield made
        finally:
            support.wait_until(lambda: not (made / "cgroup.procs").read_text())
            made.rmdir()


def inside(cgroup: Path, function: Callable[..., Any], *arguments: Any) -> Any:
    """Call it in a child that is in the cgroup."""

    def enter() -> Any:
        (cgroup / "cgroup.procs").write_text(str(os.getpid()))
        return function(*arguments)

    return in_child(enter)


def error_of_exec(program: Path) -> int:
    """0: it ran."""
    try:
        return os.waitstatus_to_exitcode(os.waitpid(os.posix_spawn(program, [str(program)], {}), 0)[1])
    except OSError as error:
        return error.errno or 0


def test_noexec_refuses_a_cgroup(mount: support.Mounter, cgroup: Path) -> None:
    mounted = mount(filters=["noexec"], sets={"noexec.cgroups": f"1000000007,{cgroup.stat().st_ino}"})
    program = mounted.path / "true"
    (mounted.src / "true").write_bytes(Path("/bin/true").read_bytes())
    (mounted.src / "true").chmod(0o755)

    assert inside(cgroup, error_of_exec, program) == errno.EACCES
    assert inside(cgroup, program.read_bytes) == Path("/bin/true").read_bytes()
    assert in_child(error_of_exec, program) == 0, "who is in another cgroup"


def test_noexec_refuses_unknown_callers_where_a_cgroup_is_refused() -> None:
    with Chain("noexec", maps={"noexec.cgroups": "3=77"}) as chain:
        assert chain.run("open", path="a", flags=KNOWN_EXEC).error == errno.EACCES
        assert chain.run("open", path="a").error == 0, "opened to be read"
        for cgroup_id, error in ((77, errno.EACCES), (78, 0)):
            caller = {"cgroup_id": cgroup_id}
            said = chain.run("open", path="a", flags=KNOWN_EXEC | CALLER_KNOWN, caller=caller)
            assert said.error == error


def test_limit_refuses_a_cgroup_that_is_over(mount: support.Mounter, cgroup: Path) -> None:
    sets = {"limit.cgroup_ops": f"{cgroup.stat().st_ino}:1:20", "limit.answer": "EAGAIN"}
    mounted = mount(filters=["limit"], sets=sets)

    def errors() -> list[int]:
        found = []
        for number in range(60):
            try:
                (mounted.path / f"none-{number}").unlink()
            except OSError as error:
                found.append(error.errno or 0)
        return found

    over = inside(cgroup, errors)
    assert over[0] == errno.ENOENT
    assert over[-1] == errno.EAGAIN
    assert inside(cgroup, errors)[0] == errno.EAGAIN, "another process of the cgroup"
    assert set(in_child(errors)) == {errno.ENOENT}, "who is in another cgroup"


def test_limit_holds_up_the_data_of_a_cgroup(mount: support.Mounter, cgroup: Path) -> None:
    mounted = mount(filters=["limit"], sets={"limit.cgroup_bytes": f"{cgroup.stat().st_ino}:100k:0"})

    def seconds() -> float:
        start = time.monotonic()
        for _ in range(2):
            (mounted.path / "file").write_bytes(bytes(20 << 10))
        return time.monotonic() - start

    assert inside(cgroup, seconds) >= 0.2


def test_limit_takes_the_longer_wait_of_user_and_cgroup() -> None:
    with Chain("limit", maps={"limit.bytes": "5:1000:0", "limit.cgroup_bytes": "77:100:0"}) as chain:

        def wait(uid: int, cgroup_id: int) -> float:
            flags = CALLER_KNOWN if cgroup_id else 0
            said = chain.run(
                "write", uid=uid, flags=flags, caller={"cgroup_id": cgroup_id}, args={"size": 1000}
            )
            return float(said.slot["delay_ns"]) / 1e9

        assert wait(5, 77) == 0
        assert 5 < wait(6, 77) <= 10, "the cgroup's is what another user took"
        assert 0.1 < wait(5, 0) <= 1, "an unknown cgroup: by user alone"
        assert wait(7, 0) == wait(6, 78) == 0


def test_limit_has_a_rule_for_unknown_cgroups() -> None:
    with Chain("limit", maps={"limit.cgroup_ops": "0:1:0", "limit.answer": "EAGAIN"}) as chain:
        assert [chain.run("statfs", uid=uid).error for uid in (5, 6)] == [0, errno.EAGAIN]
        said = chain.run("statfs", uid=5, flags=CALLER_KNOWN, caller={"cgroup_id": 77})
        assert said.error == 0
