"""The stock filter `quota`: bytes and files below paths."""

import errno
import os

import support


def used(mounted: support.Mounted) -> tuple[int, int]:
    """Bytes and files of the first rule."""
    row = mounted.dump("quota/rules")[0]["formatted"]["value"]
    return row["bytes"], row["files"]


def refused(function: object, *arguments: object) -> int | None:
    assert callable(function)
    try:
        function(*arguments)
    except OSError as error:
        return error.errno
    return None


def test_bytes_and_files_below_a_path(mount: support.Mounter) -> None:
    mounted = mount(filters=["quota"], sets={"quota.rules": "home:1000:5:100:1"})
    home = mounted.path / "home"
    for name in ("home", "other"):
        (mounted.src / name).mkdir()
    os.stat(home)

    (home / "a").write_bytes(bytes(600))
    assert used(mounted) == (700, 2)
    assert refused((home / "b").write_bytes, bytes(301)) == errno.EDQUOT
    (home / "b").unlink()
    assert used(mounted) == (700, 2)
    os.truncate(home / "a", 100)
    assert used(mounted) == (200, 2)
    assert refused(os.truncate, home / "a", 901) == errno.EDQUOT
    with (home / "a").open("ab") as file:
        file.write(bytes(50))
    assert used(mounted) == (250, 2)
    (home / "d").mkdir()
    (home / "d" / "e").symlink_to("x")
    (home / "a").rename(home / "d" / "a")
    assert refused(os.rename, home / "d" / "a", mounted.path / "other" / "a") == errno.EXDEV
    (home / "f").write_bytes(b"12345")
    assert used(mounted) == (255, 5)
    assert refused((home / "g").touch) == errno.EDQUOT
    (home / "f").rename(home / "d" / "a")
    assert used(mounted) == (105, 4)
    (mounted.path / "other" / "big").write_bytes(bytes(5000))
    for name in ("a", "e"):
        (home / "d" / name).unlink()
    (home / "d").rmdir()
    assert used(mounted) == (100, 1)
