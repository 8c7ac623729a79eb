"""Hooks that stand one after another are asked in one run, and nobody can tell but by the time it takes."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import serving
import support
from chain.chained import source

from fusebpf import joining

N = 8
HOOKS = """
BPF_ARRAY(said, u32, 64); /* by filter, 32 on in post: what its hook says */

FB_ALWAYS_INLINE int saying(u32 filter)
{
    u32 *it = said.lookup(&filter);

    return it ? (int)*it : FB_CONTINUE;
}
"""
PLAIN = "PRE(f{0}, mkdir) {{ return saying({0}); }}\nPOST(f{0}, mkdir) {{ return saying(32 + {0}); }}"


def eight(**others: str) -> str:
    """Filters f0 to f7, f0 highest, on mkdir; or what is said for one of them."""
    parts = [HOOKS]
    for index in range(N):
        hooks = others.get(f"f{index}", PLAIN.format(index))
        parts.append(f"FILTER(f{index}, .altitude = {990 - 10 * index})\n{hooks}\n")
    return "\n".join(parts)


class Eight:
    """A mount with those filters, whose hooks are joined."""

    def __init__(self, served: serving.Served, most: int = 2 * N - 1) -> None:
        """Return when one op costs so many runs at most: joins are made one after another."""
        self.served = served
        self._number = 0
        support.wait_until(lambda: self.cost() <= most, seconds=30)

    def make(self) -> int:
        """Make a directory: 0 or its errno."""
        self._number += 1
        try:
            os.mkdir(self.served.path / f"d{self._number}")
        except OSError as error:
            return error.errno or -1
        return 0

    def cost(self) -> int:
        """How many programs run for one mkdir."""
        before = self.served.counters()["program_runs"]
        self.make()
        return self.served.counters()["program_runs"] - before

    def asked(self) -> tuple[int, list[str], list[str]]:
        """Make a directory: its errno, and whose pre and post hooks were asked."""
        before = self.served.stats()
        result = self.make()
        new = {key for key, times in self.served.stats().items() if times != before.get(key)}
        before_it, after_it = (
            sorted(name for name, phase, *_ in new if phase == one) for one in ("pre", "post")
        )
        return result, before_it, after_it

    def say(self, index: int, verdict: int) -> None:
        """What a hook says from now on."""
        name = f"test{os.getpid()}-eight"
        value = (verdict & 0xFFFFFFFF).to_bytes(4, "little")
        words = [f"{byte}" for byte in (*index.to_bytes(4, "little"), *value)]
        path = support.PINS / name / "f0" / "said"
        support.run("bpftool", "map", "update", "pinned", path, "key", *words[:4], "value", *words[4:])


@pytest.fixture
def served(directory: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[serving.Served]:
    text = eight(**getattr(request, "param", {}))
    with serving.serve(directory, "eight", filters=[source(tmp_path, text, "eight")]) as one:
        yield one


@pytest.fixture
def joined(served: serving.Served) -> Eight:
    return Eight(served, most=2)


ALL = [f"f{index}" for index in range(N)]


def test_a_chain_of_eight_costs_one_run_before_and_one_after(joined: Eight) -> None:
    assert joined.cost() == 2
    assert joined.asked() == (0, ALL, ALL)


def test_one_that_refuses_is_the_last_that_is_asked(joined: Eight) -> None:
    joined.say(3, -errno.EPERM)

    assert joined.asked() == (errno.EPERM, ALL[:4], ALL[:3])


def test_one_that_goes_straight_to_the_backing_root_passes_the_others_by(joined: Eight) -> None:
    joined.say(5, 0xF1)

    assert joined.asked() == (0, ALL[:6], ALL[:6])


def test_one_that_wants_no_post_is_not_asked_after(joined: Eight) -> None:
    joined.say(2, 0x200)

    assert joined.asked() == (0, ALL, [*ALL[:2], *ALL[3:]])


def test_one_that_fails_it_afterwards_is_followed_by_those_above(joined: Eight) -> None:
    joined.say(32 + 4, -errno.EDQUOT)

    assert joined.asked() == (errno.EDQUOT, ALL, ALL)


@pytest.mark.parametrize(
    ("served", "why"),
    [
        ({"f3": "int f3__pre__mkdir(void *none) { return 0; }"}, "it left no verdict"),
        (
            {
                "f3": "int f3__pre__mkdir(void *none) { struct fb_hook *hook = fb_hook_here();"
                " struct fb_slot *ctx = hook ? fb_slot_of(hook) : 0;"
                " if (ctx) { fb_emit(hook, ctx, 0); fb_emit(hook, ctx, 0); } return 0; }"
            },
            "it left more than one verdict",
        ),
        (
            {
                "f3": "int f3__pre__mkdir(void *none) { struct fb_hook *hook = fb_hook_here();"
                " struct fb_slot *ctx = hook ? fb_slot_of(hook) : 0;"
                " if (ctx) hook->filter = 9; if (ctx) fb_emit(hook, ctx, 0); return 0; }"
            },
            "its verdict is for another request",
        ),
    ],
    indirect=["served"],
)
def test_one_that_breaks_a_rule_fails_the_op_and_is_named(served: serving.Served, why: str) -> None:
    joined = Eight(served)

    assert joined.make() == errno.EIO
    assert "filter f3: its pre hook on mkdir broke a rule" in served.log
    assert why in served.log
    assert not (served.src / f"d{joined._number}").exists()


@pytest.mark.parametrize(
    "served",
    [
        {
            "f3": "PRE(f3, mkdir) { ctx->args.mkdir.mode = 0700; ctx->edits |= FB_EDIT_MODE;"
            " return FB_REWRITE; }",
            "f4": "PRE(f4, mkdir) { return ctx->args.mkdir.mode & 077 ? -EBADE : FB_CONTINUE; }",
        }
    ],
    indirect=True,
)
def test_what_one_rewrites_the_next_one_sees(served: serving.Served) -> None:
    joined = Eight(served)

    assert joined.make() == 0
    assert (served.path / f"d{joined._number}").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(
    "served",
    [
        {
            "f3": "PRE(f3, mkdir) { ctx->name.text[0] = 'x'; ctx->filter = 7; return FB_CONTINUE; }",
            "f4": "PRE(f4, mkdir) { return ctx->name.text[0] == 'd' && ctx->filter != 7"
            " ? FB_CONTINUE : -EBADE; }",
        },
        {
            "f3": "PRE(f3, mkdir) { __sync_fetch_and_add(&ctx->args.mkdir.mode, 01000000);"
            " return FB_CONTINUE; }",
            "f4": "PRE(f4, mkdir) { return ctx->args.mkdir.mode & 01000000 ? -EBADE : FB_CONTINUE; }",
        },
    ],
    indirect=True,
)
def test_what_one_scribbles_on_the_slot_reaches_nobody(served: serving.Served) -> None:
    joined = Eight(served)

    assert joined.make() == 0


def test_hooks_that_store_to_the_slot_can_only_be_the_last_of_a_run() -> None:
    output, leave, store = (
        bytes.fromhex(f"{one}000000") for one in ("8500000082", "9500000000", "6321000000")
    )
    quiet, loud, twice = output + leave, store + output + leave, output + output + leave

    assert list(joining.runs([quiet, quiet, loud, quiet, None, quiet, loud, loud])) == [(0, 3), (5, 2)]
    assert list(joining.runs([loud, quiet])) == []
    assert list(joining.runs([quiet, twice, quiet])) == []
    assert list(joining.runs([])) == []
