"""`dirent`: what it shows of an entry, large directories, and renamed entries that lookups agree with."""

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import support
from chain.chained import Chained, chained, source
from core.scenarios_dirs import Stream
from core.table import in_child

from fusebpf import bpf

N = 100_000
FACTS = """
FILTER(facts, .altitude = 500)

struct fact { u64 ino, directory, wrong; u32 type, phase; };
BPF_TABLE("hash", struct fb_name, struct fact, facts__seen, 64);

PRE(facts, readdir) { ctx->cookie = ctx->nodeid; return FB_CONTINUE; }
POST(facts, dirent)
{
    struct fact fact = {};

    fact.ino = ctx->args.dirent.ino;
    fact.type = ctx->args.dirent.type;
    fact.directory = ctx->nodeid;
    fact.phase = ctx->phase;
    fact.wrong = ctx->nodeid != ctx->cookie || ctx->error || (ctx->type != 0040000);
    facts__seen.update(&ctx->name, &fact);
    return FB_CONTINUE;
}
"""
LARGE = """
FILTER(large, .altitude = 500)
BPF_ARRAY(way, u32, 1);

POST(large, dirent)
{
    u32 zero = 0, *at = way.lookup(&zero);

    switch (at ? *at : 0) {
    case 1: return FB_DROP;
    case 2: return fb_name_ends(ctx, "77") ? FB_CONTINUE : FB_DROP;
    case 3:
        ctx->name.text[0] = 'E';
        ctx->edits = FB_EDIT_NAME;
        return FB_REWRITE;
    }
    return FB_CONTINUE;
}
"""
# Behind the mount names begin with `_`, through it with `@`; what begins with `_` there is not to be had.
PREFIXED = """
FILTER(prefixed, .altitude = FB_VIEW + 1)

FB_ALWAYS_INLINE int prefixed_edit(struct fb_slot *ctx, struct fb_name *name, char from, char to, u64 edit)
{
    if (name->text[0] == from) {
        name->text[0] = to;
        ctx->edits |= edit;
    }
    return ctx->edits ? FB_REWRITE : FB_CONTINUE;
}

PRE(prefixed, name)
{
    if (ctx->name.text[0] == '_')
        return ctx->op == FB_OP_lookup ? FB_NEGATIVE : -EACCES;
    if (ctx->name2.text[0] == '_')
        return -EACCES;
    prefixed_edit(ctx, &ctx->name, '@', '_', FB_EDIT_NAME);
    return prefixed_edit(ctx, &ctx->name2, '@', '_', FB_EDIT_NAME2);
}

POST(prefixed, dirent) { return prefixed_edit(ctx, &ctx->name, '_', '@', FB_EDIT_NAME); }
"""


PUBLIC = """
FILTER(public, .altitude = FB_POLICY, .wants = FB_WANTS_PATH)

POST(public, dirent)
{
    static const char directory[] = "share/";
    u32 i, difference = 0;

#pragma clang loop unroll(full)
    for (i = 0; i < sizeof(directory) - 1; i++)
        difference |= ctx->path[i] ^ directory[i];
    if (difference || ctx->path_len != sizeof(directory) - 1 + ctx->name_len)
        return FB_CONTINUE;
    return fb_name_starts(ctx, "pub-") ? FB_CONTINUE : FB_DROP;
}

/* The listing as a whole has the directory's path again. */
POST(public, readdir)
{
    return ctx->path_len == 0 || ctx->path_len == 5 || ctx->path_len == 11 ? FB_CONTINUE : -EUCLEAN;
}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("dirent")


def facts_of(made: Chained, name: str) -> tuple[int, int, int, int, int]:
    """ino, directory, wrong, type, phase of the entry of that name."""
    fd = bpf.obj_get(made.mounted.pins / "facts/seen")
    try:
        value = bpf.map_lookup(fd, name.encode().ljust(256, b"\0"), 32)
    finally:
        os.close(fd)
    assert value is not None, name
    ino, directory, wrong, kind, phase = struct.unpack("3Q2I", value)
    return ino, directory, wrong, kind, phase


def test_an_entry_has_its_own_path(mount: support.Mounter, folder: Path) -> None:
    mounted = mount(filters=[source(folder, PUBLIC, "public")])
    for name in ("pub-a", "secret", "pub-b/secret", "share/pub-c", "share/secret", "share/share/secret"):
        path = mounted.src / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    os.mkdir(mounted.src / "share/pub-d")
    (mounted.src / "share/pub-d/secret").touch()

    listed = names_below(mounted.path)

    assert listed == [
        "pub-a",
        "pub-b",
        "pub-b/secret",
        "secret",
        "share",
        "share/pub-c",
        "share/pub-d",
        "share/pub-d/secret",
    ]


@pytest.mark.parametrize("has_attributes", [True, False])
def test_an_entry_shows_name_number_type_and_directory(
    run_directory: Path, folder: Path, has_attributes: bool
) -> None:
    with chained(run_directory, [source(folder, FACTS, "facts")]) as made:
        p, behind = made.fresh()
        (behind / "file").write_text("x")
        (behind / "dir").mkdir()
        os.symlink("x", behind / "link")
        os.mkfifo(behind / "fifo")

        def act() -> list[str]:
            stream = Stream(p)
            if has_attributes:  # the kernel asks for them in the first listing, and where lookups follow
                return sorted([entry.name for entry in os.scandir(p) if entry.stat(follow_symlinks=False)])
            stream.rest()
            stream.seek(0)
            return sorted(set(stream.rest()) - {".", ".."})

        assert in_child(act) == ["dir", "fifo", "file", "link"]
        for name, kind in (("file", 8), ("dir", 4), ("link", 10), ("fifo", 1)):
            ino, directory, wrong, seen_kind, phase = facts_of(made, name)
            assert (ino, seen_kind, wrong, phase) == (os.lstat(behind / name).st_ino, kind, 0, 1)
            assert directory > 1
        for name in (".", ".."):
            with pytest.raises(AssertionError):
                facts_of(made, name)


@pytest.fixture(scope="module")
def large(run_directory: Path, folder: Path) -> Iterator[tuple[Chained, Path]]:
    """A mount, and a directory of it with very many entries."""
    with chained(run_directory, [source(folder, LARGE, "large")]) as made:
        p, behind = made.fresh()
        fd = os.open(behind, os.O_RDONLY)
        (behind / "e00000").write_text("x")
        for number in range(1, N):
            # Of few inodes, for they take longer: links, which an inode may have 65,000 of.
            if number % 50_000 == 0:
                os.close(os.open(f"e{number:05}", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
                continue
            first = f"e{number - number % 50_000:05}"
            os.link(first, f"e{number:05}", src_dir_fd=fd, dst_dir_fd=fd)
        os.close(fd)
        yield made, p


def test_a_listing_of_very_many_entries_is_whole(large: tuple[Chained, Path]) -> None:
    _, p = large
    assert sorted(in_child(os.listdir, p)) == [f"e{number:05}" for number in range(N)]


def test_all_of_very_many_entries_can_be_dropped(large: tuple[Chained, Path]) -> None:
    made, p = large
    with made.map("large/way").put(0, 1):
        assert in_child(os.listdir, p) == []


def test_few_of_very_many_entries_are_found_and_found_again(large: tuple[Chained, Path]) -> None:
    made, p = large

    def act() -> Any:
        stream = Stream(p)
        places, names = [stream.tell()], []
        while (name := stream.next()) is not None:
            names.append(name)
            places.append(stream.tell())
        good = []
        for index in (900, 2, 501, 0):
            stream.seek(places[index])
            good.append(stream.next() == names[index])
        stream.seek(places[400])
        rest = stream.rest()
        stream.close()
        return sorted(set(names) - {".", ".."}), good, rest == names[400:]

    with made.map("large/way").put(0, 2):
        names, good, is_rest = in_child(act)

    assert names == [f"e{number:05}" for number in range(77, N, 100)]
    assert good == [True] * 4
    assert is_rest


def test_all_of_very_many_entries_can_be_renamed(large: tuple[Chained, Path]) -> None:
    made, p = large
    with made.map("large/way").put(0, 3):
        found = in_child(os.listdir, p)
    assert len(found) == N
    assert {name[0] for name in found} == {"E"}


@pytest.fixture
def prefixed(run_directory: Path, folder: Path) -> Iterator[tuple[Path, Path]]:
    """A tree with names that are others through the mount: through it, and behind it."""
    with chained(run_directory, [source(folder, PREFIXED, "prefixed")]) as made:
        p, behind = made.fresh()
        (behind / "_d/_e").mkdir(parents=True)
        (behind / "_d/_e/_f").write_text("deep")
        (behind / "_d/plain").write_text("plain")
        (behind / "_f").write_text("text")
        yield p, behind


def names_below(path: Path) -> list[str]:
    return sorted(str(found.relative_to(path)) for found in path.rglob("*"))


def test_renamed_entries_and_lookups_agree(prefixed: tuple[Path, Path]) -> None:
    p, _ = prefixed

    listed = support.run("ls", "-l", p).stdout
    assert "@f" in listed
    assert "_f" not in listed
    found = support.run("find", ".", "-name", "@*", "-printf", "%P %y %s\\n", cwd=p).stdout.splitlines()
    assert sorted(line.split()[0] for line in found) == ["@d", "@d/@e", "@d/@e/@f", "@f"]
    assert in_child(names_below, p) == ["@d", "@d/@e", "@d/@e/@f", "@d/plain", "@f"]
    assert support.run("cat", "@d/@e/@f", cwd=p).stdout == "deep"
    assert "No such file" in support.run("cat", "_f", cwd=p, check=False).stderr


def test_renamed_entries_can_be_copied_moved_and_removed(prefixed: tuple[Path, Path]) -> None:
    p, behind = prefixed

    support.run("cp", "-a", "@d", "@copy", cwd=p)
    support.run("mv", "@copy/@e/@f", "@copy/@moved", cwd=p)
    support.run("tar", "-cf", "@all.tar", "@copy", cwd=p)
    assert names_below(behind / "_copy") == ["_e", "_moved", "plain"]
    assert sorted(support.run("tar", "-tf", "@all.tar", cwd=p).stdout.split()) == [
        "@copy/",
        "@copy/@e/",
        "@copy/@moved",
        "@copy/plain",
    ]
    support.run("rm", "-r", "@d", "@copy", "@f", "@all.tar", cwd=p)
    assert names_below(behind) == []
