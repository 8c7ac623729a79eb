"""Each op through the mount against the same op on the bare directory: result, errno, the tree left."""

import itertools
from pathlib import Path
from typing import Any

import pytest
from core import (
    scenarios_attr,
    scenarios_data,
    scenarios_dirs,
    scenarios_more,
    scenarios_names,
    scenarios_users,
    table,
)
from core.variants import Variant

MODULES = (scenarios_attr, scenarios_data, scenarios_dirs, scenarios_more, scenarios_names, scenarios_users)
_numbers = itertools.count()

Tree = dict[bytes, table.Seen]


_on_bare: dict[str, tuple[Any, Tree, Tree]] = {}


def run(name: str, top: Path) -> tuple[Any, Tree]:
    """The scenario's result, and the tree that it leaves."""
    return table.in_child(table.SCENARIOS[name], top), table.in_child(table.tree, top)


def _behind(top: Path) -> Tree:
    """The tree without the times of access, which looking at it has changed."""
    return {name: seen._replace(atime=0) for name, seen in table.in_child(table.tree, top).items()}


@pytest.mark.parametrize("name", list(table.SCENARIOS))
def test_an_op_does_the_same_as_on_the_bare_directory(variant: Variant, bare: Path, name: str) -> None:
    mounted = variant.mounted
    directory = f"{name[:40]}-{next(_numbers)}"
    through = mounted.path / directory
    through.mkdir()
    if name not in _on_bare:
        _on_bare[name] = (*run(name, bare), _behind(bare))
    expected, expected_tree, expected_behind = _on_bare[name]

    result, left = run(name, through)

    assert expected == result
    assert expected_tree == left
    assert expected_behind == _behind(mounted.src / directory)
