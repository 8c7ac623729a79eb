"""Real programs on the mount say and leave what they do on the bare directory."""

import itertools
import os
import shutil
import stat
from pathlib import Path
from typing import Any

import pytest
import support
from core.table import in_child, tree
from core.variants import SMALL, VARIANTS, Variant
from programs.recipes import POSTGRES, RECIPES, Recipe

_numbers = itertools.count()
_on_bare: dict[str, tuple[str, Any]] = {}


def left(top: Path) -> dict[bytes, Any]:
    """The tree without times; a link's or a sparse file's content and every xattr are in it."""
    return {name: seen._replace(atime=0, mtime=0, ctime=0) for name, seen in tree(top).items()}


def cook(recipe: Recipe, name: str, kitchen: Path) -> tuple[str, Any]:
    """Run a recipe in a directory of its own; its output, and the tree that it leaves."""
    place = kitchen / f"{name}-{next(_numbers)}"
    place.mkdir()
    os.chown(place, recipe.user, recipe.user)
    done = support.run(
        *("bash", "-euo", "pipefail", "-c", f"umask 022\n{recipe.text}"),
        cwd=place,
        seconds=recipe.seconds,
        env={"PYTHON": str(support.CHECKOUT / ".venv/bin/python"), "TZ": "UTC"},
        user=recipe.user or None,
    )
    seen = in_child(left, place) if recipe.same_tree else None
    shutil.rmtree(place)
    assert stat.S_ISDIR(kitchen.stat().st_mode)
    return (done.stdout + done.stderr).replace(str(place), "HERE"), seen


def compare(variant: Variant, bare: Path, name: str, recipe: Recipe) -> str:
    """Run it on the bare directory, once for all variants, and on the mount."""
    if name not in _on_bare:
        _on_bare[name] = cook(recipe, name, bare)
    expected, expected_tree = _on_bare[name]

    said, seen = cook(recipe, name, variant.mounted.path)

    assert expected == said
    assert expected_tree == seen
    return said


SLOW = {"git", "pip"}
LATER = {"served", *SMALL}
CASES = [
    pytest.param(
        variant,
        name,
        marks=[pytest.mark.soak] if variant in LATER or (variant == "audited" and name in SLOW) else [],
    )
    for variant in (*VARIANTS, *SMALL)
    for name in RECIPES
]


@pytest.mark.parametrize(("variant", "name"), CASES, indirect=["variant"])
def test_a_program_does_the_same_as_on_the_bare_directory(variant: Variant, bare: Path, name: str) -> None:
    compare(variant, bare, name, RECIPES[name])


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_postgres_does_the_same_as_on_the_bare_directory(variant: Variant, bare: Path) -> None:
    if not list(Path("/usr/lib/postgresql").glob("*/bin/initdb")):
        pytest.skip("postgres is not installed: apt-get install postgresql (make soak tries to)")

    said = compare(variant, bare, "postgres", POSTGRES)

    assert said.splitlines()[0] == "number of transactions actually processed: 800/800"
