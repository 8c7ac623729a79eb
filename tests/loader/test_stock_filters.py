"""The stock filters' verdicts, hook by hook, without a mount."""

import fnmatch
import random
from collections.abc import Iterator

import pytest
from loader_support import OPCODES, HookRunner

from fusebpf import _core, bpf, loader
from fusebpf.loader import Compiled, Filter, SharedMaps

_NOPOST = 0x200
_PATH_LOST = 1 << 2
_ALL = sorted(name for name, *_, kind, _ in _core.OPS if kind == "hook" and name != "dirent")


@pytest.fixture(scope="module")
def filters(stock: Compiled, shared: SharedMaps) -> Iterator[dict[str, Filter]]:
    loaded = loader.load(stock, shared)
    yield {each.name: each for each in loaded}
    for each in loaded:
        each.close()


@pytest.fixture
def hide(filters: dict[str, Filter]) -> Filter:
    filters["hide"].set("names", ".ssh,*.key,?x?")
    return filters["hide"]


@pytest.fixture
def readonly(filters: dict[str, Filter]) -> Filter:
    filters["readonly"].set("paths", "/etc/,home/*/mail")
    return filters["readonly"]


@pytest.fixture
def deny(filters: dict[str, Filter]) -> Filter:
    filters["deny"].maps["rules"].clear()
    return filters["deny"]


# ------------------------------------------------------------------------------------ hide


@pytest.mark.parametrize("name", [".ssh", ".key", "a.key", "axb"])
def test_hide_makes_a_name_absent(name: str, hide: Filter, runner: HookRunner) -> None:
    assert runner.run(hide, "pre", "lookup", name=name).verdict == "FB_NEGATIVE"
    assert runner.run(hide, "post", "dirent", name=name).verdict == "FB_DROP"
    for op, error in (
        ("mkdir", "FB_EACCES"),
        ("create", "FB_EACCES"),
        ("unlink", "FB_ENOENT"),
        ("rmdir", "FB_ENOENT"),
    ):
        said = runner.run(hide, "pre", op, name=name)
        assert (said.verdict, said.error) == ("FB_REPLY", error)


@pytest.mark.parametrize("name", ["ssh", ".ssh2", "key", "a.keys", "xx", "axbc", "a"])
def test_hide_leaves_other_names_alone(name: str, hide: Filter, runner: HookRunner) -> None:
    said = runner.run(hide, "pre", "lookup", name=name)

    assert (said.verdict, said.flags) == ("FB_CONTINUE", _NOPOST)
    assert runner.run(hide, "post", "dirent", name=name).verdict == "FB_CONTINUE"


def test_hide_judges_both_names_of_a_rename(hide: Filter, runner: HookRunner) -> None:
    for names, error in ((("a", ".ssh"), "FB_EACCES"), ((".ssh", "a"), "FB_EACCES"), (("a", "b"), "FB_OK")):
        said = runner.run(hide, "pre", "rename", name=names[0], name2=names[1])
        assert said.error == error, names


def test_hide_with_an_empty_map_hides_nothing(hide: Filter, runner: HookRunner) -> None:
    hide.set("names", "")

    assert runner.run(hide, "pre", "lookup", name=".ssh").verdict == "FB_CONTINUE"


def test_hide_takes_a_bracket_for_itself(hide: Filter, runner: HookRunner) -> None:
    hide.set("names", "[ab]")

    assert runner.run(hide, "pre", "lookup", name="a").verdict == "FB_CONTINUE"
    assert runner.run(hide, "pre", "lookup", name="[ab]").verdict == "FB_NEGATIVE"


def test_hide_fails_closed_when_a_match_takes_too_many_rounds(hide: Filter, runner: HookRunner) -> None:
    hide.set("names", ",".join(f"*{'a' * 20}b{number}" for number in range(63)))

    assert runner.run(hide, "pre", "lookup", name="a" * 200).verdict == "FB_NEGATIVE"


def test_hide_takes_63_patterns_and_names_of_255_bytes(hide: Filter, runner: HookRunner) -> None:
    hide.set("names", ",".join([f"n{i}" for i in range(62)] + ["x" * 255]))

    assert runner.run(hide, "pre", "lookup", name="x" * 255).verdict == "FB_NEGATIVE"
    assert runner.run(hide, "pre", "lookup", name="n61").verdict == "FB_NEGATIVE"
    assert runner.run(hide, "pre", "lookup", name="n62").verdict == "FB_CONTINUE"


def test_hide_matches_as_fnmatch_does(hide: Filter, runner: HookRunner) -> None:
    numbers = random.Random(1)  # noqa: S311 -- the same cases each time
    wrong = []
    for _ in range(300):
        patterns = [
            "".join(numbers.choices("ab[*?", k=numbers.randint(1, 6))) for _ in range(numbers.randint(1, 4))
        ]
        hide.set("names", ",".join(patterns))
        for _ in range(20):
            name = "".join(numbers.choices("ab[", k=numbers.randint(1, 7)))
            expected = any(fnmatch.fnmatchcase(name, each.replace("[", "[[]")) for each in patterns)
            actual = runner.run(hide, "post", "dirent", name=name).verdict == "FB_DROP"
            wrong += [(patterns, name)] * (expected != actual)

    assert wrong == []


# -------------------------------------------------------------------------------- readonly


@pytest.mark.parametrize(
    ("path", "is_refused"),
    [
        ("etc", True),
        ("etc/passwd", True),
        ("etc2", False),
        ("home/a/mail", True),
        ("home/a/mail/b", True),
        ("home/a", False),
        ("", False),
    ],
)
def test_readonly_refuses_below_its_paths(
    path: str, is_refused: bool, readonly: Filter, runner: HookRunner
) -> None:
    for op in ("unlink", "mkdir", "setattr", "create", "setxattr"):
        said = runner.run(readonly, "pre", op, path=path)
        assert said.error == ("FB_EROFS" if is_refused else "FB_OK"), op


def test_readonly_refuses_moving_what_is_above_a_path(readonly: Filter, runner: HookRunner) -> None:
    assert runner.run(readonly, "pre", "rename", path="home/a", path2="b").error == "FB_EROFS"
    assert runner.run(readonly, "pre", "rename", path="b", path2="etc/b").error == "FB_EROFS"
    assert runner.run(readonly, "pre", "link", path="b", path2="etc/b").error == "FB_EROFS"
    assert runner.run(readonly, "pre", "rename", path="a", path2="b").error == "FB_OK"
    assert runner.run(readonly, "pre", "unlink", path="home/a").error == "FB_OK"


@pytest.mark.parametrize(
    ("flags", "is_refused"), [(0, False), (1, True), (2, True), (3, True), (0o1000, True), (0o2000000, False)]
)
def test_readonly_judges_an_open_by_its_flags(
    flags: int, is_refused: bool, readonly: Filter, runner: HookRunner
) -> None:
    said = runner.run(readonly, "pre", "open", path="etc/passwd", args={"open": {"flags": flags}})

    assert said.error == ("FB_EROFS" if is_refused else "FB_OK")


def test_readonly_answers_access(readonly: Filter, runner: HookRunner) -> None:
    for mask, error in ((4, "FB_OK"), (1, "FB_OK"), (0, "FB_OK"), (2, "FB_EROFS"), (6, "FB_EROFS")):
        said = runner.run(readonly, "pre", "access", path="etc", args={"access": {"mask": mask}})
        assert said.error == error, mask


def test_readonly_without_paths_is_everywhere(readonly: Filter, runner: HookRunner) -> None:
    readonly.set("paths", "")

    assert runner.run(readonly, "pre", "unlink", path="a").error == "FB_EROFS"
    assert runner.run(readonly, "pre", "open", path="a").error == "FB_OK"


def test_readonly_fails_closed_where_the_path_is_lost(readonly: Filter, runner: HookRunner) -> None:
    assert runner.run(readonly, "pre", "unlink", path="", flags=_PATH_LOST).error == "FB_EROFS"


# ------------------------------------------------------------------------------------ deny


@pytest.mark.parametrize(
    ("rules", "error"),
    [
        ("", "FB_OK"),
        ("unlink:1000:a:EPERM", "FB_EPERM"),
        ("unlink:1000:b:EPERM", "FB_OK"),
        ("unlink:1001:a:EPERM", "FB_OK"),
        ("mkdir:1000:a:EPERM", "FB_OK"),
        ("unlink:*:a:EPERM", "FB_EPERM"),
        ("*:1000:a:EPERM", "FB_EPERM"),
        ("*:*:a:EPERM", "FB_EPERM"),
        ("unlink:1000:*:EPERM", "FB_EPERM"),
        ("*:*:*:EROFS", "FB_EROFS"),
        ("*:*:*:EROFS,unlink:*:*:EPERM", "FB_EPERM"),
        ("*:*:a:EROFS,unlink:1000:*:EPERM", "FB_EROFS"),
        ("unlink:*:a:EROFS,unlink:1000:a:EPERM", "FB_EPERM"),
        ("*:1000:a:EROFS,unlink:*:a:EPERM", "FB_EPERM"),
        ("*:*:*:EROFS,unlink:*:a:OK", "FB_OK"),
    ],
)
def test_deny_takes_the_rule_that_says_most(rules: str, error: str, deny: Filter, runner: HookRunner) -> None:
    deny.set("rules", rules)

    said = runner.run(deny, "pre", "unlink", name="a", uid=1000)

    assert said.error == error
    assert said.verdict == ("FB_CONTINUE" if error == "FB_OK" else "FB_REPLY")


def test_deny_judges_ops_without_names(deny: Filter, runner: HookRunner) -> None:
    deny.set("rules", "statfs:5:*:ENOSYS,*:*:a:EPERM")

    assert runner.run(deny, "pre", "statfs", uid=5).error == "FB_ENOSYS"
    assert runner.run(deny, "pre", "statfs", uid=6).error == "FB_OK"


# ----------------------------------------------------------------------------------- audit


@pytest.mark.parametrize("op", _ALL)
def test_audit_records_every_op_and_decides_nothing(
    op: str, filters: dict[str, Filter], runner: HookRunner
) -> None:
    for phase in ("pre", "post"):
        said = runner.run(filters["audit"], phase, op, name="n", name2="m")
        assert (said.verdict, said.flags, said.edits, said.records) == ("FB_CONTINUE", 0, 0, 1)


def test_stats_counts_what_each_filter_said(
    filters: dict[str, Filter], hide: Filter, runner: HookRunner, shared: SharedMaps
) -> None:
    before = _count(shared, "lookup", 0xF4)

    for name in (".ssh", "a", ".ssh"):
        runner.run(hide, "pre", "lookup", name=name)

    assert filters
    assert _count(shared, "lookup", 0xF4) - before == 2


def _count(shared: SharedMaps, op: str, verdict: int) -> int:
    key = b"".join(number.to_bytes(4, "little") for number in (3, 0, OPCODES[op], verdict))
    value = bpf.map_lookup(shared.stats, key, _core.SIZES["stat"])
    return int.from_bytes(value or b"", "little")
