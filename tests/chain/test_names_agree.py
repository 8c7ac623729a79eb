"""Names that a filter rewrites in each op and in listings: programs find what they made. Filter: suffix.c."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import support
from chain.chained import HERE, Chained, chained
from core.table import attempt, in_child, opened, put


@pytest.fixture(scope="module")
def suffix(run_directory: Path) -> Iterator[Chained]:
    """Through suffix.c: every name is stored with `.x` behind it."""
    with chained(run_directory, [HERE / "suffix.c"]) as made:
        yield made


@pytest.fixture
def place(suffix: Chained) -> tuple[Path, Path]:
    """A new directory, through the mount and behind it."""
    through, behind = suffix.fresh()
    behind = behind.rename(f"{behind}.x")
    return through, behind


def shell(path: Path, script: str) -> list[str]:
    """What a script says that runs there."""
    return support.run("sh", "-ec", script, cwd=path).stdout.splitlines()


def test_what_was_found_is_what_is_stored(place: tuple[Path, Path]) -> None:
    through, behind = place
    put(behind / "a.x", b"text")

    def look() -> list[object]:
        with opened(through / "a", os.O_RDONLY) as fd:
            by_fd = os.fstat(fd)
            by_name = os.stat(through / "a")
            return [by_name.st_ino, by_fd.st_ino, os.read(fd, 10), os.listdir(through)]

    ino = (behind / "a.x").stat().st_ino
    assert in_child(look) == [ino, ino, b"text", ["a"]]


def test_each_op_on_a_name_agrees_with_lookup(place: tuple[Path, Path]) -> None:
    through, behind = place

    said = shell(
        through,
        "echo one > a; cat a; mv a b; ln b c; ln -s b l; cat l; mkdir d; mv c d/c; mkfifo p; chmod 600 b; "
        "truncate -s 2 d/c; stat -c '%a %s' b; ls -lR | grep -c root; rm p; rmdir d || rm -r d; ls",
    )

    assert said == ["one", "one", "600 2", "5", "b", "l"]
    assert sorted(os.listdir(behind)) == ["b.x", "l.x"]


def test_names_without_the_suffix_are_not_there(place: tuple[Path, Path]) -> None:
    through, behind = place
    put(behind / "plain")

    assert in_child(os.listdir, through) == []
    assert in_child(attempt, os.stat, through / "plain") == "ENOENT"
    assert in_child(attempt, os.unlink, through / "plain") == "ENOENT"


def test_a_name_that_gets_too_long_is_refused_by_the_filter(place: tuple[Path, Path]) -> None:
    through, _ = place
    longest = "n" * 253

    assert in_child(lambda: put(through / longest).name) == longest
    assert in_child(attempt, put, through / f"{longest}n") == errno.errorcode[errno.ENAMETOOLONG]
    assert in_child(attempt, os.rename, through / longest, through / f"{longest}n") == "ENAMETOOLONG"


def test_tar_and_git_work_on_rewritten_names(place: tuple[Path, Path]) -> None:
    through, behind = place
    git = "git -c user.name=a -c user.email=a@b -c init.defaultBranch=m -c gc.auto=0"

    said = shell(
        through,
        f"{git} init -q g; cd g; echo x > f; mkdir d; echo y > d/e; {git} add .; {git} commit -qm one; "
        f"{git} mv f f2; {git} commit -qam two; {git} status --short; {git} fsck --no-progress; cd ..; "
        f"{git} clone -q g h; cat h/f2 h/d/e; tar cf t.tar h/f2 h/d; rm -rf h; tar xf t.tar; cat h/f2 h/d/e; "
        "rm -rf g h; ls",
    )

    assert said == ["x", "y", "x", "y", "t.tar"]
    assert os.listdir(behind) == ["t.tar.x"]
