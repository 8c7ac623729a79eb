"""What the tests of the command share: one call of it, and a look at what it left behind."""

import os
import subprocess
from pathlib import Path

import support

MARK = "FUSEBPF_TEST"
"""In the environment of what a test starts: its directory."""

GOOD_FILTER = """
#include "fusebpf.h"

FILTER({name}, .altitude = {altitude}{more}, .doc = "does nothing")

PRE({name}, lookup) {{ return FB_CONTINUE; }}
"""


def fusebpf(
    *words: str | os.PathLike[str], cwd: Path | None = None, user: int | None = None, seconds: float = 30
) -> subprocess.CompletedProcess[str]:
    """Run the command; what it says and how it ends is the test's to judge."""
    return support.run(support.COMMAND, *words, check=False, cwd=cwd, user=user, seconds=seconds)


def mount(*words: str | os.PathLike[str], cwd: Path | None = None) -> None:
    """Mount, which has to succeed and to say nothing."""
    done = fusebpf("mount", *words, cwd=cwd)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def umount(*words: str | os.PathLike[str], cwd: Path | None = None) -> None:
    """Unmount, which has to succeed and to say nothing."""
    done = fusebpf("umount", *words, cwd=cwd)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def assert_refused(
    done: subprocess.CompletedProcess[str], exit_code: int, *parts: str, n_lines: int | None = 1
) -> None:
    """The command said one clear line, with these parts in it, and nothing else."""
    lines = done.stderr.splitlines()
    assert done.returncode == exit_code, done.stderr
    assert done.stdout == ""
    assert lines[0].startswith("fusebpf: ")
    assert n_lines is None or len(lines) == n_lines, done.stderr
    assert "Traceback" not in done.stderr
    for part in parts:
        assert part in lines[0]


def left_behind(directory: Path) -> list[str]:
    """Mounts, state files, pins and processes that have to do with the directory of a test."""
    left = [f"mount {path}" for path in support.mountpoints(directory)]
    names = [name for name, _ in support.servers_below(directory)]
    left += [f"state {name}" for name in names]
    left += [f"process {pid}" for pid in processes(directory)]
    return left


def processes(directory: Path) -> list[int]:
    """The fusebpf processes that a test has started, by the mark that they have from its environment."""
    mark = f"{MARK}={directory}".encode()
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            is_ours = mark in (path / "environ").read_bytes().split(b"\0")
            words = (path / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if (
            is_ours
            and any(word.endswith(b"/fusebpf") for word in words[:3])
            and support.is_alive(int(path.name))
        ):
            found.append(int(path.name))
    return found


def write_filter(path: Path, *names: str, altitude: int = 500, more: str = "") -> Path:
    """A C source with these filters, which do nothing."""
    texts = [
        GOOD_FILTER.format(name=name, altitude=altitude + number, more=more)
        for number, name in enumerate(names)
    ]
    path.write_text("".join(texts))
    return path
