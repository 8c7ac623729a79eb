"""User docs are tried: filters load, transcripts say what is printed, commands exist, links lead on."""

import os
import re
import shlex
import sys
from pathlib import Path

import click
import pytest
from docs_support import KINDS, TRIED, Block, Transcript, blocks, documents, filters, transcripts
from support import CHECKOUT, COMMAND, run

from fusebpf import options
from fusebpf.chain import FilterSpec, MapSetting
from fusebpf.cli import cli

STORIES = [story for document in TRIED for story in transcripts(document)]
MARK = "\x01"
INSTALLED_PYTHON = "/usr/local/lib/fusebpf/bin/python"


def shell_lines() -> list[tuple[str, str]]:
    """(where, line) of each command line that the docs show, without prompt, comment and sudo."""
    return [
        (block.id, re.sub(r"^(\$ )?(sudo )?", "", line.strip()))
        for document in TRIED
        for block in blocks(document)
        if block.language in {"sh", "console"}
        for line in block.body.splitlines()
    ]


def fusebpf_lines() -> list[tuple[str, str]]:
    """Those that call the command, and the options that tables show."""
    lines = [(where, line) for where, line in shell_lines() if line.startswith("fusebpf ")]
    for document in TRIED:
        shown = re.findall(r"`(--filter [^`]*)`", (CHECKOUT / document).read_text())
        lines += [(document, f"fusebpf mount SRC MNT {words}") for words in shown]
    return lines


# ------------------------------------------------------------------------------------- listings


@pytest.mark.parametrize("document", TRIED)
def test_every_listing_is_marked_for_its_test(document: str) -> None:
    wrong = [
        block.id
        for block in blocks(document)
        if block.language in {"c", "python", "console"} and block.kind not in KINDS
    ]

    assert wrong == []


@pytest.mark.parametrize("document", [document for document in TRIED if filters(document)])
def test_every_filter_passes_the_check(document: str, directory: Path) -> None:
    listed = filters(document)
    for name, text in listed.items():
        (directory / name).write_text(text)

    done = run(COMMAND, "check", *listed, cwd=directory, seconds=240)

    assert {line.split()[-1] for line in done.stdout.splitlines() if "@" in line.split()[0]} == set(listed)


@pytest.mark.parametrize("story", STORIES, ids=[story[0].block.id for story in STORIES])
def test_a_transcript_says_what_is_printed(story: list[Transcript], directory: Path) -> None:
    for name, text in story[0].files.items():
        (directory / name).write_text(text)
    for transcript in story:
        said = play(transcript, directory)
        for (command, expected), lines in zip(transcript.commands, said, strict=True):
            if transcript.block.kind.endswith("beginnings of lines"):
                lines = [line[: len(start)] for line, start in zip(lines, expected, strict=False)]  # noqa: PLW2901
            assert expected == lines, command


def play(transcript: Transcript, directory: Path) -> list[list[str]]:
    """Run the commands of a transcript as root in a directory; the lines that each said."""
    name = f"docs-{os.getpid()}-data"
    script = [
        'sudo() { "$@"; }',
        f'fusebpf() {{ timeout -s KILL 30 {shlex.quote(str(COMMAND))} "$@"; }}',
    ]
    for command, _ in transcript.commands:
        unique = re.sub(r"(--name |/fusebpf/|fusebpf [a-z]+ )data\b", rf"\g<1>{name}", command)
        # Another mount of this machine may be named like the mount point.
        script += [f"echo {MARK}", unique.replace("umount mnt", "umount ./mnt")]
    done = run(
        *("bash", "-c", "\n".join(["exec 2>&1", *script])),
        check=False,
        cwd=directory,
        seconds=90,
        env={"LC_ALL": "C"},
    )
    # What `make install` makes stands for the checkout's.
    as_installed = done.stdout.replace(name, "data").replace(sys.executable, INSTALLED_PYTHON)
    return [said.splitlines()[1:] for said in as_installed.split(MARK)[1:]]


PROGRAMS = [block for document in TRIED for block in blocks(document) if block.kind == "python"]


@pytest.mark.parametrize("program", PROGRAMS, ids=[block.id for block in PROGRAMS])
def test_a_program_runs(program: Block, directory: Path) -> None:
    for name in ("src", "mnt"):
        (directory / name).mkdir()
    (directory / "src/letter").touch()
    (directory / "src/my.key").touch()
    for name, text in filters(program.document).items():
        (directory / name).write_text(text)
    (directory / program.name).write_text(program.body)

    said = run(sys.executable, program.name, cwd=directory, seconds=60).stdout

    assert "letter\n" in said
    assert "my.key" not in said


TESTS = [block for document in TRIED for block in blocks(document) if block.kind == "python test"]


@pytest.mark.parametrize("program", TESTS, ids=[block.id for block in TESTS])
def test_a_unit_test_passes(program: Block, directory: Path) -> None:
    for name, text in filters(program.document).items():
        (directory / name).write_text(text)
    (directory / program.name).write_text(program.body)

    run(sys.executable, "-m", "pytest", "-p", "no:cacheprovider", program.name, cwd=directory, seconds=60)


# ---------------------------------------------------------------------------- commands, options


@pytest.mark.parametrize(("where", "line"), fusebpf_lines())
def test_a_command_line_is_one_that_the_command_takes(where: str, line: str) -> None:
    del where  # pytest shows it
    words = shlex.split(line.partition(" | ")[0], comments=True)[1:]
    words = [word for word in words if not re.match(r"\d*[<>]", word)]
    if words[0].startswith("-"):
        assert words[0] in {"--version", "--help", "-h"}
        return
    command = cli.commands[words[0]]
    values, _, _ = command.make_parser(click.Context(command)).parse_args(words[1:])
    for text in values.get("filters") or ():
        FilterSpec.parse(text)
    for text in values.get("sets") or ():
        MapSetting.parse(text)
    options.parse(values.get("texts") or ())


def test_mount_options_of_the_readme_are_known() -> None:
    table = (CHECKOUT / "README.md").read_text().partition("| option | meaning |")[2].partition("\n\n")[0]
    cells = [row.split("|")[1] for row in table.splitlines() if row.startswith("| `")]
    names = [name.partition("=")[0] for cell in cells for name in re.findall(r"`([^`]*)`", cell)]
    known = {*options._FLAGS, *options._SWITCHES, *options._VALUES}

    assert len(names) > 10
    assert [name for name in names if name not in known] == []


def test_every_option_of_mount_is_in_the_readme() -> None:
    text = (CHECKOUT / "README.md").read_text()
    words = [word for parameter in cli.commands["mount"].params for word in parameter.opts]
    shown = [word for word in words if word.startswith("-")]
    own = [*options._SWITCHES, *options._VALUES]

    assert [option for option in shown if option not in text] == []
    unsaid = {"allow_other", "default_permissions", "passthrough", "subtype"}
    assert [name for name in own if f"`{name}" not in text and name not in unsaid] == []


# ---------------------------------------------------------------------------------------- links


def anchors(text: str) -> set[str]:
    """The anchors of a document's headings, as forges make them."""
    prose = re.sub(r"^[ ]*```.*?^[ ]*```$", "", text, flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", prose, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", documents(), ids=[str(path.relative_to(CHECKOUT)) for path in documents()])
def test_every_link_leads_somewhere(path: Path) -> None:
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text()):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        there = (path.parent / name) if name else path
        if not there.exists() or (anchor and anchor not in anchors(there.read_text())):
            broken.append(target)

    assert broken == []
