"""From the words of --filter and --set to a chain."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest

from fusebpf import chain
from fusebpf._core import WANTS
from fusebpf.chain import FilterSpec, Link, MapSetting
from fusebpf.errors import ChainError, UsageError


@dataclass
class Loaded:
    """As much of a loaded filter as a chain looks at."""

    name: str
    altitude: int = 500
    wants: int = 0
    path: str = "a.c"


def link(name: str, altitude: int, wants: int = 0) -> Link:
    return Link(cast("Any", Loaded(name, altitude, wants)), altitude)


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("hide", FilterSpec("hide")),
        ("hide@710", FilterSpec("hide", 710)),
        ("./mine.c", FilterSpec("./mine.c")),
        ("./mine.c@500", FilterSpec("./mine.c", 500)),
        ("mine.c:own@1", FilterSpec("mine.c", 1, "own")),
        ("a@b/mine.c", FilterSpec("a@b/mine.c")),
        ("a@b/mine.c@7", FilterSpec("a@b/mine.c", 7)),
        ("./mine@me.c", FilterSpec("./mine@me.c")),
        ("dir/mine", FilterSpec("dir/mine")),
    ],
)
def test_a_filter_is_read_from_text(text: str, spec: FilterSpec) -> None:
    assert FilterSpec.parse(text) == spec


@pytest.mark.parametrize("text", ["hide@", "hide@0", "hide@1000", "hide@-5", "hide@top", "@500", "a.c:", ""])
def test_a_filter_that_cannot_be_read_is_a_usage_error_that_quotes_it(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        FilterSpec.parse(text)

    assert repr(text) in str(caught.value)


def test_a_path_object_is_a_file_whatever_its_name() -> None:
    assert FilterSpec.of(Path("mine")).source == "./mine"
    assert not FilterSpec.of(Path("mine")).is_stock


def test_a_setting_keeps_all_of_its_value() -> None:
    assert MapSetting.parse("hide.names=a=b,c.d") == ("hide", "names", "a=b,c.d")
    assert MapSetting.parse("hide.names=") == ("hide", "names", "")


@pytest.mark.parametrize("text", ["hide.names", "hide=x", "=x", ".names=x", "hide.=x"])
def test_a_setting_without_its_parts_is_a_usage_error(text: str) -> None:
    with pytest.raises(UsageError, match=r"FILTER\.MAP=VALUE"):
        MapSetting.parse(text)


def test_a_chain_is_ordered_from_high_to_low() -> None:
    ordered = chain.arrange([link("low", 100), link("high", 900), link("mid", 500)], 32)

    assert [one.filter.name for one in ordered] == ["high", "mid", "low"]


def test_two_filters_of_one_name_are_refused() -> None:
    with pytest.raises(ChainError, match="two filters are named 'a'"):
        chain.arrange([link("a", 100), link("a", 200)], 32)


def test_two_filters_at_one_altitude_are_named_with_the_nearest_free_numbers() -> None:
    with pytest.raises(ChainError) as caught:
        chain.arrange([link("a", 500), link("b", 500), link("c", 501), link("d", 499)], 32)

    assert "'a' and 'b' both stand at altitude 500" in str(caught.value)
    assert "498 and 502" in str(caught.value)


def test_the_nearest_free_altitude_at_the_end_is_one_only() -> None:
    assert chain.nearest_free(999, {999, 998}) == [997]


def test_a_filter_that_uses_the_daemon_is_refused_by_name() -> None:
    with pytest.raises(ChainError, match="'asks' uses the daemon"):
        chain.arrange([link("asks", 500, WANTS["DAEMON"])], 32)


def test_too_many_filters_are_refused_with_the_limit() -> None:
    with pytest.raises(ChainError, match="at most 32"):
        chain.arrange([link(f"f{number}", number + 1) for number in range(33)], 32)


def test_one_altitude_for_several_filters_is_a_usage_error_that_says_how_to_pick() -> None:
    loaded = cast("Any", [Loaded("a"), Loaded("b")])

    with pytest.raises(UsageError, match=r"x\.c:a@500"):
        chain.place(FilterSpec("x.c", 500), loaded)


def test_a_setting_for_a_filter_that_is_not_there_is_a_usage_error_that_lists_the_filters() -> None:
    with pytest.raises(UsageError, match=r"'b' is no filter of this mount \(its filters are: a\)"):
        chain.check_sets([MapSetting("b", "m", "1")], ["a"])
