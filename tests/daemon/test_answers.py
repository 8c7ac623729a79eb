"""What a daemon answers, lets go on, and sees, on mounts without BPF filters."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import support
from support import Mounted, Mounter

DAEMONS = Path(__file__).parent / "daemons.py"
CHAIN = Path(__file__).parent.parent / "chain"

Made = Callable[..., Mounted]


@pytest.fixture
def with_daemon(mount: Mounter) -> Made:
    """Mount with a daemon of daemons.py, over a backing root with some files."""

    def made(name: str, *arguments: str, filters: tuple[Path, ...] = (), options: str = "") -> Mounted:
        src = mount.new_directory("src")
        (src / "file").write_text("a secret\n")
        (src / "real").write_text("the real one\n")
        words = ["--daemon", f"{DAEMONS}:{name}", *arguments]
        return mount(src=src, arguments=words, filters=filters, options=options)

    return made


def asked(mounted: Mounted) -> list[str]:
    """What the daemon wrote down."""
    path = mounted.src.parent / "asked"
    return path.read_text().splitlines() if path.exists() else []


def cat(path: Path) -> str:
    """What is in a file."""
    return support.run("cat", path).stdout


def test_the_daemon_answers_for_a_file_of_its_own_and_the_backing_root_for_others(with_daemon: Made) -> None:
    mounted = with_daemon("Answers")

    assert cat(mounted.path / "own") == "from the daemon\n"
    assert cat(mounted.path / "file") == "a secret\n"
    support.wait_until(lambda: "release 5" in asked(mounted))
    lookups = [line.split() for line in asked(mounted) if line.startswith("lookup own")]
    assert all(uid == "0" and int(pid) > 1 for _, _, uid, pid in lookups)
    assert not (mounted.src / "own").exists()


def test_a_mount_without_a_daemon_imports_none(directory: Path) -> None:
    (directory / "src").mkdir()
    (directory / "mnt").mkdir()
    code = (
        "import sys, trio, fusebpf\n"
        "async def main():\n"
        f"    async with fusebpf.Stack('src', 'mnt', name='t{os.getpid()}-none'):\n"
        "        pass\n"
        "trio.run(main)\n"
        "print({'pyfuse3', 'fusebpf.daemon', 'fusebpf.daemon_leg'} & set(sys.modules))\n"
    )
    done = support.run(support.CHECKOUT / ".venv/bin/python", "-c", code, cwd=directory)

    assert done.stdout == "set()\n"


def test_read_it_change_it_answer_it(with_daemon: Made) -> None:
    mounted = with_daemon("Upper")

    assert cat(mounted.path / "file") == "A SECRET\n"
    assert (mounted.src / "file").read_text() == "a secret\n"


def test_routes_say_what_goes_to_the_daemon(with_daemon: Made) -> None:
    mounted = with_daemon("Answers", "--route", "getattr=daemon")

    assert cat(mounted.path / "file") == "a secret\n"
    assert support.run("cat", mounted.path / "own", check=False).returncode == 1
    assert asked(mounted) == []


def test_a_route_takes_an_op_away_from_the_daemon(with_daemon: Made) -> None:
    mounted = with_daemon("Upper", "--route", "read=backing")

    assert cat(mounted.path / "file") == "a secret\n"


def test_continue_goes_on_with_other_arguments(with_daemon: Made) -> None:
    mounted = with_daemon("Renames")

    assert cat(mounted.path / "alias") == "the real one\n"
    support.run("touch", mounted.path / "new")
    assert (mounted.src / "new").stat().st_mode & 0o777 == 0o640


def test_continue_keeps_what_the_caller_said_of_an_attribute(with_daemon: Made) -> None:
    file = with_daemon("Judges").path / "file"

    os.setxattr(file, "user.a", b"1", os.XATTR_CREATE)
    with pytest.raises(FileExistsError):
        os.setxattr(file, "user.a", b"2", os.XATTR_CREATE)
    os.setxattr(file, "user.a", b"3", os.XATTR_REPLACE)
    with pytest.raises(OSError, match="No data"):
        os.setxattr(file, "user.b", b"4", os.XATTR_REPLACE)
    assert os.getxattr(file, "user.a") == b"3"


def test_continue_takes_modes_with_their_type_or_without(with_daemon: Made) -> None:
    mounted = with_daemon("Judges")

    support.run("chmod", "600", mounted.path / "file")
    support.run("mkdir", "-m", "777", mounted.path / "d")
    assert (mounted.src / "file").stat().st_mode & 0o7777 == 0o604
    assert (mounted.src / "d").is_dir()


def test_both_inodes_of_rename_and_link_have_their_backing(with_daemon: Made) -> None:
    mounted = with_daemon("Judges")
    (mounted.src / "d").mkdir()

    support.run("ln", mounted.path / "file", mounted.path / "d/link")
    support.run("mv", mounted.path / "d/link", mounted.path / "moved")
    assert asked(mounted) == ["link d file", "rename d src"]


def test_continue_with_what_the_op_does_not_have_or_cannot_be_fails_it(with_daemon: Made) -> None:
    mounted = with_daemon("Renames")

    assert "Input/output error" in support.run("mkdir", mounted.path / "d", check=False).stderr
    assert "Input/output error" in support.run("rm", mounted.path / "file", check=False).stderr
    assert (mounted.src / "file").exists()
    support.wait_until(lambda: "Continue({'nonsense': 1}) is none that mkdir can have" in mounted.log)
    support.wait_until(lambda: "Continue for unlink broke a rule" in mounted.log)


def test_the_daemon_sees_results_and_changes_them(with_daemon: Made) -> None:
    mounted = with_daemon("Looks")
    os.setxattr(mounted.src / "file", "user.long", b"v")
    os.setxattr(mounted.src / "file", "user.plain", b"v")

    assert cat(mounted.path / "file") == "a ******\n"
    assert support.run("stat", "-c", "%Y", mounted.path / "file").stdout == "1\n"
    assert support.run("stat", "-f", "-c", "%a", mounted.path).stdout == "4242\n"
    assert support.run("cat", mounted.path / "none", check=False).returncode == 1
    assert {"post_lookup file 0", "post_lookup none 2"} <= set(asked(mounted))
    (mounted.src / "loud").touch()
    assert "not empty" in support.run("rm", mounted.path / "loud", check=False).stderr
    assert not (mounted.src / "loud").exists()
    assert os.getxattr(mounted.path / "file", "user.plain") == b"v"
    with pytest.raises(OSError, match="Input/output error"):
        os.getxattr(mounted.path / "file", "user.long")


def test_a_post_route_alone_leaves_the_other_results_alone(with_daemon: Made) -> None:
    mounted = with_daemon("Looks", "--route", "post_statfs=daemon")

    assert support.run("stat", "-f", "-c", "%a", mounted.path).stdout == "4242\n"
    assert cat(mounted.path / "file") == "a secret\n"


def test_an_open_of_the_daemons_leaves_data_to_the_backing_root(with_daemon: Made) -> None:
    mounted = with_daemon("Opens")
    (mounted.src / "left").write_text("the backing's own")

    assert cat(mounted.path / "left") == "the backing's own"
    assert cat(mounted.path / "file") == "answered"[:9]
    support.wait_until(lambda: asked(mounted).count("release 9") == 2)
    assert asked(mounted).count("open left") == asked(mounted).count("open file") == 1
    assert [line for line in asked(mounted) if line.startswith("read")] != []


def test_an_entry_is_in_the_root_that_a_filter_leads_the_op_to(with_daemon: Made, directory: Path) -> None:
    root = directory / "root"
    (root / "d").mkdir(parents=True)
    mounted = with_daemon("Entries", "--root", str(root), "--set", "roots.to=1", filters=(CHAIN / "roots.c",))
    (mounted.src / "d").mkdir()
    for place, text in ((root, "of root 1"), (mounted.src, "of root 0")):
        for name in ("xf", "f"):
            (place / "d" / name).write_text(text)
    (root / "d" / "xd").mkdir()
    (root / "d" / "xd" / "f").write_text("below it")

    assert cat(mounted.path / "d" / "xf") == "of root 1"
    assert cat(mounted.path / "d" / "f") == "of root 0"
    assert cat(mounted.path / "d" / "xd" / "f") == "below it"


def test_entries_of_the_backing_root_take_any_route(with_daemon: Made) -> None:
    mounted = with_daemon("Entries")
    (mounted.src / "target").write_text("found\n")

    assert cat(mounted.path / "link") == "found\n"
    assert (mounted.path / "link").stat().st_ino == (mounted.src / "target").stat().st_ino
    support.run("sh", "-c", f"echo new > {mounted.path}/made && echo more >> {mounted.path}/made")
    assert (mounted.src / "made").read_text() == "new\nmore\n"
    assert support.run("cat", mounted.path / "none", check=False).stderr.endswith(
        "No such file or directory\n"
    )
