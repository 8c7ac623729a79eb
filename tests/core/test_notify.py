"""What the kernel has cached is invalidated from a thread of its own, which nothing can hang."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import serving
import support

FOR_EVER = "ttl=1000000"
HAMMER = """
import os, sys
os.chdir(sys.argv[1])
print(flush=True)
try:
    for number in range(1_000_000):
        os.mkdir(f"{sys.argv[2]}.{number}")
        os.rmdir(f"{sys.argv[2]}.{number}")
except OSError as error:
    print(error.errno)
"""


@contextmanager
def frozen(place: Path) -> Iterator[None]:
    """A file system that lets nobody write, for the time of a block."""
    support.run("fsfreeze", "-f", place)
    try:
        yield
    finally:
        support.run("fsfreeze", "-u", place, check=False)


def test_entries_and_attributes_are_asked_for_anew(directory: Path) -> None:
    with serving.serve(directory, "anew", options=FOR_EVER) as served:
        for name in ("changed", "gone", "replaced"):
            (served.src / name).write_text(name)
            assert (served.path / name).stat().st_size == len(name)
        number = (served.path / "replaced").stat().st_ino
        (served.src / "changed").write_text("longer than before")
        (served.src / "gone").unlink()
        (served.src / "other").write_text("other")
        (served.src / "other").rename(served.src / "replaced")
        assert (served.path / "changed").stat().st_size == len("changed")
        assert (served.path / "gone").exists()
        assert (served.path / "replaced").stat().st_ino == number

        served.invalidate()

        assert (served.path / "changed").stat().st_size == len("longer than before")
        assert not (served.path / "gone").exists()
        assert (served.path / "replaced").stat().st_ino == (served.src / "replaced").stat().st_ino != number
        assert served.counters()["notifications"] > 0


def test_pages_of_an_open_file_are_read_anew(directory: Path) -> None:
    with serving.serve(directory, "pages", options=f"nopassthrough,{FOR_EVER}") as served:
        (served.src / "f").write_text("before")
        with (served.path / "f").open() as file:
            assert file.read() == "before"
            was = (served.src / "f").stat()
            (served.src / "f").write_text("behind")
            os.utime(served.src / "f", ns=(was.st_atime_ns, was.st_mtime_ns))  # or the kernel sees it
            file.seek(0)
            assert file.read() == "before"

            served.invalidate()

            file.seek(0)
            assert file.read() == "behind"


def test_what_is_mounted_below_and_where_others_stand_stays(directory: Path) -> None:
    with serving.serve(directory, "below", options=FOR_EVER) as served:
        (served.path / "sub" / "deep").mkdir(parents=True)
        support.run("mount", "-t", "tmpfs", "tmpfs", served.path / "sub" / "deep")
        (served.path / "sub" / "deep" / "inside").write_text("x")
        where = "import os, sys; os.chdir(sys.argv[1]); print(flush=True); input(); print(os.getcwd())"
        standing = subprocess.Popen(
            [sys.executable, "-c", where, served.path / "sub"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert standing.stdout is not None
        standing.stdout.readline()

        served.invalidate()

        assert (served.path / "sub" / "deep" / "inside").read_text() == "x"
        assert standing.communicate("\n", timeout=20)[0].strip() == str(served.path / "sub")
        support.run("umount", served.path / "sub" / "deep")


def test_an_op_that_holds_a_directory_up_delays_no_others(directory: Path, ext4: Path) -> None:
    (directory / "src").symlink_to(ext4)
    (ext4 / "other").mkdir()
    (ext4 / "other" / "f").write_text("x")
    with serving.serve(directory, "held") as served:
        os.listdir(served.path)
        with frozen(ext4):
            holder = subprocess.Popen(["mkdir", served.path / "made"])
            support.wait_until(lambda: not support.run("ls", served.path / "other").stderr)
            invalidated = threading.Thread(target=served.invalidate)
            invalidated.start()

            assert support.run("cat", served.path / "other" / "f", seconds=5).stdout == "x"
            assert invalidated.is_alive()

        assert holder.wait(20) == 0
        invalidated.join(20)
        assert not invalidated.is_alive()


def test_who_invalidates_waits_for_names_that_are_not_known_and_for_no_later_invalidation(
    directory: Path,
) -> None:
    (directory / "src").mkdir()
    (directory / "src" / "f").touch()
    (directory / "src" / "linked").hardlink_to(directory / "src" / "f")
    stop = threading.Event()
    with serving.serve(directory, "later", options="cache=watch") as served:

        def look() -> None:
            while not stop.is_set():  # it is kept for a second, each time anew
                (served.path / "linked").stat()
                (served.src / "linked").touch()
                time.sleep(0.05)

        looker = threading.Thread(target=look)
        looker.start()
        try:
            took = []
            for _ in range(3):
                begun = time.monotonic()
                served.invalidate()
                took.append(time.monotonic() - begun)
        finally:
            stop.set()
            looker.join()

        assert max(took) < 5


@pytest.mark.parametrize("n_times", range(3))
def test_the_mount_ends_while_notifications_are_under_way(directory: Path, n_times: int) -> None:
    del n_times
    words = [sys.executable, "-c", HAMMER, str(directory / "mnt")]
    with serving.serve(directory, "ends") as served:
        for number in range(300):
            (served.src / f"f{number}").touch()
        os.listdir(served.path)
        clients = [subprocess.Popen([*words, str(n)], stdout=subprocess.PIPE, text=True) for n in range(4)]
        for client in clients:
            assert client.stdout is not None
            client.stdout.readline()
        for _ in range(3):
            served.invalidate()
    # Only a connection that has ended tells them; over io_uring ECANCELED to those who were being served.
    ended = {client.communicate(timeout=20)[0].strip() for client in clients}
    assert ended <= {"103", "107", "125", "5", "4"}, ended
