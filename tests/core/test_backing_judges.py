"""`-o nodefault_permissions`: the backing file system judges each caller as it does without a mount."""

import fcntl
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import serving
import support
from core import scenarios_users
from core.comparing import compare
from core.table import SCENARIOS, attempt, in_child, opened, put, user
from core.variants import Variant

ALICE, BOB = 1001, 1002
NAMES = [name for name, act in SCENARIOS.items() if act.__module__ == scenarios_users.__name__]
# There the kernel refuses a device file before it asks a server, with another errno.
NAMES.remove("only_the_owner_changes_attributes")

HIDING = """
#include "fusebpf.h"
FILTER(blind, .altitude = 700, .doc = "Names cannot be looked up by one user.")
PRE(blind, lookup) { return ctx->uid == 1002 && fb_name_is(ctx, "secret") ? FB_NEGATIVE : FB_CONTINUE; }
"""


@pytest.fixture(scope="module")
def judged(run_directory: Path) -> Iterator[Variant]:
    made = Variant(run_directory, "passed_through", "nodefault_permissions")
    yield made
    made.take_down()


@pytest.mark.parametrize("name", NAMES)
def test_users_may_what_they_may_on_the_bare_directory(judged: Variant, bare: Path, name: str) -> None:
    compare(judged, bare, SCENARIOS[name])


def test_all_groups_of_a_caller_count(judged: Variant, bare: Path) -> None:
    def act(p: Path) -> Any:
        said = []
        for gid in (500, 501, 502):
            put(p / f"f{gid}", b"x", 0o660)
            os.chown(p / f"f{gid}", 0, gid)
            with user(ALICE, ALICE, [500, 501]):
                said.append(attempt((p / f"f{gid}").read_bytes))
                said.append(attempt((p / f"f{gid}").write_bytes, b"y"))
        return said

    assert compare(judged, bare, act) == [b"x", 1, b"x", 1, "EACCES", "EACCES"]


def test_a_name_that_one_caller_reached_is_no_way_for_another(judged: Variant, bare: Path) -> None:
    def act(p: Path) -> Any:
        (p / "closed").mkdir(0o700)
        os.chown(p / "closed", ALICE, ALICE)
        put(p / "closed" / "f")
        said = []
        for uid in (ALICE, BOB, ALICE):
            with user(uid):
                said += [
                    attempt((p / "closed" / "f").read_bytes),
                    attempt(os.path.exists, p / "closed" / "f"),
                ]
        return said

    assert compare(judged, bare, act) == [b"text\n", True, "EACCES", False, b"text\n", True]


def test_an_open_file_is_locked_by_who_may_not_open_it_any_more(judged: Variant, bare: Path) -> None:
    def act(p: Path) -> Any:
        with opened(put(p / "f"), os.O_RDWR) as fd:
            os.chmod(p / "f", 0)
            with user(ALICE):
                return [attempt(lock, fd, fcntl.LOCK_EX) for lock in (fcntl.lockf, fcntl.flock)]

    assert compare(judged, bare, act) == [None, None]


def test_a_program_that_cannot_be_read_cannot_be_executed_and_a_socket_is_not_judged(
    judged: Variant, bare: Path
) -> None:
    """What the kernel decides or cannot be told: see docs/operations.md."""

    def act(p: Path) -> Any:
        shutil.copy("/bin/true", p / "true")
        os.chmod(p / "true", 0o711)
        with socket.socket(socket.AF_UNIX) as there, socket.socket(socket.AF_UNIX) as caller:
            os.chdir(p)
            there.bind("socket")
            there.listen()
            os.chmod("socket", 0o700)
            with user(ALICE):
                return [
                    attempt(os.posix_spawn, "./true", ["true"], {}) != "EACCES",
                    attempt(caller.connect, "socket"),
                ]

    for top, said in ((bare, [True, "EACCES"]), (judged.mounted.path, [False, None])):
        with tempfile.TemporaryDirectory(dir=top) as place:
            os.chmod(place, 0o755)
            assert in_child(act, Path(place)) == said


@pytest.mark.parametrize("options", ["", "nodefault_permissions", "nopassthrough"])
def test_a_file_that_a_lookup_did_not_find_is_opened_by_who_may(directory: Path, options: str) -> None:
    (directory / "blind.c").write_text(HIDING)
    (directory / "src").mkdir()
    (directory / "src").chmod(0o777)

    def act(p: Path) -> Any:
        put(p / "secret", b"secret", 0o600)
        with user(BOB):
            said = [attempt(os.open, p / "secret", flags | os.O_CREAT) for flags in (os.O_RDONLY, os.O_RDWR)]
            said.append(attempt(os.open, p / "secret", os.O_CREAT | os.O_WRONLY | os.O_TRUNC))
        os.chmod(p / "secret", 0o640)
        os.chown(p / "secret", ALICE, 600)
        with user(BOB, BOB, [600]), opened(p / "secret", os.O_RDONLY | os.O_CREAT) as fd:
            said.append(os.read(fd, 10))
        return said

    with serving.serve(directory, "blind", filters=[directory / "blind.c"], options=options) as served:
        assert in_child(act, served.path) == ["EACCES", "EACCES", "EACCES", b"secret"]
        assert (served.src / "secret").read_bytes() == b"secret"
        support.wait_until(lambda: served.counters()["handles"] == 0)


UNSEEN = """
#include "fusebpf.h"
FILTER(unseen, .altitude = 700, .doc = "A name that no lookup finds.")
PRE(unseen, lookup) { return fb_name_is(ctx, "program") ? FB_NEGATIVE : FB_CONTINUE; }
"""


@pytest.mark.parametrize("options", ["", "nodefault_permissions"])
def test_bits_of_a_file_that_a_lookup_did_not_find_stay_when_root_truncates_it(
    directory: Path, options: str
) -> None:
    (directory / "unseen.c").write_text(UNSEEN)
    (directory / "src").mkdir()
    (directory / "src").chmod(0o777)
    program = put(directory / "src" / "program", mode=0o666)

    def act(p: Path) -> Any:
        seen = []
        for uid, groups in ((0, []), (ALICE, []), (ALICE, [777])):
            for mode in (0o6777, 0o2766):
                os.chown(program, 0, 777)
                os.chmod(program, mode)
                with user(uid, uid, groups):
                    os.close(os.open(p / "program", os.O_CREAT | os.O_WRONLY | os.O_TRUNC))
                seen.append(oct(program.stat().st_mode & 0o7777))
        return seen

    with serving.serve(directory, "unseen", filters=[directory / "unseen.c"], options=options) as served:
        assert in_child(act, served.path) == in_child(act, served.src)
