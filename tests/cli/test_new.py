"""`fusebpf new`: what it writes works as it stands, and nothing of the user's is lost."""

import sys
from pathlib import Path

import pytest
import support
from cli_support import assert_refused, fusebpf


def test_a_new_filter_passes_the_check_and_its_tests(directory: Path) -> None:
    said = fusebpf("new", "mine", cwd=directory)

    assert (said.returncode, said.stderr) == (0, "")
    assert {path.name for path in directory.iterdir()} == {"mine.c", "test_mine.py"}
    assert "fusebpf mount SRC MNT --filter ./mine.c --set mine.names='*.bak'" in said.stdout
    assert f"  {sys.executable} -m pytest test_mine.py\n" in said.stdout
    assert "mine@750" in fusebpf("check", "mine.c", cwd=directory).stdout
    words = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_mine.py")
    assert "2 passed" in support.run(*words, cwd=directory, seconds=60).stdout


def test_a_new_filter_can_be_mounted(directory: Path, mount: support.Mounter) -> None:
    fusebpf("new", "mine", cwd=directory)

    mounted = mount(filters=[directory / "mine.c"], sets={"mine.names": "*.bak"})

    (mounted.path / "a").touch()
    with pytest.raises(PermissionError):
        (mounted.path / "a.bak").touch()


@pytest.mark.parametrize("there", ["mine.c", "test_mine.py"])
def test_what_is_there_is_not_overwritten(directory: Path, there: str) -> None:
    (directory / there).write_text("precious")

    assert_refused(fusebpf("new", "mine", cwd=directory), 1, repr(there), "is there already")

    assert [(path.name, path.read_text()) for path in directory.iterdir()] == [(there, "precious")]


def test_a_dangling_link_is_not_written_through(directory: Path) -> None:
    (directory / "mine.c").symlink_to("elsewhere")

    assert_refused(fusebpf("new", "mine", cwd=directory), 1, "'mine.c'", "is there already")

    assert not (directory / "elsewhere").exists()


@pytest.mark.parametrize(
    "name",
    [
        "",
        "a b",
        "a/b",
        "../a",
        "9a",
        "a-b",
        "_a",
        "a_",
        "a__b",
        "stats",
        "fb_a",
        "fb",
        "x" * 32,
        "ä",
        "hide",
        "a.c",
    ],
)
def test_a_bad_name_is_refused(directory: Path, name: str) -> None:
    assert_refused(fusebpf("new", name, cwd=directory), 2, repr(name))

    assert list(directory.iterdir()) == []


def test_a_directory_that_cannot_be_written_is_named(directory: Path) -> None:
    directory.chmod(0o555)

    assert_refused(fusebpf("new", "mine", cwd=directory, user=65534), 1, "'mine.c' cannot be written")
