"""Hooks on the entries of listings, and what a listing must not slip past."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import support
from chain.chained import Chained, chained, source
from core.scenarios_dirs import Stream, fill
from core.table import attempt, in_child

FILTERS = """
FILTER(list, .altitude = 500)
BPF_ARRAY(way, u32, 1);

POST(list, dirent)
{
    u32 zero = 0, *at = way.lookup(&zero);

    switch (at ? *at : 0) {
    case 1: return FB_DROP;
    case 2: return ctx->name.text[10] & 1 ? FB_DROP : FB_CONTINUE; /* entry-00001: the last digit */
    case 3:
        ctx->name.text[0] = 'E';
        ctx->edits = FB_EDIT_NAME;
        return FB_REWRITE;
    case 4: ctx->name.text[0] = 'E'; return FB_CONTINUE;
    case 5:
        ctx->name.text[0] = '/';
        ctx->edits = FB_EDIT_NAME;
        return FB_REWRITE;
    case 6: return fb_name_is(ctx, "entry-00002") ? -EPERM : FB_CONTINUE;
    case 7: return ctx->args.dirent.type == 4 ? FB_DROP : FB_CONTINUE;
    case 8:
        ctx->name.text[5] = 0;
        ctx->name_len = 5;
        ctx->edits = FB_EDIT_NAME;
        return FB_REWRITE;
    }
    return FB_CONTINUE;
}

FILTER(count, .altitude = 400)
BPF_ARRAY(seen, u64, 1);
PRE(count, readdir) { ctx->cookie = 5; return FB_CONTINUE; }
BPF_ARRAY(bytes, u64, 1);
POST(count, readdir)
{
    u32 zero = 0;
    u64 *n = bytes.lookup(&zero);

    if (n)
        __sync_fetch_and_add(n, ctx->result.count);
    return FB_CONTINUE;
}
POST(count, dirent)
{
    u32 zero = 0;
    u64 *n = seen.lookup(&zero);

    if (n && ctx->cookie == 5)
        __sync_fetch_and_add(n, 1);
    return FB_CONTINUE;
}
"""


@pytest.fixture(scope="module")
def listed(run_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chained]:
    path = source(tmp_path_factory.mktemp("listed"), FILTERS, "listed")
    with chained(run_directory, [path]) as made:
        yield made


def listing(mount: Chained, way: int, count: int) -> tuple[Any, set[str]]:
    """What a listing of so many entries shows, and what is there."""
    through, behind = mount.fresh()
    names = fill(behind, count)
    with mount.map("list/way").put(0, way):
        return in_child(attempt, os.listdir, through), names


def test_every_entry_can_be_dropped(listed: Chained) -> None:
    assert listing(listed, 1, 3000)[0] == []


def test_every_second_entry_can_be_dropped(listed: Chained) -> None:
    found, names = listing(listed, 2, 3000)

    assert sorted(found) == sorted(name for name in names if int(name[-1]) % 2 == 0)


def test_seekdir_holds_where_entries_are_dropped(listed: Chained) -> None:
    through, behind = listed.fresh()
    fill(behind, 3000)

    def walk() -> Any:
        stream = Stream(through)
        places, names = [stream.tell()], []
        while (name := stream.next()) is not None:
            names.append(name)
            places.append(stream.tell())
        good = []
        for index in (1400, 3, 700, 0, 1501):
            stream.seek(places[index])
            good.append(stream.next() == names[index])
        stream.seek(places[1000])
        rest = stream.rest() == names[1000:]
        stream.close()
        return len(names), good, rest

    with listed.map("list/way").put(0, 2):
        assert in_child(walk) == (1502, [True] * 5, True)


def test_every_entry_can_be_renamed_and_shortened(listed: Chained) -> None:
    found, names = listing(listed, 3, 1000)
    assert sorted(found) == sorted("E" + name[1:] for name in names)

    assert listing(listed, 8, 3)[0] == ["entry"] * 3


def test_a_rename_that_was_not_declared_is_not_used(listed: Chained) -> None:
    found, names = listing(listed, 4, 10)

    assert set(found) == names


@pytest.mark.parametrize("way", [5, 6])
def test_a_bad_entry_fails_the_listing(listed: Chained, way: int) -> None:
    assert listing(listed, way, 10)[0] == "EIO"


def test_entries_show_their_type_and_not_the_dots(listed: Chained) -> None:
    through, behind = listed.fresh()
    (behind / "dir").mkdir()
    (behind / "file").write_text("x")
    seen = listed.map("count/seen", 8)
    before = seen[0]

    with listed.map("list/way").put(0, 7):
        assert in_child(os.listdir, through) == ["file"]
        stream_names = in_child(lambda: sorted(Stream(through).rest()))

    assert stream_names == [".", "..", "file"]
    assert seen[0] - before >= 2  # the lower hook saw both entries, with the cookie of its pre hook


def test_a_post_hook_on_readdir_is_told_how_many_bytes_the_listing_has(listed: Chained) -> None:
    n_bytes = listed.map("count/bytes", 8)
    before = n_bytes[0]

    found, _ = listing(listed, 0, 10)

    # An entry and its name take 40 bytes at least (linux/fuse.h: struct fuse_dirent), with attributes more.
    assert len(found) == 10
    assert n_bytes[0] - before >= 10 * 40


def test_a_listing_does_not_slip_past_a_lookup_hook(run_directory: Path, directory: Path) -> None:
    text = """
    FILTER(secret, .altitude = 500)
    PRE(secret, lookup) { return fb_name_starts(ctx, "secret") ? -EACCES : FB_CONTINUE; }
    """
    with chained(run_directory, [source(directory, text)]) as made:
        p = made.mounted.path
        for index in range(20):
            (made.mounted.src / f"secret{index}").write_text("x")
        (made.mounted.src / "open").write_text("x")

        found = in_child(lambda: [(e.name, attempt(lambda e=e: e.stat().st_size)) for e in os.scandir(p)])

        assert len(found) == 21
        assert dict(found)["open"] == 1
        assert {size for name, size in found if name != "open"} == {"EACCES"}
        assert support.run("ls", "-l", p, check=False).stderr.count("Permission denied") == 20
