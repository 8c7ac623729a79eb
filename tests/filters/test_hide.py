"""The stock filter `hide` and its ttl: what is not hidden may be kept, a change takes effect at once."""

import os
from pathlib import Path

import pytest
import serving
import support

SETS = {"hide.names": "*.key", "hide.ttl": "3600000"}


def requests_of(served: serving.Served, path: Path) -> int:
    """How many requests it takes to look a path up."""
    before = served.counters()["requests"]
    path.stat()
    return served.counters()["requests"] - before


def test_without_a_ttl_each_use_of_a_name_is_asked(directory: Path) -> None:
    with serving.serve(directory, "hide", filters=["hide"], sets={"hide.names": "*.key"}) as served:
        (served.src / "f").touch()
        (served.path / "f").stat()

        assert requests_of(served, served.path / "f") > 0


def test_with_a_ttl_names_that_are_not_hidden_are_kept(directory: Path) -> None:
    with serving.serve(directory, "hide", filters=["hide"], sets=SETS) as served:
        (served.src / "f").touch()
        (served.src / "secret.key").touch()
        (served.path / "d").mkdir()
        (served.path / "made").touch()
        for name in ("f", "d", "made"):
            (served.path / name).stat()
            assert requests_of(served, served.path / name) == 0
        for _ in range(2):
            with pytest.raises(FileNotFoundError):
                (served.path / "secret.key").stat()
        assert sorted(os.listdir(served.path)) == ["d", "f", "made"]
        with pytest.raises(PermissionError):
            (served.path / "other.key").touch()


def test_with_a_ttl_a_change_of_the_names_takes_effect_at_once(mount: support.Mounter) -> None:
    mounted = mount(filters=["hide"], sets=SETS)
    (mounted.src / "f").write_text("x")
    assert (mounted.path / "f").read_text() == "x"

    support.run(support.COMMAND, "map", mounted.path, "hide", "names", "set", "f")

    with pytest.raises(FileNotFoundError):
        (mounted.path / "f").read_text()
    support.run(support.COMMAND, "map", mounted.path, "hide", "names", "delete", "f")
    assert (mounted.path / "f").read_text() == "x"


def test_with_a_ttl_a_filter_that_comes_is_asked_at_once(mount: support.Mounter) -> None:
    mounted = mount(filters=["hide"], sets=SETS)
    (mounted.src / "f").write_text("x")
    assert (mounted.path / "f").read_text() == "x"

    rules = "deny.rules=lookup:*:f:EPERM"
    support.run(support.COMMAND, "attach", mounted.path, "deny", "--set", rules)

    with pytest.raises(PermissionError):
        (mounted.path / "f").read_text()
