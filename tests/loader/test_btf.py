"""BTF: bytes to Python values and back, for every kind of type that a map can have."""

from typing import Any

import loader_support
import pytest
from loader_support import HEAD

from fusebpf import loader
from fusebpf.btf import Btf, Kind, number_from_text

_SOURCE = (
    HEAD
    + """\
enum shade { SHADE_DARK = -2, SHADE_LIGHT = 3 };
typedef const volatile u32 strange_t;
struct part { u8 low : 3; u8 high : 5; u16 : 0; u16 last; };
struct whole {
	s8 s8; u8 u8; s16 s16; u16 u16; s32 s32; u32 u32; s64 s64; u64 u64; bool is_it;
	enum shade shade; strange_t strange; char text[5]; u16 list[3]; struct part part; void *pointer;
	union { u32 number; struct { u16 left; u16 right; }; };
	struct { u8 inner; };
};
BPF_ARRAY(f__whole, struct whole, 1);
PRE(f, lookup) { return FB_CONTINUE; }
"""
)
_VALUE: dict[str, Any] = {
    "s8": -128,
    "u8": 255,
    "s16": -2,
    "u16": 65535,
    "s32": -3,
    "u32": 4294967295,
    "s64": -(1 << 63),
    "u64": (1 << 64) - 1,
    "is_it": True,
    "shade": "SHADE_DARK",
    "strange": 9,
    "text": "abcd",
    "list": [1, 2, 3],
    "pointer": 0xFFFF888812345678,
    "left": 1,
    "right": 2,
    "inner": 7,
}


@pytest.fixture(scope="module")
def btf(tmp_path_factory: pytest.TempPathFactory) -> Btf:
    path = loader_support.write(tmp_path_factory.mktemp("btf"), _SOURCE)
    return Btf(loader.compile_source(path).btf)


def test_a_struct_of_all_kinds_comes_back_as_it_went_in(btf: Btf) -> None:
    whole = btf.find(Kind.STRUCT, "whole")

    packed = btf.pack(whole, _VALUE)

    assert len(packed) == btf.size(whole)
    assert btf.unpack(whole, packed) == {
        **_VALUE,
        "number": 0x20001,
        "part": {"low": 0, "high": 0, "last": 0},
    }


def test_bit_fields_are_read(btf: Btf) -> None:
    part = btf.find(Kind.STRUCT, "part")

    value = btf.unpack(part, bytes([0b10110_101, 0, 7, 0]))

    assert {"low": 5, "high": 22, "last": 7}.items() <= value.items()
    with pytest.raises(ValueError, match="bit field low cannot be set from text"):
        btf.leaves(part)


def test_what_is_left_out_is_zero(btf: Btf) -> None:
    whole = btf.find(Kind.STRUCT, "whole")

    assert btf.pack(whole, {}) == bytes(btf.size(whole))
    assert btf.unpack(whole, bytes(btf.size(whole)))["shade"] == 0


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"u8": 256}, "256 does not fit into 1 bytes"),
        ({"text": "abcde"}, "'abcde' has 5 bytes, at most 4 fit"),
        ({"list": [1, 2, 3, 4]}, "4 elements, at most 3 fit"),
    ],
)
def test_a_value_that_does_not_fit_is_refused(value: dict[str, Any], message: str, btf: Btf) -> None:
    with pytest.raises(ValueError, match=message):
        btf.pack(btf.find(Kind.STRUCT, "whole"), value)


def test_types_are_named_as_in_c(btf: Btf) -> None:
    members = {each.name: each.type for each in btf.resolve(btf.find(Kind.STRUCT, "whole")).members}

    assert btf.name(members["shade"]) == "enum shade"
    assert btf.name(members["list"]) == "u16[3]"
    assert btf.name(members["part"]) == "struct part"
    assert btf.name(members["text"]) == "char[5]"
    with pytest.raises(KeyError, match="struct nothing_like_it"):
        btf.find(Kind.STRUCT, "nothing_like_it")


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("0", 0),
        ("-0x10", -16),
        ("+7", 7),
        ("2k", 2048),
        ("1G", 1 << 30),
        ("010", 10),
        ("0xfg", 0xF << 30),
        ("", None),
        ("1.5", None),
        ("0x", None),
        ("k", None),
        ("1 k", None),
        ("\u0661", None),
    ],
)
def test_numbers_in_text(text: str, number: int | None) -> None:
    assert number_from_text(text) == number


def test_what_is_not_btf_is_refused() -> None:
    with pytest.raises(ValueError, match="not BTF"):
        Btf(bytes(24))
