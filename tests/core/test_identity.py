"""What is replaced, moved or made anew behind the mount is never taken for what was there before."""

import errno
import os
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
import serving
import support

POLICIES = ["cache=none", "cache=normal,ttl=0.2", "cache=watch", "cache=watch,nopassthrough"]


def reads(path: Path, text: str) -> bool:
    """Whether this is the file's content by now; an old entry may lead to what is no file, or gone."""
    try:
        return path.read_text() == text
    except OSError:
        return False


@pytest.fixture(params=POLICIES)
def served(directory: Path, request: pytest.FixtureRequest) -> Iterator[serving.Served]:
    with serving.serve(directory, "identity", options=request.param) as one:
        yield one


def test_a_file_that_takes_the_place_of_another(served: serving.Served) -> None:
    (served.src / "f").write_text("old")
    (served.src / "other").write_text("other")
    with (served.path / "f").open("r+") as file:
        assert file.read() == "old"
        number = os.fstat(file.fileno()).st_ino
        (served.src / "other").rename(served.src / "f")

        support.wait_until(partial(reads, served.path / "f", "other"))
        assert (served.path / "f").stat().st_ino != number
        # Who has the old one open goes on with the old one.
        assert os.fstat(file.fileno()).st_ino == number
        file.seek(0)
        assert file.read() == "old"
        file.write(" and more")
        file.flush()
    assert (served.path / "f").read_text() == (served.src / "f").read_text() == "other"


def test_a_number_that_is_used_again(served: serving.Served) -> None:
    """ext4 gives the number of a deleted file to the next one; only its generation differs."""
    for round_ in range(6):
        path = served.src / "again"
        path.write_text(f"file {round_}")
        path.chmod(0o600 + round_ % 8)
        support.wait_until(partial(reads, served.path / "again", f"file {round_}"))
        assert (served.path / "again").stat().st_mode & 7 == round_ % 8
        with (served.path / "again").open() as file:
            path.unlink()
            path.mkdir()
            (path / str(round_)).touch()

            assert file.read() == f"file {round_}"
        support.wait_until((served.path / "again").is_dir)
        assert os.listdir(served.path / "again") == [str(round_)]
        (path / str(round_)).unlink()
        path.rmdir()


def test_names_that_change_places(served: serving.Served) -> None:
    for name in ("a", "b"):
        (served.src / name).mkdir()
        (served.src / name / "f").write_text(name)
        assert (served.path / name / "f").read_text() == name
    fds = {name: os.open(served.path / name, os.O_RDONLY) for name in ("a", "b")}
    try:
        (served.src / "a").rename(served.src / "c")
        (served.src / "b").rename(served.src / "a")
        (served.src / "c").rename(served.src / "b")

        support.wait_until(partial(reads, served.path / "a" / "f", "b"))
        support.wait_until(partial(reads, served.path / "b" / "f", "a"))
        for name, fd in fds.items():
            with open(os.open("f", os.O_RDONLY, dir_fd=fd)) as file:
                assert file.read() == name
    finally:
        for fd in fds.values():
            os.close(fd)


def test_a_directory_that_moves_into_another(served: serving.Served) -> None:
    (served.src / "from" / "sub").mkdir(parents=True)
    (served.src / "to").mkdir()
    (served.src / "from" / "sub" / "f").write_text("x")
    assert (served.path / "from" / "sub" / "f").read_text() == "x"
    number = (served.path / "from" / "sub" / "f").stat().st_ino

    (served.src / "from" / "sub").rename(served.src / "to" / "sub")
    (served.src / "from" / "sub").mkdir()
    (served.src / "from" / "sub" / "f").write_text("new")

    support.wait_until(partial(reads, served.path / "from" / "sub" / "f", "new"))
    assert (served.path / "to" / "sub" / "f").read_text() == "x"
    assert (served.path / "to" / "sub" / "f").stat().st_ino == number
    (served.path / "to" / "sub" / "f").write_text("through")
    assert (served.src / "from" / "sub" / "f").read_text() == "new"


def test_what_is_gone_is_told_apart_from_what_came(served: serving.Served) -> None:
    (served.src / "d").mkdir()
    fd = os.open(served.path / "d", os.O_RDONLY)
    try:
        (served.src / "d").rmdir()
        (served.src / "d").mkdir()

        with pytest.raises(OSError, match=r".") as caught:
            os.close(os.open("new", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
        assert caught.value.errno in {errno.ENOENT, errno.ESTALE}
        assert os.listdir(served.src / "d") == []
    finally:
        os.close(fd)


def test_stale_handles_lead_to_what_is_there_now(directory: Path) -> None:
    """Few descriptors: files are found again by their handles, which lead nowhere once they are replaced."""
    src = directory / "src"
    for number in range(300):
        (src / f"d{number % 10}").mkdir(parents=True, exist_ok=True)
        (src / f"d{number % 10}" / f"f{number}").write_text("old")
    with serving.serve(directory, "stale", options="ttl=100000", n_files=128) as served:
        paths = [served.path / f"d{number % 10}" / f"f{number}" for number in range(300)]
        assert all(path.stat().st_size == 3 for path in paths)
        for number in range(300):
            behind = src / f"d{number % 10}" / f"f{number}"
            if number % 3:
                behind.with_suffix(".new").write_text("newer")
                behind.with_suffix(".new").rename(behind)
            else:
                behind.unlink()

        seen = []
        for path in paths:
            with suppress(FileNotFoundError):
                seen.append(path.read_text())

        assert seen.count("newer") == 200 - seen.count("old")
        assert served.counters()["descriptors"] <= 64
        assert "ESTALE" not in served.log
