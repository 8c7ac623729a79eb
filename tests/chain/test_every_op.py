"""What holds for every op that filters may hook, run over the op table."""

import errno
import os
from pathlib import Path

import pytest
import support
from chain.chained import HERE, OPCODES, Chained, chained
from chain.triggers import Trigger, prepared
from core.table import attempt, in_child

from fusebpf._core import OP_FLAGS, OPS

UNREFUSABLE, POST_ONLY = OP_FLAGS["UNREFUSABLE"], OP_FLAGS["POST_ONLY"]
FLAGS = {name: flags for name, _, _, flags, kind, _ in OPS if kind == "hook"}
PRE_OPS = [name for name, flags in FLAGS.items() if not flags & POST_ONLY and name != "access"]
# poll(2) has no errno: what fails is POLLERR.
REFUSABLE = [name for name in PRE_OPS if not FLAGS[name] & UNREFUSABLE and name != "poll"]
OBSERVED = [name for name in PRE_OPS if FLAGS[name] & UNREFUSABLE]

FB_BACKING, FB_DAEMON, FB_REPLY, FB_NEGATIVE, FB_DROP = range(0xF1, 0xF6)
REWRITE, NOPOST = 0x100, 0x200
BROKEN_PRE = {
    "daemon": FB_DAEMON,
    "drop": FB_DROP,
    "no such verdict": 0xF6,
    "the verdict that means broken": 0xFF,
    "EPERM without its minus": errno.EPERM,
    "ENOENT without its minus": errno.ENOENT,
    "EIO without its minus": errno.EIO,
    "the last errno, without its minus": errno.ENOTRECOVERABLE,
    "no such flag": 0x400,
    "a high flag": 0x40000000,
    "rewrite of nothing": REWRITE,
}
BROKEN_POST = {**BROKEN_PRE, "backing": FB_BACKING, "negative": FB_NEGATIVE}


def run(call: Trigger) -> object:
    """What the call returns, or its errno; in a child, so that it can be killed."""
    return in_child(lambda: attempt(call), seconds=10)


def set_verdicts(gate: Chained, op: str, pre: int, post: int) -> None:
    gate.map("gate/pre")[OPCODES[op]] = pre
    gate.map("gate/post")[OPCODES[op]] = post


def outcome(gate: Chained, op: str, *, pre: int = 0, post: int = 0) -> object:
    """Trigger an op while the hooks on it say this."""
    through, _ = gate.fresh()
    with prepared(op, through) as call:
        set_verdicts(gate, op, pre, post)
        try:
            return run(call)
        finally:
            set_verdicts(gate, op, 0, 0)


@pytest.mark.parametrize("op", [name for name in FLAGS if name != "access"])
def test_every_op_runs_its_hooks(gate: Chained, op: str) -> None:
    pre, post = gate.map("gate/pre_ran"), gate.map("gate/post_ran")
    opcode = OPCODES[op]
    through, _ = gate.fresh()

    with prepared(op, through) as call:
        before = pre[opcode], post[opcode]
        if op in OBSERVED:
            call()  # a child would not hold the last descriptor
            support.wait_until(lambda: post[opcode] > before[1])
        else:
            assert isinstance(run(call), str) is (op == "readlink")

    assert (pre[opcode] > before[0]) is not bool(FLAGS[op] & POST_ONLY)
    assert post[opcode] > before[1]


def test_access_runs_its_hooks_and_is_denied_where_the_kernel_does_not_judge(run_directory: Path) -> None:
    with chained(run_directory, [HERE / "gate.c"], options="nodefault_permissions") as made:
        through, _ = made.fresh()
        with prepared("access", through) as call:
            assert run(call) is True
            assert made.map("gate/pre_ran")[OPCODES["access"]] > 0
            assert made.map("gate/post_ran")[OPCODES["access"]] > 0
            set_verdicts(made, "access", -errno.EPERM, 0)
            assert run(call) is False


@pytest.mark.parametrize("op", REFUSABLE)
def test_every_op_can_be_denied_by_a_pre_hook(gate: Chained, op: str) -> None:
    post = gate.map("gate/post_ran")
    through, behind = gate.fresh()

    with prepared(op, through) as call:
        before, entries = post[OPCODES[op]], sorted(os.listdir(behind))
        set_verdicts(gate, op, -errno.EPERM, 0)
        result = run(call)
        n_post_runs = post[OPCODES[op]] - before
        set_verdicts(gate, op, 0, 0)

    assert result == "EPERM"
    assert n_post_runs == 0, "who completes an op gets no post of it"
    assert entries == sorted(os.listdir(behind)), "the backing root was not asked"


@pytest.mark.parametrize("op", REFUSABLE)
def test_every_op_can_be_failed_by_a_post_hook(gate: Chained, op: str) -> None:
    assert outcome(gate, op, post=-errno.EDQUOT) == "EDQUOT"


@pytest.mark.parametrize("op", REFUSABLE)
def test_backing_and_nopost_let_every_op_pass(gate: Chained, op: str) -> None:
    post, opcode = gate.map("gate/post_ran"), OPCODES[op]
    ran = []
    for verdict in (FB_BACKING, NOPOST, FB_BACKING | NOPOST):
        before = post[opcode]
        result = outcome(gate, op, pre=verdict)
        assert op == "readlink" or not isinstance(result, str)
        ran.append(post[opcode] > before)

    assert ran[0], "whoever said FB_BACKING gets its own post"
    # Preparing and tidying up may send the op too, with other verdicts; not so these.
    if op in {
        "symlink",
        "mknod",
        "mkdir",
        "rmdir",
        "rename",
        "link",
        "statfs",
        "fsync",
        "fsyncdir",
        "readlink",
    }:
        assert ran == [True, op in {"symlink", "mkdir"} and ran[1], op in {"symlink", "mkdir"} and ran[2]]


@pytest.mark.parametrize("op", REFUSABLE)
@pytest.mark.parametrize("way", BROKEN_PRE)
def test_a_pre_verdict_that_is_none_fails_every_op(gate: Chained, op: str, way: str) -> None:
    log = len(gate.mounted.log)

    assert outcome(gate, op, pre=BROKEN_PRE[way]) == "EIO"

    assert outcome(gate, op) != "EIO", "the mount lives on"
    assert len(gate.mounted.log) >= log


@pytest.mark.parametrize("op", REFUSABLE)
@pytest.mark.parametrize("way", BROKEN_POST)
def test_a_post_verdict_that_is_none_fails_every_op(gate: Chained, op: str, way: str) -> None:
    assert outcome(gate, op, post=BROKEN_POST[way]) == "EIO"


@pytest.mark.parametrize("op", [name for name in REFUSABLE if name != "lookup"])
def test_a_negative_entry_is_for_lookup_alone(gate: Chained, op: str) -> None:
    assert outcome(gate, op, pre=FB_NEGATIVE) == "EIO"


@pytest.mark.parametrize("op", REFUSABLE)
def test_enosys_is_never_told_the_kernel(gate: Chained, op: str) -> None:
    # Told EOPNOTSUPP, the kernel copies by reads and writes.
    expected = 4 if op == "copy_file_range" else "ENOTSUP"
    assert outcome(gate, op, pre=-errno.ENOSYS) == expected
    assert outcome(gate, op, post=-errno.ENOSYS) == expected

    ran = gate.map("gate/pre_ran")[OPCODES[op]]
    assert outcome(gate, op) != "ENOTSUP"
    assert gate.map("gate/pre_ran")[OPCODES[op]] > ran, "the kernel still sends the op"


@pytest.mark.parametrize("op", REFUSABLE)
@pytest.mark.parametrize("number", [512, 600, 998, 65536])
def test_errnos_over_511_become_eio(gate: Chained, op: str, number: int) -> None:
    assert outcome(gate, op, pre=-number) == "EIO"
    assert outcome(gate, op, post=-number) == "EIO"


@pytest.mark.parametrize("op", OBSERVED)
@pytest.mark.parametrize("said", [-errno.EPERM, FB_REPLY, FB_BACKING, FB_DAEMON, 99, 0x400])
def test_hooks_on_what_cannot_be_refused_only_observe(gate: Chained, op: str, said: int) -> None:
    post, opcode = gate.map("gate/post_ran"), OPCODES[op]
    through, _ = gate.fresh()

    with prepared(op, through) as call:
        set_verdicts(gate, op, said, said)
        before = post[opcode]
        try:
            call()
            support.wait_until(lambda: post[opcode] > before)
        finally:
            set_verdicts(gate, op, 0, 0)


@pytest.mark.parametrize(
    "op", ["mkdir", "rmdir", "unlink", "symlink", "rename", "link", "mknod", "create", "lookup"]
)
def test_a_post_hook_runs_also_when_the_op_failed(gate: Chained, op: str) -> None:
    through, behind = gate.fresh()
    errors = gate.map("gate/error")

    with prepared(op, through) as call:
        for name in ("f", "d"):
            os.rename(behind / name, behind / f"{name}-away")
        for name in ("new",):
            (behind / name).mkdir()
            (behind / name / "full").mkdir()
        if op == "create":
            result = run(lambda: os.open(through / "link" / "x", os.O_CREAT))
            assert result == "ENOENT"
            return
        errors[OPCODES[op]] = 0
        result = run(call)

    if op in {"rmdir", "unlink", "lookup", "rename", "link"}:
        assert result == "ENOENT"
    assert isinstance(result, str)


@pytest.mark.parametrize("ttl", [0, 3600])
def test_a_negative_entry_lasts_as_long_as_the_filter_says(gate: Chained, ttl: int) -> None:
    through, behind = gate.fresh()
    (behind / "f").write_text("x")
    ran, opcode = gate.map("gate/pre_ran"), OPCODES["lookup"]

    with gate.map("gate/ttl", 8).put(0, ttl * 10**9):
        with gate.map("gate/pre").put(opcode, FB_NEGATIVE):
            with_parent = in_child(lambda: attempt(lambda: _stat_in(through)), seconds=10)
            before = ran[opcode]
        # The parent's own lookup was answered so as well.
        after = run(lambda: os.stat(through / "f").st_size)

    assert with_parent == "ENOENT"
    if ttl:
        assert after == "ENOENT"
    else:
        assert after == 1
        assert ran[opcode] > before


def _stat_in(directory: Path) -> int:
    return os.stat(directory / "f").st_size
