"""What is allowed, and yet may not be what was meant: a line on stderr."""

from pathlib import Path

import cli_support
import pytest

WATCHES = """
#include "fusebpf.h"

FILTER(watches, .altitude = 500, .doc = "counts")

{phase}(watches, {op}) {{ return FB_CONTINUE; }}
"""


def said(tree: Path, op: str, phase: str, *words: str) -> str:
    """What `fusebpf mount` says of a filter with this hook."""
    (tree / "watches.c").write_text(WATCHES.format(op=op, phase=phase))
    done = cli_support.fusebpf("mount", "src", "mnt", "--filter", "./watches.c", *words, cwd=tree)
    cli_support.umount("mnt", cwd=tree)
    assert (done.returncode, done.stdout) == (0, "")
    return done.stderr


@pytest.mark.parametrize("phase", ["PRE", "POST"])
def test_a_hook_on_access_that_never_runs_is_warned_of(tree: Path, phase: str) -> None:
    line = said(tree, "access", phase)

    assert line.startswith("fusebpf: warning: ")
    assert line.count("\n") == 1
    assert all(part in line for part in ("watches.c", "access", "nodefault_permissions"))


def test_hooks_on_access_that_run_and_other_hooks_are_not_warned_of(tree: Path) -> None:
    assert said(tree, "access", "PRE", "-o", "nodefault_permissions") == ""
    assert said(tree, "any", "PRE") == ""
    assert said(tree, "lookup", "PRE") == ""


@pytest.mark.parametrize("op", ["getlk", "setlk"])
def test_a_hook_on_locks_that_the_kernel_keeps_to_itself_is_warned_of(tree: Path, op: str) -> None:
    line = said(tree, op, "PRE", "--locks", "local")

    assert line.startswith("fusebpf: warning: ")
    assert line.count("\n") == 1
    assert all(part in line for part in ("watches.c", op, "locks=local"))


def test_hooks_on_locks_that_run_are_not_warned_of(tree: Path) -> None:
    assert said(tree, "setlk", "PRE") == ""
    assert said(tree, "flock", "PRE", "--locks", "local") == ""


def test_stock_filters_are_not_warned_of(tree: Path) -> None:
    cli_support.mount("src", "mnt", "--filter", "audit", "--filter", "deny", cwd=tree)
    cli_support.umount("mnt", cwd=tree)


def test_locks_and_cache_are_options_of_the_command(tree: Path) -> None:
    cli_support.mount("src", "mnt", "--locks", "local", "--cache", "none", cwd=tree)
    (tree / "src" / "file").write_text("changed behind\n")
    assert (tree / "mnt" / "file").stat().st_size == len("changed behind\n")
    cli_support.umount("mnt", cwd=tree)
    refused = cli_support.fusebpf("mount", "src", "mnt", "--locks", "remote", cwd=tree)
    cli_support.assert_refused(refused, 2, "'remote'")
    refused = cli_support.fusebpf("mount", "src", "mnt", "--cache", "none", "-o", "ttl=1", cwd=tree)
    cli_support.assert_refused(refused, 2, "'ttl=1'")
