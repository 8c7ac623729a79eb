"""What stands in the user docs to be tried: filters, transcripts, programs; the comment before says how."""

import re
import textwrap
from dataclasses import dataclass, field
from pathlib import Path

from support import CHECKOUT

TRIED = (
    "README.md",
    "docs/writing-filters.md",
    "docs/filters.md",
    "docs/fuse-bpf.md",
    "docs/daemon.md",
    "docs/live.md",
)
KINDS = (
    "filter",
    "filter that is refused",
    "transcript",
    "transcript, beginnings of lines",
    "python",
    "python test",
    "daemon",
)

_BLOCK = re.compile(
    r"(?:^[ ]*<!-- (?P<kind>[^:\n]*?)(?:: (?P<name>\S+))? -->\n)?"
    r"^(?P<indent>[ ]*)```(?P<language>\w*)\n(?P<body>.*?)^[ ]*```$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """A fenced block and the comment before it."""

    document: str
    line: int
    kind: str
    name: str
    language: str
    body: str

    @property
    def id(self) -> str:
        """Where it is, for people."""
        return f"{self.document}:{self.line}"


@dataclass
class Transcript:
    """Commands with what they say, and the files that they may use."""

    block: Block
    files: dict[str, str]
    commands: list[tuple[str, list[str]]] = field(default_factory=list)

    @property
    def is_start(self) -> bool:
        """Whether it begins in an empty directory; else it goes on in that of the one before."""
        return self.commands[0][0].startswith("mkdir ")


def blocks(document: str) -> list[Block]:
    """All fenced blocks of a document."""
    text = (CHECKOUT / document).read_text()
    return [
        Block(
            document,
            text.count("\n", 0, match.start("body")),
            match["kind"] or "",
            match["name"] or "",
            match["language"],
            textwrap.dedent(match["body"]),
        )
        for match in _BLOCK.finditer(text)
    ]


def filters(document: str, *, refused: bool = False) -> dict[str, str]:
    """The filters of a document by file name."""
    kind = "filter that is refused" if refused else "filter"
    return {block.name: block.body for block in blocks(document) if block.kind == kind}


def transcripts(document: str) -> list[list[Transcript]]:
    """The transcripts of a document; those of one list share a directory, in their order."""
    daemons = {block.name: block.body for block in blocks(document) if block.kind == "daemon"}
    files = filters(document) | filters(document, refused=True) | daemons
    stories: list[list[Transcript]] = []
    for block in blocks(document):
        if not block.kind.startswith("transcript"):
            continue
        found = Transcript(block, files)
        for line in block.body.splitlines():
            if line.startswith("$ "):
                found.commands.append((line[2:], []))
            else:
                found.commands[-1][1].append(line)
        if found.is_start or not stories:
            stories.append([])
        stories[-1].append(found)
    return stories


def documents() -> list[Path]:
    """All texts in Markdown that the checkout has for users and contributors."""
    return [*sorted(CHECKOUT.glob("*.md")), *sorted((CHECKOUT / "docs").rglob("*.md"))]
