"""Names that were looked up before lead to what they lead to now (hints.c)."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import serving
import support
from core.table import in_child

# What was made just before it was looked up is not gone by: entries.c, JUST_NOW_NS.
OLD_SECONDS = 0.1
# So few descriptors that none is kept while so many others are looked up: an open file keeps its number.
N_FILES, N_OTHERS = 256, 600


@pytest.fixture
def served(ext4: Path) -> Iterator[serving.Served]:
    """A mount of which the kernel keeps nothing."""
    (ext4 / "src").mkdir()
    with serving.serve(ext4, "names", options="cache=none") as mount:
        yield mount


def _look_up_when_old(served: serving.Served, *names: str) -> None:
    time.sleep(OLD_SECONDS)
    for _ in range(2):
        for name in names:
            (served.path / name).stat()


def test_a_file_with_the_name_and_the_number_of_one_that_is_gone_is_another(ext4: Path) -> None:
    (ext4 / "src" / "others").mkdir(parents=True)
    for number in range(N_OTHERS):
        (ext4 / "src" / "others" / str(number)).touch()
    reused = 0
    with serving.serve(ext4, "numbers", options="cache=none", n_files=N_FILES) as served:
        behind, seen = served.src / "f", served.path / "f"

        def read() -> tuple[str, int]:
            return seen.read_text(), seen.stat().st_size

        for count in range(5):
            behind.write_text("old")
            in_child(lambda: _look_up_when_old(served, "f", *(f"others/{n}" for n in range(N_OTHERS))))
            number = behind.stat().st_ino

            behind.unlink()
            behind.write_text(f"new {count}")

            reused += behind.stat().st_ino == number
            assert in_child(read) == (f"new {count}", 5)
            behind.unlink()
    assert reused, "no number was given to another file, so this has tried nothing"


def test_a_name_that_another_file_took_leads_to_that(served: serving.Served) -> None:
    for name in "abc":
        (served.src / name).write_text(name)
    os.link(served.src / "c", served.src / "d")
    in_child(lambda: _look_up_when_old(served, "a", "b", "d"))

    (served.src / "a").rename(served.src / "b")
    (served.src / "d").rename(served.src / "a")

    def read() -> tuple[str, str, int, bool]:
        a, b = served.path / "a", served.path / "b"
        return a.read_text(), b.read_text(), a.stat().st_nlink, (served.path / "d").exists()

    assert in_child(read) == ("c", "a", 2, False)


def test_directories_that_change_places_lead_to_what_is_in_them_now(served: serving.Served) -> None:
    for name in "ab":
        (served.src / name).mkdir()
        (served.src / name / "f").write_text(name)
    in_child(lambda: _look_up_when_old(served, "a/f", "b/f"))

    (served.src / "a").rename(served.src / "c")
    (served.src / "b").rename(served.src / "a")
    (served.src / "c").rename(served.src / "b")

    assert in_child(lambda: [(served.path / name / "f").read_text() for name in "ab"]) == ["b", "a"]


@pytest.mark.parametrize("options", ["cache=none", "cache=normal,ttl=0.2"])
def test_a_subvolume_that_a_snapshot_took_the_place_of_leads_to_the_snapshot(
    btrfs: Path, options: str
) -> None:
    """It has its number, its birth time and, when the old one is gone, its device number."""
    volume, snapshot = btrfs / "src" / "volume", btrfs / "snapshot"
    (btrfs / "src").mkdir()
    support.run("btrfs", "-q", "subvolume", "create", volume)
    for name in ("f", "g"):
        (volume / name).write_text("old")
    with serving.serve(btrfs, "volumes", options=options) as served:
        in_child(lambda: _look_up_when_old(served, "volume/f", "volume/g"))

        support.run("btrfs", "-q", "subvolume", "snapshot", volume, snapshot)
        support.run("btrfs", "-q", "subvolume", "delete", volume)
        support.run("btrfs", "-q", "subvolume", "snapshot", snapshot, volume)
        time.sleep(3 * OLD_SECONDS)

        def write_and_list() -> list[str]:
            (served.path / "volume" / "f").write_text("new")
            return sorted(os.listdir(served.path / "volume"))

        assert in_child(write_and_list) == ["f", "g"]
        assert (volume / "f").read_text() == "new"


def test_a_listing_after_another_one_brings_the_attributes_of_now(ext4: Path) -> None:
    (ext4 / "src").mkdir()
    for number in range(20):
        (ext4 / "src" / f"f{number}").write_text("x" * number)
    time.sleep(OLD_SECONDS)
    with serving.serve(ext4, "names", options="cache=watch") as served:

        def list_and_read() -> list[int]:
            with os.scandir(served.path) as entries:
                sizes = sorted(entry.stat().st_size for entry in entries)
            for path in served.path.iterdir():
                path.read_bytes()  # so that the next listing brings its attributes
            return sizes

        assert in_child(list_and_read) == list(range(20))
        with (served.path / "f0").open("w") as file:
            file.write("y" * 100)

        assert in_child(list_and_read) == [*range(1, 20), 100]
