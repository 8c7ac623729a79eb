"""Filters that the docs show keep what they promise, by every way that leads around it."""

import errno
import os
from pathlib import Path

import pytest
from core.scenarios_names import renameat2
from docs_support import filters
from support import Mounted, Mounter, refused, run

EXCHANGE = 2
LISTED = filters("docs/writing-filters.md")
TEXT = "room 12\n"


@pytest.fixture
def veiled(mount: Mounter, directory: Path) -> Mounted:
    """A mount that veils tables, and what is in `a/private`."""
    (directory / "veil.c").write_text(LISTED["veil.c"])
    mounted = mount(filters=[directory / "veil.c"], sets={"veil.paths": "*.csv,a/private"})
    (mounted.src / "a/private").mkdir(parents=True)
    for name in ("a.csv", "a/private/f", "plain"):
        (mounted.src / name).write_text(TEXT)
    return mounted


def test_veiled_files_stay_as_they_are(veiled: Mounted) -> None:
    table = veiled.path / "a.csv"

    assert refused(os.open, table, os.O_RDONLY | os.O_TRUNC) == errno.EPERM
    assert refused(os.open, table, os.O_WRONLY | os.O_TRUNC) == errno.EPERM
    assert refused(os.truncate, table, 0) == errno.EPERM
    with table.open("r+b") as file:
        assert refused(os.posix_fallocate, file.fileno(), 0, 100) == errno.EPERM
        assert refused(os.pwrite, file.fileno(), b"x", 0) == errno.EPERM

    assert (veiled.src / "a.csv").read_text() == TEXT


def test_no_other_name_shows_what_is_veiled(veiled: Mounted) -> None:
    path = veiled.path

    for name in ("a.csv", "a/private/f", "a/private", "a"):
        assert refused(os.rename, path / name, path / "other") == errno.EPERM, name
    for name in ("a.csv", "a/private/f"):
        assert refused(os.link, path / name, path / "other") == errno.EPERM, name
    assert refused(renameat2, path / "plain", path / "a.csv", EXCHANGE) == errno.EPERM

    assert (path / "a.csv").read_text() == "room **\n"
    assert (path / "plain").read_text() == TEXT


@pytest.fixture
def sealed(mount: Mounter, directory: Path) -> Mounted:
    """A mount with a directory that is sealed."""
    (directory / "sealed.c").write_text(LISTED["sealed.c"])
    mounted = mount(filters=[directory / "sealed.c"])
    (mounted.src / "sealed").mkdir()
    (mounted.src / "sealed/f").write_text(TEXT)
    return mounted


def test_a_sealed_file_keeps_content_and_flags(sealed: Mounted) -> None:
    file = sealed.path / "sealed/f"

    assert refused(os.open, file, os.O_RDONLY | os.O_TRUNC) == errno.EROFS
    done = run("chattr", "+d", file, check=False)

    assert "Read-only file system" in done.stderr
    assert (sealed.src / "sealed/f").read_text() == TEXT


def test_a_sealed_directory_keeps_its_name(sealed: Mounted) -> None:
    (sealed.path / "pub").mkdir()

    assert refused(os.rename, sealed.path / "sealed", sealed.path / "open") == errno.EROFS
    assert refused(os.rename, sealed.path / "pub", sealed.path / "sealed") == errno.EROFS
    (sealed.path / "pub").rename(sealed.path / "open")
