"""The stock filter `quota`: bytes and files below paths."""

import errno
import os

import pytest
import support


def used(mounted: support.Mounted) -> tuple[int, int]:
    """Bytes and files of the first rule."""
    row = mounted.dump("quota/rules")[0]["formatted"]["value"]
    return row["bytes"], row["files"]


def test_bytes_and_files_below_a_path(mount: support.Mounter) -> None:
    mounted = mount(filters=["quota"], sets={"quota.rules": "home:1000:5:100:1"})
    home = mounted.path / "home"
    for name in ("home", "other"):
        (mounted.src / name).mkdir()
    os.stat(home)

    (home / "a").write_bytes(bytes(600))
    assert used(mounted) == (700, 2)
    assert support.refused((home / "b").write_bytes, bytes(301)) == errno.EDQUOT
    (home / "b").unlink()
    assert used(mounted) == (700, 2)
    os.truncate(home / "a", 100)
    assert used(mounted) == (200, 2)
    assert support.refused(os.truncate, home / "a", 901) == errno.EDQUOT
    with (home / "a").open("ab") as file:
        file.write(bytes(50))
    assert used(mounted) == (250, 2)
    (home / "d").mkdir()
    (home / "d" / "e").symlink_to("x")
    (home / "a").rename(home / "d" / "a")
    assert support.refused(os.rename, home / "d" / "a", mounted.path / "other" / "a") == errno.EXDEV
    (home / "f").write_bytes(b"12345")
    assert used(mounted) == (255, 5)
    assert support.refused((home / "g").touch) == errno.EDQUOT
    (home / "f").rename(home / "d" / "a")
    assert used(mounted) == (105, 4)
    (mounted.path / "other" / "big").write_bytes(bytes(5000))
    for name in ("a", "e"):
        (home / "d" / name).unlink()
    (home / "d").rmdir()
    assert used(mounted) == (100, 1)


def test_slashes_at_the_ends_of_a_rules_path_do_not_count(mount: support.Mounter) -> None:
    mounted = mount(filters=["quota"], sets={"quota.rules": "/home/:1000:1:0:0"})
    (mounted.path / "home").mkdir()

    (mounted.path / "home" / "a").touch()

    assert support.refused((mounted.path / "home" / "b").touch) == errno.EDQUOT


@pytest.mark.parametrize("path", ["", "..", "home/../x", "home//in", "./home", "*", "home/*", "ho?e"])
def test_a_rule_whose_path_nothing_has_is_refused(mount: support.Mounter, path: str) -> None:
    src, mnt = mount.new_directory("src"), mount.new_directory("mnt")
    words = ("--filter", "quota", "--set", f"quota.rules={path}:1:1:0:0")

    done = support.run(support.COMMAND, "mount", src, mnt, *words, check=False)

    assert done.returncode == 2
    assert f"quota.rules: path in '{path}:1:1:0:0': {path!r} " in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_rule_for_the_root_is_one_for_the_whole_mount(mount: support.Mounter) -> None:
    mounted = mount(filters=["quota"], sets={"quota.rules": "/:1000:5:0:0,home:100:0:0:0"})
    (mounted.src / "home").mkdir()
    path = mounted.path

    (path / "d").mkdir()
    (path / "d" / "a").write_bytes(bytes(400))
    (path / "b").write_bytes(bytes(600))
    assert used(mounted) == (1000, 3)
    assert support.refused((path / "c").write_bytes, bytes(1)) == errno.EDQUOT
    assert used(mounted) == (1000, 4)
    (path / "c").rename(path / "d" / "c")
    (path / "home" / "own").write_bytes(bytes(100))
    assert support.refused((path / "home" / "own").write_bytes, bytes(101)) == errno.EDQUOT
    assert support.refused(os.rename, path / "home" / "own", path / "own") == errno.EXDEV
    (path / "b").unlink()
    (path / "d" / "c").unlink()
    assert used(mounted) == (400, 2)
    support.run(support.COMMAND, "map", mounted.name, "quota", "rules", "set", "0", ":0:0:0:0")
    (path / "b").write_bytes(bytes(2000))
    assert used(mounted) == (0, 0)


def test_a_file_without_a_name_is_not_to_be_had_where_the_whole_mount_has_a_limit(
    mount: support.Mounter,
) -> None:
    mounted = mount(filters=["quota"], sets={"quota.rules": "/:1000:0:0:0"})

    assert support.refused(os.open, mounted.path, os.O_TMPFILE | os.O_WRONLY) == errno.EOPNOTSUPP


def test_a_rule_that_is_taken_out_leaves_those_behind_it(mount: support.Mounter) -> None:
    mounted = mount(filters=["quota"], sets={"quota.rules": "other:1:1:0:0,home:1000:1:0:0"})
    (mounted.path / "home").mkdir()

    support.run(support.COMMAND, "map", mounted.name, "quota", "rules", "set", "0", ":0:0:0:0")
    (mounted.path / "home" / "a").touch()

    assert support.refused((mounted.path / "home" / "b").touch) == errno.EDQUOT
    assert support.refused(os.rename, mounted.path / "home", mounted.path / "moved") == errno.EXDEV


def test_a_rules_own_directory_counts_where_it_lies(mount: support.Mounter) -> None:
    mounted = mount(filters=["quota"], sets={"quota.rules": "home:1000:5:0:0,home/in:100:2:0:0"})
    home = mounted.path / "home"

    for _ in range(3):
        home.mkdir()
        (home / "in").mkdir()
        (home / "in" / "f").touch()
        assert used(mounted) == (0, 1)
        (home / "in" / "f").unlink()
        (home / "in").rmdir()
        home.rmdir()

    assert used(mounted) == (0, 0)


def test_what_was_not_counted_may_be_removed(mount: support.Mounter) -> None:
    mounted = mount(filters=["quota"], sets={"quota.rules": "home:1000:1:0:0"})
    (mounted.src / "home").mkdir()
    (mounted.src / "home" / "old").write_bytes(bytes(500))

    (mounted.path / "home" / "old").unlink()

    assert used(mounted) == (-500, -1)
    (mounted.path / "home" / "a").touch()
    assert used(mounted) == (-500, 0)
    shown = support.run(support.COMMAND, "map", mounted.path, "quota", "rules", "get", "0").stdout
    assert shown == "home:1000:1:-500:0\n"


def test_a_tree_does_not_move_to_where_it_would_have_to_count(mount: support.Mounter) -> None:
    mounted = mount(filters=["quota"], sets={"quota.rules": "a/home:1000:5:0:0"})
    for name in ("a", "full/home", "homes"):
        (mounted.src / name).mkdir(parents=True)
    path = mounted.path

    assert support.refused(os.rename, path / "full" / "home", path / "a" / "home") == errno.EXDEV
    (path / "a" / "home").mkdir()
    assert support.refused(os.rename, path / "a" / "home", path / "a" / "b") == errno.EXDEV
    assert support.refused(os.rename, path / "a", path / "b") == errno.EXDEV
    assert support.refused(os.rename, path / "a" / "home", path / "homes") == errno.EXDEV
    (path / "homes").rename(path / "a" / "home2")
    (path / "full").rename(path / "b")


def test_room_behind_a_files_end_is_not_to_be_had(mount: support.Mounter) -> None:
    mounted = mount(filters=["quota"], sets={"quota.rules": "home:10000:5:0:0"})
    (mounted.src / "home").mkdir()
    (mounted.path / "home" / "f").write_bytes(bytes(5000))

    far = support.run("fallocate", "--keep-size", "--length", "1M", mounted.path / "home" / "f", check=False)
    support.run("fallocate", "--keep-size", "--length", "5000", mounted.path / "home" / "f")

    assert "unsupported" in far.stderr or "not supported" in far.stderr
    assert used(mounted) == (5000, 1)
