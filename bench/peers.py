"""The file systems that a mount is compared with, over the same source tree."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from bed import Bed, Target, call

HERE = Path(__file__).resolve().parent
PACKAGES = {"bindfs": "bindfs", "mergerfs": "mergerfs", "fuse-overlayfs": "fuse-overlayfs"}
START_SECONDS = 20


def install_missing() -> list[str]:
    """Install the peers' Debian packages where they are missing; those that cannot be had, by label."""
    missing = [label for label, program in PACKAGES.items() if not shutil.which(program)]
    if missing:
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        words = ["apt-get", "install", "-y", "-qq", "--no-install-recommends"]
        for label in missing:
            subprocess.run([*words, PACKAGES[label]], check=False, capture_output=True, env=environment)
    return [label for label in missing if not shutil.which(PACKAGES[label])]


@contextmanager
def bind(bed: Bed, label: str) -> Iterator[Target]:
    """A bind mount of the source: what everything else is measured by."""
    with _mounted(bed, label, lambda mnt: ["mount", "--bind", bed.src, mnt]) as target:
        yield target


@contextmanager
def overlay(bed: Bed, label: str) -> Iterator[Target]:
    """The kernel's overlayfs, the source below."""
    with _mounted(
        bed, label, lambda mnt: ["mount", "-t", "overlay", "overlay", "-o", _layers(bed, mnt), mnt]
    ) as t:
        yield t


@contextmanager
def fuse_overlayfs(bed: Bed, label: str) -> Iterator[Target]:
    """fuse-overlayfs, the source below."""
    with _served(bed, label, lambda mnt: ["fuse-overlayfs", "-f", "-o", _layers(bed, mnt), mnt]) as target:
        yield target


@contextmanager
def bindfs(bed: Bed, label: str) -> Iterator[Target]:
    """Bindfs with its defaults."""
    with _served(bed, label, lambda mnt: ["bindfs", "-f", bed.src, mnt]) as target:
        yield target


@contextmanager
def mergerfs(bed: Bed, label: str) -> Iterator[Target]:
    """Mergerfs over one branch, with its defaults."""
    words = ["mergerfs", "-f", "-o", "category.create=all"]
    with _served(bed, label, lambda mnt: [*words, bed.src, mnt]) as target:
        yield target


@contextmanager
def passthrough_hp(bed: Bed, label: str, *flags: str, options: str = "") -> Iterator[Target]:
    """The fastest example of libfuse, which no package of Debian has: taken where it is in the PATH.

    Raises:
        RuntimeError: It is not there, or does not mount.
    """
    words = ["passthrough_hp", "--foreground", *flags, "-o", f"allow_other,default_permissions,{options}"]
    if not shutil.which(words[0]):
        raise RuntimeError(f"{words[0]} of libfuse 3.18 or later is not in the PATH")
    with _served(bed, label, lambda mnt: [*words, bed.src, mnt]) as target:
        yield target


@contextmanager
def plain_pyfuse3(bed: Bed, label: str, *words: str) -> Iterator[Target]:
    """A minimal passthrough on pyfuse3: what a file system written in Python costs."""
    with _python(bed, label, "plain_pyfuse3.py", *words) as target:
        yield target


@contextmanager
def routed_pyfuse3(bed: Bed, label: str, *words: str) -> Iterator[Target]:
    """The same handlers as a daemon of a mount of ours."""
    with _python(bed, label, "routed_pyfuse3.py", *words) as target:
        yield target


@contextmanager
def busy_daemon(bed: Bed, label: str) -> Iterator[Target]:
    """A mount of ours whose daemon answers statfs, slowly."""
    with _python(bed, label, "busy_daemon.py") as target:
        yield target


def _python(bed: Bed, label: str, name: str, *words: str) -> AbstractContextManager[Target]:
    return _served(bed, label, lambda mnt: [sys.executable, HERE / name, bed.src, mnt, *words])


def _layers(bed: Bed, mnt: Path) -> str:
    upper, work = mnt.with_suffix(".upper"), mnt.with_suffix(".work")
    upper.mkdir()
    work.mkdir()
    return f"lowerdir={bed.src},upperdir={upper},workdir={work}"


@contextmanager
def _mounted(bed: Bed, label: str, words: Callable[[Path], Sequence[str | Path]]) -> Iterator[Target]:
    with bed.mountpoint() as mnt:
        call(*words(mnt))
        yield Target(label, mnt)


@contextmanager
def _served(bed: Bed, label: str, words: Callable[[Path], Sequence[str | Path]]) -> Iterator[Target]:
    """A FUSE server in the foreground, so that its process is known."""
    with bed.mountpoint() as mnt:
        argv = [os.fspath(word) for word in words(mnt)]
        with (bed.directory / f"{mnt.name}.log").open("w") as log:
            process = subprocess.Popen(argv, stdout=log, stderr=log, start_new_session=True)
        try:
            end = time.monotonic() + START_SECONDS
            while not mnt.is_mount():
                if process.poll() is not None or time.monotonic() > end:
                    said = (bed.directory / f"{mnt.name}.log").read_text().strip()
                    raise RuntimeError(f"{' '.join(argv)} does not mount: {said}")
                time.sleep(0.02)
            yield Target(label, mnt, pid=process.pid)
        finally:
            subprocess.run(["umount", "-l", mnt], check=False, capture_output=True)
            try:
                process.wait(START_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
