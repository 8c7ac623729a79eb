"""`fusebpf.testing`: an op that is described, the real hooks on it, and what they decided."""

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import support

from fusebpf.chain import FilterSpec
from fusebpf.errors import ChainError, CompileError, MapValueError, UsageError
from fusebpf.testing import Chain, Said, run

SOURCE = """
#include "fusebpf.h"

FILTER(mine, .altitude = 500, .doc = "does what the tests want")

BPF_HASH(mine__seen, u32, u64, 16);

PRE(mine, lookup)
{
	u64 one = 1, *seen = mine__seen.lookup(&ctx->uid);

	ctx->cookie = 7;
	if (seen)
		__sync_fetch_and_add(seen, 1);
	else
		mine__seen.update(&ctx->uid, &one);
	ctx->name.text[0] = 'A';
	ctx->edits |= FB_EDIT_NAME;
	return FB_REWRITE;
}

POST(mine, lookup)
{
	if (ctx->error || ctx->cookie != 7)
		return FB_CONTINUE;
	ctx->result.attr.uid = 1000;
	ctx->edits |= FB_EDIT_ATTR;
	return FB_REWRITE;
}

PRE(mine, create)
{
	ctx->name.text[0] = '/';
	ctx->args.create.mode = 0600;
	ctx->edits |= ctx->umask ? FB_EDIT_NAME : FB_EDIT_MODE;
	return FB_REWRITE | FB_NOPOST;
}

POST(mine, create) { return -EPERM; }

POST(mine, read) { return ctx->result.count > 10 ? -EIO : FB_CONTINUE; }

PRE(mine, statfs)
{
	ctx->result.statfs.blocks = 5;
	ctx->edits |= FB_EDIT_STATFS;
	return FB_REPLY;
}

PRE(mine, setattr) { return ctx->args.setattr.uid == 5 ? -EPERM : FB_CONTINUE; }

POST(mine, readlink)
{
	ctx->text[0] = 'X';
	ctx->edits |= FB_EDIT_TEXT;
	return FB_REWRITE;
}

POST(mine, mkdir) { return ctx->error == FB_EEXIST ? -EACCES : FB_CONTINUE; }
"""

TOP = """
#include "fusebpf.h"

FILTER(top, .altitude = 600)

PRE(top, lookup) { return fb_name_is(ctx, "no") ? -EPERM : FB_CONTINUE; }
POST(top, lookup) { return ctx->error == FB_ENOENT ? -EACCES : FB_CONTINUE; }
"""


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("filters")
    (directory / "mine.c").write_text(SOURCE)
    (directory / "top.c").write_text(TOP)
    return directory


@pytest.fixture(scope="module")
def mine(sources: Path) -> Iterator[Chain]:
    with Chain(sources / "mine.c") as chain:
        yield chain


@pytest.fixture(scope="module")
def both(sources: Path) -> Iterator[Chain]:
    with Chain([sources / "mine.c", sources / "top.c"]) as chain:
        yield chain


# -------------------------------------------------------------------------------- one hook


def test_a_stock_filter_is_asked_in_one_line() -> None:
    assert run("hide", "lookup", name=b".ssh", maps={"hide.names": ".ssh"}).verdict == "FB_NEGATIVE"
    assert run("hide", "lookup", name=".ssh").verdict == "FB_CONTINUE"


def test_what_was_edited_is_seen(mine: Chain) -> None:
    said = mine.run("lookup", name=b"abc", phase="pre")

    assert (said.edits, said.name, said.verdict, said.route) == (
        frozenset({"NAME"}),
        b"Abc",
        "FB_CONTINUE",
        "backing",
    )


def test_a_post_hook_gets_the_result_that_is_described(mine: Chain) -> None:
    said = mine.run("lookup", name=b"abc", attr={"uid": 3, "size": 9})

    assert (said.attr["uid"], said.attr["size"], said.error) == (1000, 9, 0)
    assert stat.S_ISREG(said.attr["mode"])
    assert mine.run("read", count=11, args={"size": 20}).error == errno.EIO
    assert mine.run("read", count=10, args={"size": 20}).count == 10


def test_a_post_hook_gets_the_error_that_is_described(mine: Chain) -> None:
    assert mine.run("mkdir", name=b"d", error="EEXIST").error == errno.EACCES
    assert mine.run("mkdir", name=b"d", error=errno.EINTR).error == errno.EINTR
    assert mine.run("mkdir", name=b"d").error == 0


def test_a_post_hook_alone_gets_the_cookie_that_is_described(mine: Chain) -> None:
    assert mine.run("lookup", name=b"a", phase="post", cookie=7).attr["uid"] == 1000
    assert mine.run("lookup", name=b"a", phase="post", cookie=8).attr["uid"] == 0


def test_a_link_target_is_bytes(mine: Chain) -> None:
    assert mine.run("readlink", text=b"\xfftarget").text == b"Xtarget"


def test_a_reply_brings_its_result(mine: Chain) -> None:
    said = mine.run("statfs")

    assert (said.verdict, said.route, said.error, said.statfs["blocks"]) == ("FB_REPLY", "reply", 0, 5)


def test_arguments_are_given_and_seen(mine: Chain) -> None:
    said = mine.run("create", name=b"f", args={"mode": 0o666, "flags": os.O_WRONLY})

    assert (said.args["mode"], said.args["flags"]) == (0o600, os.O_WRONLY)
    assert said.verdicts == (Said("mine", "pre", "FB_CONTINUE"),), "FB_NOPOST"
    assert mine.run("setattr", args={"uid": 5}).error == errno.EPERM
    assert mine.run("setattr", args={"uid": 6}).error == 0


def test_a_bad_edit_is_failed_closed_and_says_why(mine: Chain) -> None:
    said = mine.run("create", name=b"f", umask=0o22)

    assert (said.verdict, said.error, said.decider) == ("FB_BROKEN", errno.EIO, "mine")
    assert "a rewritten name has a slash in it" in said.why
    assert mine.run("mkdir", name=b"f").why == ""


def test_a_post_hook_that_says_what_is_for_pre_hooks_is_told_so(directory: Path) -> None:
    source = directory / "late.c"
    source.write_text(
        '#include "fusebpf.h"\nFILTER(late, .altitude = FB_POLICY)\n'
        "POST(late, lookup) { return FB_NEGATIVE; }\n"
    )

    said = run(source, "lookup", name=b"f")

    assert (said.verdict, said.error) == ("FB_BROKEN", errno.EIO)
    assert "it says FB_NEGATIVE or FB_BACKING, which are for pre hooks" in said.why


def test_maps_keep_what_hooks_left(sources: Path) -> None:
    with Chain(sources / "mine.c", maps={"mine.seen": "5=40"}) as chain:
        chain.run("lookup", name=b"a", uid=5)
        chain.run("lookup", name=b"a", uid=6)

        assert dict(chain.map("mine.seen").items()) == {5: 41, 6: 1}
        chain.map("mine.seen").set("6=2")
        assert chain.map("mine.seen").keys() == [6]


# -------------------------------------------------------------------------------- a chain


def test_a_chain_runs_in_its_order(both: Chain) -> None:
    said = both.run("lookup", name=b"abc")

    hooks = [(one.filter, one.phase) for one in said.verdicts]
    assert hooks == [("top", "pre"), ("mine", "pre"), ("mine", "post"), ("top", "post")]
    assert (said.name, said.attr["uid"]) == (b"Abc", 1000)


def test_a_filter_that_answers_ends_the_way_of_the_op(both: Chain) -> None:
    said = both.run("lookup", name=b"no")

    assert said.verdicts == (Said("top", "pre", "FB_REPLY"),)
    assert (said.decider, said.error) == ("top", errno.EPERM)


def test_a_filter_above_sees_the_error(both: Chain) -> None:
    said = both.run("lookup", name=b"x", error="ENOENT")

    assert said.error == errno.EACCES
    assert said.verdict == "FB_REPLY"


def test_an_altitude_of_the_callers_puts_a_filter_elsewhere(sources: Path) -> None:
    with Chain([f"{sources}/mine.c@700", f"{sources}/top.c:top"]) as chain:
        first = chain.run("lookup", name=b"no").verdicts[0]

    assert first.filter == "mine"


def test_an_entry_of_a_listing_is_dropped() -> None:
    with Chain(FilterSpec("hide", sets={"names": "*.key"})) as chain:
        listed = [name for name in (b"a", b"a.key", b"b") if chain.run("dirent", name=name).is_listed]

    assert listed == [b"a", b"b"]


# -------------------------------------------------------------------------------- what is wrong


@pytest.mark.parametrize(
    ("op", "words", "message"),
    [
        ("lokup", {"name": b"a"}, "there is no op 'lokup' that filters see; the ops are: access"),
        ("readdirplus", {}, "there is no op 'readdirplus'"),
        ("lookup", {}, "'lookup' takes a name: say name=b'…'"),
        ("lookup", {"name": b"a", "name2": b"b"}, "'lookup' takes no name2"),
        ("read", {"name": b"a"}, "'read' takes no name"),
        ("lookup", {"name": 5}, "name=5: bytes or a str are wanted"),
        ("lookup", {"name": b"a" * 256}, "name has 256 bytes, at most 255 fit"),
        ("lookup", {"name": b"a", "nmae": b"b"}, "'nmae' is no field of an op; the fields are: attr"),
        ("lookup", {"name": b"a", "uid": "x"}, "uid='x' does not fit into an op"),
        ("lookup", {"name": b"a", "uid": 1 << 32}, "does not fit into 4 bytes"),
        ("lookup", {"name": b"a", "error": "ENOSUCH"}, "'ENOSUCH' is no errno"),
        ("lookup", {"name": b"a", "error": 512}, "512 is no errno"),
        ("lookup", {"name": b"a", "phase": "mid"}, "there is no phase 'mid'; say 'pre' or 'post'"),
        ("lookup", {"name": b"a/b"}, "name=b'a/b' is no name"),
        ("lookup", {"name": "a\0b"}, "is no name"),
        ("lookup", {"name": b".."}, "is no name"),
        (
            "lookup",
            {"name": b"a", "attr": {"siez": 1}},
            "no field 'siez' in 'attr'; the fields are: ino size",
        ),
        ("lookup", {"name": b"a", "attr": {}, "count": 1}, "an op has one result, not attr and count"),
        ("setattr", {"args": {"mod": 1}}, "no field 'mod' in the arguments of 'setattr'; the fields"),
        (
            "lookup",
            {"name": b"a", "args": {"mode": 1}},
            "no field 'mode' in the arguments of 'lookup'; the fields are: none",
        ),
        ("write", {}, r"mine@500: no pre or post hook on 'write'; hooked are: create"),
        ("read", {"phase": "pre"}, "no pre hook on 'read'"),
    ],
)
def test_a_bad_description_is_refused(mine: Chain, op: str, words: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        mine.run(op, **words)


def test_filters_that_a_mount_would_refuse_are_refused(sources: Path) -> None:
    with pytest.raises(UsageError, match="there is no stock filter 'hid'"):
        Chain("hid")
    with pytest.raises(UsageError, match="a chain without filters"):
        Chain([])
    with pytest.raises(ChainError, match="both stand at altitude 600"):
        Chain([f"{sources}/mine.c@600", sources / "top.c"])
    with pytest.raises(MapValueError, match="has no map 'nams'"):
        Chain("hide", maps={"hide.nams": "a"})
    with pytest.raises(UsageError, match="'hid' is no filter of this mount"):
        Chain("hide", maps={"hid.names": "a"})
    (sources / "bad.c").write_text("int x = ;")
    with pytest.raises(CompileError, match=r"bad\.c:1: expected expression"):
        Chain(sources / "bad.c")


def test_a_map_that_is_not_there_is_named(mine: Chain) -> None:
    with pytest.raises(UsageError, match=r"there is no map 'mine.no'; the maps of 'mine' are: mine.seen"):
        mine.map("mine.no")
    with pytest.raises(UsageError, match="the chain has no filter 'its'"):
        mine.map("its.no")


def test_nothing_stays_open(sources: Path) -> None:
    def descriptors() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    run(sources / "top.c", "lookup", name=b"a")
    before = descriptors()
    run(sources / "top.c", "lookup", name=b"a")
    with pytest.raises(UsageError):
        run(sources / "top.c", "read")

    assert descriptors() == before


def test_a_filter_stands_beside_another_and_brings_values_for_its_maps_as_on_a_mount(sources: Path) -> None:
    spec = FilterSpec(str(sources / "mine.c"), beside=("above", "hide"), sets={"seen": "7=40"})

    with Chain(["hide", spec], maps={"hide.names": "A*"}) as chain:
        said = chain.run("lookup", name=b"b", uid=7)

        assert said.decider == "hide"  # which saw the name that mine, above it, made of that one
        assert dict(chain.map("mine.seen").items()) == {7: 41}


def test_only_root_can(directory: Path) -> None:
    code = "from fusebpf.testing import run\nrun('hide', 'lookup', name=b'a')"

    done = support.run(
        support.CHECKOUT / ".venv/bin/python", "-c", code, check=False, cwd=directory, user=65534
    )

    assert done.stderr.splitlines()[-1].endswith("PlatformError: only root can do this: run it with sudo")


DATA = """
#include "fusebpf.h"

FILTER(shout, .altitude = FB_DATA, .wants = FB_WANTS_DATA, .doc = "x becomes X")

FB_ALWAYS_INLINE int shout(struct fb_slot *ctx)
{
	struct fb_window *data = fb_data(ctx);

	if (!data)
		return FB_CONTINUE;
	FB_EACH_WORD(i, ctx->data_len)
		*fb_word(data, i) ^= fb_bytes_between(*fb_word(data, i), 'x', 'x') & FB_EVERY_BYTE(0x20);
	ctx->edits |= FB_EDIT_DATA;
	return FB_REWRITE;
}

PRE(shout, write) { return shout(ctx); }
PRE(shout, setxattr) { return shout(ctx); }
POST(shout, read) { return shout(ctx); }
POST(shout, getxattr) { return shout(ctx); }
"""


def test_data_is_shown_and_what_became_of_it_comes_back(directory: Path) -> None:
    source = directory / "shout.c"
    source.write_text(DATA)

    with Chain(source) as chain:
        for op, n in (("write", 20000), ("read", 20000), ("setxattr", 6000), ("getxattr", 6000)):
            given = b"six of wax" * n
            described: dict[str, Any] = {"name": "user.a"} if "xattr" in op else {}

            said = chain.run(op, data=given, **described)
            assert said.data == given.replace(b"x", b"X")
            assert "DATA" in said.edits
            assert chain.run(op, **described).data == b""
