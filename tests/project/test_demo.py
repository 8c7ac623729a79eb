"""`make demo`: says what the filters did, on any tree, and leaves nothing behind."""

import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support import CHECKOUT, PINS, mountpoints, run

pytestmark = pytest.mark.alone

DEMO = CHECKOUT / "examples/demo/demo.py"
SECONDS = 90


def left_behind(said: str) -> list[str]:
    """What a demo that said this has left: its mount, its pins."""
    mount = next(shlex.split(line) for line in said.splitlines() if "$ fusebpf mount" in line)
    mnt, pins = Path(mount[4]), PINS / mount[6]
    return [str(pins)] * pins.exists() + [str(mnt)] * (mnt in mountpoints())


def listing(directory: Path) -> set[Path]:
    """Everything below a directory."""
    return set(directory.rglob("*"))


@pytest.fixture
def tree(directory: Path) -> Path:
    """A small tree of a user."""
    path = directory / "tree"
    path.mkdir()
    (path / "letter.txt").write_text("dear reader\n")
    (path / "my.key").write_text("secret\n")
    return path


def test_the_demo_tells_what_each_filter_did_to_each_program(directory: Path) -> None:
    said = run(sys.executable, DEMO, seconds=SECONDS, cwd=directory).stdout

    for words in (
        "left 2 of 5 entries out of listings",
        "hello from below",
        "cat: server.key: No such file or directory",
        "mkdir: cannot create directory",
        "Read-only file system",
        "nothing to commit, working tree clean",
        "bpftool prog show pinned",
        "FB_OP_lookup",
    ):
        assert words in said
    assert left_behind(said) == []


def test_the_demo_takes_a_tree_and_a_mount_point_of_the_users(tree: Path, directory: Path) -> None:
    mnt = directory / "mnt"
    mnt.mkdir()
    before = listing(tree)

    said = run(sys.executable, DEMO, "--src", tree, "--mnt", mnt, seconds=SECONDS).stdout

    assert "dear reader" in said
    assert listing(tree) == before
    assert left_behind(said) == []


def test_make_hands_any_path_to_the_demo(directory: Path) -> None:
    src = directory / """it's "a" place; `exit`"""

    said = run("make", "-C", CHECKOUT, "-s", "-o", "build", "demo", f"SRC={src}", check=False)

    assert said.returncode == 2
    assert f"fusebpf: source {str(src)!r} cannot be opened: No such file or directory\n" in said.stderr


def test_the_demo_shows_what_it_can_on_a_tree_that_takes_no_files(tmpfs: Path) -> None:
    (tmpfs / "letter.txt").write_text("dear reader\n")
    run("mount", "-o", "remount,ro", tmpfs)

    said = run(sys.executable, DEMO, "--src", tmpfs, seconds=SECONDS).stdout

    assert "takes no files (Read-only file system)" in said
    assert "dear reader" in said
    assert left_behind(said) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_demo_that_is_stopped_cleans_up(number: signal.Signals, tree: Path) -> None:
    before = listing(tree)
    command = [sys.executable, str(DEMO), "--src", str(tree)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as demo:
        try:
            output = demo.stdout
            assert output is not None
            said = ""
            while "$ cat" not in said:
                line = output.readline()
                assert line, said
                said += line
            os.kill(demo.pid, number)
            said += output.read()
            assert demo.wait(SECONDS) == 128 + number, said
        finally:
            demo.kill()

    assert listing(tree) == before
    assert left_behind(said) == []
