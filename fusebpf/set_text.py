"""The text of a map's content: a list with escapes, taken apart.

A backslash takes the meaning from a comma, colon, equals sign, blank or backslash behind it; blanks around an
item do not count.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

_ESCAPABLE = frozenset(",:= \\")

Text = list[tuple[str, bool]]
"""Characters, and whether each stands for itself because a backslash says so."""


def escaped(text: str) -> str:
    """A text that stands for itself among others."""
    return "".join(f"\\{character}" if character in _ESCAPABLE else character for character in text)


def characters(text: str) -> Text:
    """A text, its escapes undone."""
    found: Text = []
    position = 0
    while position < len(text):
        is_escape = text[position] == "\\" and text[position + 1 : position + 2] in {*_ESCAPABLE}
        position += is_escape
        found.append((text[position], is_escape))
        position += 1
    return found


def split(text: Text, separator: str) -> list[Text]:
    """The parts between separators that mean one."""
    parts: list[Text] = [[]]
    for character in text:
        if character == (separator, False):
            parts.append([])
        else:
            parts[-1].append(character)
    return parts


def cut(text: Text, separator: str) -> tuple[Text, Text | None]:
    """What stands before and after the first separator; None if there is none."""
    mark = (separator, False)
    if mark not in text:
        return text, None
    return text[: text.index(mark)], text[text.index(mark) + 1 :]


def strip(text: Text) -> Text:
    """Without the blanks around it."""
    blank = (" ", False)
    while text and text[0] == blank:
        text = text[1:]
    while text and text[-1] == blank:
        text = text[:-1]
    return text


def one_list(texts: Sequence[str]) -> str:
    """The list that has the items of all of them."""
    given = [text for text in texts if text.strip()]
    # A backslash at an end stands for itself, not for the comma that comes behind it.
    ends = [(len(text) - len(text.rstrip("\\"))) % 2 for text in given]
    return ",".join(text + "\\" * end for text, end in zip(given, ends, strict=True))


def join(text: Text) -> str:
    """The text that it stands for."""
    return "".join(character for character, _ in text)


def trimmed(path: str) -> str:
    """A path as filters see it: without a slash at its ends."""
    return path.removeprefix("/").removesuffix("/")


def one_path(text: str) -> str:
    """The path of one file or directory as filters see it, but `/` for the root.

    Raises:
        ValueError: It is a pattern, or nothing there has such a path.
    """
    if "*" in text or "?" in text:
        raise ValueError(f"{text!r} is a pattern, and the path of one directory or file is wanted")
    return text if text == "/" else path_below(text)


def path_below(text: str) -> str:
    """A path, or a pattern of paths, below the mount's root.

    Raises:
        ValueError: Nothing there has such a path, so a rule for it would hold for nothing.
    """
    path = trimmed(text)
    if not path:
        raise ValueError(f"{text!r} is the root itself; name what is below it")
    if any(part in {"", ".", ".."} for part in path.split("/")):
        raise ValueError(f"{text!r} matches no path: paths have no '//', '.' or '..' in them")
    return path


def plain(given: Any) -> str:
    """A number, name or text as text; None is any."""
    if given is None:
        return ""
    if isinstance(given, bytes):
        return os.fsdecode(given)
    if isinstance(given, list):
        return bytes(given).hex()
    return str(int(given)) if isinstance(given, bool) else str(given)


def flat(given: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    """Fields by their path, those of fields that are structs among them."""
    for name, value in given.items():
        path = f"{above}.{name}" if above else str(name)
        if isinstance(value, Mapping):
            yield from flat(value, path)
        else:
            yield path, plain(value)
