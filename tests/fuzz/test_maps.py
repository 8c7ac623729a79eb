"""Any text for a policy map fills it, or is refused and changes nothing; patterns mean what they say."""

import re
from collections.abc import Iterator
from typing import Any

import loader_support
import pytest
from fuzz.fuzzing import assert_clear, examples, garbage
from hypothesis import given
from hypothesis import strategies as st
from loader.test_policy_maps import _SOURCE

from fusebpf import loader
from fusebpf.errors import MapValueError
from fusebpf.loader import Compiled, Filter, SharedMaps

MAPS = ["names", "paths", "rules", "entries", "uids", "labels", "pairs", "flags", "limits", "entry_list"]
MAPS += ["texts", "odd", "counts", "queue", "unions", "recent_uids"]
WORDS = (
    "COLOUR_RED",
    "BIT_A",
    "BIT_B|BIT_C",
    "EPERM",
    "mkdir",
    "any",
    "label=",
    "range.low=",
    "is_on",
    "*",
    "true",
)


@pytest.fixture(scope="module")
def one(shared: SharedMaps, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Filter]:
    """A filter with a map of each kind."""
    path = loader_support.write(tmp_path_factory.mktemp("maps"), _SOURCE)
    (loaded,) = loader.load(path, shared)
    yield loaded
    loaded.close()


@pytest.fixture(scope="module")
def hide(stock: Compiled, shared: SharedMaps) -> Iterator[Filter]:
    """The stock filter `hide`."""
    loaded = loader.load(stock, shared)
    yield next(each for each in loaded if each.name == "hide")
    for each in loaded:
        each.close()


def content(one: Filter, name: str) -> Any:
    """What is in a map; None where it cannot be listed."""
    try:
        return sorted((str(key), str(value)) for key, value in one.maps[name].items())
    except (ValueError, MapValueError):
        return None


@examples(600)
@given(st.sampled_from(MAPS), garbage(*WORDS))
def test_a_text_fills_the_map_or_is_refused(one: Filter, name: str, text: str) -> None:
    before = content(one, name)

    try:
        one.maps[name].set(text)
    except MapValueError as error:
        assert_clear(error)
        assert content(one, name) == before


PATTERN = st.text("ab*?.", min_size=1, max_size=12).filter(lambda text: text not in {".", ".."})


@examples(200)
@given(
    st.lists(PATTERN, min_size=1, max_size=5),
    st.text("ab.", min_size=1, max_size=20) | st.text("ab.é\n*", min_size=1, max_size=8),
)
def test_patterns_mean_what_they_say(
    hide: Filter, runner: loader_support.HookRunner, patterns: list[str], name: str
) -> None:
    hide.maps["names"].set(",".join(patterns))
    meanings = [re.escape(each.encode()).replace(rb"\*", b".*").replace(rb"\?", b".") for each in patterns]
    expected = any(re.fullmatch(each, name.encode(), re.DOTALL) for each in meanings)

    said = runner.run(hide, "pre", "lookup", name=name)

    assert said.verdict == ("FB_NEGATIVE" if expected else "FB_CONTINUE")
