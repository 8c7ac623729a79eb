"""What callers that are treated differently do to each other: nothing, but for what the kernel does."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import support
from chain.chained import Chained, chained, source
from core.table import attempt, in_child, user

OTHER = 2000
FILTER = """
FILTER(private, .altitude = FB_POLICY + 3, .wants = FB_WANTS_IDS)

FB_ALWAYS_INLINE int hides(const struct fb_slot *ctx)
{
    return ctx->uid == 2000 &&
           (fb_name_starts(ctx, "secret") || !fb_differs(ctx->name2.text, 0, "secret", 6));
}

PRE(private, lookup) { return hides(ctx) ? FB_NEGATIVE : FB_CONTINUE; }
PRE(private, name) { return hides(ctx) ? -EACCES : FB_CONTINUE; }
POST(private, dirent) { return hides(ctx) ? FB_DROP : FB_CONTINUE; }
"""


@pytest.fixture(scope="module")
def private(run_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chained]:
    with chained(run_directory, [source(tmp_path_factory.mktemp("private"), FILTER, "private")]) as made:
        yield made


@pytest.fixture
def p(private: Chained) -> Path:
    """A directory that all may write to, with something that one user does not see."""
    p, behind = private.fresh()
    behind.chmod(0o777)
    (behind / "secret").write_text("text")
    (behind / "secret-d").mkdir()
    (behind / "secret-d/f").write_text("text")
    (behind / "plain").write_text("text")
    os.chown(behind / "plain", OTHER, OTHER)  # or the kernel lets him make no links to it
    return p


def as_other(call: Any, *args: Any) -> Any:
    with user(OTHER):
        return attempt(call, *args)


def test_a_hidden_name_stays_hidden_when_another_caller_has_just_used_it(p: Path) -> None:
    def act() -> list[Any]:
        found = []
        for _ in range(20):
            held = os.open(p / "secret", os.O_RDONLY)
            found.append(
                (
                    os.stat(p / "secret").st_size,
                    as_other(os.stat, p / "secret"),
                    as_other(os.open, p / "secret", os.O_RDONLY),
                    as_other(os.stat, p / "secret-d/f"),
                    os.stat(p / "secret-d/f").st_size,
                )
            )
            os.close(held)
        return found

    assert in_child(act) == [(4, "ENOENT", "ENOENT", "ENOENT", 4)] * 20


def test_and_is_there_when_the_other_has_just_been_told_that_it_is_not(p: Path) -> None:
    def act() -> list[Any]:
        return [(as_other(os.stat, p / "secret"), (p / "secret").read_text()) for _ in range(20)]

    assert in_child(act) == [("ENOENT", "text")] * 20


def test_a_listing_with_attributes_does_not_slip_past_a_lookup_hook(p: Path) -> None:
    def act() -> Any:
        everything = {entry.name: entry.stat().st_size for entry in os.scandir(p) if entry.is_file()}
        hidden = as_other(os.stat, p / "secret")
        with user(OTHER):
            listed = sorted(entry.name for entry in os.scandir(p) if entry.stat())
        return everything, hidden, listed, sorted(os.listdir(p))

    assert in_child(act) == (
        {"secret": 4, "plain": 4},
        "ENOENT",
        ["plain"],
        ["plain", "secret", "secret-d"],
    )


def test_what_is_made_onto_a_hidden_name_is_refused(p: Path) -> None:
    def act() -> list[Any]:
        return [
            as_other(os.mkdir, p / "secret"),
            as_other(os.open, p / "secret", os.O_CREAT | os.O_WRONLY),
            as_other(os.rename, p / "plain", p / "secret"),
            as_other(os.link, p / "plain", p / "secret"),
            as_other(os.symlink, "x", p / "secret"),
            as_other(os.mkfifo, p / "secret"),
        ]

    assert in_child(act) == ["EACCES"] * 6


def test_getcwd_fails_after_another_caller_was_told_that_there_is_no_such_directory(p: Path) -> None:
    """The kernel drops the name for all; stated here, and in docs/limits.md, so that a change is seen."""

    def act() -> list[Any]:
        os.chdir(p / "secret-d")
        found = [attempt(os.getcwd) == str(p / "secret-d"), as_other(os.stat, p / "secret-d")]
        found += [attempt(os.getcwd), attempt(Path("f").read_text)]
        os.stat(p / "secret-d")
        return [*found, attempt(os.getcwd) == str(p / "secret-d")]

    assert in_child(act) == [True, "ENOENT", "ENOENT", "text", True]


def test_inside_a_hidden_directory_work_goes_on(p: Path) -> None:
    def act() -> Any:
        os.chdir(p / "secret-d")
        held = os.open("f", os.O_RDWR)
        as_other(os.stat, p / "secret-d")
        Path("new").write_text("made")
        os.rename("new", "newer")
        return sorted(os.listdir(".")), os.pread(held, 9, 0), support.run("cat", "newer").stdout

    assert in_child(act) == (["f", "newer"], b"text", "made")
