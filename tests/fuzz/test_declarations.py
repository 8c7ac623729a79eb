"""A file that declares filters in any way is compiled and checked, or refused in one line with its place."""

from pathlib import Path

import loader_support
import pytest
from fuzz.fuzzing import assert_clear, examples
from hypothesis import given
from hypothesis import strategies as st

from fusebpf import loader
from fusebpf.errors import FilterError

ALTITUDES = st.sampled_from(
    ["0", "1", "999", "1000", "-1", "4294967297", "FB_POLICY", "FB_POLICY + 10", "x", "1.5", '"a"', ""]
)
NAMES = st.sampled_from(
    ["f", "any", "name", "int", "f__g", "_", "x" * 15, "x" * 16, "x" * 200, "1f", "F", "é", "f-g", ""]
)
DOCS = st.sampled_from(['"words"', '""', '"' + "d" * 5000 + '"', '"a\\nb\\"c"', '"\\xff"', "0", '"open'])
HOOKS = st.sampled_from(
    ["lookup", "any", "name", "dirent", "nosuch", "release", "forget", "interrupt", "", "x" * 100]
)
BODIES = st.sampled_from(
    [
        "return FB_CONTINUE;",
        "return 77777;",
        "",
        "return -5000;",
        "for (;;) ;",
        "return ctx->nosuch;",
        "}",
        "#error no",
    ]
)
MORE = st.sampled_from(
    ["", ".abi = 0,", ".abi = 99 << 16,", ".reserved = {1},", ".nosuch = 1,", ".wants = 0xffffffff,"]
)


PHASES = st.sampled_from(["PRE", "POST", "DURING"])


@st.composite
def sources(draw: st.DrawFn) -> str:
    """A file with a filter of one hook; something in it may be wrong."""
    name, times = draw(NAMES), draw(st.integers(0, 2))
    declared = f"FILTER({name}, .altitude = {draw(ALTITUDES)}, {draw(MORE)} .doc = {draw(DOCS)})\n" * times
    return f'#include "fusebpf.h"\n{declared}{draw(PHASES)}({name}, {draw(HOOKS)}) {{ {draw(BODIES)} }}\n'


def check(path: Path) -> None:
    """Compile and load it; what is refused is refused clearly, with its place."""
    try:
        loader.check(path)
    except FilterError as error:
        first = str(error).splitlines()[0]
        assert path.name in first
        assert_clear(FilterError(first))


@examples(12)
@given(sources())
def test_declarations_are_taken_or_refused(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    check(loader_support.write(tmp_path_factory.mktemp("declared"), text))


@examples(6)
@given(st.binary(max_size=300) | st.text(max_size=100).map(lambda text: text.encode(errors="surrogatepass")))
def test_a_file_of_garbage_is_taken_or_refused(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.mktemp("garbage") / "mine.c"
    path.write_bytes(b'#include "fusebpf.h"\n' + data)

    check(path)
