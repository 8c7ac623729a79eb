"""Nodes of the daemon's own, beside those of the backing root."""

import os
from pathlib import Path

import support
from support import Mounted, Mounter

DAEMONS = Path(__file__).parent / "daemons.py"


def nodes(mount: Mounter) -> Mounted:
    """A mount with the daemon Nodes."""
    mounted = mount(arguments=["--daemon", f"{DAEMONS}:Nodes"])
    for name in ("a", "b"):
        (mounted.src / name).write_text(name)
    return mounted


def names(path: Path) -> list[str]:
    """A listing, in order."""
    return sorted(support.run("ls", "-A", path).stdout.split())


def test_they_are_listed_beside_real_ones(mount: Mounter) -> None:
    mounted = nodes(mount)
    for number in range(300):
        (mounted.src / f"file{number:03}").touch()

    assert names(mounted.path) == sorted(["a", "b", "own", *(f"file{number:03}" for number in range(300))])
    assert support.run("cat", mounted.path / "a").stdout == "a"


def test_a_name_that_the_daemon_lists_hides_the_real_one(mount: Mounter) -> None:
    mounted = nodes(mount)
    (mounted.src / "own").write_text("shadowed")

    assert names(mounted.path) == ["a", "b", "own"]
    assert (mounted.path / "own").is_dir()


def filtered(mount: Mounter) -> Path:
    """The directory `own` below the filter entries.c."""
    words = ["--daemon", f"{DAEMONS}:Nodes"]
    return mount(filters=[DAEMONS.with_name("entries.c")], arguments=words).path / "own"


def test_all_are_listed_where_a_filter_makes_their_names_longer(mount: Mounter) -> None:
    own = filtered(mount)
    made = [f"{number:02}" for number in range(100)]
    support.run("touch", *made, cwd=own)

    assert names(own) == [name + "x" * 200 for name in made]


def test_those_that_a_filter_drops_do_not_end_a_listing(mount: Mounter) -> None:
    own = filtered(mount)
    support.run("touch", *(f"{number:03}" for number in range(1000)), "last", cwd=own)

    assert names(own) == ["last"]


def test_the_backings_entries_follow_where_a_filter_drops_all_of_the_daemons(mount: Mounter) -> None:
    own = filtered(mount)
    (own.parent / "a-file").touch()

    assert names(own.parent) == ["a-file"]


def test_they_are_written_read_renamed_and_removed(mount: Mounter) -> None:
    mounted = nodes(mount)
    own = mounted.path / "own"

    support.run("sh", "-c", f"echo hello > {own}/one; echo more >> {own}/one; cp {own}/one {own}/two")
    assert support.run("cat", own / "one", own / "two").stdout == "hello\nmore\n" * 2
    assert names(own) == ["one", "two"]
    support.run("mv", own / "one", own / "three")
    support.run("truncate", "-s", "3", own / "two")
    assert support.run("cat", own / "two").stdout == "hel"
    support.run("rm", own / "two")
    assert names(own) == ["three"]
    assert support.run("mv", own / "three", mounted.path / "copied", check=False).returncode == 0
    assert (mounted.src / "copied").read_text() == "hello\nmore\n"
    assert names(own) == []
    assert sorted(path.name for path in mounted.src.iterdir()) == ["a", "b", "copied"]


def test_what_the_daemon_does_not_answer_for_them_is_not_supported(mount: Mounter) -> None:
    mounted = nodes(mount)
    own = mounted.path / "own"

    assert "Operation not supported" in support.run("mkdir", own / "d", check=False).stderr
    assert "Operation not supported" in support.run("ln", "-s", "x", own / "s", check=False).stderr
    support.run("sh", "-c", f"echo hello > {own}/one")
    support.run("sync", own / "one")
    assert "supported" in support.run("fallocate", "-l", "10", own / "one", check=False).stderr


def test_the_daemon_gets_its_share_of_forgets(mount: Mounter) -> None:
    mounted = nodes(mount)

    support.run("sh", "-c", f"cd {mounted.path}/own; echo x > f; cat f; stat f; cat ../a; rm f")
    asked = mounted.src.parent / "asked"
    support.wait_until(lambda: asked.exists() and "forget 78 " in asked.read_text())
    assert "forget 4611" not in asked.read_text()


def test_the_daemon_tells_the_kernel_what_it_keeps_no_longer(mount: Mounter) -> None:
    mounted = mount(arguments=["--daemon", f"{DAEMONS}:Notifies"])
    own = mounted.path / "own"

    assert own.stat().st_size == 3
    os.setxattr(own, "user.size", b"8")
    support.wait_until(lambda: own.stat().st_size == 8)
    os.setxattr(own, "user.gone", b"")
    support.wait_until(lambda: not own.exists())
