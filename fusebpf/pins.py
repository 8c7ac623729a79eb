"""Descriptors that are closed, and pins that are taken away, if what they are for does not come about."""

import contextlib
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from fusebpf import bpf
from fusebpf.errors import MountError


def hold(undo: contextlib.ExitStack, fd: int) -> int:
    """Have a descriptor closed when the stack unwinds; returns it."""
    undo.callback(os.close, fd)
    return fd


def close_all(fds: Iterable[int]) -> None:
    """Close them."""
    for fd in fds:
        os.close(fd)


def pin_all(directory: Path, pins: Iterable[tuple[str, int]]) -> None:
    """Pin all (name, descriptor) or nothing; directories that were made for it go again too.

    Raises:
        MountError: Something could not be pinned.
    """
    with contextlib.ExitStack() as undo:
        path = directory
        try:
            for parent in [*reversed(directory.parents), directory]:
                path = parent
                if not parent.is_dir():
                    parent.mkdir(0o700)
                    undo.callback(parent.rmdir)
            for name, fd in pins:
                path = directory / name
                bpf.obj_pin(fd, path)
                undo.callback(path.unlink)
        except OSError as error:
            reason = os.strerror(error.errno or 0)
            raise MountError(
                f"cannot pin {str(path)!r}: {reason}; /sys/fs/bpf must be a BPF file system"
            ) from None
        undo.pop_all()


class StagedPins:
    """Pins that stand beside those of a directory, and take their place in one go.

    A pin that stays under its name is never missing meanwhile: policy is changed through it at any time.
    """

    def __init__(self, directory: Path, pins: list[tuple[str, int]]) -> None:
        """Make them, where nobody looks for them.

        Raises:
            MountError: Something could not be pinned; nothing is.
        """
        self._directory = directory
        self._scratch = directory.with_name(f"{directory.name}-new")  # no filter has a name like that
        self._names = [name for name, _ in pins]
        pin_all(self._scratch, pins)

    def discard(self) -> None:
        """Take them away again; nothing if they have taken their place."""
        shutil.rmtree(self._scratch, ignore_errors=True)

    def commit(self) -> None:
        """Put them into their place; what else was pinned there goes."""
        self._directory.mkdir(0o700, exist_ok=True)
        for name in self._names:
            (self._scratch / name).rename(self._directory / name)
        for path in self._directory.iterdir():
            if path.name not in self._names:
                path.unlink()
        self._scratch.rmdir()
