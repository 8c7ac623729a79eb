"""`--set FILTER.MAP=VALUE`: texts become typed content, wrong ones are refused and change nothing."""

import os
from collections.abc import Callable, Iterator
from typing import Any

import loader_support
import pytest
from loader_support import HEAD

from fusebpf import bpf, loader
from fusebpf.errors import MapValueError
from fusebpf.loader import Filter, SharedMaps
from fusebpf.policy_map import PolicyMap

_ANY = 0xFFFFFFFF
_SOURCE = (
    HEAD
    + """\
enum colour { COLOUR_RED = 1, COLOUR_DARK_RED = 2, COLOUR_BLUE = 7 };
enum bits { BIT_A = 1, BIT_B = 2, BIT_C = 4 };
struct inner { s16 low; u8 high; };
struct entry { enum colour colour; struct inner range; bool is_on; struct fb_name label; };
struct odd { u32 plain; u32 list[3]; };
struct patterns { struct fb_pattern list[4]; };
struct rule { enum fb_errno error; };
union both { u32 number; u64 large; };

BPF_ARRAY(f__names, struct fb_patterns, 1);
BPF_ARRAY(f__paths, struct patterns, 1);
BPF_HASH(f__rules, struct fb_key, struct rule, 4);
BPF_HASH(f__entries, u32, struct entry, 8);
BPF_HASH(f__uids, u32, u64, 8);
BPF_HASH(f__labels, struct fb_name, u8, 8);
BPF_HASH(f__pairs, struct inner, s32, 8);
BPF_HASH(f__flags, u64, enum bits, 8);
BPF_HASH(f__unions, u32, union both, 8);
BPF_TABLE("lru_hash", u32, u32, f__recent_uids, 8);
BPF_ARRAY(f__limits, u64, 4);
BPF_ARRAY(f__entry_list, struct entry, 2);
BPF_ARRAY(f__texts, struct fb_name, 3);
BPF_ARRAY(f__odd, struct odd, 1);
BPF_PERCPU_ARRAY(f__counts, u64, 2);
BPF_QUEUE(f__queue, u32, 4);
PRE(f, lookup)
{
	u32 k = 0;
	u64 *count = f__counts.lookup(&k);
	if (count)
		*count += 5;
	return FB_CONTINUE;
}
"""
)


@pytest.fixture(scope="module")
def one(shared: SharedMaps, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Filter]:
    path = loader_support.write(tmp_path_factory.mktemp("maps"), _SOURCE)
    (loaded,) = loader.load(path, shared)
    yield loaded
    loaded.close()


def _items(one: Filter, name: str) -> dict[Any, Any]:
    return {str(key): value for key, value in one.maps[name].items()}


def _texts(one: Filter, name: str) -> list[str]:
    (content,) = one.maps[name].values()
    texts = [each["text"] for each in content["list"]]
    n = texts.index("")
    assert not any(texts[n:])
    return texts[:n]


# --------------------------------------------------------------------------- lists of patterns


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("  ", []),
        (".ssh", [".ssh"]),
        (".ssh,*.key", [".ssh", "*.key"]),
        (" .ssh , *.key ", [".ssh", "*.key"]),
        ("a b,c\\,d,\\ e", ["a b", "c,d", " e"]),
        ("a\\\\,b\\c,d=e:f", ["a\\", "b\\c", "d=e:f"]),
        ("ä", ["ä"]),
        ("x" * 255, ["x" * 255]),
    ],
)
def test_a_list_of_patterns(text: str, expected: list[str], one: Filter) -> None:
    one.set("names", "old,older")

    one.set("names", text)

    assert _texts(one, "names") == expected


def test_undecodable_bytes_of_the_command_line_stay_bytes(one: Filter) -> None:
    one.set("names", os.fsdecode(b"\xff\xfe"))

    assert _texts(one, "names") == [os.fsdecode(b"\xff\xfe")]


def test_63_patterns_fit_and_64_do_not(one: Filter) -> None:
    one.set("names", ",".join("ab" for _ in range(63)))

    assert len(_texts(one, "names")) == 63
    with pytest.raises(MapValueError, match=r"^f\.names: 64 items, at most 63 fit$"):
        one.set("names", ",".join("ab" for _ in range(64)))


def test_the_slashes_around_a_path_are_left_off(one: Filter) -> None:
    one.set("paths", "/etc,home/a/,/var/lib/")

    assert _texts(one, "paths") == ["etc", "home/a", "var/lib"]


# --------------------------------------------------------------------------------------- hashes


def test_the_fields_of_a_rule_in_their_order_or_by_name(one: Filter) -> None:
    one.set(
        "rules",
        "unlink:1000:*:EACCES, FB_OP_mkdir:any:a:FB_EPERM,op=rename:error=ENOTSUP,name=b\\:c:error=5:op=12",
    )

    keys = list(one.maps["rules"].keys())
    assert {(key["op"], key["uid"], key["name"]["text"]) for key in keys} == {
        ("FB_OP_unlink", 1000, ""),
        ("FB_OP_mkdir", _ANY, "a"),
        ("FB_OP_rename", _ANY, ""),
        ("FB_OP_rename", _ANY, "b:c"),
    }
    errors = {value["error"] for value in one.maps["rules"].values()}
    assert errors == {"FB_EACCES", "FB_EPERM", "FB_ENOTSUP", "FB_EIO"}


@pytest.mark.parametrize("op", ["unlink", "FB_OP_unlink", "UNLINK", "10", "0xa", "OP_unlink"])
def test_the_spellings_of_an_enums_value(op: str, one: Filter) -> None:
    one.set("rules", f"{op}:0:*:EACCES")

    assert one.maps["rules"].keys()[0]["op"] == "FB_OP_unlink"


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        ("EOPNOTSUPP", "FB_ENOTSUP"),
        ("EWOULDBLOCK", "FB_EAGAIN"),
        ("OK", "FB_OK"),
        ("0", "FB_OK"),
        ("eio", "FB_EIO"),
    ],
)
def test_errnos_have_second_names(error: str, expected: str, one: Filter) -> None:
    one.set("rules", f"*:*:*:{error}")

    assert one.maps["rules"].values() == [{"error": expected}]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1000", {"1000": 1}),
        ("1000=5,1001:0x10,0", {"1000": 5, "1001": 16, "0": 1}),
        (
            "1=1k,2=2M,3=3G,4=18446744073709551615",
            {"1": 1024, "2": 2 << 20, "3": 3 << 30, "4": (1 << 64) - 1},
        ),
        ("*=2", {"4294967295": 2}),
        ("key=3:value=4", {"3": 4}),
        ("value=4", {"4294967295": 4}),
    ],
)
def test_a_hash_of_numbers(text: str, expected: dict[str, int], one: Filter) -> None:
    one.set("uids", "77=77")

    one.set("uids", text)

    assert _items(one, "uids") == expected


def test_a_hash_of_names_is_a_set(one: Filter) -> None:
    one.set("labels", "a,b\\=c,d=7")

    assert {key["text"]: value for key, value in one.maps["labels"].items()} == {"a": 1, "b=c": 1, "d": 7}


def test_negative_numbers_and_nested_structs(one: Filter) -> None:
    one.set("pairs", "-5:255:-7,low=3:high=4:value=5")
    one.set("entries", "9:DARK_RED:-1:2:yes:the label,10:7:0:0:off:")

    assert _items(one, "pairs") == {"{'low': -5, 'high': 255}": -7, "{'low': 3, 'high': 4}": 5}
    assert _items(one, "entries") == {
        "9": {
            "colour": "COLOUR_DARK_RED",
            "range": {"low": -1, "high": 2},
            "is_on": True,
            "label": {"text": "the label"},
        },
        "10": {
            "colour": "COLOUR_BLUE",
            "range": {"low": 0, "high": 0},
            "is_on": False,
            "label": {"text": ""},
        },
    }


def test_bits_can_be_said_as_a_number(one: Filter) -> None:
    one.set("flags", "1:5,2:BIT_C,3:B")

    assert _items(one, "flags") == {"1": 5, "2": "BIT_C", "3": "BIT_B"}


def test_of_a_union_the_first_member_is_set(one: Filter) -> None:
    one.set("unions", "1:300")

    assert _items(one, "unions") == {"1": {"number": 300, "large": 300}}


def test_a_full_hash_can_be_replaced(one: Filter) -> None:
    one.set("uids", "1,2,3,4,5,6,7,8")

    one.set("uids", "8,9,10,11,12,13,14,15")

    assert sorted(one.maps["uids"].keys()) == list(range(8, 16))


def test_an_lru_hash_is_set_like_a_hash(one: Filter) -> None:
    one.set("recent_uids", "1=2")

    assert _items(one, "recent_uids") == {"1": 2}


# --------------------------------------------------------------------------------------- arrays


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", [0, 0, 0, 0]),
        ("10M", [10 << 20, 0, 0, 0]),
        ("1,2,3,4", [1, 2, 3, 4]),
        ("3=7,1=5", [0, 5, 0, 7]),
        ("9,3=7", [9, 0, 0, 7]),
        ("value=3", [3, 0, 0, 0]),
    ],
)
def test_an_array_of_numbers(text: str, expected: list[int], one: Filter) -> None:
    one.set("limits", "8,8,8,8")

    one.set("limits", text)

    assert one.maps["limits"].values() == expected


def test_arrays_of_structs_and_texts(one: Filter) -> None:
    one.set("entry_list", "1=BLUE:1:2:1:x")
    one.set("texts", "a,2=b=c")

    assert one.maps["entry_list"].values()[1]["colour"] == "COLOUR_BLUE"
    assert [each["text"] for each in one.maps["texts"].values()] == ["a", "", "b=c"]


def test_the_values_of_a_per_cpu_map_come_for_each_cpu(
    one: Filter, runner: loader_support.HookRunner
) -> None:
    runner.run(one, "pre", "lookup", name="x")

    (first, second) = one.maps["counts"].values()
    assert sum(first) >= 5
    assert set(second) == {0}


def test_clear_empties_a_map(one: Filter) -> None:
    one.set("uids", "1,2")
    one.set("limits", "1,2")

    one.maps["uids"].clear()
    one.maps["limits"].clear()

    assert list(one.maps["uids"].items()) == []
    assert one.maps["limits"].values() == [0, 0, 0, 0]


# --------------------------------------------------------------------------------- wrong values


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("names", "a,,b", r"f\.names: an empty item in 'a,,b'; separate items by single commas"),
        ("names", "a,", r"f\.names: an empty item in 'a,'"),
        ("names", "x" * 256, r"f\.names: 'x+' has 256 bytes, at most 255 fit"),
        ("names", "ä" * 128, r"f\.names: 'ä+' has 256 bytes, at most 255 fit"),
        ("paths", "/", r"f\.paths: '/' is the root itself; name what is below it"),
        ("paths", "a,..", r"f\.paths: '\.\.' matches no path: paths have no '//', '\.' or '\.\.' in them"),
        ("paths", "../a", r"f\.paths: '\.\./a' matches no path"),
        ("paths", "a/../b", r"f\.paths: 'a/\.\./b' matches no path"),
        ("paths", "./a", r"f\.paths: '\./a' matches no path"),
        ("paths", "a//b", r"f\.paths: 'a//b' matches no path"),
        ("paths", "//a", r"f\.paths: '//a' matches no path"),
        ("paths", "a,b,c,d", r"f\.paths: 4 items, at most 3 fit"),
        (
            "rules",
            "unlnk:*:*:EPERM",
            r"f\.rules: op in 'unlnk:\*:\*:EPERM': 'unlnk' is no op; say for example unlink",
        ),
        (
            "rules",
            "unlink:*:*:EPREM",
            r"f\.rules: error in '.*': 'EPREM' is no errno; say for example .*EPERM",
        ),
        (
            "rules",
            "unlink:*:*:*",
            r"f\.rules: error in '.*': '\*' is no errno; say for example EPERM, EACCES, EROFS, ENOENT",
        ),
        ("rules", "unlink:*:*:600", r"f\.rules: error in '.*': '600' is no errno"),
        ("rules", "unlink:-1:*:EPERM", r"f\.rules: uid in '.*': '-1' is out of range, 0 to 4294967295"),
        ("rules", "unlink:root:*:EPERM", r"f\.rules: uid in '.*': 'root' is not a number"),
        ("rules", "unlink:EPERM", r"f\.rules: 'unlink:EPERM' has 2 fields, wanted are op:uid:name:error"),
        ("rules", "unlink", r"f\.rules: 'unlink' has 1 field, wanted are op:uid:name:error"),
        (
            "rules",
            "op=unlink",
            r"f\.rules: 'op=unlink': error is missing; the fields are op, uid, name, error",
        ),
        ("rules", "op=unlink:op=1:error=5", r"f\.rules: '.*': a field is said twice; the fields are op, uid"),
        ("rules", "*:*:*:EIO,any::*:EIO", r"f\.rules: 'any::\*:EIO': the same key is there twice"),
        ("rules", "1:1:a:1,1:2:a:1,1:3:a:1,1:4:a:1,1:5:a:1", r"f\.rules: 5 items, at most 4 fit"),
        ("uids", "4294967296", r"f\.uids: '4294967296' is out of range, 0 to 4294967295"),
        ("uids", "1=2=3", r"f\.uids: value in '1=2=3': '2=3' is not a number"),
        ("uids", "1e3", r"f\.uids: '1e3' is not a number"),
        ("labels", "a=256", r"f\.labels: value in 'a=256': '256' is out of range, 0 to 255"),
        ("pairs", "40000:0:0", r"f\.pairs: low in '.*': '40000' is out of range, -32768 to 32767"),
        ("pairs", "*:0:0", r"f\.pairs: low in '.*': '\*' is not a number"),
        ("entries", "1:GREEN:0:0:0:", r"'GREEN' is no colour; say for example "),
        ("entries", "1:RED:0:0:maybe:", r"f\.entries: is_on in '.*': 'maybe' is not yes or no"),
        ("flags", "1:8", r"f\.flags: value in '.*': '8' is no bits; say for example A, B, C"),
        ("limits", "1,2,3,4,5", r"f\.limits: '5' would be element 4; there are 4, from 0"),
        ("limits", "4=1", r"f\.limits: '4=1' would be element 4; there are 4, from 0"),
        ("limits", "-1=1", r"f\.limits: '-1=1' would be element -1"),
        ("limits", "1,0=2", r"f\.limits: '0=2': element 0 is set twice"),
        ("odd", "1", r"f\.odd: '1' has 1 field, wanted are plain:list"),
        ("odd", "1:2", r"f\.odd: list in '1:2': a value of type u32\[3\] cannot be said in text"),
        ("counts", "1", r"f\.counts: a per-CPU array.* cannot be set; only arrays and hashes can"),
    ],
)
def test_a_wrong_value_is_refused_and_changes_nothing(
    name: str, text: str, message: str, one: Filter
) -> None:
    good = {"names": "a", "paths": "a", "rules": "1:1:a:1", "uids": "1", "labels": "a", "limits": "1"}
    if name in good:
        one.set(name, good[name])
    before = list(one.maps[name].items())

    with pytest.raises(MapValueError, match=message) as caught:
        one.set(name, text)

    assert "\n" not in str(caught.value)
    assert list(one.maps[name].items()) == before


def test_a_queue_can_neither_be_set_nor_listed(one: Filter) -> None:
    with pytest.raises(MapValueError, match=r"f\.queue: a queue cannot be set; only arrays and hashes can"):
        one.set("queue", "1")
    with pytest.raises(MapValueError, match=r"f\.queue: a queue has no keys, so it cannot be listed"):
        list(one.maps["queue"].items())


def test_an_unknown_map_is_refused_with_the_list_of_maps(one: Filter) -> None:
    with pytest.raises(MapValueError, match=r"^the filter 'f' has no map 'nams'; it has: ") as caught:
        one.set("nams", "a")

    message = str(caught.value)
    assert "names (list of names or patterns)" in message
    assert "rules (hash of op:uid:name:error)" in message
    assert "limits (array of 4 u64)" in message
    assert "counts (per-CPU array" in message
    assert "queue (queue)" in message


def test_a_filter_without_maps_says_so(load_text: Callable[[str], Filter]) -> None:
    with pytest.raises(MapValueError, match=r"^the filter 'f' has no map 'a'; it has none$"):
        load_text(HEAD + "PRE(f, lookup) { return 0; }\n").set("a", "b")


def test_a_map_without_types_says_so(one: Filter) -> None:
    fd = bpf.map_create(bpf.MapType.HASH, 4, 4, 4, name="bare")
    bare = PolicyMap("bare", fd, one.maps["uids"]._btf, 0, 0, shown="f.bare")

    with pytest.raises(MapValueError, match=r"^f\.bare: cannot be set, it has no type information$"):
        bare.set("1")
    bpf.map_update(fd, b"abcd", b"efgh")
    assert list(bare.items()) == [(b"abcd", b"efgh")]
    bare.close()
    bare.close()
