"""Who is asked, in which order, before and after; and what each hook sees of what the others did."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from chain.chained import Chained, chained, source
from core.table import attempt, in_child

from fusebpf import bpf

N = 16
SAID = """
BPF_ARRAY(said, u32, 64); /* by filter: what its pre hook says */
struct order { u32 n; u32 at[127]; };
BPF_ARRAY(order, struct order, 1);

FB_ALWAYS_INLINE void note(u32 what)
{
    u32 zero = 0, n;
    struct order *o = order.lookup(&zero);

    if (!o)
        return;
    n = o->n++;
    if (n < 127)
        o->at[n] = what;
}

FB_ALWAYS_INLINE int saying(u32 filter)
{
    u32 *it = said.lookup(&filter);

    return it ? (int)*it : FB_CONTINUE;
}
"""


def filters() -> str:
    """Filters f0 to f15, f0 highest, on mkdir; the cookie of each goes from its pre to its post."""
    text = SAID
    for index in range(N):
        text += f"""
        FILTER(f{index}, .altitude = {990 - 10 * index})
        PRE(f{index}, mkdir) {{ note({index}); ctx->cookie = 1000 + {index}; return saying({index}); }}
        POST(f{index}, mkdir) {{
            note(100 + {index});
            if (ctx->cookie != 1000 + {index})
                note(77777);
            return saying({32 + index});
        }}
        """
    return text


@pytest.fixture(scope="module")
def tower(run_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chained]:
    path = source(tmp_path_factory.mktemp("tower"), filters(), "tower")
    with chained(run_directory, [path]) as made:
        yield made


def order_of(tower: Chained, result: object = None) -> list[int]:
    """Make a directory; the numbers that the hooks noted."""
    through, _ = tower.fresh()
    fd = bpf.obj_get(tower.mounted.pins / "f0" / "order")
    bpf.map_update(fd, bytes(4), bytes(512))
    found = in_child(attempt, os.mkdir, through / "d")
    data = bpf.map_lookup(fd, bytes(4), 512)
    os.close(fd)
    assert result == found
    assert data is not None
    numbers = [int.from_bytes(data[i : i + 4], "little") for i in range(0, 512, 4)]
    return numbers[1 : 1 + numbers[0]]


def pre(*indexes: int) -> list[int]:
    return list(indexes)


def post(*indexes: int) -> list[int]:
    return [100 + index for index in indexes]


def test_pre_hooks_run_from_high_to_low_and_post_hooks_from_low_to_high(tower: Chained) -> None:
    assert [*pre(*range(N)), *post(*reversed(range(N)))] == order_of(tower)


@pytest.mark.parametrize(
    ("verdict", "result"), [(0xF3, None), (-17, "EEXIST"), (0xF4, "EIO"), (0xF2, "EIO"), (99, "EIO")]
)
def test_whoever_completes_an_op_gets_no_post_and_those_above_do(
    tower: Chained, verdict: int, result: str | None
) -> None:
    with tower.map("f0/said").put(5, verdict):
        expected = "EIO" if verdict == 0xF3 else result  # success without an entry is no answer to mkdir
        assert [*pre(*range(6)), *post(4, 3, 2, 1, 0)] == order_of(tower, expected)


def test_backing_asks_no_filter_below_and_its_own_post_runs(tower: Chained) -> None:
    with tower.map("f0/said").put(5, 0xF1):
        assert [*pre(*range(6)), *post(5, 4, 3, 2, 1, 0)] == order_of(tower)


def test_nopost_leaves_out_the_post_of_whoever_says_it(tower: Chained) -> None:
    with tower.map("f0/said").put(5, 0x200), tower.map("f0/said").put(7, 0x200):
        expected = [*pre(*range(N)), *post(*(i for i in reversed(range(N)) if i not in {5, 7}))]
        assert expected == order_of(tower)


def test_a_post_hook_that_fails_the_op_does_not_end_the_others(tower: Chained) -> None:
    with tower.map("f0/said").put(32 + 9, -122):
        assert [*pre(*range(N)), *post(*reversed(range(N)))] == order_of(tower, "EDQUOT")


def test_a_broken_post_hook_does_not_end_the_others(tower: Chained) -> None:
    with tower.map("f0/said").put(32 + 9, 99):
        assert [*pre(*range(N)), *post(*reversed(range(N)))] == order_of(tower, "EIO")


def test_a_hook_on_an_op_beats_name_and_name_beats_any(run_directory: Path, directory: Path) -> None:
    text = """
    FILTER(all, .altitude = 500)
    PRE(all, any) { return -EDOM; }
    PRE(all, name) { return -ESRCH; }
    PRE(all, mkdir) { return -EXDEV; }
    PRE(all, lookup) { return FB_CONTINUE; }
    PRE(all, getattr) { return FB_CONTINUE; }
    """
    with chained(run_directory, [source(directory, text)]) as made:
        p = made.mounted.path
        (made.mounted.src / "f").write_text("x")

        assert in_child(attempt, os.mkdir, p / "d") == "EXDEV"
        assert in_child(attempt, os.rmdir, p / "f") == "ENOTDIR"
        assert in_child(attempt, os.unlink, p / "f") == "ESRCH"
        assert in_child(attempt, os.symlink, "x", p / "l") == "ESRCH"
        assert in_child(attempt, os.chmod, p / "f", 0o600) == "EDOM"
        assert in_child(attempt, os.setxattr, p / "f", "user.a", b"x") == "EDOM", (
            "an xattr's name is no file's"
        )


def test_what_a_filter_rewrote_is_what_those_below_see(run_directory: Path, directory: Path) -> None:
    text = """
    FILTER(high, .altitude = 900)
    PRE(high, mkdir) {
        if (!fb_name_is(ctx, "mine"))
            return FB_CONTINUE;
        __builtin_memcpy(ctx->name.text, "ours", 5);
        ctx->edits = FB_EDIT_NAME;
        return FB_REWRITE;
    }
    POST(high, mkdir) { return fb_name_is(ctx, "ours") && ctx->error == FB_EDOM ? -ESRCH : FB_CONTINUE; }
    FILTER(low, .altitude = 100)
    PRE(low, mkdir) { return fb_name_is(ctx, "ours") ? -EDOM : FB_CONTINUE; }
    """
    with chained(run_directory, [source(directory, text)]) as made:
        assert in_child(attempt, os.mkdir, made.mounted.path / "mine") == "ESRCH"
        assert in_child(attempt, os.mkdir, made.mounted.path / "other") is None
