"""The stock filters that give names other names: `redirect` and `casefold`."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import support

from fusebpf.testing import Chain


@pytest.fixture(scope="module")
def redirect() -> Iterator[Chain]:
    maps = {
        "redirect.names": "README:README.md,a:b,b:a," + "n" * 255 + ":short",
        "redirect.prefixes": "new-:old-,x:" + "y" * 31,
    }
    with Chain("redirect", maps=maps) as chain:
        yield chain


@pytest.mark.parametrize(
    ("shown", "stored"),
    [
        (b"README", b"README.md"),
        (b"a", b"b"),
        (b"b", b"a"),
        (b"n" * 255, b"short"),
        (b"new-file", b"old-file"),
        (b"new-", b"old-"),
        (b"xz", b"y" * 31 + b"z"),
        (b"other", b"other"),
        (b"new", b"new"),
    ],
)
def test_a_name_leads_to_another_in_ops_and_listings(redirect: Chain, shown: bytes, stored: bytes) -> None:
    for op in ("lookup", "mkdir", "unlink"):
        assert redirect.run(op, name=shown).name == stored
    assert redirect.run("dirent", name=stored).name == shown
    said = redirect.run("rename", name=shown, name2=shown)
    assert (said.name, said.name2) == (stored, stored)
    assert redirect.run("rename", name=b"other", name2=shown).name2 == stored


@pytest.mark.parametrize("name", [b"README.md", b"short", b"old-file"])
def test_where_a_name_leads_is_no_name_itself(redirect: Chain, name: bytes) -> None:
    assert redirect.run("lookup", name=name).verdict == "FB_NEGATIVE"
    assert redirect.run("mkdir", name=name).error == 13
    assert redirect.run("unlink", name=name).error == 2
    assert redirect.run("rename", name=name, name2=b"c").error == 13
    assert redirect.run("rename", name=b"c", name2=name).error == 13


@pytest.mark.parametrize("name", [b"README", b"new-file", b"xy"])
def test_what_cannot_be_reached_is_not_listed(redirect: Chain, name: bytes) -> None:
    assert not redirect.run("dirent", name=name).is_listed


def test_a_name_that_would_be_too_long_is_refused(redirect: Chain) -> None:
    assert redirect.run("lookup", name=b"x" + b"z" * 224).name == b"y" * 31 + b"z" * 224
    assert redirect.run("lookup", name=b"x" + b"z" * 225).error == 36
    assert redirect.run("rename", name=b"c", name2=b"x" * 250).error == 36


def test_redirect_on_a_mount(mount: support.Mounter) -> None:
    sets = {"redirect.names": "letter:letter.v2", "redirect.prefixes": "new-:old-"}
    mounted = mount(filters=["redirect"], sets=sets)
    (mounted.src / "letter").write_text("first")
    (mounted.src / "letter.v2").write_text("second")

    (mounted.path / "new-a").write_text("a")
    (mounted.path / "new-a").rename(mounted.path / "new-b")

    assert (mounted.path / "letter").read_text() == "second"
    assert sorted(os.listdir(mounted.path)) == ["letter", "new-b"]
    assert sorted(os.listdir(mounted.src)) == ["letter", "letter.v2", "old-b"]
    assert not (mounted.path / "letter.v2").exists()


# -------------------------------------------------------------------------------- casefold


def test_casefold_on_a_mount(mount: support.Mounter) -> None:
    mounted = mount(filters=["casefold"])
    (mounted.src / "Unreachable").touch()

    (mounted.path / "Docs").mkdir()
    (mounted.path / "DOCS" / "Letter.TXT").write_text("dear")
    (mounted.path / "docs" / "LETTER.txt").rename(mounted.path / "DoCs" / "Ärger[@`{Z")

    assert os.listdir(mounted.path) == ["docs"]
    assert os.listdir(mounted.src / "docs") == ["Ärger[@`{z"]
    assert (mounted.path / "dOCS" / "Ärger[@`{Z").read_text() == "dear"
    with pytest.raises(FileExistsError):
        (mounted.path / "DOCS").mkdir()


def test_casefold_only_touches_ascii_letters() -> None:
    every = bytes(byte for byte in range(1, 256) if byte != ord("/"))
    with Chain("casefold") as chain:
        assert chain.run("lookup", name=every[:250]).name == every[:250].lower()
        assert chain.run("lookup", name=every[5:]).name == every[5:].lower()
        assert chain.run("lookup", name=b"abc").edits == frozenset()
        assert chain.run("rename", name=b"a", name2=b"B").name2 == b"b"


def test_filters_of_names_work_together(mount: support.Mounter, directory: Path) -> None:
    del directory
    sets = {"redirect.names": "one:two", "hide.names": "secret"}
    mounted = mount(filters=["hide", "casefold", "redirect"], sets=sets)
    (mounted.path / "ONE").write_text("1")

    assert (mounted.src / "two").read_text() == "1"
    assert os.listdir(mounted.path) == ["one"]


def test_a_rule_holds_in_any_case(mount: support.Mounter) -> None:
    """Filters that judge names stand below `casefold`, so they judge what is stored."""
    sets = {"hide.names": ".ssh", "deny.rules": "unlink:*:kept:EPERM"}
    sets |= {"readonly.paths": "etc", "worm.names": "*.rec"}
    mounted = mount(filters=["hide", "deny", "readonly", "worm", "casefold"], sets=sets)
    for name in (".ssh", "etc"):
        (mounted.src / name).mkdir()
        (mounted.src / name / "f").touch()
    for name in ("kept", "a.rec"):
        (mounted.src / name).touch()

    assert not (mounted.path / ".SSH" / "F").exists()
    for call, number in (
        ((mounted.path / ".Ssh").mkdir, errno.EACCES),
        ((mounted.path / "KEPT").unlink, errno.EPERM),
        ((mounted.path / "ETC" / "new").touch, errno.EROFS),
        ((mounted.path / "A.REC").unlink, errno.EPERM),
    ):
        with pytest.raises(OSError) as caught:
            call()
        assert caught.value.errno == number
