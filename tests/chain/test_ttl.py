"""`ttl_ns`: an answer is kept for as long as every filter that judges it lets it be.
While one of them says nothing it is not kept at all."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import serving
import support
from chain.chained import source
from core.watched import settled

HOUR, SHORT = 3600000000000, 300000000
SAYS = """
FILTER({name}, .altitude = {altitude})
{phase}({name}, {op})
{{
	if (ctx->error)
		return FB_CONTINUE;
	ctx->ttl_ns = {ttl};
	ctx->edits = FB_EDIT_TTL;
	return FB_REWRITE;
}}
"""
SILENT = """
FILTER({name}, .altitude = {altitude})
PRE({name}, {op}) {{ return FB_CONTINUE; }}
"""

SILENT_TOO = "PRE({name}, {op}) {{ return FB_CONTINUE; }}\n"
SPARES = """
FILTER(spares, .altitude = 600)
PRE(spares, {op})
{{
	ctx->ttl_ns = 3600000000000;
	ctx->edits = FB_EDIT_TTL;
	return FB_BACKING | FB_REWRITE;
}}
"""


def says(altitude: int, op: str = "lookup", ttl: int = HOUR, phase: str = "PRE") -> str:
    return SAYS.format(name=f"says{altitude}", altitude=altitude, op=op, ttl=f"{ttl}ull", phase=phase)


def silent(altitude: int, op: str = "lookup") -> str:
    return SILENT.format(name=f"silent{altitude}", altitude=altitude, op=op)


def asked(served: serving.Served, op: str, name: str) -> int:
    """How often a filter's hooks on an op have run."""
    return sum(n for (filter_, _, one, _), n in served.stats().items() if (filter_, one) == (name, op))


def look(path: Path) -> None:
    assert path.stat().st_size == 1


def create(path: Path) -> None:
    path.write_text("x")


def ask_again(directory: Path, filters: str, op: str, name: str, begin: Callable[[Path], None] = look) -> int:
    """How often the filter is asked again when a file has been used once, and is looked at twice more."""
    made = [source(directory, filters, "filters")]
    (directory / "src").mkdir()
    if begin is look:
        (directory / "src" / "f").write_text("x")
    with serving.serve(directory, "ttl", filters=made, options="cache=watch") as served:
        begin(served.path / "f")
        settled(served)
        before = asked(served, op, name)
        for _ in range(2):
            look(served.path / "f")
        return asked(served, op, name) - before


@pytest.mark.parametrize("phase", ["PRE", "POST"])
def test_what_all_let_be_kept_is_kept(directory: Path, phase: str) -> None:
    both = says(600, phase=phase) + says(500)
    assert ask_again(directory, both, "lookup", "says500") == 0


@pytest.mark.parametrize(
    ("high", "low"), [(says(600), silent(500)), (silent(600), says(500))], ids=["low", "high"]
)
def test_a_filter_that_says_nothing_of_its_lookups_is_asked_of_each(
    directory: Path, high: str, low: str
) -> None:
    name = "silent500" if low.find("silent") > 0 else "silent600"
    assert ask_again(directory, high + low, "lookup", name) == 2


@pytest.mark.parametrize("op", ["getattr", "statx"])
@pytest.mark.parametrize("spares", [False, True])
def test_a_lookups_ttl_does_not_spare_the_hooks_on_attributes(
    directory: Path, op: str, *, spares: bool
) -> None:
    """Nor does a filter above that spares others the lookup, and says nothing of attributes."""
    (directory / "src").mkdir()
    (directory / "src" / "f").write_text("x")
    high = SPARES.format(op="lookup") if spares else says(600)
    low = silent(500, op) + (SILENT_TOO.format(name="silent500", op="lookup") if spares else "")
    made = [source(directory, high + low, "filters")]
    with serving.serve(directory, "ttl", filters=made, options="cache=watch") as served:
        fd = os.open(served.path / "f", os.O_PATH)
        try:
            before = settled(served)
            for _ in range(2):
                assert os.fstat(fd).st_size == 1
            assert served.counters()["requests"] == before + 2
        finally:
            os.close(fd)


def test_a_filter_that_says_both_spares_both(directory: Path) -> None:
    both = says(600) + SAYS.split("\n", 2)[2].format(
        name="says600", op="getattr", phase="POST", ttl=f"{HOUR}ull"
    )
    assert ask_again(directory, both, "getattr", "says600") == 0


def test_a_ttl_on_create_does_not_spare_the_hooks_on_lookup(directory: Path) -> None:
    both = says(600, "create") + silent(500, "lookup")
    assert ask_again(directory, both, "lookup", "silent500", create) == 2


def test_the_least_counts(directory: Path) -> None:
    (directory / "src").mkdir()
    (directory / "src" / "f").write_text("x")
    made = [source(directory, says(600, ttl=SHORT) + says(500, ttl=HOUR), "filters")]
    with serving.serve(directory, "ttl", filters=made, options="cache=watch") as served:
        look(served.path / "f")
        before = asked(served, "lookup", "says500")

        def is_asked_again() -> bool:
            look(served.path / "f")
            return asked(served, "lookup", "says500") > before

        support.wait_until(is_asked_again)


def test_of_one_filter_the_last_counts(directory: Path) -> None:
    twice = says(600, ttl=0) + SAYS.split("\n", 2)[2].format(
        name="says600", op="lookup", phase="POST", ttl=f"{HOUR}ull"
    )
    assert ask_again(directory, twice, "lookup", "says600") == 0


def test_whom_a_filter_above_spares_being_asked_has_no_say(directory: Path) -> None:
    decides = says(600).replace("return FB_REWRITE", "return FB_BACKING | FB_REWRITE")
    assert ask_again(directory, decides + silent(500), "lookup", "says600") == 0


@pytest.mark.parametrize("first", [None, 1000])
def test_deny_is_asked_beside_a_hide_that_lets_names_be_kept(directory: Path, first: int | None) -> None:
    """A name that one caller was led to is not another's whom `deny` refuses."""
    sets = {"hide.names": "*.key", "hide.ttl": "3600000", "deny.rules": "lookup:1000:f:EACCES"}
    os.chmod(directory, 0o755)
    with serving.serve(directory, "denies", filters=["hide", "deny"], sets=sets, options="ttl=60") as served:
        (served.src / "f").touch()
        for user in (first, None, 1000, None, 1000):
            done = support.run("stat", served.path / "f", user=user, check=False)
            assert (done.returncode == 0) == (user is None), done.stderr


def test_whom_a_filter_spares_the_making_of_a_name_is_asked_when_it_is_looked_up(directory: Path) -> None:
    """The filter above says nothing of lookups, so it spares nobody them."""
    both = (
        SPARES.format(op="create") + silent(500, "lookup") + SILENT_TOO.format(name="silent500", op="create")
    )
    assert ask_again(directory, both, "lookup", "silent500", create) == 2
