"""Several backing roots: a filter leads ops on names to another one."""

import errno
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import support
import trio
from chain.chained import HERE, OPCODES, Chained
from core.table import attempt

import fusebpf
from fusebpf.testing import run

Act = Callable[[Path], Any]


class Rooted(Chained):
    """A mount of three roots; `trees` are fresh directories of one path in the mount and below each root."""

    def __init__(self, mounted: support.Mounted, roots: list[Path]) -> None:
        super().__init__(mounted)
        self.roots = roots
        self.map("roots/to")[0] = 1

    def trees(self) -> tuple[Path, Path, Path]:
        """A new directory: through the mount, below root 0 and below root 1."""
        through, behind = self.fresh()
        (self.roots[0] / through.name).mkdir()
        return through, behind, self.roots[0] / through.name


@pytest.fixture(scope="module")
def rooted(run_directory: Path) -> Iterator[Rooted]:
    (run_directory / "roots").mkdir(mode=0o755)
    mounter = support.Mounter(run_directory / "roots", "roots")
    roots = [mounter.new_directory(name) for name in ("one", "two")]
    words = [word for root in roots for word in ("--root", str(root))]
    made = Rooted(mounter(filters=[HERE / "roots.c"], arguments=words), roots)
    try:
        yield made
    finally:
        made.close()
        mounter.take_down()


def make(p: Path) -> None:
    p.mkdir()
    (p / "f").write_text("f")


def open_and_write(p: Path) -> None:
    with p.open("x") as file:
        file.write("text")


def tmpfile(p: Path) -> None:
    fd = os.open(p.parent, os.O_TMPFILE | os.O_RDWR)
    os.link(f"/proc/self/fd/{fd}", p, src_dir_fd=fd, follow_symlinks=True)  # a dir_fd makes it linkat(2)
    os.close(fd)


MADE: list[tuple[str, Act]] = [
    ("create", open_and_write),
    ("mkdir", make),
    ("mknod", os.mkfifo),
    ("symlink", lambda p: p.symlink_to("y")),
]


@pytest.mark.parametrize("act", [row[1] for row in MADE], ids=[row[0] for row in MADE])
def test_what_is_made_is_made_in_the_other_root_and_found_and_removed_there(rooted: Rooted, act: Act) -> None:
    through, first, second = rooted.trees()

    act(through / "x")

    assert (os.listdir(first), os.listdir(second)) == ([], ["x"])
    assert (through / "x").lstat().st_mode == (second / "x").lstat().st_mode
    (through / "x").rename(through / "x2")
    assert os.listdir(second) == ["x2"]
    if (through / "x2").is_dir():
        assert (through / "x2" / "f").read_text() == "f"
        (through / "x2" / "f").unlink()
        (through / "x2").rmdir()
    else:
        os.link(through / "x2", through / "x3", follow_symlinks=False)
        (through / "x3").unlink()
        (through / "x2").unlink()
    assert os.listdir(second) == []


def test_a_nameless_file_is_in_the_other_root(rooted: Rooted) -> None:
    through, first, second = rooted.trees()

    tmpfile(through / "x")

    assert (os.listdir(first), os.listdir(second)) == ([], ["x"])


def test_both_names_of_a_rename_are_in_the_root_that_is_said(rooted: Rooted) -> None:
    through, first, second = rooted.trees()
    (second / "x").write_text("second")
    (second / "y").write_text("y")
    (first / "y").write_text("first")

    (through / "x").rename(through / "y")

    assert (second / "y").read_text() == "second"
    assert (first / "y").read_text() == "first"


def test_what_is_below_a_directory_is_in_its_root(rooted: Rooted) -> None:
    through, first, second = rooted.trees()
    (first / "x").mkdir()
    (first / "x" / "in first").touch()
    (second / "x" / "deep").mkdir(parents=True)

    (through / "x" / "deep" / "new").write_text("text")

    assert os.listdir(through / "x") == ["deep"]
    assert (second / "x" / "deep" / "new").read_text() == "text"
    assert os.listdir(first / "x") == ["in first"]
    (through / "x" / "deep").rename(through / "x" / "deeper")
    (through / "x" / "deeper" / "xyz").touch()
    assert sorted(os.listdir(second / "x" / "deeper")) == ["new", "xyz"]


def test_a_name_leads_back_to_the_first_root(rooted: Rooted) -> None:
    through, first, second = rooted.trees()
    (second / "x" / "d").mkdir(parents=True)
    (first / "x" / "d").mkdir(parents=True)
    inside = through / "x" / "d"
    inside.stat()

    with rooted.map("roots/to").put(0, 0):
        fd = os.open(through / "x", os.O_PATH)
        os.mkdir("xback", dir_fd=fd)
        os.close(fd)
    rooted.map("roots/to")[0] = 1

    assert sorted(os.listdir(first / "x")) == ["d", "xback"]
    assert os.listdir(second / "x") == ["d"]


def test_between_roots_are_no_links_and_renames(rooted: Rooted) -> None:
    through, first, second = rooted.trees()
    (first / "f").touch()
    (second / "x").mkdir()

    assert attempt(os.rename, through / "f", through / "x" / "f") == "EXDEV"
    assert attempt(os.link, through / "f", through / "x" / "f") == "EXDEV"
    assert attempt(os.link, through / "f", through / "xf") == "EXDEV"
    assert os.listdir(second / "x") == []


def test_hooks_see_the_root(rooted: Rooted) -> None:
    through, _, second = rooted.trees()
    (second / "x").mkdir()
    (second / "x" / "f").write_text("f")
    seen = rooted.map("roots/seen")

    assert (through / "x" / "f").read_text() == "f"
    assert [seen[OPCODES[op]] for op in ("lookup", "open")] == [1, 1]
    (through / "plain").mkdir()
    assert seen[OPCODES["mkdir"]] == 0
    (through / "xd").mkdir()
    assert seen[OPCODES["mkdir"]] == 1
    records = [row["formatted"]["value"] for row in rooted.mounted.dump("recent")]
    backings = {support.bytes_of(record["name"]): record["backing"] for record in records}
    assert (backings["plain"], backings["xd"]) == (0, 1)


def test_data_goes_every_way(rooted: Rooted) -> None:
    through, _, second = rooted.trees()

    (through / "x").write_bytes(bytes(200_000))
    with (through / "x").open("r+b") as file:
        file.seek(100_000)
        file.write(b"here")

    assert (second / "x").read_bytes()[99_998:100_006] == b"\0\0here\0\0"
    os.truncate(through / "x", 5)
    assert (second / "x").stat().st_size == (through / "x").stat().st_size == 5


def test_there_is_nothing_where_the_other_root_has_no_such_directory(rooted: Rooted) -> None:
    through, _ = rooted.fresh()

    assert attempt(os.stat, through / "x") == "ENOENT"
    assert attempt(os.mkdir, through / "x") == "ENOENT"


def test_a_symbolic_link_on_the_way_leads_nowhere(rooted: Rooted) -> None:
    through, behind, second = rooted.trees()
    (behind / "d").mkdir()
    (second / "d").symlink_to("/")

    assert attempt(os.mkdir, through / "d" / "x") == "ELOOP"
    assert attempt(os.stat, through / "d" / "xyz") == "ELOOP"


@pytest.mark.parametrize("root", [3, 8, 0xFFFFFFFF])
def test_a_root_that_is_not_there_fails_the_op(rooted: Rooted, root: int) -> None:
    through, first, _ = rooted.trees()

    with rooted.map("roots/to").put(0, root):
        outcome = attempt(os.mkdir, through / "x")
    rooted.map("roots/to")[0] = 1

    assert outcome == "EIO"
    assert os.listdir(first) == []
    support.wait_until(lambda: "backing root is out of range" in rooted.mounted.log)


def test_an_open_file_has_the_root_that_it_has(rooted: Rooted) -> None:
    through, first, _ = rooted.trees()
    (first / "f").write_text("f")

    with rooted.map("roots/open").put(0, 1):
        assert (through / "f").read_text() == "f"
    with rooted.map("roots/open").put(0, 2):
        assert attempt((through / "f").read_text) == "EIO"
    support.wait_until(lambda: "of an op that is not about a name" in rooted.mounted.log)


def test_many_at_once_find_what_is_theirs(rooted: Rooted) -> None:
    through, first, second = rooted.trees()
    script = (
        "for i in $(seq 50); do echo $1 > $1$i; cat $1$i; mv $1$i $1$i.b; rm $1$i.b; done | sort | uniq -c"
    )

    with support.clients(
        *[("sh", "-c", f"cd {through}; {script}", "sh", name) for name in ("xa", "b", "xc", "d")]
    ) as workers:
        assert [client.wait(60) for client in workers] == [0] * 4

    assert (os.listdir(first), os.listdir(second)) == ([], [])


# --------------------------------------------------------------------------- what a mount is told


def test_roots_are_listed(rooted: Rooted) -> None:
    expected = [str(root) for root in (rooted.mounted.src, *rooted.roots)]

    listed = support.run(support.COMMAND, "list", "--json").stdout

    assert expected in [row["roots"] for row in json.loads(listed)]


def test_a_mount_through_options(mount: support.Mounter) -> None:
    root = mount.new_directory("root")
    mounted = mount(
        filters=[HERE / "roots.c"], sets={"roots.to": "1"}, options=f"root={root},one_file_system"
    )

    (mounted.path / "x").write_text("x")

    assert (root / "x").read_text() == "x"


def test_a_mount_from_python(directory: Path) -> None:
    src, mnt, root = directory / "src", directory / "mnt", directory / "root"
    for each in (src, mnt, root):
        each.mkdir()

    async def work() -> None:
        async with fusebpf.Stack(src, mnt, roots=[root], filters=[HERE / "roots.c"], sets=["roots.to=1"]):
            await trio.run_process(["timeout", "-s", "KILL", "10", "touch", mnt / "x"])

    trio.run(work)

    assert (root / "x").exists()


def test_roots_that_cannot_be(mount: support.Mounter) -> None:
    src, mnt, root = (mount.new_directory(name) for name in ("src", "mnt", "root"))
    (root / "in").mkdir()
    refused: list[tuple[list[str | Path], str]] = [
        ([src / "nothing"], f"backing root {str(src / 'nothing')!r} cannot be opened"),
        ([""], "'' is none"),
        ([src], "or is the same"),
        ([root, root / "in"], "lies inside the backing root"),
        ([mnt.parent], "lies inside"),
        ([root] * 8, "at most 8 backing roots"),
    ]

    for roots, words in refused:
        argv = [word for one in roots for word in ("--root", str(one))]
        done = support.run(support.COMMAND, "mount", src, mnt, *argv, check=False)
        assert words in done.stderr, (roots, done.stderr)
        assert done.returncode in {1, 2}
        assert len(done.stderr.splitlines()) == 1
    with pytest.raises(fusebpf.UsageError, match="NUL"):
        fusebpf.Stack(src, mnt, roots=["a\0b"]).reserve()
    watched = support.run(support.COMMAND, "mount", src, mnt, "--root", root, "--cache", "watch", check=False)
    assert "--cache watch is for one backing root" in watched.stderr
    assert support.mountpoints(mnt) == []


def test_a_mount_that_would_contain_itself_by_another_root_is_refused(mount: support.Mounter) -> None:
    root, src = mount.new_directory("root"), mount.new_directory("src")
    (root / "in").mkdir()
    first = mount(src, arguments=["--root", str(root)])

    done = support.run(support.COMMAND, "mount", first.path, root / "in", check=False)

    assert done.returncode == 1
    assert f"{str(root)!r}, which the source" in done.stderr


def test_a_remount_knows_the_roots(mount: support.Mounter) -> None:
    root = mount.new_directory("root")
    mounted = mount(arguments=["--root", str(root)])

    def remount(options: str) -> str:
        words = (mounted.src, mounted.path, "-o", options)
        return support.run(support.COMMAND, "mount-helper", *words, check=False).stderr

    assert remount(f"remount,ro,root={root}") == ""
    assert "what it cannot change: roots" in remount(f"remount,ro,root={mounted.src}")
    assert not os.access(mounted.path, os.W_OK)


def test_a_unit_test_sees_the_root_that_was_said() -> None:
    source = str(HERE / "roots.c")

    said = run(source, "lookup", name="x", maps={"roots.to": "2"})

    assert (said.slot["backing"], set(said.edits), said.error) == (2, {"BACKING"}, 0)
    assert run(source, "lookup", name="x", maps={"roots.to": "8"}).error == errno.EIO
