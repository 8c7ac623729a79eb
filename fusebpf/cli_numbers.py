"""Numbers on the command line: another word is refused with the range that is wanted."""

from __future__ import annotations

import math
from contextlib import suppress
from typing import TYPE_CHECKING, TypeVar

import click

if TYPE_CHECKING:
    from collections.abc import Callable

N = TypeVar("N", int, float)


def number(kind: type[N], lowest: float, highest: float = math.inf) -> Callable[[str], N]:
    """What reads an option's word, for its `type`: a number of this kind in this range."""
    name = "whole number" if kind is int else "number"
    end = "on" if highest == math.inf else f"to {highest}"

    def read(word: str) -> N:
        with suppress(ValueError):
            if lowest <= (value := kind(word)) <= highest:  # nor NaN
                return value
        raise click.BadParameter(f"{word!r} is not a {name} from {lowest} {end}")

    return read
