"""What fuse-bpf's own tests try, each test named after it; docs/fuse-bpf.md says how the two differ."""

import errno
import os
import stat
import threading
from pathlib import Path

import pytest
import support
from chain.chained import Chained

GIB = 1 << 30


def exclusive(path: Path) -> None:
    """Make a file that must not be there."""
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))


def error_of(function: object, *arguments: object, **keywords: object) -> int:
    """The errno that a call fails with; 0 if it succeeds."""
    assert callable(function)
    try:
        function(*arguments, **keywords)
    except OSError as error:
        return error.errno or 0
    return 0


# ---------------------------------------------------------------------------- hiding, errnos


def test_hidden_entries(filtered: Chained) -> None:
    path, src = filtered.fresh()
    for name in ("hidden", "hidden2", "shown"):
        (src / name).touch()

    assert os.listdir(path) == ["shown"]
    assert error_of(os.stat, path / "hidden") == errno.ENOENT
    assert error_of(os.unlink, path / "hidden2") == errno.ENOENT


def test_alter_errno_in_bpf(filtered: Chained, plain: Chained) -> None:
    for chained, expected in ((filtered, errno.EXDEV), (plain, errno.ENODATA)):
        path, src = chained.fresh()
        (src / "file").touch()
        assert error_of(os.removexattr, path / "file", "user.none") == expected


def test_redact_a_listing_every_second_entry(filtered: Chained) -> None:
    path, src = filtered.fresh()
    for number in range(500):
        (src / f"entry{number}").touch()

    with filtered.map("second/is_on", 8).put(0, 1):
        assert sorted(os.listdir(path)) == sorted(f"entry{number}" for number in range(0, 500, 2))
    assert len(os.listdir(path)) == 500


# ---------------------------------------------------------------------------- per inode


def test_add_and_remove_a_filters_effect_per_inode_from_a_lookups_post(filtered: Chained) -> None:
    path, src = filtered.fresh()
    (src / "chosen").write_text("text")
    (src / "other").write_text("text")

    with filtered.map("chosen/is_on", 8).put(0, 1):
        assert error_of((path / "chosen").read_text) == errno.EACCES
        assert (path / "other").read_text() == "text"
    assert (path / "chosen").read_text() == "text"


def test_a_post_on_a_failed_lookup(filtered: Chained) -> None:
    path, _ = filtered.fresh()
    count = filtered.map("failed/count", 8)
    before = count[0]

    assert error_of(os.stat, path / "to-come-or-not") == errno.ENOENT

    assert count[0] > before


@pytest.mark.parametrize("kind", ["file", "directory"])
def test_a_filter_chosen_at_a_negative_lookup_applies_to_what_is_then_made(
    filtered: Chained, kind: str
) -> None:
    path, src = filtered.fresh()
    assert not (path / "to-come").exists()

    if kind == "file":
        (path / "to-come").write_text("made")
    else:
        (path / "to-come").mkdir()
    (path / "other").touch()

    assert error_of(os.setxattr, path / "to-come", "user.a", b"1") == errno.EDQUOT
    assert error_of(os.setxattr, path / "other", "user.a", b"1") == 0
    assert (src / "to-come").exists()


# ---------------------------------------------------------------------------- data, attributes


def test_partial_first_page_by_one_route_the_rest_by_another(filtered: Chained) -> None:
    path, src = filtered.fresh()
    (src / "file").write_bytes(b"B" * 12288)
    os.chown(src / "file", 4321, 0)
    fd = os.open(path / "file", os.O_RDONLY)
    try:
        assert os.pread(fd, 4096, 0) == b"F" * 4096
        assert os.pread(fd, 8192, 4096) == b"B" * 8192
    finally:
        os.close(fd)


def test_attrs(filtered: Chained) -> None:
    path, src = filtered.fresh()
    (src / "file").touch()
    os.chown(src / "file", 0, 4444)

    seen = (path / "file").stat()

    assert (stat.S_IMODE(seen.st_mode), seen.st_mtime, seen.st_uid) == (0o123, 1, 99)
    assert (path / "file").stat().st_ino == (src / "file").stat().st_ino
    (path / "file").chmod(0o640)
    assert stat.S_IMODE((src / "file").stat().st_mode) == 0o640


def test_statfs(filtered: Chained, plain: Chained) -> None:
    assert os.statvfs(filtered.mounted.path).f_files == 4242
    seen, real = os.statvfs(plain.mounted.path), os.statvfs(plain.mounted.src)
    assert (seen.f_blocks, seen.f_files, seen.f_frsize) == (real.f_blocks, real.f_files, real.f_frsize)


@pytest.mark.parametrize("kind", ["filtered", "plain"])
def test_lseek_on_a_4_gib_sparse_file(kind: str, request: pytest.FixtureRequest) -> None:
    chained: Chained = request.getfixturevalue(kind)
    path, src = chained.fresh()
    with (src / "sparse").open("wb") as file:
        file.truncate(4 * GIB + 65536)
        file.seek(4 * GIB)
        file.write(b"data")
    fd = os.open(path / "sparse", os.O_RDONLY)
    try:
        assert os.lseek(fd, 0, os.SEEK_DATA) == 4 * GIB
        assert os.lseek(fd, 0, os.SEEK_HOLE) == 0
        assert os.lseek(fd, 0, os.SEEK_END) == 4 * GIB + 65536
        assert os.pread(fd, 4, 4 * GIB) == b"data"
    finally:
        os.close(fd)


def test_xattr(filtered: Chained) -> None:
    path, src = filtered.fresh()
    (src / "file").touch()
    os.setxattr(src / "file", "user.secret", b"s")

    os.setxattr(path / "file", "user.open", b"value")

    assert os.getxattr(src / "file", "user.open") == os.getxattr(path / "file", "user.open") == b"value"
    assert "user.open" in os.listxattr(path / "file")
    assert error_of(os.getxattr, path / "file", "user.secret") == errno.ENODATA
    assert error_of(os.setxattr, path / "file", "user.fixed", b"1") == errno.EPERM
    os.removexattr(path / "file", "user.open")
    assert "user.open" not in os.listxattr(src / "file")


# ---------------------------------------------------------------------------- callers and policy


@pytest.mark.parametrize("first", [0, 1000])
def test_a_name_hidden_per_caller_stays_hidden_when_another_caller_has_just_used_it(
    filtered: Chained, first: int
) -> None:
    path, src = filtered.fresh()
    (src / "private").touch()

    for user in (first, 1000 - first, first, 1000 - first):
        done = support.run("stat", path / "private", check=False, user=user or None)
        assert (done.returncode == 0) == (user == 0), user


def test_mkdir_create_rename_link_onto_a_hidden_name_give_eacces(filtered: Chained) -> None:
    path, src = filtered.fresh()
    for name in ("hidden", "file"):
        (src / name).touch()

    calls = {
        "mkdir": error_of(os.mkdir, path / "hidden"),
        "create": error_of((path / "hidden").write_text, ""),
        "exclusive": error_of(exclusive, path / "hidden"),
        "mknod": error_of(os.mknod, path / "hidden"),
        "symlink": error_of(os.symlink, "file", path / "hidden"),
        "rename": error_of(os.rename, path / "file", path / "hidden"),
        "link": error_of(os.link, path / "file", path / "hidden"),
    }

    assert calls == dict.fromkeys(calls, errno.EACCES)
    assert sorted(os.listdir(src)) == ["file", "hidden"]


def test_rmdir_of_a_directory_that_holds_only_hidden_names_is_enotempty(filtered: Chained) -> None:
    path, src = filtered.fresh()
    (src / "d").mkdir()
    (src / "d" / "hidden").touch()

    assert os.listdir(path / "d") == []
    assert error_of(os.rmdir, path / "d") == errno.ENOTEMPTY


def test_readdirplus_does_not_slip_past_a_lookup_hook(filtered: Chained) -> None:
    path, src = filtered.fresh()
    (src / "private").touch()
    support.run("ls", "-l", path)

    done = support.run("sh", "-c", f"ls -l {path}; stat {path}/private", check=False, user=1000)

    assert done.returncode != 0
    assert "No such file" in done.stderr


def test_a_policy_change_takes_effect_at_once(filtered: Chained) -> None:
    path, src = filtered.fresh()
    (src / "chosen-file").write_text("text")
    switch = filtered.map("chosen/is_on", 8)

    for _ in range(20):
        assert (path / "chosen-file").read_text() == "text"
        with switch.put(0, 1):
            assert error_of((path / "chosen-file").read_text) == errno.EACCES


# ---------------------------------------------------------------------------- crowds


@pytest.mark.parametrize("kind", ["filtered", "plain"])
def test_20_way_exclusive_create(kind: str, request: pytest.FixtureRequest) -> None:
    chained: Chained = request.getfixturevalue(kind)
    path, _ = chained.fresh()
    barrier = threading.Barrier(20)
    results: list[int] = []

    def create(target: Path) -> None:
        barrier.wait(30)
        results.append(error_of(exclusive, target))

    for number in range(5):
        results.clear()
        threads = [threading.Thread(target=create, args=[path / f"f{number}"]) for _ in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert sorted(results) == [0] + [errno.EEXIST] * 19
