"""By no other name, and by no move of what lies above, is a filter got round that judges by path."""

import errno
import os
import sys
from pathlib import Path

import pytest
import support
from core.table import checked, libc

DIGITS = {"redact.bytes": "0x30:0x39", "redact.allowed": "0"}
SECRET = b"Ann 1234"
SHOWN = b"Ann \0\0\0\0"
EXCHANGE, WHITEOUT = 2, 4


def renameat2(old: Path, new: Path, flags: int) -> None:
    checked(libc.renameat2(-100, os.fsencode(old), -100, os.fsencode(new), flags))


def fill(mounted: support.Mounted, name: str, content: bytes = b"old") -> None:
    path = mounted.src / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    for each in (mounted.src, *mounted.src.rglob("*")):
        each.chmod(0o777)


def read_as_user(path: Path) -> bytes:
    shown = "import pathlib, sys; sys.stdout.buffer.write(pathlib.Path(sys.argv[1]).read_bytes())"
    return os.fsencode(support.run(sys.executable, "-c", shown, path, user=1000).stdout)


def move_as_user(old: Path, new: Path) -> int:
    told = "import os, sys\ntry: os.rename(*sys.argv[1:])\nexcept OSError as error: print(error.errno)"
    return int(support.run(sys.executable, "-c", told, old, new, user=1000).stdout or 0)


# ------------------------------------------------------------- names that a filter above rewrote


@pytest.mark.parametrize("kept", ["etc/passwd", "etc"])
def test_readonly_judges_the_path_that_a_filter_above_made_of_it(mount: support.Mounter, kept: str) -> None:
    mounted = mount(filters=["casefold", "readonly"], sets={"readonly.paths": kept})
    fill(mounted, "etc/passwd")

    for name in ("etc/passwd", "etc/PASSWD", "ETC/Passwd"):
        path = mounted.path / name
        assert support.refused(path.unlink) == errno.EROFS
        assert support.refused(path.write_bytes, b"new") == errno.EROFS
        assert support.refused(path.rename, mounted.path / "moved") == errno.EROFS
        assert support.refused(os.link, path, mounted.path / "LINK") == errno.EROFS
    assert support.refused((mounted.path / "ETC").rename, mounted.path / "moved") == errno.EROFS
    (mounted.path / "MINE").write_bytes(b"mine")
    (mounted.path / "Mine").rename(mounted.path / "OURS")
    assert support.refused((mounted.path / "OURS").replace, mounted.path / "ETC/PASSWD") == errno.EROFS
    assert sorted(os.listdir(mounted.src)) == ["etc", "ours"]


def test_redact_judges_the_path_that_a_filter_above_made_of_it(mount: support.Mounter) -> None:
    sets = {**DIGITS, "redact.paths": "sec/a.txt,real.txt", "redirect.names": "shown.txt:real.txt"}
    mounted = mount(filters=["casefold", "redirect", "redact"], sets=sets)
    fill(mounted, "sec/a.txt", SECRET)
    fill(mounted, "real.txt", SECRET)

    for name in ("sec/a.txt", "sec/A.TXT", "SEC/a.txt", "shown.txt", "SHOWN.txt"):
        assert read_as_user(mounted.path / name) == SHOWN
    assert move_as_user(mounted.path / "SEC", mounted.path / "q") == errno.EACCES
    assert (mounted.path / "Sec" / "A.txt").read_bytes() == SECRET


def test_what_is_redirected_is_protected_by_its_stored_name_from_below(mount: support.Mounter) -> None:
    sets = {"redirect.names": "app.conf:app-v2.conf", "readonly.paths": "app-v2.conf"}
    mounted = mount(filters=["redirect", "readonly@500"], sets=sets)
    fill(mounted, "app-v2.conf")
    path = mounted.path / "app.conf"

    for way in (path.unlink, lambda: path.write_bytes(b"new"), lambda: path.rename(mounted.path / "moved")):
        assert support.refused(way) == errno.EROFS


def test_worm_judges_the_path_that_a_filter_above_made_of_it(mount: support.Mounter) -> None:
    mounted = mount(filters=["casefold", "worm"], sets={"worm.paths": "log/a"})
    fill(mounted, "log/a")

    with (mounted.path / "log/A").open("r+b", buffering=0) as file:
        assert support.refused(file.write, b"X") == errno.EPERM
    assert support.refused((mounted.path / "LOG/A").unlink) == errno.EPERM
    assert support.refused((mounted.path / "LOG").rename, mounted.path / "x") == errno.EPERM


def test_quota_judges_the_path_that_a_filter_above_made_of_it(mount: support.Mounter) -> None:
    mounted = mount(filters=["casefold", "quota"], sets={"quota.rules": "home:1000:3:0:0"})
    (mounted.src / "home").mkdir()

    assert support.refused((mounted.path / "HOME/big").write_bytes, bytes(1001)) == errno.EDQUOT
    assert support.refused((mounted.path / "HOME").rename, mounted.path / "free") == errno.EXDEV


# --------------------------------------------------------------------- what lies above a pattern


@pytest.mark.parametrize(
    ("paths", "names"),
    [("etc/*.conf", ["etc/sub"]), ("e*/x?y/*", ["etc", "etc/x.y"]), ("*/x.y/a.conf", ["etc/x.y"])],
)
def test_what_a_star_spans_is_not_moved_from_above_what_it_protects(
    mount: support.Mounter, paths: str, names: list[str]
) -> None:
    mounted = mount(filters=["readonly"], sets={"readonly.paths": paths})
    fill(mounted, "etc/sub/a.conf")
    fill(mounted, "etc/x.y/a.conf")
    (mounted.src / "pub").mkdir()

    for name in names:
        assert support.refused((mounted.path / name).rename, mounted.path / "pub" / "d") == errno.EROFS
        exchanged = support.refused(renameat2, mounted.path / "pub", mounted.path / name, EXCHANGE)
        assert exchanged == errno.EROFS


def test_files_and_what_protects_itself_anywhere_can_be_moved_beside_a_pattern_with_a_star(
    mount: support.Mounter,
) -> None:
    mounted = mount(filters=["readonly"], sets={"readonly.paths": "etc/*.conf,*.key,*/.ssh"})
    fill(mounted, "etc/a.txt")
    fill(mounted, "home/d/a.key")

    (mounted.path / "etc/a.txt").rename(mounted.path / "etc/b.txt")
    os.link(mounted.path / "etc/b.txt", mounted.path / "etc/c.txt")
    renameat2(mounted.path / "etc/b.txt", mounted.path / "etc/c.txt", EXCHANGE)
    (mounted.path / "home").rename(mounted.path / "house")

    assert support.refused((mounted.path / "house/d/a.key").unlink) == errno.EROFS
    assert support.refused((mounted.path / "etc/c.txt").rename, mounted.path / "etc/c.conf") == errno.EROFS


def test_redact_and_worm_keep_what_a_star_spans(mount: support.Mounter) -> None:
    sets = {**DIGITS, "redact.paths": "sec/*.csv", "worm.paths": "log/*.log"}
    mounted = mount(filters=["redact", "worm"], sets=sets)
    fill(mounted, "sec/sub/a.csv", SECRET)
    fill(mounted, "log/sub/a.log")

    assert move_as_user(mounted.path / "sec/sub", mounted.path / "sub") == errno.EACCES
    assert support.refused((mounted.path / "log/sub").rename, mounted.path / "sub") == errno.EPERM
    (mounted.src / "log" / "empty").mkdir()
    assert support.refused((mounted.path / "log/empty").rmdir) == errno.EPERM


def test_worm_keeps_what_is_above_a_path_in_an_exchange_too(mount: support.Mounter) -> None:
    mounted = mount(filters=["worm"], sets={"worm.paths": "srv/log"})
    fill(mounted, "srv/log/a")
    (mounted.src / "x").mkdir()

    for names in (("x", "srv"), ("srv", "x"), ("x", "srv/log")):
        assert support.refused(renameat2, *(mounted.path / name for name in names), EXCHANGE) == errno.EPERM


def test_deny_takes_both_names_of_an_exchange_for_old_ones(mount: support.Mounter) -> None:
    rules = "rename:*:secret:EPERM,rename:*:open:0,rename:*:*:EROFS"
    mounted = mount(filters=["deny"], sets={"deny.rules": rules})
    for name in ("secret", "open", "other"):
        fill(mounted, name)
    path = mounted.path

    assert support.refused(renameat2, path / "open", path / "secret", EXCHANGE) == errno.EPERM
    assert support.refused(renameat2, path / "open", path / "other", EXCHANGE) == errno.EROFS
    assert support.refused((path / "other").rename, path / "new") == errno.EROFS
    (path / "open").rename(path / "new")


def test_idshift_stores_no_whiteout_of_an_id_that_it_does_not_show(mount: support.Mounter) -> None:
    ranges = "0:100000:65536"
    mounted = mount(filters=["idshift"], sets={"idshift.uids": ranges, "idshift.gids": ranges})
    fill(mounted, "a")

    refused = support.refused(renameat2, mounted.path / "a", mounted.path / "b", WHITEOUT)

    assert refused == errno.EINVAL
    assert os.listdir(mounted.src) == ["a"]
