"""Ops that a filter leads to other names than the kernel asked for: it is told what became of which."""

import ctypes
import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import serving
import support
from chain.chained import source
from core.table import checked, in_child, libc

from fusebpf.testing import Chain

EXCHANGE = 2
NAMES = "abxy"
REWRITE = """
#define NAME(to, len, letter) ({ __builtin_memset((to).text, 0, 256); (to).text[0] = letter; len = 1; })
#define FROM_X NAME(ctx->name, ctx->name_len, 'x'); ctx->edits |= FB_EDIT_NAME
#define TO_Y NAME(ctx->name2, ctx->name2_len, 'y'); ctx->edits |= FB_EDIT_NAME2
#define FLAGS(value) ctx->args.rename.flags = value; ctx->edits |= FB_EDIT_FLAGS
FILTER(elsewhere, .altitude = 500)
"""


def rename(flags: int = 0) -> Callable[[Path], object]:
    def act(p: Path) -> int:
        old, new = os.fsencode(p / "a"), os.fsencode(p / "b")
        return checked(libc.renameat2(ctypes.c_int(-100), old, ctypes.c_int(-100), new, flags))

    return act


def files(p: Path) -> None:
    for name in NAMES:
        (p / name).write_text(name)


def directories(p: Path) -> None:
    for name in NAMES:
        (p / name).mkdir()


def without_b(p: Path) -> None:
    for name in "ax":
        (p / name).write_text(name)


# op, what its hook edits, what is there, what is done with a (and b)
ROWS = {
    "unlink": ("unlink", "FROM_X", files, lambda p: os.unlink(p / "a")),
    "rmdir": ("rmdir", "FROM_X", directories, lambda p: os.rmdir(p / "a")),
    "rename from elsewhere": ("rename", "FROM_X", without_b, rename()),
    "rename from elsewhere over": ("rename", "FROM_X", files, rename()),
    "rename to elsewhere": ("rename", "TO_Y", without_b, rename()),
    "rename to elsewhere over": ("rename", "TO_Y", files, rename()),
    "rename both": ("rename", "FROM_X; TO_Y", files, rename()),
    "rename directories": ("rename", "FROM_X; TO_Y", directories, rename()),
    "exchange from elsewhere": ("rename", "FROM_X", files, rename(EXCHANGE)),
    "exchange both": ("rename", "FROM_X; TO_Y", files, rename(EXCHANGE)),
    "exchange becomes rename": ("rename", "FLAGS(0)", files, rename(EXCHANGE)),
    "rename becomes exchange": ("rename", "FLAGS(2)", files, rename()),
}


def seen(p: Path) -> dict[str, tuple[int, int] | None]:
    """Which files the names lead to."""
    found: dict[str, tuple[int, int] | None] = {}
    for name in NAMES:
        try:
            one = (p / name).lstat()
        except FileNotFoundError:
            found[name] = None
        else:
            found[name] = (one.st_ino, one.st_nlink)
    return found


@pytest.mark.parametrize("options", ["cache=watch", "ttl=3600"])
@pytest.mark.parametrize("row", ROWS)
def test_all_names_lead_where_they_do_behind_the_mount(directory: Path, row: str, options: str) -> None:
    op, edits, prepare, act = ROWS[row]
    text = f"{REWRITE}PRE(elsewhere, {op}) {{ {edits}; return FB_REWRITE; }}"
    (directory / "src").mkdir()
    prepare(directory / "src")
    with serving.serve(directory, "elsewhere", filters=[source(directory, text)], options=options) as served:
        before = in_child(seen, served.path)
        in_child(act, served.path)

        behind = seen(served.src)
        assert behind != before
        support.wait_until(lambda: in_child(seen, served.path) == behind)
        assert served.counters()["failed_closed"] == 0


SEEN = """
#include "fusebpf.h"
FILTER(seen, .altitude = 600, .wants = FB_WANTS_PATH)
BPF_HASH(seen__names, struct fb_name, u32);
PRE(seen, any) { return FB_CONTINUE; }
POST(seen, name)
{
	u32 one = 1;

	seen__names.update(&ctx->name, &one);
	seen__names.update((struct fb_name *)ctx->path, &one);
	return FB_CONTINUE;
}
"""


@pytest.mark.parametrize("altitude", [400, 600])
def test_a_post_hook_sees_the_name_and_path_that_its_filter_was_asked_with(
    mount: support.Mounter, tmp_path: Path, altitude: int
) -> None:
    """Above the filter that leads to another name the caller's, below it that one."""
    seen = tmp_path / "seen.c"
    seen.write_text(SEEN)
    rules = {"redirect.names": "shown:stored"}
    mounted = mount(filters=["redirect", f"{seen}@{altitude}"], sets=rules)
    (mounted.path / "d").mkdir()

    (mounted.path / "d" / "shown").mkdir()
    (mounted.path / "d" / "shown").rmdir()

    name = "shown" if altitude == 600 else "stored"
    names = {support.bytes_of(row["formatted"]["key"]["text"]) for row in mounted.dump("seen/names")}
    assert {name, f"d/{name}"} <= names
    assert not {"shown", "stored", "d/shown", "d/stored"} - {name, f"d/{name}"} & names
    used = [support.bytes_of(row["formatted"]["value"]["name"]) for row in mounted.dump("recent")]
    assert used.count("stored") >= 3
    assert "shown" not in used


def test_a_rename_to_other_names_can_be_rehearsed() -> None:
    maps = {"redirect.names": "shown:stored", "readonly.paths": "d/stored"}
    with Chain(["redirect", "readonly@500"], maps=maps) as chain:
        run = chain.run("rename", name=b"shown", path=b"d/shown", name2=b"y", path2=b"d/y")

    assert run.error == errno.EROFS


TYPES = """
#include "fusebpf.h"
FILTER(types, .altitude = 600, .wants = FB_WANTS_PATH)
BPF_ARRAY(types__seen, u32, 2);
FB_ALWAYS_INLINE int note(struct fb_slot *ctx, u32 at)
{
	u32 seen = FIELD;

	types__seen.update(&at, &seen);
	return FB_CONTINUE;
}
PRE(types, OP) { return note(ctx, 0); }
POST(types, OP) { return note(ctx, 1); }
"""


def types_seen(mounted: support.Mounted) -> list[int]:
    """What the filter saw before the op, and after it."""
    return [row["formatted"]["value"] for row in mounted.dump("types/seen")]


def test_a_post_hook_above_one_that_changes_the_root_sees_the_type_that_it_was_asked_with(
    mount: support.Mounter, tmp_path: Path
) -> None:
    upper, lower = tmp_path / "types.c", tmp_path / "lower.c"
    upper.write_text(TYPES.replace("FIELD", "ctx->args.rename.type").replace("OP", "rename"))
    lower.write_text(
        '#include "fusebpf.h"\nFILTER(lower, .altitude = 500)\n'
        "PRE(lower, rename) { ctx->backing = 1; ctx->edits |= FB_EDIT_BACKING; return FB_REWRITE; }\n"
    )
    other = mount.new_directory("other")
    mounted = mount(filters=[upper, lower], options=f"root={other}")
    (mounted.src / "x").mkdir()
    (other / "x").touch()

    (mounted.path / "x").rename(mounted.path / "y")

    assert types_seen(mounted) == [stat.S_IFDIR, stat.S_IFDIR]
    assert os.listdir(other) == ["y"]


def test_a_post_hook_of_link_sees_the_path_that_it_was_asked_with_where_the_new_one_is_too_long(
    mount: support.Mounter, tmp_path: Path
) -> None:
    upper, lower = tmp_path / "types.c", tmp_path / "lower.c"
    upper.write_text(TYPES.replace("FIELD", "ctx->path_len").replace("OP", "link"))
    lower.write_text(
        '#include "fusebpf.h"\nFILTER(lower, .altitude = 500)\nPRE(lower, link)\n{\n'
        "\t__builtin_memset(ctx->name.text, 'b', 200);\n\tctx->name_len = 200;\n"
        "\tctx->edits |= FB_EDIT_NAME;\n\treturn FB_REWRITE;\n}\n"
    )
    mounted = mount(filters=[upper, lower])
    (mounted.src / "file").touch()
    deep = os.open(mounted.path, os.O_PATH)
    try:
        for _ in range(20):
            os.mkdir("d" * 196, dir_fd=deep)
            deep, above = os.open("d" * 196, os.O_PATH, dir_fd=deep), deep
            os.close(above)
        os.link(mounted.path / "file", "a", dst_dir_fd=deep)
    finally:
        os.close(deep)

    assert types_seen(mounted) == [len("file")] * 2
