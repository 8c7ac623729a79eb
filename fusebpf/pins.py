"""Descriptors that are closed, and pins that are taken away, if what they are for does not come about."""

import contextlib
import os
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
