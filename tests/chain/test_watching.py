"""`stats` and `recent` tell exactly what happened."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import serving
import support
from chain.chained import Chained, chained, source
from core.table import in_child, opened

FILTERS = """
FILTER(high, .altitude = 900)
PRE(high, mkdir) {
    if (fb_name_is(ctx, "denied"))
        return -EDQUOT;
    if (fb_name_is(ctx, "straight"))
        return FB_BACKING;
    if (fb_name_is(ctx, "broken"))
        return 99;
    if (fb_name_is(ctx, "before")) {
        __builtin_memcpy(ctx->name.text, "after\\0", 7);
        ctx->name_len = 5;
        ctx->edits = FB_EDIT_NAME;
        return FB_REWRITE;
    }
    return FB_CONTINUE;
}
POST(high, mkdir) { return FB_CONTINUE; }
PRE(high, rename) { return FB_CONTINUE; }
PRE(high, write) { return FB_CONTINUE; }
PRE(high, readdir) { return FB_CONTINUE; }
FILTER(low, .altitude = 100)
PRE(low, mkdir) { return FB_CONTINUE | FB_NOPOST; }
POST(low, mkdir) { return FB_CONTINUE; }
"""


@pytest.fixture(scope="module")
def watched(run_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chained]:
    path = source(tmp_path_factory.mktemp("watched"), FILTERS, "watched")
    with chained(run_directory, [path]) as made:
        yield made


def workload(p: Path) -> None:
    """Five of each."""
    for index in range(5):
        os.mkdir(p / f"plain{index}")
    for name in ("denied", "straight", "broken", "before"):
        try:
            os.mkdir(p / name)
        except OSError:
            continue


HIGH_PRE = ("high", "pre", "mkdir")
EXPECTED = {
    (*HIGH_PRE, "continue"): 6,
    (*HIGH_PRE, "reply"): 1,
    (*HIGH_PRE, "backing"): 1,
    (*HIGH_PRE, "broken"): 1,
    ("high", "post", "mkdir", "continue"): 7,
    ("low", "pre", "mkdir", "continue"): 6,
}


def test_stats_count_exactly_what_the_hooks_said(directory: Path) -> None:
    path = source(directory, FILTERS)
    with serving.serve(directory, "stats", filters=[path]) as served:
        in_child(workload, served.path)

        # What the hook itself said stands beside what became of it: verdict 99 is one that has no name.
        stats = {key: times for key, times in served.stats().items() if key[3] != "99"}
        assert stats == EXPECTED
        assert served.counters()["failed_closed"] == 1


def test_stats_read_the_same_through_bpftool(watched: Chained) -> None:
    before = watched.mounted.stats()
    through, _ = watched.fresh()

    in_child(workload, through)

    after = watched.mounted.stats()
    grown = {key: after[key] - before.get(key, 0) for key in after if after[key] != before.get(key, 0)}
    names = {
        (who, f"FB_{phase.upper()}", f"FB_OP_{op}", f"FB_{verdict.upper()}"): times
        for (who, phase, op, verdict), times in EXPECTED.items()
    }
    assert names == {key: times for key, times in grown.items() if str(key[3]).startswith("FB_")}


def records(mount: Chained, op: str, above: int = 0) -> list[dict[str, Any]]:
    """The finished records of an op, in the order in which they began."""
    rows = [row.get("formatted", row)["value"] for row in mount.mounted.dump("recent")]
    found = [row for row in rows if row["op"] == f"FB_OP_{op}" and row["sequence"] > above]
    return sorted(found, key=lambda row: int(row["time_ns"]))


def last_sequence(mount: Chained) -> int:
    return max(int(row.get("formatted", row)["value"]["sequence"]) for row in mount.mounted.dump("recent"))


def test_recent_shows_each_op_and_what_became_of_it(watched: Chained) -> None:
    through, _ = watched.fresh()
    start = last_sequence(watched)

    in_child(workload, through)

    support.wait_until(lambda: len(records(watched, "mkdir", start)) == 9)
    found = records(watched, "mkdir", start)
    shown = [
        (support.bytes_of(r["name"]), r["error"], r["route"], r["verdict"], support.bytes_of(r["filter"]))
        for r in found
    ]
    backing, reply, go_on = "FB_ROUTE_BACKING", "FB_ROUTE_REPLY", "FB_CONTINUE"
    assert shown == [
        *((f"plain{index}", "FB_OK", backing, go_on, "") for index in range(5)),
        ("denied", "FB_EDQUOT", reply, "FB_REPLY", "high"),
        ("straight", "FB_OK", backing, "FB_BACKING", "high"),
        ("broken", "FB_EIO", reply, "FB_BROKEN", "high"),
        ("after", "FB_OK", backing, go_on, "high"),
    ]
    masks = [(r["pre_ran"], r["post_ran"], r["pre_edited"], r["edits"]) for r in found]
    assert masks == [(3, 1, 0, 0)] * 5 + [(1, 0, 0, 0), (1, 1, 0, 0), (1, 0, 0, 0), (3, 1, 1, 1)]
    assert {r["uid"] for r in found} == {0}
    assert all(r["pid"] > 1 and r["time_ns"] > 10**18 for r in found)


def test_recent_shows_both_names_and_how_much_was_moved(watched: Chained) -> None:
    through, behind = watched.fresh()
    start = last_sequence(watched)
    for index in range(10):
        (behind / f"f{index}").write_text("x")

    def work() -> None:
        with opened(through / "file", os.O_CREAT | os.O_WRONLY) as fd:
            os.write(fd, b"x" * 1234)
        os.listdir(through)
        os.rename(through / "file", through / "renamed")

    in_child(work)

    support.wait_until(lambda: records(watched, "rename", start))
    (rename,) = records(watched, "rename", start)
    assert (support.bytes_of(rename["name"]), support.bytes_of(rename["name2"])) == ("file", "renamed")
    assert [row["result"] for row in records(watched, "write", start)] == [1234]


def test_recent_counts_the_entries_of_a_listing(watched: Chained) -> None:
    through, behind = watched.fresh()
    start = last_sequence(watched)
    for index in range(10):
        (behind / f"f{index}").write_text("x")

    in_child(os.listdir, through)

    support.wait_until(lambda: records(watched, "readdir", start))
    assert sum(row["result"] for row in records(watched, "readdir", start)) in {10, 12}
