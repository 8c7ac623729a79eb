"""The benchmark's command line: what cannot be done is said at once, in one line; nothing stays behind."""

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support import CHECKOUT, run, wait_until

pytestmark = pytest.mark.alone

RUN = CHECKOUT / "bench/run.py"
SECONDS = 60


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--match", "("), "'(' is no regular expression"),
        (("--peers", "("), "'(' is no regular expression"),
        (("--rounds", "0"), "'0' is no number from 1 on"),
        (("--rounds", "-1"), "'-1' is no number from 1 on"),
        (("--dir", "/nonexistent"), "'/nonexistent' is no directory"),
        (("--json", "/nonexistent/file"), "'/nonexistent' is no directory"),
        (("--plot", "/proc/plots"), "'/proc/plots' cannot be made"),
        (("--compare", "HEAD", "HEAD", "--json", "file"), "--json does not go with --compare"),
    ],
)
def test_bad_words_are_refused_before_anything_is_measured(words: tuple[str, ...], said: str) -> None:
    done = run(sys.executable, RUN, *words, check=False, cwd=CHECKOUT)

    assert done.returncode == 2
    assert said in done.stderr.splitlines()[-1]
    assert done.stdout == ""


def test_what_no_line_matches_is_said(directory: Path) -> None:
    run("make", "bench/out/client", cwd=CHECKOUT)
    where = ["--quick", "--match", "no such line", "--dir", str(directory)]

    done = run(sys.executable, RUN, *where, check=False, cwd=CHECKOUT, seconds=SECONDS)

    assert done.returncode == 1
    assert "matches 'no such line'" in done.stderr


def test_what_is_no_commit_is_said_and_no_checkout_stays() -> None:
    done = run(sys.executable, RUN, "--compare", "HEAD", "no-such-commit", check=False, cwd=CHECKOUT)

    assert done.returncode == 1
    assert "no-such-commit" in done.stderr
    assert done.stderr.count("\n") == 1
    if (CHECKOUT / ".git").exists():
        assert "fusebpf-compare" not in run("git", "-C", CHECKOUT, "worktree", "list").stdout


@pytest.mark.parametrize(
    ("part", "line"),
    [
        ("yardstick", "open + close"),
        ("filters", "a hook on getattr"),
        ("daemon", "lookup, not there"),
        ("start", "a mount with two stock filters"),
        ("scale", "opens per second against clients"),
    ],
)
def test_quick_measures_a_line_of_each_part_and_leaves_nothing(directory: Path, part: str, line: str) -> None:
    run("make", "bench/out/client", cwd=CHECKOUT)
    measured, saved = directory / "measured", directory / "samples.json"
    measured.mkdir()
    words = ["--quick", "--only", part, "--peers", "^$", "--dir", str(measured), "--json", str(saved)]

    done = run(sys.executable, RUN, *words, "--match", f"^{re.escape(line)}", cwd=CHECKOUT, seconds=SECONDS)

    assert [text for text in done.stdout.splitlines() if text.strip().startswith(line)]
    results = json.loads(saved.read_text())["results"]
    assert results
    if part == "yardstick" and "fuse_request_send" in Path("/proc/kallsyms").read_text():
        (found,) = [one for one in results if "limit" in one]
        assert re.fullmatch(r"1(\.0\d*)? \+ 1(\.0\d*)?", found["asked"]["fusebpf"])  # OPEN, RELEASE
        assert found["limit"].keys() == {"fusebpf"}
    assert list(measured.iterdir()) == []


@pytest.mark.parametrize("moment", ["tree", "mnt1"])
def test_what_is_interrupted_takes_its_mounts_and_files_away(directory: Path, moment: str) -> None:
    run("make", "bench/out/client", cwd=CHECKOUT)
    words = [sys.executable, str(RUN), "--quick", "--only", "start", "--dir", str(directory)]
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        wait_until(lambda: list(directory.glob(f"*/{moment}")) != [], seconds=60)
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=60)[1]

    assert process.returncode == 128 + signal.SIGINT
    assert said == ""
    assert list(directory.iterdir()) == []
    assert str(directory) not in Path("/proc/self/mountinfo").read_text()
