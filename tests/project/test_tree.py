"""Rules that the tree keeps: what makes it readable, and what a reader is told exists."""

import re
from pathlib import Path

import pytest
from support import CHECKOUT, run

MAX_LINES = 500
SOURCES = {".py", ".pyi", ".c", ".h", ".sh"}
# Of the texts that people read: the machine that something was written on is nobody's business.
TEXTS = SOURCES | {".md", ".toml", ".in", ""}
MACHINE_PATHS = re.compile(r"/work/|/root/|/home/\w+/|/tmp/w/")
UNFINISHED = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b")


def tracked(suffixes: set[str]) -> list[Path]:
    """Files that git tracks or would track."""
    listing = run(
        *("git", "-c", "safe.directory=*", "-C", CHECKOUT, "ls-files", "-z"),
        *("--cached", "--others", "--exclude-standard"),
    ).stdout
    paths = [CHECKOUT / name for name in listing.split("\0") if name]
    return [path for path in paths if path.suffix in suffixes and path.is_file()]


def hits(pattern: re.Pattern[str], paths: list[Path]) -> list[str]:
    """Where a pattern occurs, as FILE:LINE: text; this file excepted, which has to spell it."""
    return [
        f"{path.relative_to(CHECKOUT)}:{number}: {line.strip()}"
        for path in paths
        if path != Path(__file__)
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if pattern.search(line)
    ]


def test_no_source_file_is_longer_than_a_reader_can_hold() -> None:
    long = {
        str(path.relative_to(CHECKOUT)): n_lines
        for path in tracked(SOURCES)
        if (n_lines := len(path.read_text().splitlines())) > MAX_LINES
    }

    assert long == {}


def test_only_the_module_includes_python() -> None:
    includes = hits(re.compile(r'#\s*include\s+[<"]Python\.h'), tracked({".c", ".h"}))

    assert [hit.partition(":")[0] for hit in includes] == ["fusebpf/_core/module.h"]
    users = {path.name for path in (CHECKOUT / "fusebpf/_core").iterdir() if "module.h" in path.read_text()}
    assert users == {"module.c", "module_daemon.c", "module_tables.c"}


def test_no_file_names_a_machine() -> None:
    assert hits(MACHINE_PATHS, tracked(TEXTS)) == []


def test_nothing_is_left_to_do_in_a_comment() -> None:
    assert hits(UNFINISHED, tracked(TEXTS)) == []


def test_every_c_source_names_its_licence() -> None:
    bare = [path for path in tracked({".c", ".h"}) if path.is_relative_to(CHECKOUT / "bpf")]

    assert [p.name for p in bare if "SPDX-License-Identifier" not in p.read_text().partition("\n")[0]] == []


@pytest.mark.parametrize(
    ("directory", "page"),
    [("fusebpf", "README.md"), ("fusebpf/_core", "docs/design.md"), ("bpf", "README.md")],
)
def test_a_reader_is_told_what_each_file_is_for(directory: str, page: str) -> None:
    text = (CHECKOUT / page).read_text()
    names = [path.name for path in tracked(SOURCES) if path.parent == CHECKOUT / directory]

    assert names != []
    assert [name for name in names if name != "__main__.py" and not re.search(rf"[`/]{name}`", text)] == []


def readme_commands() -> list[str]:
    """What README.md tells to type: the lines of its shell blocks that begin with make or fusebpf."""
    blocks = re.findall(
        r"^```(?:sh|console|bash)?\n(.*?)^```", (CHECKOUT / "README.md").read_text(), re.DOTALL | re.MULTILINE
    )
    lines = [
        line.strip().removeprefix("$ ").removeprefix("sudo ")
        for block in blocks
        for line in block.splitlines()
    ]
    return [line for line in lines if re.match(r"(make|(\.venv/bin/)?fusebpf) ", line)]


def test_the_readme_begins_with_the_two_commands() -> None:
    assert {"make demo", "make test"} <= {line.partition("#")[0].strip() for line in readme_commands()}


@pytest.mark.parametrize("line", readme_commands())
def test_a_command_of_the_readme_exists(line: str) -> None:
    program, word = re.split(r"\s+", line)[:2]
    if program == "make":
        assert re.search(rf"^{re.escape(word)}:", (CHECKOUT / "Makefile").read_text(), re.MULTILINE)
    elif not word.startswith("-"):
        run(CHECKOUT / ".venv/bin/fusebpf", word, "--help")


def test_make_help_lists_every_target() -> None:
    makefile = (CHECKOUT / "Makefile").read_text()
    phony = re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    assert phony is not None
    said = run("make", "-C", CHECKOUT, "help").stdout

    assert [name for name in phony[1].split() if name != "root" and f"make {name} " not in said] == []


def test_ci_calls_the_door_and_nothing_else() -> None:
    script = (CHECKOUT / ".ci/run").read_text()

    assert "set -euo pipefail" in script
    assert re.findall(r"\bmake .*", script.partition("set -euo")[2]) == ["make test", "make test"]
