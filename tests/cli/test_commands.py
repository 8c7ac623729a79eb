"""The commands that mount nothing."""

import re
import subprocess
from pathlib import Path

import pytest
import support
from cli_support import assert_refused, fusebpf, write_filter

from fusebpf._core import OPS


def test_the_version_is_told() -> None:
    assert re.fullmatch(r"fusebpf \d+\.\d+\.\d+\n", fusebpf("--version").stdout)


def test_the_module_is_the_command() -> None:
    done = support.run(support.COMMAND.with_name("python"), "-m", "fusebpf", "--version")

    assert done.stdout == fusebpf("--version").stdout


def test_an_interrupt_while_the_command_is_imported_is_no_traceback() -> None:
    program = (
        "import runpy, sys\nclass Finder:\n    @staticmethod\n    def find_spec(name, *_):\n"
        "        if name == 'fusebpf.cli': raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Finder)\nrunpy.run_module('fusebpf', run_name='__main__')\n"
    )

    done = support.run(support.COMMAND.with_name("python"), "-c", program, check=False)

    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


@pytest.mark.parametrize("command", ["mount", "umount", "list", "check", "stock", "ops"])
def test_every_command_is_helped_with(command: str) -> None:
    assert f"Usage: fusebpf {command}" in fusebpf(command, "--help").stdout
    assert command in fusebpf("--help").stdout


def test_no_summary_is_cut_in_a_terminal_of_80_columns() -> None:
    shown = support.run(support.COMMAND, "--help", env={"COLUMNS": "80"}).stdout

    assert "..." not in shown.partition("Commands:")[2]


def test_an_unknown_command_is_a_usage_error() -> None:
    assert_refused(fusebpf("frobnicate"), 2, "frobnicate")


def test_every_op_of_the_table_is_listed() -> None:
    rows = [line.split() for line in fusebpf("ops").stdout.splitlines()[1:]]

    assert [(row[0], int(row[1])) for row in rows] == [(name, opcode) for name, opcode, *_ in OPS]


def test_the_stock_filters_are_shown_with_their_docs() -> None:
    shown = fusebpf("stock").stdout

    for name in ("hide@", "readonly@", "deny@", "audit@"):
        assert f"\n{name}" in "\n" + shown
    assert "Hides the names and globs" in shown


def test_a_checked_file_shows_each_filter_with_hooks_and_maps(tree: Path) -> None:
    write_filter(tree / "two.c", "first", "second")

    done = fusebpf("check", "two.c", cwd=tree)

    assert done.returncode == 0
    assert done.stdout.splitlines() == [
        "first@500  two.c",
        "  does nothing",
        "  hooks  PRE(first, lookup)",
        "second@501  two.c",
        "  does nothing",
        "  hooks  PRE(second, lookup)",
    ]


def test_a_check_warns_of_what_one_chain_cannot_have(tree: Path) -> None:
    write_filter(tree / "one.c", "one", "next")
    write_filter(tree / "two.c", "two")
    write_filter(tree / "next.c", "next", altitude=7)

    done = fusebpf("check", "one.c", "two.c", "next.c", cwd=tree)

    named, placed = (
        "two filters are named 'next', one of 'one.c', one of 'next.c'",
        "'one' and 'two' both stand",
    )
    assert done.returncode == 0
    assert placed in done.stderr.splitlines()[0]
    assert named in done.stderr.splitlines()[1]


def test_a_check_of_a_name_that_is_neither_filter_nor_file_says_what_a_mount_says(tree: Path) -> None:
    done = fusebpf("check", "hidee", cwd=tree)

    assert_refused(done, 2, "there is no stock filter 'hidee', there are: audit")
    assert done.stderr == fusebpf("mount", "src", "mnt", "--filter", "hidee", cwd=tree).stderr


def test_a_check_of_several_files_tells_of_each_bad_one_and_shows_the_others(tree: Path) -> None:
    write_filter(tree / "good.c", "good")
    write_filter(tree / "last.c", "last", altitude=501)
    (tree / "bad.c").write_text("int x")
    (tree / "empty.c").write_text("")

    done = fusebpf("check", "good.c", "bad.c", "./none.c", "empty.c", "last.c", cwd=tree)

    assert done.returncode == 1
    assert [line.split("@")[0] for line in done.stdout.splitlines() if "@" in line] == ["good", "last"]
    told = [line.split(":")[1] for line in done.stderr.splitlines() if line.startswith("fusebpf:")]
    assert told == [" bad.c", " none.c", " empty.c"]


def test_a_reader_that_has_had_enough_is_no_error() -> None:
    done = subprocess.run(
        ["timeout", "-s", "KILL", "20", "sh", "-c", '"$0" ops | true', support.COMMAND],
        check=False,
        capture_output=True,
        text=True,
        timeout=30,
    )

    assert done.stderr == ""
