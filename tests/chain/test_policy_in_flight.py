"""A policy that changes while an op is on its way: what the op was told before is not kept."""

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import support
from chain.chained import source
from core.table import attempt

SLOW = """
FILTER(slow, .altitude = 500)
PRE(slow, lookup)
{
	ctx->ttl_ns = 60000000000;
	ctx->edits = FB_EDIT_TTL;
	if (fb_name_is(ctx, "slow")) {
		ctx->delay_ns = 700000000;
		ctx->edits |= FB_EDIT_DELAY;
	}
	return FB_REWRITE;
}
"""


@pytest.fixture
def slow(mount: support.Mounter, directory: Path) -> support.Mounted:
    """A mount where a lookup of `slow` takes a while, and what is said of a name is kept for a minute."""
    mounted = mount(filters=["hide", source(directory, SLOW, "slow")], sets={"hide.ttl": "60000"})
    (mounted.src / "slow").write_text("here")
    return mounted


def _meanwhile(call: Callable[[], object], what: Callable[[], object]) -> object:
    """Do something while a call waits; the call's result."""
    results: list[object] = []
    thread = threading.Thread(target=lambda: results.append(attempt(call)))
    thread.start()
    thread.join(0.3)
    assert thread.is_alive()
    what()
    thread.join(10)
    return results[0]


def _lookups(mounted: support.Mounted) -> int:
    return sum(n for (_, _, op, _), n in mounted.stats().items() if op == "FB_OP_lookup")


def _hide(mounted: support.Mounted, what: str) -> None:
    support.run(support.COMMAND, "map", mounted.path, "hide", "names", what, "slow")


def test_a_name_that_was_being_looked_up_when_it_was_hidden_is_not_kept(slow: support.Mounted) -> None:
    path = slow.path / "slow"

    assert _meanwhile(path.lstat, lambda: _hide(slow, "set")) != "ENOENT"

    assert attempt(path.lstat) == "ENOENT"


def test_a_listing_that_was_on_its_way_is_not_kept_either(slow: support.Mounted) -> None:
    path = slow.path / "slow"
    attempt(path.lstat)  # so that the next listing asks the hooks of each entry
    _hide(slow, "set")
    _hide(slow, "delete")
    (slow.src / "other").write_text("")
    attempt((slow.path / "other").lstat)

    _meanwhile(lambda: list(slow.path.iterdir()), lambda: _hide(slow, "set"))

    assert attempt(path.lstat) == "ENOENT"


def test_what_was_not_on_its_way_is_kept_as_before(slow: support.Mounted) -> None:
    other = slow.path / "other"
    (slow.src / "other").write_text("")
    _hide(slow, "set")
    other.lstat()
    before = _lookups(slow)

    other.lstat()

    assert _lookups(slow) == before
