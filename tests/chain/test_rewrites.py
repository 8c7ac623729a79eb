"""Each rewrite that each op takes, and each that is refused. The numbers are those of edit.c."""

import os
import stat
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import support
from chain.chained import HERE, Chained, chained
from core.table import attempt, in_child, opened, put

RW = os.O_CREAT | os.O_RDWR


def apply(
    edit: Chained, way: int, prepare: Callable[[Path], Any], act: Callable[[Path], Any]
) -> tuple[Any, Path]:
    """Prepare a directory, act on it while the filter rewrites; the outcome, and the directory behind."""
    through, behind = edit.fresh()
    prepare(behind)
    with edit.map("edit/way").put(0, way):
        return in_child(lambda: attempt(act, through), seconds=10), behind


def nothing(p: Path) -> None:
    del p


def a_file(p: Path) -> None:
    put(p / "name", b"0123456789")


def two_names(p: Path) -> None:
    for name in ("name", "edited"):
        put(p / name, name.encode())
        os.setxattr(p / name, "user.name", name.encode())
        os.setxattr(p / name, "user.edited", b"edited")
        (p / f"{name}.d").mkdir()


def two_dirs(p: Path) -> None:
    for name in ("name.d", "edited"):
        (p / name).mkdir()


def a_link(p: Path) -> None:
    os.symlink("target", p / "name")


def names(p: Path) -> list[str]:
    return sorted(os.listdir(p))


def mode(path: Path) -> str:
    return oct(stat.S_IMODE(os.lstat(path).st_mode))


def owner(path: Path) -> tuple[int, int]:
    return os.lstat(path).st_uid, os.lstat(path).st_gid


def fd_call(flags: int, call: Callable[[int], Any]) -> Callable[[Path], Any]:
    def act(p: Path) -> Any:
        with opened(p / "name", flags) as fd:
            return call(fd)

    return act


Row = tuple[str, int, Callable[[Path], Any], Callable[[Path], Any], Callable[[Path], Any], Any]

# what, way, what is there, what is done, what is looked at behind the mount, what is expected (outcome, look)
GOOD: list[Row] = [
    ("mkdir name", 1, nothing, lambda p: os.mkdir(p / "name"), names, (None, ["edited"])),
    ("mkdir mode", 2, nothing, lambda p: os.mkdir(p / "name"), lambda b: mode(b / "name"), (None, "0o711")),
    ("mkdir owner", 3, nothing, lambda p: os.mkdir(p / "name"), lambda b: owner(b / "name"), (None,
     (123, 456))),
    ("mkdir undeclared", 4, nothing, lambda p: os.mkdir(p / "name"), names, (None, ["name"])),
    ("mkdir backing 0", 5, nothing, lambda p: os.mkdir(p / "name"), names, (None, ["name"])),
    ("mkdir half declared", 6, nothing, lambda p: os.mkdir(p / "name"), lambda b: mode(b / "edited"),
     (None, "0o755")),
    ("lookup name", 70, two_names, lambda p: os.stat(p / "name").st_size, names, (6, None)),
    ("unlink name", 1, two_names, lambda p: os.unlink(p / "name"), names,
     (None, ["edited.d", "name", "name.d"])),
    ("link name", 1, a_file, lambda p: os.link(p / "name", p / "new"), names, (None, ["edited", "name"])),
    ("rename name2", 2, a_file, lambda p: os.rename(p / "name", p / "new"), names, (None, ["edited"])),
    ("rename flags", 3, two_names, lambda p: os.rename(p / "name", p / "edited"), names, ("EEXIST", None)),
    ("symlink name", 1, nothing, lambda p: os.symlink("x", p / "name"), names, (None, ["edited"])),
    ("symlink text", 2, nothing, lambda p: os.symlink("x", p / "name"), lambda b: os.readlink(b / "name"),
     (None, "elsewhere")),
    ("mknod name", 1, nothing, lambda p: os.mkfifo(p / "name"), names, (None, ["edited"])),
    ("mknod mode", 2, nothing, lambda p: os.mkfifo(p / "name"), lambda b: mode(b / "name"), (None, "0o751")),
    ("mknod rdev", 3, nothing, lambda p: os.mknod(p / "name", stat.S_IFCHR | 0o600, os.makedev(5, 5)),
     lambda b: os.lstat(b / "name").st_rdev, (None, os.makedev(1, 3))),
    ("create name", 1, nothing, fd_call(RW, lambda fd: os.fstat(fd).st_size), names, (0, ["edited"])),
    ("create mode", 2, nothing, fd_call(RW, lambda fd: fd * 0), lambda b: mode(b / "name"), (0, "0o600")),
    ("create owner", 3, nothing, fd_call(RW, lambda fd: os.fstat(fd).st_size), lambda b: owner(b / "name"),
     (0, (123, 456))),
    ("setattr mode", 1, a_file, lambda p: os.chmod(p / "name", 0o777), lambda b: mode(b / "name"),
     (None, "0o604")),
    ("setattr uid", 2, a_file, lambda p: os.chown(p / "name", 7, 8), lambda b: owner(b / "name"), (None,
     (123, 8))),
    ("setattr gid", 3, a_file, lambda p: os.chown(p / "name", 7, 8), lambda b: owner(b / "name"), (None,
     (7, 456))),
    ("setattr size", 4, a_file, lambda p: os.truncate(p / "name", 8), lambda b: (b / "name").read_bytes(),
     (None, b"012")),
    ("setattr times", 5, a_file, lambda p: os.utime(p / "name", ns=(1, 2)),
     lambda b: (os.stat(b / "name").st_atime_ns, os.stat(b / "name").st_mtime_ns), (None,
     (7000000001, 8000000002))),
    ("open flags", 71, a_file, fd_call(os.O_WRONLY, lambda fd: os.write(fd, b"x")),
     lambda b: (b / "name").read_bytes(), (1, b"x")),
    ("read size", 1, a_file, fd_call(os.O_RDONLY, lambda fd: os.read(fd, 8)), nothing, (b"012", None)),
    ("read offset", 2, a_file, fd_call(os.O_RDONLY, lambda fd: os.read(fd, 3)), nothing, (b"456", None)),
    ("read replied", 3, a_file, fd_call(os.O_RDONLY, lambda fd: os.read(fd, 3)), nothing, (b"", None)),
    ("write size", 1, a_file, fd_call(os.O_WRONLY, lambda fd: os.write(fd, b"ABCDEFG")),
     lambda b: (b / "name").read_bytes(), (3, b"ABC3456789")),
    ("write offset", 2, a_file, fd_call(os.O_WRONLY, lambda fd: os.write(fd, b"AB")),
     lambda b: (b / "name").read_bytes(), (2, b"0123AB6789")),
    ("write replied", 3, a_file, fd_call(os.O_WRONLY, lambda fd: os.write(fd, b"ABCDEFG")),
     lambda b: (b / "name").read_bytes(), (5, b"0123456789")),
    ("write flags", 4, a_file, fd_call(os.O_WRONLY, lambda fd: os.pwrite(fd, b"AB", 2)),
     lambda b: (b / "name").read_bytes(), (2, b"0123456789AB")),
    ("setxattr name", 1, a_file, lambda p: os.setxattr(p / "name", "user.a", b"x"),
     lambda b: os.listxattr(b / "name"),
     (None, ["user.edited"])),
    ("setxattr size", 2, a_file, lambda p: os.setxattr(p / "name", "user.a", b"value"),
     lambda b: os.getxattr(b / "name", "user.a"), (None, b"val")),
    ("setxattr flags", 3, a_file, lambda p: os.setxattr(p / "name", "user.a", b"value"), nothing,
     ("ENODATA", None)),
    ("getxattr name", 1, two_names,
     lambda p: os.getxattr(p / "name.d" / ".." / "edited", "user.name"), nothing,
     (b"edited", None)),
    ("getxattr text", 2, a_file, lambda p: os.getxattr(p / "name", "user.any"), nothing, (b"made up", None)),
    ("listxattr text", 2, a_file, lambda p: os.listxattr(p / "name"), nothing,
     (["user.made", "user.up"], None)),
    ("removexattr name", 1, two_names, lambda p: os.removexattr(p / "edited", "user.name"),
     lambda b: os.listxattr(b / "edited"), (None, ["user.name"])),
    ("fsync flags", 1, a_file, fd_call(os.O_RDWR, os.fsync), nothing, (None, None)),
    ("getattr attr", 2, a_file, lambda p: _some(os.stat(p / "name")), nothing,
     (("0o100604", 42, 123, 7, 8000000002),
     None)),
    ("statfs", 2, nothing, lambda p: _fs(os.statvfs(p)), nothing, ((1000, 500, 4096, 99), None)),
    ("readlink text", 2, a_link, lambda p: os.readlink(p / "name"), nothing, ("made up", None)),
    ("post attr", 50, a_file, lambda p: _some(os.stat(p / "name"))[1:3], nothing, ((42, 123), None)),
    ("post attr undeclared", 51, a_file, lambda p: _some(os.stat(p / "name"))[1:3], nothing, ((10, 0), None)),
    ("post error", 50, lambda b: (b / "name").mkdir(), lambda p: os.rmdir(p / "name"), names, ("EXDEV", [])),
    ("post error to another", 50, lambda b: (b / "name" / "x").mkdir(parents=True),
     lambda p: os.rmdir(p / "name"),
     names, ("EXDEV", ["name"])),
    ("post error to success", 51, lambda b: (b / "name" / "x").mkdir(parents=True),
     lambda p: os.rmdir(p / "name"),
     names, (None, ["name"])),
    ("post errno returned", 52, lambda b: (b / "name").mkdir(), lambda p: os.rmdir(p / "name"), names,
     ("EDQUOT", [])),
    ("post error undeclared", 53, lambda b: (b / "name").mkdir(), lambda p: os.rmdir(p / "name"), names,
     (None, [])),
    ("post text", 50, a_link, lambda p: os.readlink(p / "name"), nothing, ("Xarg", None)),
    ("post xattr text", 50, two_names, lambda p: os.getxattr(p / "name", "user.name"), nothing,
     (b"Xame", None)),
    ("post statfs", 50, nothing, lambda p: os.statvfs(p).f_bavail, nothing, (17, None)),
    ("post read count", 50, a_file, fd_call(os.O_RDONLY, lambda fd: os.read(fd, 8)), nothing, (b"01", None)),
    ("post write count", 50, a_file, fd_call(os.O_WRONLY, lambda fd: os.write(fd, b"ABCD")), nothing,
     (2, None)),
]  # fmt: skip


def _some(st: os.stat_result) -> tuple[Any, ...]:
    return oct(st.st_mode), st.st_size, st.st_uid, st.st_nlink, st.st_mtime_ns


def _fs(st: os.statvfs_result) -> tuple[int, ...]:
    return st.f_blocks, st.f_bfree, st.f_bsize, st.f_namemax


@pytest.mark.parametrize("row", GOOD, ids=[row[0] for row in GOOD])
def test_a_rewrite_is_used(edit: Chained, row: Row) -> None:
    _, way, prepare, act, look, (expected, expected_behind) = row

    outcome, behind = apply(edit, way, prepare, act)

    assert expected == outcome
    if expected_behind is not None:
        assert expected_behind == look(behind)


MKDIR_BAD = {
    20: "slash",
    21: "length",
    22: "empty",
    23: "slash in it, or is . or ..",
    24: "slash in it, or is . or ..",
    25: "over 255",
    26: "file type",
    27: "out of range",
    30: "does not have",
    31: "does not have",
    32: "edits is empty",
    33: "owner is -1",
    34: "success",
    35: "success",
    51: "",
}
BAD: list[tuple[str, int, Callable[[Path], Any], Callable[[Path], Any]]] = [
    *((f"mkdir {way}", way, nothing, lambda p: os.mkdir(p / "name")) for way in MKDIR_BAD if way != 51),
    ("mkdir success of a failed one", 51, lambda b: put(b / "edited"), lambda p: os.mkdir(p / "name")),
    ("rename slash", 20, a_file, lambda p: os.rename(p / "name", p / "new")),
    ("rename flags", 21, a_file, lambda p: os.rename(p / "name", p / "new")),
    ("symlink empty", 20, nothing, lambda p: os.symlink("x", p / "name")),
    ("symlink long", 21, nothing, lambda p: os.symlink("x", p / "name")),
    ("mknod type", 20, nothing, lambda p: os.mkfifo(p / "name")),
    ("create type", 20, nothing, fd_call(RW, os.fstat)),
    ("create flags", 21, nothing, fd_call(RW, os.fstat)),
    ("setattr type", 20, a_file, lambda p: os.chmod(p / "name", 0o600)),
    ("setattr owner not set", 21, a_file, lambda p: os.chmod(p / "name", 0o600)),
    ("setattr size", 22, a_file, lambda p: os.truncate(p / "name", 1)),
    ("open flags", 20, a_file, fd_call(os.O_RDONLY, os.fstat)),
    ("read size", 20, a_file, fd_call(os.O_RDONLY, lambda fd: os.read(fd, 4))),
    ("read offset", 21, a_file, fd_call(os.O_RDONLY, lambda fd: os.read(fd, 4))),
    ("write size", 20, a_file, fd_call(os.O_WRONLY, lambda fd: os.write(fd, b"xx"))),
    ("write count", 21, a_file, fd_call(os.O_WRONLY, lambda fd: os.write(fd, b"xx"))),
    ("write no count", 22, a_file, fd_call(os.O_WRONLY, lambda fd: os.write(fd, b"xx"))),
    ("write flags", 23, a_file, fd_call(os.O_WRONLY, lambda fd: os.write(fd, b"xx"))),
    ("setxattr size", 20, a_file, lambda p: os.setxattr(p / "name", "user.a", b"x")),
    ("setxattr flags", 21, a_file, lambda p: os.setxattr(p / "name", "user.a", b"x")),
    ("getxattr long", 20, a_file, lambda p: os.getxattr(p / "name", "user.a")),
    ("getxattr no text", 21, a_file, lambda p: os.getxattr(p / "name", "user.a")),
    ("fsync flags", 20, a_file, fd_call(os.O_RDWR, os.fsync)),
    ("getattr type", 20, a_file, lambda p: os.stat(p / "name")),
    ("getattr no attr", 21, a_file, lambda p: os.stat(p / "name")),
    ("statfs none", 21, nothing, os.statvfs),
    ("readlink empty", 20, a_link, lambda p: os.readlink(p / "name")),
    ("readlink no text", 21, a_link, lambda p: os.readlink(p / "name")),
    ("post type", 60, a_file, lambda p: os.stat(p / "name")),
    ("post size", 61, a_file, lambda p: os.stat(p / "name")),
    ("post rmdir name", 60, lambda b: (b / "name").mkdir(), lambda p: os.rmdir(p / "name")),
    ("post rmdir view", 62, lambda b: (b / "name").mkdir(), lambda p: os.rmdir(p / "name")),
    ("post create view", 62, nothing, fd_call(RW, os.fstat)),
    ("post rmdir backing", 61, lambda b: (b / "name").mkdir(), lambda p: os.rmdir(p / "name")),
    ("post read count", 60, a_file, fd_call(os.O_RDONLY, lambda fd: os.read(fd, 4))),
    ("post write count", 60, a_file, fd_call(os.O_WRONLY, lambda fd: os.write(fd, b"xx"))),
]


def n_broken(edit: Chained) -> int:
    return sum(count for (_, _, _, verdict), count in edit.mounted.stats().items() if verdict == "FB_BROKEN")


@pytest.mark.parametrize("row", BAD, ids=[row[0] for row in BAD])
def test_a_bad_rewrite_fails_the_op_and_is_counted(edit: Chained, row: Any) -> None:
    name, way, prepare, act = row
    before = n_broken(edit)

    outcome, behind = apply(edit, way, prepare, act)

    assert outcome == "EIO"
    assert n_broken(edit) > before
    if name.startswith(("mkdir ", "symlink", "mknod", "create")) and prepare is nothing:
        assert os.listdir(behind) == []


def _is_in_log(mount: Chained, words: str) -> bool:
    return words in mount.mounted.log


def test_what_a_filter_did_wrong_is_in_the_log(run_directory: Path) -> None:
    with chained(run_directory, [HERE / "edit.c"]) as made:
        for way, words in list(MKDIR_BAD.items())[:8]:
            apply(made, way, nothing, lambda p: os.mkdir(p / "name"))
            support.wait_until(partial(_is_in_log, made, words))

        assert "filter edit: its pre hook on mkdir broke a rule" in made.mounted.log


def test_rename_and_rmdir_rewrite_the_old_name(edit: Chained) -> None:
    outcome, behind = apply(edit, 1, two_names, lambda p: os.rename(p / "name.d", p / "new"))
    assert (outcome, names(behind)) == (None, ["edited.d", "name", "name.d", "new"])

    outcome, behind = apply(edit, 1, two_dirs, lambda p: os.rmdir(p / "name.d"))
    assert (outcome, names(behind)) == (None, ["name.d"])


@pytest.mark.parametrize(("way", "expected"), [(4, "EEXIST"), (5, 6)])
def test_create_flags_are_used(edit: Chained, way: int, expected: object) -> None:
    act = fd_call(RW, lambda fd: os.fstat(fd).st_size)

    assert apply(edit, way, lambda b: put(b / "edited", b"edited"), act)[0] == expected


def test_an_entry_is_kept_as_long_as_the_filter_says(edit: Chained) -> None:
    def lookups(way: int) -> int:
        through, behind = edit.fresh()
        a_file(behind)

        def n_lookups() -> int:
            return sum(
                n
                for (who, _, op, _), n in edit.mounted.stats().items()
                if (who, op) == ("edit", "FB_OP_lookup")
            )

        with edit.map("edit/way").put(0, way):
            in_child(os.stat, through / "name")
            before = n_lookups()
            for _ in range(5):
                in_child(os.stat, through / "name")
            return n_lookups() - before

    assert lookups(40) == 0
    assert lookups(0) >= 5


def test_an_xattr_that_a_filter_answers_has_a_size(edit: Chained) -> None:
    through, behind = edit.fresh()
    two_names(behind)

    for way, text in ((2, "made up"), (50, "Xame")):
        with edit.map("edit/way").put(0, way):
            shown = support.run(
                "getfattr",
                "--absolute-names",
                "--only-values",
                "-n",
                "user.name",
                through / "name",
                check=False,
            )
        assert (text, "") == (shown.stdout, shown.stderr)


def test_access_mask_is_rewritten_where_the_kernel_asks(run_directory: Path) -> None:
    with chained(run_directory, [HERE / "edit.c"], options="nodefault_permissions") as made:
        put(made.mounted.src / "name", mode=0)
        way, path = made.map("edit/way"), made.mounted.path / "name"

        def is_allowed() -> bool:
            os.setgroups([])
            os.setresgid(1000, 1000, 1000)
            os.setresuid(1000, 1000, 1000)
            return os.access(path, os.R_OK)

        assert not in_child(is_allowed)
        with way.put(0, 1):
            assert in_child(is_allowed)
        with way.put(0, 20):
            assert not in_child(is_allowed)
            support.wait_until(lambda: "mask is over 7" in made.mounted.log)
