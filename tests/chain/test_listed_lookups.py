"""Listings with attributes where hooks on lookup let entries be kept: each entry is a lookup of its own."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import serving
import support
from chain.chained import Chained, chained, source
from chain.test_watching import last_sequence, records
from core.table import attempt, in_child

FILTER = """
FILTER(judge, .altitude = 500)
BPF_ARRAY(bad, u32, 1);

PRE(judge, lookup)
{
    u32 zero = 0, *is_bad = bad.lookup(&zero);

    if (fb_name_starts(ctx, "no-"))
        return -EACCES;
    if (fb_name_starts(ctx, "gone-"))
        return FB_NEGATIVE;
    if (fb_name_starts(ctx, "alias-")) {
        __builtin_memcpy(ctx->name.text, "real", 5);
        ctx->name_len = 4;
        ctx->edits = FB_EDIT_NAME;
        return FB_REWRITE;
    }
    return is_bad && *is_bad && fb_name_starts(ctx, "bad-") ? FB_DROP : FB_CONTINUE;
}

POST(judge, lookup)
{
    if (ctx->error)
        return FB_CONTINUE;
    ctx->ttl_ns = 3600000000000ull;
    ctx->edits = FB_EDIT_TTL;
    if (fb_name_starts(ctx, "big-")) {
        ctx->result.attr.size = 12345;
        ctx->edits |= FB_EDIT_ATTR;
    }
    return FB_REWRITE;
}
"""
KEPT, REFUSED = ("big-a", "plain", "real"), ("no-a", "gone-a")


@pytest.fixture
def judged(run_directory: Path, directory: Path) -> Iterator[Chained]:
    with chained(run_directory, [source(directory, FILTER)]) as made:
        yield made


def sizes(path: Path) -> dict[str, int | str]:
    """Of what is listed."""
    with os.scandir(path) as entries:
        names = [entry.name for entry in entries]
    return {name: attempt(lambda name=name: os.lstat(path / name).st_size) for name in names}


def lookups(served: serving.Served) -> int:
    """How many the hook was asked of."""
    return sum(n for (_, phase, op, _), n in served.stats().items() if (phase, op) == ("pre", "lookup"))


def test_each_entry_is_what_its_lookup_is(judged: Chained) -> None:
    p, behind = judged.fresh()
    for name in (*KEPT, *REFUSED, "alias-a"):
        (behind / name).write_text("xyz" if name == "real" else "x")

    found = in_child(sizes, p)

    assert found == {
        "big-a": 12345,
        "plain": 1,
        "real": 3,
        "alias-a": 3,
        "no-a": "EACCES",
        "gone-a": "ENOENT",
    }


def test_an_entry_that_is_kept_costs_no_lookup(directory: Path) -> None:
    with serving.serve(directory, "judged", filters=[source(directory, FILTER)]) as served:
        (served.src / "d").mkdir()
        for name in (*KEPT, *REFUSED):
            (served.src / "d" / name).touch()
        assert len(os.listdir(served.path / "d")) == 5

        before = lookups(served)
        for name in KEPT:
            os.lstat(served.path / "d" / name)
        assert lookups(served) == before
        for name in REFUSED:
            with pytest.raises(OSError, match=name):
                os.lstat(served.path / "d" / name)
        assert lookups(served) == before + len(REFUSED)


def test_each_entry_is_recorded_as_a_lookup(judged: Chained) -> None:
    p, behind = judged.fresh()
    for name in (*KEPT, *REFUSED):
        (behind / name).touch()
    start = last_sequence(judged)

    in_child(os.listdir, p)

    rows = {support.bytes_of(row["name"]): row for row in records(judged, "lookup", start)}
    assert {name: row["error"] for name, row in rows.items() if name != p.name} == {
        **dict.fromkeys(KEPT, "FB_OK"),
        "no-a": "FB_EACCES",
        "gone-a": "FB_ENOENT",
    }
    assert len({row["pid"] for row in rows.values()}) == 1


def test_a_hook_that_breaks_a_rule_fails_its_entry_alone(judged: Chained) -> None:
    p, behind = judged.fresh()
    for name in ("bad-a", "plain"):
        (behind / name).write_text("x")

    with judged.map("judge/bad").put(0, 1):
        assert in_child(sizes, p) == {"bad-a": "EIO", "plain": 1}
    assert in_child(sizes, p) == {"bad-a": 1, "plain": 1}


def test_many_listings_at_a_time_have_slots_enough(judged: Chained) -> None:
    p, behind = judged.fresh()
    for index in range(300):
        (behind / f"f{index}").write_text("x")
    script = f"import os\nfor _ in range(5): assert len([e.stat() for e in os.scandir({str(p)!r})]) == 300"
    reader = ("timeout", "-s", "KILL", "60", sys.executable, "-c", script)

    with support.clients(*[reader] * 12) as readers:
        assert [one.wait(60) for one in readers] == [0] * 12
