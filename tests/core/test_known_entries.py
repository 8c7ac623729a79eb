"""What a listing brings: attributes that the kernel lacks, and not those that it has."""

import errno
import os
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import serving
import support

WATCHED = "cache=watch,locks=local"
N = 50


def filled(served: serving.Served, name: str = "d") -> Path:
    """A directory of N files behind the mount; its path through it."""
    (served.src / name).mkdir()
    for number in range(N):
        (served.src / name / f"f{number}").write_text(f"{number}")
    return served.path / name


def n_requests(served: serving.Served, *words: str | Path) -> int:
    """How many requests a program costs."""
    before = served.counters()["requests"]
    subprocess.run(["timeout", "-s", "KILL", "20", *words], check=True, stdout=subprocess.DEVNULL)
    return served.counters()["requests"] - before


def read_all(directory: Path) -> None:
    for name in os.listdir(directory):
        (directory / name).read_text()


def stat_all(directory: Path) -> dict[str, int]:
    return {entry.name: entry.stat().st_size for entry in os.scandir(directory)}


def test_files_that_were_read_are_listed_anew_and_not_asked_for_one_by_one(directory: Path) -> None:
    with serving.serve(directory, "read", options=WATCHED) as served:
        path = filled(served)
        settle(served, path)

        for _ in range(3):
            read_all(path)
            support.wait_until(lambda: served.counters()["handles"] == 0)

            assert n_requests(served, "find", path, "-newer", served.path) < N / 2


def test_where_few_files_were_read_a_listing_that_is_kept_stays(directory: Path) -> None:
    with serving.serve(directory, "few", options=WATCHED) as served:
        path = filled(served)
        settle(served, path)
        support.wait_until(lambda: n_requests(served, "ls", path) <= 2)

        for number in range(3):
            (path / f"f{number}").read_text()
        support.wait_until(lambda: served.counters()["handles"] == 0)

        assert n_requests(served, "ls", path) <= 2  # OPENDIR and RELEASEDIR


def test_a_listing_of_what_has_grown_large_is_kept_whatever_of_it_was_written(directory: Path) -> None:
    with serving.serve(directory, "grown", options=WATCHED) as served:
        path = filled(served)
        settle(served, path)
        names = [path / f"{number:0200}" for number in range(2000)]  # they take several requests
        for name in names:
            name.touch()
        support.wait_until(lambda: served.counters()["handles"] == 0)

        support.wait_until(lambda: n_requests(served, "ls", "-U", path) <= 2)

        for name in names[-20:]:
            name.read_text()
        support.wait_until(lambda: served.counters()["handles"] == 0)
        assert n_requests(served, "ls", "-U", path) <= 2


LEAD = """
#include "fusebpf.h"

FILTER(lead, .altitude = FB_POLICY + 50, .doc = "The name a leads to b.")

PRE(lead, lookup)
{
	ctx->ttl_ns = 60000000000ull;
	ctx->edits |= FB_EDIT_TTL;
	if (fb_name_is(ctx, "a")) {
		ctx->name.text[0] = 'b';
		ctx->edits |= FB_EDIT_NAME;
	}
	return FB_REWRITE;
}
"""


def test_a_name_that_is_led_elsewhere_has_the_type_and_number_of_that_in_each_listing(
    directory: Path,
) -> None:
    source = directory / "lead.c"
    source.write_text(LEAD)
    with serving.serve(directory, "led", filters=[source], options="ttl=60") as served:
        (served.src / "a").write_text("a file")
        (served.src / "b").mkdir()

        def listed() -> tuple[bool, int]:
            (served.path / "a").stat()  # so that the kernel asks for attributes with the listing
            (entry,) = (one for one in os.scandir(served.path) if one.name == "a")
            return entry.is_dir(follow_symlinks=False), entry.inode()

        led = True, (served.src / "b").stat().st_ino
        support.wait_until(lambda: listed() == led)

        assert [listed() for _ in range(5)] == [led] * 5


def settle(served: serving.Served, path: Path) -> None:
    """Wait until the kernel has been told of what was made behind the mount."""
    support.wait_until(lambda: n_requests(served, "find", path, "-newer", served.path) < 10)


def lookups(served: serving.Served) -> int:
    return sum(n for (_, phase, op, _), n in served.stats().items() if (phase, op) == ("pre", "lookup"))


def listed_in_part(directory: Path) -> None:
    """The first part of a listing, as rm(1) does to see whether there is any; the kernel keeps none of it."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with os.scandir(fd) as entries:
            next(entries)
    finally:
        os.close(fd)


def test_what_a_listing_has_just_brought_the_next_one_does_not_bring_again(directory: Path) -> None:
    sets = {"hide.names": "*.key", "hide.ttl": "3600000"}
    with serving.serve(directory, "again", filters=["hide"], sets=sets, options=WATCHED) as served:
        path = filled(served)
        settle(served, path)
        served.invalidate()
        asked = lookups(served)
        listed_in_part(path)
        assert lookups(served) - asked >= N
        asked = lookups(served)

        listed_in_part(path)

        assert lookups(served) - asked <= 1
        before = served.counters()["requests"]
        assert len(stat_all(path)) == N
        assert served.counters()["requests"] - before < 10


def test_what_the_kernel_was_told_to_forget_a_listing_brings_again(directory: Path) -> None:
    with serving.serve(directory, "forgotten", options=WATCHED) as served:
        path = filled(served)
        settle(served, path)
        listed_in_part(path)
        served.invalidate()

        before = served.counters()["requests"]
        assert len(stat_all(path)) == N

        assert served.counters()["requests"] - before < N / 2


def test_what_was_made_behind_the_mount_since_a_listing_is_listed_at_once(directory: Path) -> None:
    with serving.serve(directory, "made", options="cache=normal,ttl=600") as served:
        path = filled(served)
        assert len(stat_all(path)) == N

        (served.src / "d" / "new").write_text("three")
        (served.src / "d" / "f1").write_text("four")
        (served.src / "d" / "f2").unlink()

        assert "new" in os.listdir(path)
        assert "f2" not in os.listdir(path)
        assert (path / "new").stat().st_size == 5


class Rush:
    """Calls that are repeated in threads for some seconds, until one says what is wrong."""

    def __init__(self, seconds: float) -> None:
        self.end = time.monotonic() + seconds
        self.failed: list[str] = []

    def _repeat(self, call: Callable[[], str]) -> None:
        while time.monotonic() < self.end and not self.failed:
            try:
                problem = call()
            except OSError as error:
                problem = str(error)
            if problem:
                self.failed.append(problem)

    def run(self, *calls: Callable[[], str]) -> list[str]:
        """What was wrong."""
        threads = [threading.Thread(target=self._repeat, args=(call,)) for call in calls]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return self.failed


def test_attributes_are_asked_for_while_the_file_is_opened_and_closed(directory: Path) -> None:
    """They go by the descriptor of who has the file open, who may close it meanwhile."""
    with serving.serve(directory, "open", options="cache=none") as served:
        path, other = served.path / "f", served.path / "other"
        path.write_text("text")
        other.write_text("longer than the text")

        def opens() -> str:
            for one in (path, other):
                with one.open("r+") as file:
                    file.read(1)
            return ""

        def asks() -> str:
            sizes = path.stat().st_size, other.stat().st_size
            return "" if sizes == (4, 20) else "the size of another file"

        def sets() -> str:
            os.utime(path, ns=(10**9, 2 * 10**9))
            os.utime(other, ns=(3 * 10**9, 4 * 10**9))
            return "" if path.stat().st_mtime_ns == 2 * 10**9 else "the time of another file"

        def asks_xattr() -> str:
            try:
                os.getxattr(path, "user.none")
            except OSError as error:
                return "" if error.errno == errno.ENODATA else str(error)
            return "an attribute that nobody set"

        assert not Rush(3).run(opens, opens, asks, sets, asks_xattr)
        support.wait_until(lambda: served.counters()["handles"] == 0)
