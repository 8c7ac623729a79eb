"""What a scenario does through a mount against what it does on the bare directory."""

import itertools
from pathlib import Path
from typing import Any

from core.table import Scenario, in_child, tree
from core.variants import Variant

_numbers = itertools.count()


def fresh(variant: Variant) -> tuple[Path, Path]:
    """A new directory of the mount, and the same one behind it."""
    name = f"compared-{next(_numbers)}"
    mounted = variant.mounted
    (mounted.path / name).mkdir()
    return mounted.path / name, mounted.src / name


def compare(variant: Variant, bare: Path, scenario: Scenario) -> Any:
    """Run it in both; results and trees must be the same. Returns the result."""
    through, _ = fresh(variant)
    expected, expected_tree = in_child(scenario, bare), in_child(tree, bare)

    result, left = in_child(scenario, through), in_child(tree, through)

    assert expected == result
    assert expected_tree == left
    return result
