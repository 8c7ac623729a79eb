"""What the kernel has cached is asked for anew when the chain has changed, at once."""

import os
from pathlib import Path

import pytest
import support
from live.live_support import fusebpf

FOREVER = "ttl=86400"

FAKER = """
#include "fusebpf.h"
FILTER(faker, .altitude = 500)
POST(faker, getattr)
{
	if (ctx->error || (ctx->result.attr.mode & 0170000) != 0100000)
		return FB_CONTINUE;
	ctx->result.attr.mtime_ns = 1000000000;
	ctx->ttl_ns = 86400000000000;
	ctx->edits = FB_EDIT_ATTR | FB_EDIT_TTL;
	return FB_REWRITE;
}
PRE(faker, lookup)
{
	if (!fb_name_is(ctx, "absent"))
		return FB_CONTINUE;
	ctx->ttl_ns = 86400000000000;
	ctx->edits = FB_EDIT_TTL;
	return FB_NEGATIVE | FB_REWRITE;
}
"""


@pytest.fixture
def mounted(mount: support.Mounter) -> support.Mounted:
    """A mount whose kernel caches for a day, with files that it has seen."""
    made = mount(options=FOREVER)
    (made.src / "dir").mkdir()
    for name in ("a.key", "dir/b.key", "absent"):
        (made.src / name).write_text("text\n")
    return made


def test_a_filter_counts_for_what_was_cached_before_it_came(mounted: support.Mounted) -> None:
    paths = [mounted.path / "a.key", mounted.path / "dir" / "b.key"]
    assert all(path.exists() for path in paths)

    fusebpf("attach", mounted.name, "hide", "--set", "hide.names=*.key")

    assert not any(path.exists() for path in paths)
    fusebpf("detach", mounted.name, "hide")
    assert all(path.exists() for path in paths)


def test_what_a_filter_let_the_kernel_cache_goes_with_it(mounted: support.Mounted, directory: Path) -> None:
    source = directory / "faker.c"
    source.write_text(FAKER)
    path, absent = mounted.path / "a.key", mounted.path / "absent"
    real = path.stat().st_mtime

    fusebpf("attach", mounted.name, source)
    assert path.stat().st_mtime == 1
    assert not absent.exists()
    fusebpf("detach", mounted.name, "faker")

    assert path.stat().st_mtime == real
    assert absent.exists()


def test_pages_that_were_cached_are_read_anew(mount: support.Mounter, directory: Path) -> None:
    """An open file that is served through the page cache comes to the hooks of a filter that came later."""
    source = directory / "reader.c"
    source.write_text(
        '#include "fusebpf.h"\nFILTER(reader, .altitude = 5)\nPRE(reader, read) { return -EKEYREVOKED; }\n'
    )
    mounted = mount(options=f"{FOREVER},nopassthrough")
    (mounted.src / "file").write_text("text\n")
    fd = os.open(mounted.path / "file", os.O_RDONLY)
    assert os.pread(fd, 10, 0) == b"text\n"

    fusebpf("attach", mounted.name, source)

    with pytest.raises(OSError, match=r"Input/output|revoked"):
        os.pread(fd, 10, 0)
    fusebpf("detach", mounted.name, "reader")
    assert os.pread(fd, 10, 0) == b"text\n"
    os.close(fd)


LEADER = """
#include "fusebpf.h"
FILTER(leader, .altitude = 500)
BPF_HASH(leader__day, u32, u32, 2); /* on 1 the page is another */
PRE(leader, lookup)
{
	u32 one = 1;

	ctx->ttl_ns = 86400000000000;
	ctx->edits = FB_EDIT_TTL;
	if (fb_name_is(ctx, "page")) {
		ctx->name.text[4] = leader__day.lookup(&one) ? '1' : '0';
		ctx->name_len = 5;
		ctx->edits |= FB_EDIT_NAME;
	}
	return FB_REWRITE;
}
"""


def test_a_name_that_a_filter_led_elsewhere_is_asked_for_anew(
    mount: support.Mounter, directory: Path
) -> None:
    source = directory / "leader.c"
    source.write_text(LEADER)
    made = mount(filters=[source], options=FOREVER)
    for name in ("page0", "page1"):
        (made.src / name).write_text(name)
    page = made.path / "page"
    assert page.read_text() == "page0"

    fusebpf("map", made.name, "leader", "day", "set", "1", "1")
    assert page.read_text() == "page1"
    fusebpf("map", made.name, "leader", "day", "delete", "1")
    assert page.read_text() == "page0"
    fusebpf("detach", made.name, "leader")
    assert not page.exists()


STORED = """
#include "fusebpf.h"
FILTER(stored, .altitude = 500)
BPF_HASH(stored__gone, u32, u32, 2); /* on 1 what begins with @ is not to be had */
PRE(stored, name)
{
	u32 one = 1;

	if (ctx->op == FB_OP_lookup && ctx->name.text[0] == '@' && stored__gone.lookup(&one))
		return FB_NEGATIVE;
	if (ctx->op == FB_OP_lookup) {
		ctx->ttl_ns = 86400000000000;
		ctx->edits |= FB_EDIT_TTL;
	}
	if (ctx->name.text[0] == '@') {
		ctx->name.text[0] = '_';
		ctx->edits |= FB_EDIT_NAME;
	}
	if (ctx->name2.text[0] == '@') {
		ctx->name2.text[0] = '_';
		ctx->edits |= FB_EDIT_NAME2;
	}
	return ctx->edits ? FB_REWRITE : FB_CONTINUE;
}
"""


def test_so_is_one_that_a_rename_gave(mount: support.Mounter, directory: Path) -> None:
    source = directory / "stored.c"
    source.write_text(STORED)
    made = mount(filters=[source], options=FOREVER)
    (made.src / "plain").write_text("text")
    renamed = (made.path / "plain").rename(made.path / "@name")
    assert renamed.read_text() == "text"
    assert (made.src / "_name").exists()

    fusebpf("map", made.name, "stored", "gone", "set", "1", "1")

    assert not renamed.exists()
