"""The stock filter `fault`, and the delays that any filter may order."""

import errno
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import support

from fusebpf.testing import Chain

MS = 1_000_000
WRITE = {"size": 100}
LONG = """
#include "fusebpf.h"
FILTER(late, .altitude = 500)
PRE(late, mkdir) { ctx->delay_ns = FB_MAX_DELAY + 1; ctx->edits |= FB_EDIT_DELAY; return FB_REWRITE; }
POST(late, statfs) { ctx->delay_ns = 7; ctx->edits |= FB_EDIT_DELAY; return FB_REWRITE; }
"""


@pytest.fixture(scope="module")
def chain() -> Iterator[Chain]:
    with Chain("fault") as loaded:
        yield loaded


@pytest.fixture
def fault(chain: Chain) -> Chain:
    for each in chain.filter("fault").maps.values():
        each.clear()
    return chain


def test_without_rules_nothing_fails(fault: Chain) -> None:
    assert fault.run("write", path="a", args=WRITE).verdict == "FB_CONTINUE"


@pytest.mark.parametrize(
    ("rules", "error"),
    [
        ("write:*:*:EIO", errno.EIO),
        ("read:*:*:EIO", 0),
        ("*:*:f:EDQUOT", errno.EDQUOT),
        ("*:*:d:EDQUOT", 0),
        ("write:7:f:ENOSPC,write:*:f:EIO,*:*:*:EROFS", errno.ENOSPC),
        ("write:8:f:ENOSPC,*:*:*:EROFS", errno.EROFS),
        ("write:*:f:OK,*:*:*:EROFS", 0),
    ],
)
def test_an_errno_by_op_uid_and_name(fault: Chain, rules: str, error: int) -> None:
    fault.map("fault.errors").set(rules)

    assert fault.run("write", path="d/f", uid=7, args=WRITE).error == error


@pytest.mark.parametrize("path", ["f", "d/f", "d" * 250 + "/" + "e" * 250 + "/f"])
def test_an_op_without_a_name_has_that_of_its_path(fault: Chain, path: str) -> None:
    fault.map("fault.errors").set("*:*:f:EIO")

    assert fault.run("fsync", path=path).error == errno.EIO
    assert fault.run("fsync", path=path + "f").error == 0
    assert fault.run("fsync", path="").error == 0


def test_the_hook_of_getattr_is_that_of_statx(fault: Chain) -> None:
    fault.map("fault.errors").set("getattr:*:*:EIO")

    assert fault.run("statx", path="a").error == errno.EIO


def test_short_reads_and_writes(fault: Chain) -> None:
    fault.map("fault.shorts").set("write:*:*:10,read:*:*:200")

    assert fault.run("write", path="a", args=WRITE).args["size"] == 10
    assert fault.run("read", path="a", args=WRITE).args["size"] == 100


def test_a_delay_beside_an_errno_and_without(fault: Chain) -> None:
    fault.map("fault.delays").set("write:*:*:20,read:*:*:999999999")
    assert fault.run("write", path="a", args=WRITE).slot["delay_ns"] == 20 * MS
    assert fault.run("read", path="a", args=WRITE).slot["delay_ns"] == 3600 * 1000 * MS

    fault.map("fault.errors").set("write:*:*:EIO")
    said = fault.run("write", path="a", args=WRITE)

    assert (said.error, said.slot["delay_ns"], said.edits) == (errno.EIO, 20 * MS, frozenset({"DELAY"}))


def errors_of(chain: Chain, n: int) -> list[int]:
    return [chain.run("write", path="a", args=WRITE).error for _ in range(n)]


@pytest.mark.parametrize(
    ("when", "hits"),
    [("0:3:0", "..!!!"), ("0:3:1", "..!.."), ("0:0:2", "!!..."), ("100:0:0", "!!!!!")],
)
def test_the_nth_occurrence_and_how_often(fault: Chain, when: str, hits: str) -> None:
    fault.map("fault.errors").set("write:*:*:EIO")
    fault.map("fault.when").set(f"write:*:*:{when}")

    assert "".join("!" if error else "." for error in errors_of(fault, 5)) == hits


def test_a_probability(fault: Chain) -> None:
    fault.map("fault.errors").set("write:*:*:EIO")
    fault.map("fault.when").set("write:*:*:50:0:0")

    assert 0 < sum(bool(error) for error in errors_of(fault, 200)) < 200


def test_a_delay_of_more_than_an_hour_is_refused(tmp_path: Path) -> None:
    (tmp_path / "late.c").write_text(LONG)
    with Chain(tmp_path / "late.c") as late:
        assert "longer than an hour" in late.run("mkdir", name="a").why
        assert late.run("statfs").slot["delay_ns"] == 7


def test_faults_reach_programs(mount: support.Mounter) -> None:
    sets = {
        "fault.errors": "fsync:*:f:EIO,unlink:*:*:EBUSY",
        "fault.shorts": "write:*:f:3",
        "fault.when": "unlink:*:*:0:2:1",
    }
    mounted = mount(filters=["fault"], sets=sets)
    fd = os.open(mounted.path / "f", os.O_CREAT | os.O_RDWR)
    try:
        assert os.write(fd, b"0123456789") == 3
        with pytest.raises(OSError, match="Input/output error"):
            os.fsync(fd)
    finally:
        os.close(fd)
    (mounted.path / "g").write_text("long enough")
    (mounted.path / "f").unlink()
    with pytest.raises(OSError, match="Device or resource busy"):
        (mounted.path / "g").unlink()
    (mounted.path / "g").unlink()


def test_a_delayed_op_waits_and_keeps_nobody_else(mount: support.Mounter) -> None:
    mounted = mount(filters=["fault"], sets={"fault.delays": "open:*:slow:300,open:*:long:3600000"})
    for name in ("slow", "long"):
        (mounted.src / name).touch()
    start = time.monotonic()
    (mounted.path / "slow").read_text()
    assert time.monotonic() - start >= 0.3

    counted = ("fault", "FB_PRE", "FB_OP_open", "FB_CONTINUE")
    with support.clients(*[("cat", mounted.path / "long")] * 70) as clients:
        support.wait_until(lambda: mounted.stats().get(counted) == 71, seconds=30)
        support.run("ls", mounted.path)
        (mounted.path / "other").touch()
        for client in clients:
            client.send_signal(signal.SIGTERM)
        assert {client.wait(20) for client in clients} == {-signal.SIGTERM}


def test_an_op_that_is_interrupted_before_its_time_is_not_done(mount: support.Mounter) -> None:
    mounted = mount(filters=["fault"], sets={"fault.delays": "unlink:*:*:3600000"})
    (mounted.src / "f").touch()
    with support.clients(("rm", mounted.path / "f")) as (client,):
        support.wait_until(lambda: mounted.stats().get(("fault", "FB_PRE", "FB_OP_unlink", "FB_CONTINUE")))

        client.send_signal(signal.SIGTERM)

        assert client.wait(20) == -signal.SIGTERM
    assert (mounted.src / "f").exists()
