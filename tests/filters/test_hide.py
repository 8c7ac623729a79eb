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
            # Not at once: the RELEASE of what was made is still to come.
            support.wait_until(lambda name=name: requests_of(served, served.path / name) == 0)  # type: ignore[misc]
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


def test_with_a_ttl_a_change_of_the_names_reaches_each_name_of_a_file(mount: support.Mounter) -> None:
    mounted = mount(filters=["hide"], sets=SETS)
    (mounted.src / "a").touch()
    os.link(mounted.src / "a", mounted.src / "b")
    for name in ("a", "b"):
        (mounted.path / name).stat()

    for name in ("a", "b"):
        support.run(support.COMMAND, "map", mounted.path, "hide", "names", "set", name)
        with pytest.raises(FileNotFoundError):
            (mounted.path / name).stat()


def test_a_ttl_is_nothing_where_the_backing_file_system_judges_each_caller(mount: support.Mounter) -> None:
    mounted = mount(filters=["hide"], sets=SETS, options="nodefault_permissions")
    private = mounted.src / "private"
    private.mkdir()
    (private / "f").write_text("x")
    private.chmod(0o700)
    assert (mounted.path / "private/f").read_text() == "x"

    nobody = ("setpriv", "--reuid=1000", "--regid=1000", "--clear-groups")
    refused = support.run(*nobody, "cat", mounted.path / "private/f", check=False)

    assert "Permission denied" in refused.stderr


def stats_of(path: Path) -> dict[str, tuple[float, ...]]:
    """What a listing shows, and a stat of each entry."""
    with os.scandir(path) as entries:
        names = [entry.name for entry in entries]
    return {name: tuple(os.lstat(path / name))[:9] for name in names}


def filled(served: serving.Served) -> Path:
    """A directory behind the mount with forty files, ten links and ten hidden ones."""
    directory = served.src / "d"
    directory.mkdir()
    for index in range(40):
        (directory / f"f{index}").write_text("x" * index)
    for index in range(10):
        (directory / f"link{index}").symlink_to("f1")
        (directory / f"{index}.key").touch()
    return directory


def lookups(served: serving.Served) -> int:
    """How many lookups hide was asked of."""
    return sum(n for (_, phase, op, _), n in served.stats().items() if (phase, op) == ("pre", "lookup"))


def test_with_a_ttl_a_listing_brings_what_its_entries_are(directory: Path) -> None:
    with serving.serve(directory, "hide", filters=["hide"], sets=SETS) as served:
        behind = filled(served)
        before = served.counters()["requests"]
        asked = lookups(served)

        found = stats_of(served.path / "d")

        expected = {name: row for name, row in stats_of(behind).items() if not name.endswith(".key")}
        assert {name: row[:2] + row[3:] for name, row in found.items()} == {
            name: row[:2] + row[3:]
            for name, row in expected.items()  # but for the device
        }
        assert served.counters()["requests"] - before < 10
        assert lookups(served) - asked == 51  # that of the directory, and each entry's


def test_without_a_ttl_a_listing_asks_no_lookup_hooks(directory: Path) -> None:
    with serving.serve(directory, "hide", filters=["hide"], sets={"hide.names": "*.key"}) as served:
        filled(served)
        (served.path / "d").stat()
        before = lookups(served)

        assert len(os.listdir(served.path / "d")) == 50

        assert lookups(served) - before <= 1


def test_what_a_listing_brought_is_given_back(directory: Path) -> None:
    with serving.serve(directory, "hide", filters=["hide"], sets=SETS) as served:
        filled(served)
        stats_of(served.path / "d")
        assert served.counters()["inodes"] > 50

        for name in os.listdir(served.path / "d"):
            (served.path / "d" / name).unlink()

        support.wait_until(lambda: served.counters()["inodes"] <= 2)
        assert served.counters()["slots_in_use"] == 0


def test_with_a_ttl_a_name_that_was_listed_is_hidden_at_once(mount: support.Mounter) -> None:
    mounted = mount(filters=["hide"], sets=SETS)
    (mounted.src / "d").mkdir()
    (mounted.src / "d/f").touch()
    assert list(stats_of(mounted.path / "d")) == ["f"]

    support.run(support.COMMAND, "map", mounted.path, "hide", "names", "set", "f")

    assert list(stats_of(mounted.path / "d")) == []
    with pytest.raises(FileNotFoundError):
        (mounted.path / "d/f").stat()
