"""Programs that were written for pyfuse3 run behind a filter chain."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import support

PROGRAMS = Path(__file__).parent / "programs.py"


@contextmanager
def program(directory: Path, kind: str, *filters: str) -> Iterator[Path]:
    """Run one for the time of a block; its mount point."""
    for name in ("src", "mnt", "tree"):
        (directory / name).mkdir()
    words = [kind, f"{directory}/src", f"{directory}/mnt", f"test{os.getpid()}-{kind}", *filters]
    with (
        (directory / "said").open("w") as said,
        subprocess.Popen(
            [sys.executable, PROGRAMS, *words], stdout=subprocess.PIPE, stderr=said, text=True
        ) as process,
    ):
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n", (directory / "said").read_text()
        try:
            yield directory / "mnt"
        finally:
            support.run("umount", directory / "mnt", check=False)
            assert process.wait(timeout=30) == 0
    assert (directory / "said").read_text() == ""


def test_hello(directory: Path) -> None:
    with program(directory, "hello", "audit") as mnt:
        assert support.run("ls", "-A", mnt).stdout == "message\n"
        assert support.run("cat", mnt / "message").stdout == "hello world\n"
        assert support.run("stat", "-c", "%i %s", mnt / "message").stdout == "2 12\n"
        assert "Permission denied" in support.run("sh", "-c", f"echo x >{mnt}/message", check=False).stderr
        assert "No such file" in support.run("cat", mnt / "none", check=False).stderr
        assert support.run("cat", mnt / "message", user=1000).stdout == "hello world\n"


def test_a_passthrough_behind_filters(directory: Path) -> None:
    with program(directory, "passthrough", "hide", "audit") as mnt:
        (directory / "tree/there").write_text("there\n")
        script = (
            "set -e; cat there; mkdir -p d/e; echo one > d/e/f; echo two >> d/e/f; cat d/e/f; mv d/e d/g;"
            "cat d/g/f;"
            "ls d/g; cp d/g/f copy; truncate -s 3 copy; cat copy; echo; rm copy; rm -r d; ls -A"
        )
        done = support.run("sh", "-c", script, cwd=mnt, check=False)
    assert done.stderr == ""
    assert done.stdout == "there\none\ntwo\none\ntwo\nf\none\nthere\n"
    assert [path.name for path in (directory / "tree").iterdir()] == ["there"]
    assert list((directory / "src").iterdir()) == []
