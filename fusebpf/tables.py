"""How rows and words are printed."""

from __future__ import annotations

from typing import Any


def shown(text: str) -> str:
    """A text on one line, whatever bytes are in it."""
    return text if text.isprintable() else ascii(text)


def typed(text: str) -> str:
    """A text as it can be typed again, any bytes in it; on one line, and harmless to a terminal."""
    is_tame = all(" " <= character < "\x7f" or character >= "\xa0" for character in text)
    return text if is_tame else ascii(text)


def article(what: str) -> str:
    """With `a` or `an` before it."""
    return f"an {what}" if what[0] in "aeiou" else f"a {what}"


def table(rows: list[tuple[Any, ...]], headers: tuple[str, ...]) -> str:
    """Rows in columns below their headers."""
    from tabulate import tabulate  # noqa: PLC0415 -- a mount prints none, and is to start fast

    return tabulate(rows, headers, tablefmt="plain", disable_numparse=True)
