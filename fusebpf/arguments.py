"""What Python programs give as arguments: another type is refused in one line that says what is wanted."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TypeVar

from fusebpf.errors import UsageError

T = TypeVar("T")

AnyPath = str | bytes | os.PathLike[str] | os.PathLike[bytes]
"""A path as Python's own functions take it."""


def check_type(what: str, given: object, types: type | tuple[type, ...], wanted: str = "a text") -> None:
    """See that an argument is of one of these types.

    Raises:
        UsageError: It is not.
    """
    if not isinstance(given, types):
        raise UsageError(f"{what}={given!r}: {wanted} is wanted")


def path_text(what: str, given: AnyPath, wanted: str = "a path") -> str:
    """A path as text.

    Raises:
        UsageError: It is none.
    """
    check_type(what, given, (str, bytes, os.PathLike), wanted)
    return os.fsdecode(given)


def several(what: str, given: Iterable[T]) -> list[T]:
    """What an argument that takes several holds.

    Raises:
        UsageError: It is one alone; a text would be taken for its letters.
    """
    if isinstance(given, str | bytes | os.PathLike) or not isinstance(given, Iterable):
        raise UsageError(f"{what}={given!r}: a list is wanted, {what}=[{given!r}]")
    return list(given)
