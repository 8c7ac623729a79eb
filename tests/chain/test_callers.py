"""`caller`: who called, as the kernel told in the caller's own context; or that it is not known."""

import ctypes
import json
import os
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import support
from chain.chained import HERE, OPCODES, Chained, chained, source
from core.table import in_child

from fusebpf import bpf, callers

PR_SET_NAME = 15
libc = ctypes.CDLL(None)


class Seen(NamedTuple):
    """What the filter saw of an op's last caller, and how often it knew one."""

    comm: str
    cgroup_id: int
    tgid: int
    n_known: int
    n_unknown: int


def seen(made: Chained, op: str) -> Seen:
    fd = bpf.obj_get(made.mounted.pins / "who/seen")
    try:
        value = bpf.map_lookup(fd, OPCODES[op].to_bytes(4, "little"), 48)
    finally:
        os.close(fd)
    assert value is not None
    comm, cgroup_id, tgid, _, n_known, n_unknown = struct.unpack("16sQII2Q", value)
    return Seen(comm.rstrip(b"\0").decode(), cgroup_id, tgid, n_known, n_unknown)


@pytest.fixture(scope="module")
def who(run_directory: Path) -> Iterator[Chained]:
    with chained(run_directory, [HERE / "callers.c"]) as made:
        yield made


def named(name: str) -> None:
    """Call this thread so."""
    libc.prctl(PR_SET_NAME, name.encode(), 0, 0, 0)


def cgroup_id_of_ours() -> int:
    """The id of the cgroup (version 2) that this process is in: its directory's inode number."""
    line = next(line for line in Path("/proc/self/cgroup").read_text().splitlines() if line[:3] == "0::")
    top = next(
        Path(words[4])
        for words in map(str.split, Path("/proc/self/mountinfo").read_text(errors="replace").splitlines())
        if words[words.index("-") + 1] == "cgroup2"
    )
    return (top / line[3:].lstrip("/")).stat().st_ino


def in_thread(call: object) -> None:
    thread = threading.Thread(target=call)  # type: ignore[arg-type]
    thread.start()
    thread.join()


def test_a_caller_is_the_thread_its_process_and_its_cgroup(who: Chained) -> None:
    p, _ = who.fresh()

    def act() -> tuple[int, int]:
        def look() -> None:
            named("a-thread-of-mine")
            os.mkdir(p / "made")

        in_thread(look)
        return os.getpid(), cgroup_id_of_ours()

    pid, cgroup_id = in_child(act)
    made = seen(who, "mkdir")

    assert made.comm == "a-thread-of-min"
    assert made.tgid == pid
    assert made.cgroup_id == cgroup_id


def test_a_program_is_known_by_the_name_that_it_runs_under(who: Chained) -> None:
    p, behind = who.fresh()
    (behind / "f").write_text("x")

    for client in ("ls", "stat"):
        support.run(client, p / "f")
        assert seen(who, "lookup").comm == client


def test_many_threads_at_once_are_not_mixed_up(who: Chained) -> None:
    p, behind = who.fresh()
    names = [f"who-{number:04}" for number in range(12)]
    for name in names:
        (behind / name).write_text("x")
    before = seen(who, "lookup")

    def act() -> None:
        def look(name: str) -> None:
            named(name)
            for _ in range(200):
                os.stat(p / name)

        threads = [threading.Thread(target=look, args=(name,)) for name in names]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    in_child(act)
    after = seen(who, "lookup")

    assert after.n_known - before.n_known >= 200 * len(names)
    assert after.n_unknown == before.n_unknown
    assert who.map("who/wrong", 8)[0] == 0


def test_the_requests_of_another_mount_are_not_taken_for_ours(who: Chained, run_directory: Path) -> None:
    """Both connections count their requests from the same number on."""
    with chained(run_directory, [HERE / "callers.c"]) as other:
        places = [(made, *made.fresh()) for made in (who, other)]
        for _, _, behind in places:
            for name in ("who-0001", "who-0002"):
                (behind / name).write_text("x")

        def act() -> None:
            def look(name: str, path: Path) -> None:
                named(name)
                for _ in range(300):
                    os.stat(path / name)

            threads = [
                threading.Thread(target=look, args=(f"who-{number:04}", path))
                for number, (_, path, _) in enumerate(places, 1)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()

        in_child(act)

        assert [made.map("who/wrong", 8)[0] for made, _, _ in places] == [0, 0]
        assert seen(other, "lookup").n_unknown == 0


def test_a_request_without_a_caller_says_so(who: Chained) -> None:
    p, behind = who.fresh()
    (behind / "f").write_text("x")
    before = seen(who, "release")

    in_child((p / "f").read_text)
    support.wait_until(lambda: seen(who, "release").n_unknown > before.n_unknown)
    after = seen(who, "release")

    assert after.n_known == before.n_known
    assert (after.comm, after.tgid, after.cgroup_id) == ("", 0, 0)


@pytest.mark.alone
def test_what_was_taken_is_gone(who: Chained) -> None:
    p, behind = who.fresh()
    (behind / "f").write_text("x")

    def act() -> None:
        for _ in range(200):
            os.stat(p / "f")

    in_child(act)
    maps = {
        int(line.split()[1])
        for path in Path(f"/proc/{who.mounted.pid}/fdinfo").iterdir()
        for line in path.read_text().splitlines()
        if line.startswith("map_id:")
    }
    shown = [
        json.loads(support.run("bpftool", "-j", "map", "show", "id", str(number)).stdout) for number in maps
    ]
    noted = {one["id"] for one in shown if one.get("name") == "fb_callers"}
    assert len(noted) == 1
    left = json.loads(support.run("bpftool", "-j", "map", "dump", "id", str(*noted)).stdout)
    assert len(left) < 50


def test_a_filter_that_does_not_want_callers_sees_none(run_directory: Path, directory: Path) -> None:
    text = """
    FILTER(mute, .altitude = 500)
    PRE(mute, mkdir) { return ctx->flags & FB_CALLER_KNOWN || ctx->caller.tgid ? -EPERM : FB_CONTINUE; }
    """
    with chained(run_directory, [source(directory, text)]) as made:
        p, _ = made.fresh()
        in_child(os.mkdir, p / "made")
        assert made.mounted.log.count("callers") == 0


def test_a_kernel_without_the_tracepoint_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(callers, "TRACEPOINT", "no_such_tracepoint")
    with pytest.raises(callers.UnknownCallersError, match=r"no_such_tracepoint.*No such file"):
        callers._begin(0, 99)


def test_a_kernel_without_its_types_is_told_of(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(callers, "_KERNEL_TYPES", tmp_path)
    with pytest.raises(callers.UnknownCallersError, match="the kernel's types: No such file"):
        callers._begin(0, 99)


def test_a_filter_that_comes_to_a_living_mount_knows_callers_too(run_directory: Path) -> None:
    with chained(run_directory, []) as made:
        p, _ = made.fresh()
        support.run(support.COMMAND, "attach", made.mounted.path, str(HERE / "callers.c"), seconds=60)

        def act() -> None:
            named("late")
            os.mkdir(p / "made")

        in_child(act)
        assert seen(made, "mkdir").comm == "late"
