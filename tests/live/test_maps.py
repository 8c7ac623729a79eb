"""Policy maps of a mount that works: by the command, from Python, and with bpftool."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import support
import trio
from cli_support import assert_refused
from live.live_support import fusebpf

import fusebpf as package
from fusebpf import FusebpfError, Stack
from fusebpf.map_view import MapView, pinned

TYPED = """
#include "fusebpf.h"
FILTER(typed, .altitude = 5)
struct pair { u32 low; s64 high; };
struct said { enum fb_errno error; bool on; u8 raw[4]; char text[16]; };
BPF_HASH(typed__pairs, struct pair, struct said, 3);
BPF_HASH(typed__users, u32, u64, 16);
BPF_HASH(typed__names, struct fb_name, s32, 16);
BPF_ARRAY(typed__limits, u64, 4);
BPF_PERCPU_ARRAY(typed__seen, u64, 1);
PRE(typed, mkdir)
{
	struct pair pair = {};
	u32 first = 0;
	u64 *seen = typed__seen.lookup(&first);

	typed__pairs.lookup(&pair);
	typed__users.lookup(&first);
	typed__limits.lookup(&first);
	typed__names.lookup(&ctx->name);
	if (seen)
		*seen += 1;
	return FB_CONTINUE;
}
"""


@pytest.fixture(scope="module")
def mounted(run_directory: Path) -> Iterator[support.Mounted]:
    directory = run_directory / "maps"
    directory.mkdir(mode=0o755)
    source = directory / "typed.c"
    source.write_text(TYPED)
    mounter = support.Mounter(directory, "maps-")
    yield mounter(filters=["hide", "deny", "readonly", source], sets={"readonly.paths": "nothing"})
    assert mounter.take_down() == []


def said(mounted: support.Mounted, *words: str) -> str:
    """What `fusebpf map` prints."""
    return fusebpf("map", mounted.name, *words).stdout


@pytest.fixture
def view(mounted: support.Mounted, request: pytest.FixtureRequest) -> Iterator[MapView]:
    """The map that the test is about, emptied."""
    found = pinned(mounted.pins, *request.param.split("."))
    found.clear()
    yield MapView(lambda: found)
    found.close()


def of(name: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("view", [name], indirect=True)


def test_patterns_are_added_and_deleted_one_by_one_and_work_at_once(mounted: support.Mounted) -> None:
    for name in ("a.key", "b.pem", "plain"):
        (mounted.src / name).touch()

    said(mounted, "hide", "names", "set", "*.key")
    said(mounted, "hide", "names", "set", "*.pem")
    assert [path.name for path in mounted.path.iterdir()] == ["plain"]
    said(mounted, "hide", "names", "delete", "*.key")

    assert sorted(path.name for path in mounted.path.iterdir()) == ["a.key", "plain"]
    assert (mounted.path / "a.key").exists()
    assert said(mounted, "hide", "names") == "*.pem\n"
    assert json.loads(said(mounted, "hide", "names", "list", "--json")) == ["*.pem"]
    assert said(mounted, "hide", "names", "get", "*.pem") == "1\n"


def test_fields_are_said_in_order_or_by_name(mounted: support.Mounted) -> None:
    (mounted.src / "kept").touch()

    said(mounted, "deny", "rules", "set", "unlink:*:kept", "EDQUOT")
    said(mounted, "deny", "rules", "set", "op=mkdir,name=tmp", "error=EROFS")

    assert sorted(said(mounted, "deny", "rules").splitlines()) == [
        "mkdir:*:tmp:EROFS",
        "unlink:*:kept:EDQUOT",
    ]
    assert "quota" in support.run("rm", "-f", mounted.path / "kept", check=False).stderr.lower()
    assert said(mounted, "deny", "rules", "get", "unlink:*:kept") == "EDQUOT\n"
    assert json.loads(said(mounted, "deny", "rules", "get", "unlink:*:kept", "--json")) == {
        "error": "FB_EDQUOT"
    }
    said(mounted, "deny", "rules", "delete", "unlink:*:kept")
    support.run("rm", mounted.path / "kept")


def test_a_name_with_control_characters_is_one_line_and_does_nothing_to_a_terminal(
    mounted: support.Mounted,
) -> None:
    names = ("a\nb", "\x1b[31m", "\x9b31m", "\udcff", "ü c")

    for name in names:
        said(mounted, "typed", "names", "set", name, "1")
    listed = said(mounted, "typed", "names").splitlines()
    for name in names:
        said(mounted, "typed", "names", "delete", name)

    assert set(listed) == {r"'a\nb=1'", r"'\x1b[31m=1'", r"'\x9b31m=1'", "\udcff=1", r"ü\ c=1"}


def test_a_map_that_is_full_says_so(mounted: support.Mounted) -> None:
    for key in range(3):
        said(mounted, "typed", "pairs", "set", f"{key}:9", "EPERM:yes:00000000:x")

    done = support.run(
        support.COMMAND,
        "map",
        mounted.name,
        "typed",
        "pairs",
        "set",
        "3:9",
        "EPERM:yes:00000000:x",
        check=False,
    )
    for key in range(3):
        said(mounted, "typed", "pairs", "delete", f"{key}:9")

    assert (done.returncode, done.stderr) == (
        2,
        "fusebpf: typed.pairs: the kernel refuses it: it is full, with 3 items\n",
    )


def test_what_bpftool_writes_counts_as_much(mounted: support.Mounted) -> None:
    path = mounted.pins / "typed" / "users"
    key, value = ["7", "0", "0", "0"], ["0x2a", *"0000000"]

    support.run("bpftool", "map", "update", "pinned", path, "key", *key, "value", *value)
    assert said(mounted, "typed", "users", "get", "7") == "42\n"
    said(mounted, "typed", "users", "set", "0x10", "2k")

    assert {row["formatted"]["key"]: row["formatted"]["value"] for row in mounted.dump("typed/users")} == {
        7: 42,
        16: 2048,
    }


@pytest.mark.parametrize(
    ("words", "exit_code", "parts"),
    [
        (["hide", "names", "delete", "nosuch"], 1, ["hide.names has no pattern 'nosuch'"]),
        (["deny", "rules", "set", "dirent:*:a", "EPERM"], 2, ["op in 'dirent:*:a': ", "no hook on 'dirent'"]),
        (["hide", "names", "set", "a/b"], 2, ["'a/b' matches no name"]),
        (["readonly", "paths", "set", "/"], 2, ["'/' is the root itself"]),
        (["readonly", "paths", "set", "a/../b"], 2, ["'a/../b' matches no path"]),
        (["hide", "names", "set", "x" * 256], 2, ["256 bytes"]),
        (["typed", "users", "set", "x", "1"], 2, ["typed.users", "'x' is not a number"]),
        (["typed", "users", "set", "5", "9" * 30], 2, ["out of range"]),
        (["typed", "users", "get", "77"], 1, ["typed.users has no '77'"]),
        (["typed", "users", "get"], 2, ["`get` takes KEY"]),
        (["typed", "users", "set"], 2, ["`set` takes KEY VALUE"]),
        (["typed", "limits", "set", "4", "1"], 1, ["no element 4", "4, from 0"]),
        (["typed", "limits", "set", "1"], 2, ["KEY VALUE", "array of 4"]),
        (["typed", "limits", "delete", "1"], 2, ["cannot be deleted"]),
        (["typed", "seen", "set", "0", "1"], 2, ["typed.seen", "cannot be set"]),
        (["typed", "pairs", "set", "1", "x"], 2, ["'1' has 1 field, wanted are low:high"]),
        (["typed", "pairs", "set", "1:2", "nosuch:yes:00000000:x"], 2, ["'nosuch' is no errno"]),
        (["typed", "pairs", "set", "1:2", "EPERM:yes:00:x"], 2, ["'00' has 1 bytes, 4 are wanted"]),
        (["typed", "nosuch"], 2, ["no map 'nosuch'", "limits, names, pairs, seen, users"]),
        (["typed", "pre_mkdir"], 2, ["no map 'pre_mkdir'"]),
        (["nosuch", "names"], 2, ["no filter 'nosuch'", "deny, hide, readonly, typed"]),
        (["typed", "users", "empty"], 2, ["empty"]),
        (["typed", "limits", "set", "5"], 2, ["it is an array of 4"]),
    ],
    ids=lambda words: "-".join(words)[:40] if isinstance(words, list) else "",
)
def test_what_does_not_fit_is_named(
    mounted: support.Mounted, words: list[str], exit_code: int, parts: list[str]
) -> None:
    assert_refused(fusebpf("map", mounted.name, *words, check=False), exit_code, *parts)


@of("typed.pairs")
def test_structs_are_dictionaries_texts_or_tuples(view: MapView) -> None:
    view[{"low": 1, "high": -5}] = {"error": "ENOENT", "on": True, "raw": [222, 173, 190, 239], "text": "a:b"}
    view["2:7"] = "EPERM:no:00000000:x"
    view[3, 8] = (0, 1, b"\1\2\3\4".hex(), "y")

    assert view["1:-5"] == {"error": "FB_ENOENT", "on": True, "raw": [222, 173, 190, 239], "text": "a:b"}
    assert sorted(view) == ["1:-5", "2:7", "3:8"]
    assert "1:-5:ENOENT:1:deadbeef:a\\:b" in view.items_as_text()
    with pytest.raises(package.MapValueError, match="the kernel refuses it"):
        view["4:1"] = "EPERM:no:00000000:x"
    with pytest.raises(package.MapValueError, match=r"'text'.*the fields are error, on, raw, text"):
        view["3:8"] = {"error": 1, "on": True, "raw": "00000000"}
    with pytest.raises(package.MapValueError, match="'nosuch'"):
        view["3:8"] = {"nosuch": 1}
    del view["2:7"]
    assert len(view) == 2


@of("typed.names")
def test_names_may_hold_any_bytes(view: MapView) -> None:
    for name in ("a:b,c=d", b"\xff", "*.x", " "):
        view[name] = -3

    assert view["a:b,c=d"] == view[b"\xff"] == -3
    assert sorted(view) == [" ", "*.x", "a:b,c=d", "\udcff"]
    assert "a\\:b\\,c\\=d=-3" in view.items_as_text()


@of("typed.limits")
def test_an_array_is_a_dictionary_of_its_indexes(view: MapView) -> None:
    view[2] = 7
    view["3"] = "0x10"

    assert dict(view) == {0: 0, 1: 0, 2: 7, 3: 16}
    with pytest.raises(KeyError, match="no element 4"):
        view[4]


@of("typed.users")
def test_a_view_does_all_that_a_dictionary_does(view: MapView) -> None:
    view.update({1: 10, 2: 20})

    assert (1 in view, 3 in view) == (True, False)
    assert view.pop(1) == 10
    assert view.setdefault(2, 5) == 20
    assert list(view.items()) == [(2, 20)]
    assert "typed.users" in repr(view)
    view.clear()
    assert len(view) == 0
    with pytest.raises(KeyError):
        del view[1]


@of("hide.names")
def test_patterns_are_a_set_in_a_dictionary(view: MapView) -> None:
    for pattern in ("a", "b", "c", "b"):
        view[pattern] = True
    del view["a"]

    assert sorted(view) == ["b", "c"]
    assert view["b"] is True
    assert "a" not in view
    with pytest.raises(FusebpfError, match="True or 1"):
        view["d"] = False
    for number in range(61):
        view[f"p{number}"] = 1
    with pytest.raises(FusebpfError, match="at most 63"):
        view["one more"] = True


@of("readonly.paths")
def test_paths_are_taken_as_set_takes_them(view: MapView) -> None:
    view["/etc/"] = True

    assert list(view) == ["etc"]
    assert "/etc/" in view
    del view["/etc"]


def test_a_stack_gives_its_maps(directory: Path) -> None:
    for name in ("src", "mnt", "src/a.key"):
        (directory / name).mkdir()

    async def main() -> Any:
        async with Stack(directory / "src", directory / "mnt") as stack:
            await stack.attach("hide")
            names = stack.map("hide", "names")
            names["*.key"] = True
            seen = await trio.to_thread.run_sync(lambda: list((directory / "mnt").iterdir()))
            await stack.replace("hide", "hide", fresh_maps=True)
            fresh = dict(names)
            await stack.detach("hide")
            with pytest.raises(package.ChainError, match="'hide' is no filter"):
                len(names)
            with pytest.raises(package.ChainError):
                stack.map("hide", "names")
            return seen, fresh

    assert trio.run(main) == ([], {})
