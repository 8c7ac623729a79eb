"""What `quota` counts is what is there, whatever is done at once and by whichever view of a file."""

import contextlib
import errno
import os
import resource
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import support
from filters.test_ways_round import DIGITS, WHITEOUT, renameat2


def rule(mounted: support.Mounted) -> dict[str, int]:
    """Of the first rule."""
    value: dict[str, int] = mounted.dump("quota/rules")[0]["formatted"]["value"]
    return value


@contextlib.contextmanager
def meanwhile(n: int, act: Callable[[], object]) -> Iterator[None]:
    """Have n threads do something over and over for the time of a block."""
    done = threading.Event()

    def again() -> None:
        while not done.is_set():
            act()

    threads = [threading.Thread(target=again) for _ in range(n)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        done.set()
        for thread in threads:
            thread.join()


def removed(path: Path) -> None:
    path.unlink()


def replaced(path: Path) -> None:
    path.with_name("other").rename(path)


@pytest.mark.parametrize("removes", [removed, replaced])
def test_what_is_open_of_a_removed_file_gives_nothing_back(
    mount: support.Mounter, removes: Callable[[Path], None]
) -> None:
    mounted = mount(filters=["quota"], sets={"quota.rules": "home:10k:5:0:0"})
    (mounted.src / "home").mkdir()
    path = mounted.path / "home" / "x"

    for _ in range(3):
        path.with_name("other").write_bytes(b"")
        with path.open("wb", buffering=0) as file:
            file.write(bytes(9000))
            removes(path)
            file.truncate(0)
            file.write(bytes(20_000))
            os.close(os.open(f"/proc/self/fd/{file.fileno()}", os.O_WRONLY | os.O_TRUNC))
        for left in (mounted.path / "home").iterdir():
            left.unlink()
        assert (rule(mounted)["bytes"], rule(mounted)["files"]) == (0, 0)


def test_who_links_and_truncates_what_another_removes_changes_no_count(mount: support.Mounter) -> None:
    mounted = mount(filters=["quota"], sets={"quota.rules": "home:0:0:0:0"})
    home = mounted.path / "home"
    for name in ("a", "b"):
        (home / name).mkdir(parents=True)

    def link() -> None:
        with contextlib.suppress(FileNotFoundError):
            os.link(home / "a" / "x", home / "b" / "x")

    for number in range(200):
        with (home / "a" / "x").open("wb", buffering=0) as file:
            file.write(bytes(1000))
            others = [threading.Thread(target=link)]
            others += [threading.Thread(target=file.truncate, args=(0,))] * (number % 2)
            for other in others:
                other.start()
            (home / "a" / "x").unlink()
            for other in others:
                other.join()
        left = list((home / "b").iterdir())
        assert rule(mounted)["files"] == 2 + len(left)
        assert rule(mounted)["bytes"] == sum(one.stat().st_size for one in left)
        for one in left:
            one.unlink()


def test_opens_that_truncate_beside_writes_change_no_count(mount: support.Mounter) -> None:
    mounted = mount(filters=["quota"], sets={"quota.rules": "home:0:0:0:0"})
    (mounted.src / "home").mkdir()
    path = mounted.path / "home" / "x"

    with path.open("wb", buffering=0) as file, meanwhile(3, lambda: path.open("wb").close()):
        for _ in range(500):
            os.pwrite(file.fileno(), bytes(6000), 0)

    assert rule(mounted)["bytes"] == path.stat().st_size


def test_what_others_see_of_a_file_does_not_change_what_it_counts(mount: support.Mounter) -> None:
    sets = {**DIGITS, "redact.allowed": "1234", "redact.paths": "home", "quota.rules": "home:0:0:0:0"}
    mounted = mount(filters=["redact", "quota"], sets=sets)
    (mounted.src / "home").mkdir()
    (mounted.src / "home").chmod(0o777)
    path = mounted.path / "home" / "b"

    support.run("sh", "-c", f"head -c 9000 /dev/zero > {path}", user=1234)
    path.stat()
    assert rule(mounted)["bytes"] == 9000
    path.unlink()

    assert (rule(mounted)["bytes"], rule(mounted)["files"]) == (0, 0)


def test_no_file_is_so_large_that_what_it_counts_goes_round(mount: support.Mounter) -> None:
    mounted = mount(filters=["quota"], sets={"quota.rules": "home:10k:0:0:0"})
    home = mounted.path / "home"
    home.mkdir()
    (home / "x").touch()

    for size in (1 << 54, 1 << 62, (1 << 63) - 1):
        assert support.refused(os.truncate, home / "x", size) == errno.EDQUOT

    assert rule(mounted)["bytes"] == 0


def test_what_rename_makes_and_removes_counts(mount: support.Mounter) -> None:
    mounted = mount(filters=["quota"], sets={"quota.rules": "home:0:5:0:0"})
    home = mounted.path / "home"
    home.mkdir()
    for name in ("a", "b"):
        (home / name).mkdir()
    (home / "file").touch()

    assert support.refused(renameat2, home / "file", home / "moved", WHITEOUT) == errno.EINVAL
    assert rule(mounted)["files"] == 3
    (home / "a").rename(home / "b")
    assert rule(mounted)["files"] == 2
    (home / "b").rmdir()
    (home / "file").unlink()
    assert rule(mounted)["files"] == 0


def test_looking_at_a_file_that_grows_does_not_change_what_it_counts(mount: support.Mounter) -> None:
    mounted = mount(filters=["quota"], sets={"quota.rules": "home:0:0:0:0"})
    (mounted.src / "home").mkdir()
    path = mounted.path / "home" / "x"

    with path.open("wb", buffering=0) as file, meanwhile(2, path.stat):
        for _ in range(2000):
            file.write(bytes(1000))

    assert rule(mounted)["bytes"] == path.stat().st_size == 2_000_000


# ------------------------------------------------------------------------ files that others see otherwise

USER = 1000
REDACTED = {**DIGITS, "redact.paths": "home", "quota.rules": "home:0:0:0:0"}
# Asked word by word, so that what it has open stays so: create, write, size, open, stat, unlink, truncate.
ACTOR = """
import os, sys
for line in sys.stdin:
    word, path, number = line.split()
    number, result = int(number), 0
    try:
        if word == "create":
            fd = os.open(path, os.O_CREAT | os.O_RDWR, 0o666)
        elif word == "write":
            os.write(fd, bytes(number))
        elif word == "rewrite":
            os.pwrite(fd, bytes(number), 0)
        elif word == "size":
            os.ftruncate(fd, number)
        elif word == "open":
            other = os.open(path, number)
        else:
            getattr(os, word)(path, *[number] * (word == "truncate"))
    except OSError as error:
        result = error.errno
    print(result, flush=True)
"""


class Actor:
    """A process of a user's, which does what it is told."""

    def __init__(self, user: int) -> None:
        command = ["timeout", "-s", "KILL", "60", sys.executable, "-c", ACTOR]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, user=user, umask=0
        )

    def does(self, word: str, path: Path, number: int = 0) -> int:
        """Returns the errno, 0 where it was done."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(f"{word} {path} {number}\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())


@pytest.fixture
def actors() -> Iterator[tuple[Actor, Actor]]:
    """One who sees files redacted, and one who does not."""
    both = Actor(USER), Actor(0)
    yield both
    for actor in both:
        actor.process.kill()
        actor.process.communicate()


@pytest.fixture
def redacted(mount: support.Mounter) -> support.Mounted:
    """A mount on which root sees files in `home` otherwise than others, and both may make some."""
    mounted = mount(filters=["redact", "quota"], sets=REDACTED)
    (mounted.src / "home").mkdir()
    (mounted.src / "home").chmod(0o777)
    return mounted


def counted(mounted: support.Mounted) -> tuple[int, int]:
    return rule(mounted)["bytes"], rule(mounted)["files"]


def test_what_is_written_while_one_who_sees_more_has_it_open_counts_once(
    redacted: support.Mounted, actors: tuple[Actor, Actor]
) -> None:
    user, root = actors
    path = redacted.path / "home" / "b"

    user.does("create", path)
    user.does("write", path, 9000)
    root.does("open", path, os.O_RDONLY)
    user.does("write", path, 41_000)
    assert counted(redacted) == (50_000, 1)
    user.does("size", path, 100)
    assert counted(redacted) == (100, 1)
    root.does("unlink", path)

    assert counted(redacted) == (0, 0)


def test_a_size_that_is_set_through_another_view_counts_as_what_it_changed(
    redacted: support.Mounted, actors: tuple[Actor, Actor]
) -> None:
    user, root = actors
    path = redacted.path / "home" / "a"
    root.does("create", path)
    root.does("write", path, 1_000_000)
    user.does("stat", path)

    assert support.refused(os.truncate, path, 2_000_000) is None
    assert counted(redacted) == (2_000_000, 1)
    user.does("unlink", path)

    assert counted(redacted) == (0, 0)


def test_of_two_who_remove_the_last_names_of_a_file_one_gives_back(
    redacted: support.Mounted, actors: tuple[Actor, Actor]
) -> None:
    user, root = actors
    home = redacted.path / "home"
    for name in ("one", "two"):
        (home / name).mkdir()
        (home / name).chmod(0o777)

    for _ in range(200):
        (home / "one" / "x").write_bytes(bytes(1000))
        os.link(home / "one" / "x", home / "two" / "x")
        others = [
            threading.Thread(target=actor.does, args=("unlink", home / name / "x"))
            for actor, name in ((user, "one"), (root, "two"))
        ]
        for other in others:
            other.start()
        for other in others:
            other.join()

    assert counted(redacted) == (0, 2)


def test_who_does_not_see_what_is_there_cannot_shorten_it(
    redacted: support.Mounted, actors: tuple[Actor, Actor]
) -> None:
    user, _ = actors
    path = redacted.path / "home" / "z"
    path.write_bytes(b"Ann 12")
    path.chmod(0o666)
    own = redacted.path / "home" / "own"

    assert user.does("open", path, os.O_RDONLY | os.O_TRUNC) == errno.EACCES
    assert user.does("truncate", path, 0) == errno.EACCES
    assert path.read_bytes() == b"Ann 12"
    assert [user.does("create", own), user.does("write", own, 10), user.does("size", own, 5)] == [0, 0, 0]


# ----------------------------------------------------------------------------- writes that nobody waits for


@pytest.fixture
def asynchronous(directory: Path) -> Path:
    """The program."""
    program = directory / "asynchronous"
    support.run("gcc", "-O1", "-Wno-unused-result", "-o", program, Path(__file__).with_name("asynchronous.c"))
    return program


def test_writes_under_way_while_a_file_is_cut_change_no_count(
    mount: support.Mounter, asynchronous: Path
) -> None:
    limit = 1 << 20
    mounted = mount(filters=["quota"], sets={"quota.rules": f"home:{limit}:0:0:0"})
    home = mounted.path / "home"
    (mounted.src / "home").mkdir()

    client = ("timeout", "-s", "KILL", "60", asynchronous, home / "a", home / "b")
    with support.clients(client, client) as started:
        assert [one.wait(60) for one in started] == [0, 0]

    assert counted(mounted) == (0, 2)
    os.truncate(home / "a", limit)


# ------------------------------------------------------------------------------- what stands in the way


def test_what_is_written_counts_also_where_the_server_has_no_descriptor_left(mount: support.Mounter) -> None:
    mounted = mount(filters=["quota"], sets={"quota.rules": "home:100000:0:0:0"})
    home = mounted.path / "home"
    home.mkdir()
    resource.prlimit(mounted.pid, resource.RLIMIT_NOFILE, (600, 600))
    fds: list[int] = []
    try:
        with contextlib.suppress(OSError):
            while len(fds) < 1000:
                fds.append(os.open(home / f"f{len(fds)}", os.O_CREAT | os.O_RDWR))
        assert 100 < len(fds) < 600
        refused = [support.refused(os.write, fd, bytes(1000)) for fd in fds]
        assert refused == [None] * 100 + [errno.EDQUOT] * (len(fds) - 100)
        for fd in fds[:50]:
            os.ftruncate(fd, 10)
        assert rule(mounted)["bytes"] == 50_500
    finally:
        for fd in fds:
            os.close(fd)


def n_delayed(mounted: support.Mounted) -> int:
    return sum(row["formatted"]["value"]["seen"] for row in mounted.dump("fault/seen"))


def test_who_waits_for_what_a_filter_delays_lets_others_go_on(mount: support.Mounter) -> None:
    sets = {
        "quota.rules": "home:0:0:0:0",
        "fault.delays": "open:*:f:1500",
        "fault.when": "open:*:f:0:1:0",
    }
    mounted = mount(filters=["fault", "quota"], sets=sets)
    home = mounted.path / "home"
    home.mkdir()
    (home / "f").write_bytes(bytes(500))
    (home / "f2").hardlink_to(home / "f")
    truncate = (sys.executable, "-c", "import sys; open(sys.argv[1], 'w').close()", os.fspath(home / "f"))

    with support.clients(*[("timeout", "-s", "KILL", "30", *truncate)] * 3) as started:
        support.wait_until(lambda: n_delayed(mounted) == 3)
        os.truncate(home / "f2", 700)
        assert counted(mounted)[0] == 700
        (home / "f2").unlink()
        assert [one.poll() for one in started] == [None] * 3
        assert [one.wait(30) for one in started] == [0] * 3

    assert counted(mounted) == (0, 1)


def test_many_who_truncate_one_file_at_once_get_their_turns(mount: support.Mounter) -> None:
    mounted = mount(filters=["quota"], sets={"quota.rules": "home:0:0:0:0"})
    (mounted.path / "home").mkdir()
    path = mounted.path / "home" / "x"
    path.touch()

    def write() -> None:
        for _ in range(10):
            path.write_bytes(bytes(1000))

    threads = [threading.Thread(target=write) for _ in range(100)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert counted(mounted) == (path.stat().st_size, 1)


@pytest.fixture
def delayed(mount: support.Mounter) -> support.Mounted:
    """A mount on which a user waits before he writes, and sees files otherwise than root."""
    sets = {
        **REDACTED,
        "quota.rules": "home:10000:0:0:0",
        "fault.delays": f"write:{USER}:*:1500",
        "fault.when": f"write:{USER}:*:0:1:0",
    }
    mounted = mount(filters=["fault", "redact", "quota"], sets=sets)
    (mounted.src / "home").mkdir()
    (mounted.src / "home").chmod(0o777)
    return mounted


def test_who_waited_is_judged_by_what_is_there_then(
    delayed: support.Mounted, actors: tuple[Actor, Actor]
) -> None:
    user, root = actors
    path, other = delayed.path / "home" / "a", delayed.path / "home" / "b"
    user.does("create", path)
    assert user.does("write", path, 8000) == 0
    refused = []
    thread = threading.Thread(target=lambda: refused.append(user.does("rewrite", path, 8000)))
    thread.start()
    support.wait_until(lambda: n_delayed(delayed) == 2)

    assert root.does("truncate", path, 0) == 0
    assert [root.does("create", other), root.does("write", other, 8000)] == [0, 0]
    thread.join()

    assert refused == [errno.EDQUOT]
    assert counted(delayed) == (8000, 2)


def test_what_is_removed_while_somebody_waits_to_write_it_takes_no_room(
    delayed: support.Mounted, actors: tuple[Actor, Actor]
) -> None:
    user, root = actors
    path = delayed.path / "home" / "c"
    user.does("create", path)
    thread = threading.Thread(target=user.does, args=("write", path, 9000))
    thread.start()
    support.wait_until(lambda: n_delayed(delayed) == 1)

    assert root.does("unlink", path) == 0
    thread.join()

    assert counted(delayed) == (0, 0)
