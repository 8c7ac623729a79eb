"""Tags: own and inherited, below renamed directories, of hard links; and what becomes of them."""

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import support
from chain.chained import HERE, OPCODES, Chained, chained, source
from chain.triggers import prepared
from core.table import attempt, checked, in_child, libc

from fusebpf import bpf
from fusebpf._core import OP_FLAGS, OPS

pytestmark = pytest.mark.alone

SECRET = 7
RENAME_EXCHANGE = 2
ENTRY, UNREFUSABLE, POST_ONLY = (OP_FLAGS[name] for name in ("ENTRY", "UNREFUSABLE", "POST_ONLY"))
HOOKED = {
    name: flags
    for name, _, _, flags, kind, _ in OPS
    if kind == "hook" and not flags & (UNREFUSABLE | POST_ONLY) and name not in {"access", "poll"}
}


class Seen(NamedTuple):
    """What the hooks of a filter saw of the last op of a kind."""

    before: int
    after: int
    second: int
    before_mixed: int
    after_mixed: int


class Tags:
    """A mount through tags.c, and what its filters are to do."""

    def __init__(self, made: Chained) -> None:
        self.made = made
        self.fresh = made.fresh

    def seen(self, op: str, filter_name: str = "one") -> Seen:
        fd = bpf.obj_get(self.made.mounted.pins / filter_name / "seen")
        try:
            value = bpf.map_lookup(fd, OPCODES[op].to_bytes(4, "little"), 40)
        finally:
            os.close(fd)
        assert value is not None
        return Seen(*struct.unpack("5Q", value))

    def set(self, path: Path | int, value: int, filter_name: str = "one") -> None:
        """Tag what chmod(2) names."""
        with self.made.map(f"{filter_name}/set_before", 8).put(OPCODES["setattr"], value + 1):
            in_child(os.chmod, path, 0o755)

    def of(self, path: Path | int, filter_name: str = "one") -> int:
        """The tag that chmod(2)'s hook sees."""
        in_child(os.chmod, path, 0o755)
        return self.seen("setattr", filter_name).before

    def is_mixed(self, path: Path) -> bool:
        in_child(os.chmod, path, 0o755)
        return bool(self.seen("setattr").before_mixed)


@pytest.fixture(scope="module")
def tags(run_directory: Path) -> Iterator[Tags]:
    with chained(run_directory, [HERE / "tags.c"]) as made:
        yield Tags(made)


def forget(path: Path) -> None:
    """Have the kernel forget what nobody uses."""
    support.run("sync", "-f", path)
    Path("/proc/sys/vm/drop_caches").write_text("2")


def test_a_tag_is_its_own_filters_and_goes_with_the_inode(tags: Tags) -> None:
    p, _ = tags.fresh()
    (p / "f").write_text("x")
    (p / "g").write_text("x")
    tags.set(p / "f", 5)
    tags.set(p / "f", 2**64 - 2, "two")

    assert (tags.of(p / "f"), tags.of(p / "f", "two")) == (5, 2**64 - 2)
    assert (tags.of(p / "g"), tags.of(p / "g", "two")) == (0, 0)
    os.rename(p / "f", p / "h")
    assert tags.of(p / "h") == 5


def test_a_tag_is_inherited_by_all_that_is_below(tags: Tags) -> None:
    p, behind = tags.fresh()
    (behind / "a/b/c").mkdir(parents=True)
    (behind / "a/b/c/old").write_text("x")
    tags.set(p / "a", SECRET)

    (p / "a/b/c/new").write_text("x")
    (p / "a/made").mkdir()
    assert {tags.of(p / "a" / below) for below in ("", "b", "b/c", "b/c/old", "b/c/new", "made")} == {SECRET}
    assert tags.of(p) == 0
    assert tags.of(p / "a", "two") == 0


def test_the_nearest_own_tag_counts_and_clearing_it_inherits_again(tags: Tags) -> None:
    p, behind = tags.fresh()
    (behind / "a/b/c").mkdir(parents=True)
    tags.set(p / "a", 1)
    tags.set(p / "a/b", 2)
    assert [tags.of(p / d) for d in ("a", "a/b", "a/b/c")] == [1, 2, 2]

    tags.set(p / "a/b", 0)
    assert [tags.of(p / d) for d in ("a", "a/b", "a/b/c")] == [1, 1, 1]
    tags.set(p / "a", 0)
    assert [tags.of(p / d) for d in ("a", "a/b", "a/b/c")] == [0, 0, 0]


def test_the_root_can_be_tagged(run_directory: Path) -> None:
    with chained(run_directory, [HERE / "tags.c"]) as made:
        tags = Tags(made)
        p, _ = tags.fresh()
        tags.set(made.mounted.path, 3)

        assert tags.of(p) == 3


def test_a_renamed_tree_derives_again_by_path_and_by_descriptor(tags: Tags) -> None:
    p, behind = tags.fresh()
    (behind / "tagged").mkdir()
    (behind / "free/sub/deep").mkdir(parents=True)
    (behind / "free/sub/deep/f").write_text("x")
    tags.set(p / "tagged", SECRET)
    deep = os.open(p / "free/sub/deep", os.O_RDONLY)
    f = os.open(p / "free/sub/deep/f", os.O_RDWR)
    try:
        assert tags.of(f) == tags.of(deep) == tags.of(p / "free/sub/deep/f") == 0

        os.rename(p / "free/sub", p / "tagged/sub")
        assert tags.of(f) == tags.of(deep) == SECRET, "no lookup came between"
        os.pwrite(f, b"y", 0)
        assert tags.seen("write").before == SECRET
        assert tags.of(p / "tagged/sub/deep/f") == SECRET

        os.rename(p / "tagged/sub", p / "free/sub")
        assert tags.of(f) == tags.of(deep) == tags.of(p / "free/sub/deep/f") == 0
    finally:
        os.close(f)
        os.close(deep)


def test_an_exchange_of_directories_exchanges_what_is_inherited(tags: Tags) -> None:
    p, behind = tags.fresh()
    for name in ("a/x/in-x", "b/y/in-y"):
        (behind / name).mkdir(parents=True)
    tags.set(p / "a", 1)
    tags.set(p / "b", 2)
    assert [tags.of(p / d) for d in ("a/x/in-x", "b/y/in-y")] == [1, 2]

    checked(libc.renameat2(-100, os.fsencode(p / "a/x"), -100, os.fsencode(p / "b/y"), RENAME_EXCHANGE))
    assert sorted(os.listdir(p / "a/x")) == ["in-y"]
    assert [tags.of(p / d) for d in ("a/x/in-y", "b/y/in-x")] == [1, 2]


def test_what_moves_behind_the_mount_derives_when_it_is_looked_up(tags: Tags) -> None:
    p, behind = tags.fresh()
    (behind / "tagged").mkdir()
    (behind / "free/sub").mkdir(parents=True)
    (behind / "free/f").write_text("x")
    tags.set(p / "tagged", SECRET)
    assert tags.of(p / "free/sub") == tags.of(p / "free/f") == 0

    os.rename(behind / "free/sub", behind / "tagged/sub")
    os.rename(behind / "free/f", behind / "tagged/f")
    assert tags.of(p / "tagged/sub") == tags.of(p / "tagged/f") == SECRET
    assert not tags.is_mixed(p / "tagged/f"), "it was moved, not linked"


def test_rename_link_and_copy_see_the_second_tag(tags: Tags) -> None:
    p, behind = tags.fresh()
    (behind / "tagged").mkdir()
    (behind / "f").write_text("0123")
    (behind / "g").write_text("0123")
    tags.set(p / "tagged", SECRET)
    tags.set(p / "g", 4)

    os.rename(p / "f", p / "tagged/f")
    assert tags.seen("rename")[:3:2] == (0, SECRET)
    os.link(p / "g", p / "tagged/link")
    assert tags.seen("link")[:3:2] == (SECRET, 4)
    with (p / "tagged/f").open("rb") as source_file, (p / "g").open("r+b") as target:
        os.copy_file_range(source_file.fileno(), target.fileno(), 4)
    assert tags.seen("copy_file_range")[:3:2] == (SECRET, 4)


def test_a_hard_link_does_not_launder_a_tag(tags: Tags) -> None:
    p, behind = tags.fresh()
    for name in ("vault", "pub", "also"):
        (behind / name).mkdir()
    (behind / "vault/f").write_text("x")
    tags.set(p / "vault", SECRET)
    assert tags.of(p / "vault/f") == SECRET
    assert not tags.is_mixed(p / "vault/f")

    os.link(p / "vault/f", p / "pub/f")
    assert tags.seen("link").after_mixed
    for path in (p / "pub/f", p / "vault/f", p / "pub/f"):
        assert tags.is_mixed(path)
        assert tags.of(path) == SECRET

    os.link(behind / "vault/f", behind / "also/f")
    assert tags.of(p / "also/f") == SECRET
    assert tags.seen("lookup")[0] == 0, "the lookup's own tag is that of the directory"
    assert tags.seen("lookup").after_mixed

    os.unlink(p / "vault/f")
    os.unlink(behind / "also/f")
    assert tags.of(p / "pub/f") == 0, "one link is left"
    assert not tags.is_mixed(p / "pub/f")


def test_a_link_that_was_there_before_is_mixed_whichever_was_looked_up_first(tags: Tags) -> None:
    p, behind = tags.fresh()
    (behind / "vault").mkdir()
    (behind / "vault/f").write_text("x")
    os.link(behind / "vault/f", behind / "f")
    tags.set(p / "vault", SECRET)

    assert tags.of(p / "f") == 0
    assert not tags.is_mixed(p / "f")
    assert tags.of(p / "vault/f") == SECRET
    assert tags.is_mixed(p / "vault/f")
    assert tags.of(p / "f") == SECRET


def test_links_below_one_tag_are_not_mixed(tags: Tags) -> None:
    p, behind = tags.fresh()
    (behind / "vault/a").mkdir(parents=True)
    (behind / "vault/b").mkdir()
    (behind / "vault/a/f").write_text("x")
    tags.set(p / "vault", SECRET)
    os.link(p / "vault/a/f", p / "vault/b/f")

    for name in ("vault/a/f", "vault/b/f", "vault/a/f"):
        assert tags.of(p / name) == SECRET
        assert not tags.is_mixed(p / name)


def test_entries_of_a_mixed_file_are_not_kept_and_others_are(run_directory: Path, directory: Path) -> None:
    text = """
    FILTER(vault, .altitude = 500)
    BPF_ARRAY(lookups, u32, 1);
    PRE(vault, lookup)
    {
        u32 zero = 0, *n = lookups.lookup(&zero);

        if (n && fb_name_is(ctx, "f"))
            __sync_fetch_and_add(n, 1);
        return FB_CONTINUE;
    }
    POST(vault, lookup)
    {
        ctx->ttl_ns = 3600000000000;
        ctx->edits = FB_EDIT_TTL;
        if (fb_name_is(ctx, "vault")) {
            ctx->tag = 1;
            ctx->edits |= FB_EDIT_TAG;
        }
        return ctx->error ? FB_CONTINUE : FB_REWRITE;
    }
    """
    with chained(run_directory, [source(directory, text)]) as made:
        p, behind = made.fresh()
        (behind / "vault").mkdir()
        (behind / "vault/f").write_text("x")
        lookups = made.map("vault/lookups")
        for _ in range(3):
            in_child(os.stat, p / "vault/f")
        assert lookups[0] == 1

        os.link(behind / "vault/f", behind / "f")
        in_child(os.stat, p / "f")
        before = lookups[0]
        for _ in range(3):
            in_child(os.stat, p / "f")
        assert lookups[0] == before + 3


@pytest.mark.parametrize("op", [name for name, flags in HOOKED.items() if flags & ENTRY])
def test_the_post_of_an_op_that_answers_with_an_entry_tags_that(tags: Tags, op: str) -> None:
    p, _ = tags.fresh()
    with prepared(op, p) as call:
        # Lookups go before the others, of the same inodes.
        with tags.made.map("one/set_after", 8).put(OPCODES[op], 12):
            in_child(attempt, call)
        tagged = tags.seen(op).before

    assert tagged == 0, "the directory has none"
    if op == "tmpfile":
        return  # it is gone already
    name = {"lookup": "f"}.get(op, "new")
    if op != "symlink":
        assert tags.of(p / name) == 11
    in_child(os.lstat, p / name)
    assert tags.seen("lookup").after == 11


@pytest.mark.parametrize("op", [name for name, flags in HOOKED.items() if not flags & ENTRY])
def test_any_op_on_an_inode_can_tag_it(tags: Tags, op: str) -> None:
    p, _ = tags.fresh()
    with prepared(op, p) as call, tags.made.map("one/set_before", 8).put(OPCODES[op], 21):
        in_child(attempt, call)

    assert tags.seen(op).after == 20


def test_entries_of_a_listing_show_the_directorys_tag(tags: Tags) -> None:
    p, behind = tags.fresh()
    (behind / "f").write_text("x")
    tags.set(p, 9)

    in_child(os.listdir, p)
    assert tags.seen("dirent").after == 9


def test_a_file_without_a_name_has_the_tag_of_its_directory(tags: Tags) -> None:
    p, _ = tags.fresh()
    tags.set(p, 9)
    fd = os.open(p, os.O_TMPFILE | os.O_RDWR)
    try:
        assert tags.of(fd) == 9
    finally:
        os.close(fd)
    (p / "f").write_text("x")
    fd = os.open(p / "f", os.O_RDONLY)
    os.unlink(p / "f")
    try:
        assert tags.of(fd) == 9, "unlinked, and open"
    finally:
        os.close(fd)


def test_a_tag_lives_as_long_as_the_kernel_knows_the_inode(tags: Tags) -> None:
    p, behind = tags.fresh()
    (behind / "d").mkdir()
    tags.set(p / "d", 9)
    held = os.open(p / "d", os.O_RDONLY)
    try:
        forget(p)
        assert tags.of(p / "d") == 9, "it is open"
    finally:
        os.close(held)

    def is_forgotten() -> bool:
        forget(p)
        return tags.of(p / "d") == 0

    support.wait_until(is_forgotten)


def test_a_tag_that_was_not_declared_is_not_kept(run_directory: Path, directory: Path) -> None:
    text = """
    FILTER(mute, .altitude = 500)
    POST(mute, getattr) { ctx->tag = 5; return FB_CONTINUE; }
    PRE(mute, getattr) { return ctx->tag ? -EPERM : FB_CONTINUE; }
    """
    with chained(run_directory, [source(directory, text)]) as made:
        p, _ = made.fresh()
        for _ in range(3):
            in_child(os.stat, p)


def test_path_rules_by_tag(run_directory: Path, directory: Path) -> None:
    text = """
    FILTER(frozen, .altitude = 500)
    POST(frozen, lookup)
    {
        if (ctx->error || !fb_name_is(ctx, "frozen"))
            return FB_CONTINUE;
        ctx->tag = 1;
        ctx->edits = FB_EDIT_TAG;
        return FB_REWRITE;
    }
    PRE(frozen, name)
    {
        return ctx->op != FB_OP_lookup && (ctx->tag || ctx->tag2) ? -EROFS : FB_CONTINUE;
    }
    """
    with chained(run_directory, [source(directory, text)]) as made:
        p, behind = made.fresh()
        (behind / "frozen/deep/tree").mkdir(parents=True)
        (behind / "f").write_text("x")

        assert in_child(attempt, os.mkdir, p / "frozen/new") == "EROFS"
        assert in_child(attempt, os.mkdir, p / "frozen/deep/tree/new") == "EROFS"
        assert in_child(attempt, os.rename, p / "f", p / "frozen/deep/f") == "EROFS"
        assert in_child(attempt, os.link, p / "f", p / "frozen/f") == "EROFS"
        assert in_child(attempt, os.mkdir, p / "new") is None
