"""What is built for others: sdist and wheel hold all that is needed, and the wheel works when installed."""

import re
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from support import CHECKOUT, run

BPF_SOURCES = {str(path.relative_to(CHECKOUT / "bpf")) for path in (CHECKOUT / "bpf").rglob("*.[ch]")}


@pytest.fixture(scope="module")
def built(run_directory: Path) -> Path:
    """A directory with an sdist and the wheel that was built from it."""
    directory = run_directory / "dist"
    words = ("-m", "build", "--no-isolation", "--outdir", directory, CHECKOUT)
    run(sys.executable, *words, seconds=100)
    return directory


def test_the_sdist_holds_the_sources(built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}

    tracked = run("git", "-c", "safe.directory=*", "-C", CHECKOUT, "ls-files").stdout.split()
    core = {f"fusebpf/_core/{path.name}" for path in (CHECKOUT / "fusebpf/_core").glob("*.[ch]")}
    assert {f"bpf/{name}" for name in BPF_SOURCES} | core | {"LICENSE", "README.md", "Makefile"} <= names
    assert set(tracked) - names == set(), "tests, set-up and documents are as in a clone"


def test_the_wheel_holds_the_bpf_sources_and_the_core(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()

    assert {f"fusebpf/bpf/{name}" for name in BPF_SOURCES} | {"fusebpf/py.typed"} <= set(names)
    assert [name for name in names if re.fullmatch(r"fusebpf/_core\..*\.so", name)] != []
    assert [name for name in names if re.search(r"_core/|^tests/|^bench/", name)] == []


def test_the_wheel_works_in_an_environment_of_its_own(built: Path, directory: Path) -> None:
    (wheel,) = built.glob("*.whl")
    venv = directory / "venv"
    run("/usr/bin/python3", "-m", "venv", "--system-site-packages", venv, seconds=60)
    pip = (venv / "bin/python", "-m", "pip", "-qq", "--disable-pip-version-check", "install")

    run(*pip, wheel, seconds=100)

    metadata = (CHECKOUT / "pyproject.toml").read_text()
    version = re.search(r'^version = "(.*)"', metadata, re.MULTILINE)
    assert version is not None
    said = run(venv / "bin/fusebpf", "--version", cwd=directory).stdout
    assert version[1] in said
    where = "import fusebpf._core, fusebpf.paths as paths; print(paths.bpf_dir() / 'filters/hide.c')"
    found = Path(run(venv / "bin/python", "-c", where, cwd=directory).stdout.strip())
    assert found.is_relative_to(venv)
    assert found.read_text() == (CHECKOUT / "bpf/filters/hide.c").read_text()
    _mount_with_what_notes_callers(venv / "bin/fusebpf", directory)


def _mount_with_what_notes_callers(command: Path, directory: Path) -> None:
    src, mnt = directory / "src", directory / "mnt"
    src.mkdir()
    mnt.mkdir()
    (src / "f").write_text("text")
    run(command, "mount", src, mnt, "--filter", "noexec", cwd=directory, seconds=60)
    try:
        assert run("cat", mnt / "f").stdout == "text"
    finally:
        run(command, "umount", mnt, cwd=directory, check=False)


def test_the_version_stands_in_one_place() -> None:
    assert '__version__ = "0' not in (CHECKOUT / "fusebpf/__init__.py").read_text()


def test_install_and_uninstall_leave_nothing(built: Path, directory: Path) -> None:
    prefix, sbin = directory / "prefix", directory / "sbin"
    script = directory / "scripts" / "install.sh"
    script.parent.mkdir()
    for name in (script.name, "mount.fuse.fusebpf.in"):
        (script.parent / name).write_text((CHECKOUT / "scripts" / name).read_text())
    (directory / "dist").symlink_to(built)
    run("bash", script, prefix, sbin, seconds=100)
    assert run(prefix / "bin/fusebpf", "--version").stdout.startswith("fusebpf ")
    assert "mount-helper" in run(sbin / "mount.fuse.fusebpf", "--help").stdout
    own = "import sys, pytest, pyfuse3; print(pyfuse3.__file__.startswith(sys.prefix))"
    assert run(prefix / "lib/fusebpf/bin/python", "-c", own).stdout == "True\n"

    # With a cache of its own: that of the machine goes too.
    script_text = 'mount -t tmpfs none /var/cache && mkdir /var/cache/fusebpf && bash "$@" && ls /var/cache'
    words = ("unshare", "-m", "sh", "-c", script_text, "sh", script, "--remove", prefix, sbin)
    assert run(*words).stdout == ""

    assert [path for top in (prefix, sbin) for path in top.rglob("*") if not path.is_dir()] == []
