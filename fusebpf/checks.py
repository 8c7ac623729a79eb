"""What must hold before a mount is tried: each check says in one line what is missing and what to do.

No check asks a FUSE server about a mount's own root, so a dead or hanging mount at SRC or MNT cannot stop
them.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import stat
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from fusebpf import bpf, mounts, registry
from fusebpf.errors import MountError, PlatformError, UsageError, reason

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_TO_MOUNT = {"CAP_SYS_ADMIN": 21}
_TO_SERVE = {"CAP_SETUID": 7, "CAP_SETGID": 6}
"""Without them what users make would be root's."""
_MIN_DESCRIPTORS = 64
_MIN_LEFT, _MIN_LEFT_PER_CORE = 64, 8
"""What a mount takes that has its chain: its transport, its workers, and who asks it for changes."""
_FUSE_DEVICE = Path("/dev/fuse")
_FUSE_NUMBER = os.makedev(10, 229)
_WORKED_WITH = (_FUSE_DEVICE, Path("/proc"), registry.DIRECTORY, bpf.BPFFS)
"""Servers and commands go on asking these; through a mount they would ask themselves."""


class Places(NamedTuple):
    """Where a mount is to be made.

    Attributes:
        root_fds: The backing roots, opened; the caller closes them.
        src: The path of the first.
        mnt: The mount point, free of symlinks.
        under: The id of the mount that the mount point lies in.
    """

    root_fds: list[int]
    src: str
    mnt: str
    under: int


def check_descriptors_left(n_hooks: int, n_before: int) -> None:
    """See that a mount can work when its chain has its descriptors, one for each hook, and be changed again.

    They are counted, not tried: what is taken for a moment, the ops of a mount that is there would lack.

    Args:
        n_hooks: Of the chain that is to be.
        n_before: Of the one that is there until then.

    Raises:
        PlatformError: Too few are left.
    """
    wanted = _MIN_LEFT + _MIN_LEFT_PER_CORE * (os.cpu_count() or 1)
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    left = most - sum(1 for _ in Path("/proc/self/fd").iterdir())
    # The next chain is there before this one goes.
    if left < n_hooks + max(0, n_hooks - n_before) + wanted:
        raise PlatformError(
            f"with these filters a mount has fewer than {wanted} descriptors left to work with, of the "
            f"{most} that it was started with: {reason(OSError(errno.EMFILE, os.strerror(errno.EMFILE)))}"
        )


def check_root(*, serves: bool = False) -> None:
    """See that we may mount.

    Args:
        serves: And act as the callers of what is mounted.

    Raises:
        PlatformError: We are not root, or lack a capability that it takes, or descriptors.
    """
    if os.geteuid() != 0:
        raise PlatformError("only root can do this: run it with sudo")
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if serves and most < _MIN_DESCRIPTORS:
        raise PlatformError(
            f"a mount takes at least {_MIN_DESCRIPTORS} descriptors, and {most} are the limit: "
            "raise `ulimit -n`"
        )
    status = Path("/proc/self/status").read_text()
    capabilities = int(
        next(line for line in status.splitlines() if line.startswith("CapEff:")).split()[1], 16
    )
    for name, number in (_TO_MOUNT | (_TO_SERVE if serves else {})).items():
        if not capabilities >> number & 1:
            raise PlatformError(
                f"root without {name} cannot mount: give this container or service the capability"
            )


def check_trio() -> None:
    """See that trio runs, and no other loop.

    Raises:
        UsageError: It does not.
    """
    import trio  # noqa: PLC0415 - commands that mount nothing shall not wait for it

    if not trio.lowlevel.in_trio_run():
        raise UsageError("fusebpf.Stack needs trio: enter it in a function that trio.run calls, not asyncio")


def check_fuse() -> None:
    """See that the kernel has FUSE.

    Raises:
        PlatformError: /dev/fuse is missing, is something else, or does not open.
    """
    try:
        status = _FUSE_DEVICE.stat()
    except OSError as error:
        raise PlatformError(
            f"{str(_FUSE_DEVICE)!r} is missing ({error.strerror}): load FUSE with `modprobe fuse`"
        ) from error
    if not stat.S_ISCHR(status.st_mode) or status.st_rdev != _FUSE_NUMBER:
        raise PlatformError(
            f"{str(_FUSE_DEVICE)!r} is not the FUSE device: remove it, "
            f"and `modprobe fuse` or `mknod /dev/fuse c 10 229`"
        )
    try:
        os.close(os.open(_FUSE_DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        raise PlatformError(
            f"{str(_FUSE_DEVICE)!r} cannot be opened ({error.strerror}): load FUSE with `modprobe fuse`"
        ) from error


def check_source(src: mounts.StrPath | int, what: str = "source") -> tuple[int, str]:
    """Open the backing root.

    Args:
        src: A path, or the descriptor of an open directory, which stays the caller's.
        what: What messages call it.

    Returns:
        A descriptor of our own, and the path.

    Raises:
        MountError: It is not there any more, or not a directory.
        UsageError: The descriptor is not one.
    """
    if isinstance(src, int):
        try:
            fd = os.dup(src)
        except (OSError, OverflowError) as error:
            raise UsageError(f"root descriptor {src} is not open") from error
        name = f"root descriptor {src}"
    else:
        name = f"{what} {os.fspath(src)!r}"
        try:
            fd = os.open(src, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except NotADirectoryError as error:
            raise MountError(f"{name} is not a directory") from error
        except OSError as error:
            raise MountError(f"{name} cannot be opened: {error.strerror}") from error
    try:
        is_directory, path = mounts.place_of(fd).is_directory, mounts.path_of(fd)
        # Some file systems count no links.
        is_gone = path.endswith(" (deleted)") and not os.fstat(fd).st_nlink
    except OSError as error:
        os.close(fd)
        raise MountError(f"{name} cannot be opened: {error.strerror}") from error
    if not is_directory:
        os.close(fd)
        raise MountError(f"{name} is not a directory")
    if is_gone:
        os.close(fd)
        raise MountError(f"{name} has been removed")
    return fd, path


def check_places(src: mounts.StrPath | int, mnt: mounts.StrPath, more: Sequence[str] = ()) -> Places:
    """See that SRC, and the backing roots behind it, can be mounted on MNT.

    Raises:
        MountError: One is missing or no directory; MNT is a fusebpf mount already, lies in a root or
            around it; a root lies in another one.
        UsageError: SRC is a descriptor that is not open, or a path has a NUL byte in it.
    """
    for what, path in (("source", src), ("mount point", mnt), *(("backing root", one) for one in more)):
        if not isinstance(path, int) and "\0" in os.fspath(path):
            raise UsageError(f"{what} {os.fspath(path)!r}: a NUL byte cannot be in a path")
    roots: list[tuple[int, str]] = []
    try:
        roots.append(check_source(src))
        for one in more:
            roots.append(check_source(one, "backing root"))  # noqa: PERF401 - those before it are to be closed
        _check_roots_apart(roots)
        with mounts.opened(mnt) as mnt_fd:
            point = _check_point(mnt, mnt_fd)
            for root_fd, path in roots:
                _check_apart(path, root_fd, point, mnt_fd)
            return Places([fd for fd, _ in roots], roots[0][1], point, mounts.place_of(mnt_fd).mount_id)
    except BaseException as error:
        for root_fd, _ in roots:
            os.close(root_fd)
        if isinstance(error, OSError):
            raise MountError(f"mount point {os.fspath(mnt)!r} cannot be opened: {error.strerror}") from error
        raise


def _check_roots_apart(roots: list[tuple[int, str]]) -> None:
    """A file has one path below one root."""
    for inner, path in roots:
        for outer, around in roots:
            place = mounts.place_of(outer)
            if inner != outer and (
                mounts.place_of(inner).is_same(place) or mounts.any_above(inner, place.is_same)
            ):
                raise MountError(
                    f"the backing root {path!r} lies inside the backing root {around!r}, or is the same"
                )


def _check_point(mnt: mounts.StrPath, mnt_fd: int) -> str:
    place = mounts.place_of(mnt_fd)
    if not place.is_directory:
        raise MountError(f"mount point {os.fspath(mnt)!r} is not a directory")
    point = mounts.path_of(mnt_fd)
    if point == "/":
        raise MountError("mount point '/' is the root directory: processes would go on below the mount")
    hidden = next((path for path in _WORKED_WITH if mounts.is_below(str(path), point)), None)
    if hidden:
        raise MountError(f"mount point {point!r} would hide {str(hidden)!r}, which fusebpf itself works with")
    mounted = mounts.by_id(place.mount_id)
    if place.is_mount_root and mounted and mounted.is_ours:
        raise MountError(
            f"mount point {point!r} is a fusebpf mount already (of {mounted.source!r}): umount it first"
        )
    return point


def _check_apart(src: str, root_fd: int, mnt: str, mnt_fd: int) -> None:
    source, point = mounts.place_of(root_fd), mounts.place_of(mnt_fd)
    if source.is_same(point):
        return
    if mounts.any_above(root_fd, point.is_same):
        raise MountError(f"mount point {mnt!r} lies around the source {src!r}: it would hide it")
    table = mounts.table()
    mounted = next((one for one in table if one.mount_id == point.mount_id), None)
    shown_at = mounts.aliases(mnt, mounted, table) if mounted else []
    if mounts.any_above(mnt_fd, source.is_same) or any(_is_inside(path, source) for path in shown_at):
        raise MountError(
            f"mount point {mnt!r} lies inside the source {src!r}: the mount would contain itself"
        )
    for path, shown in _shown_by(src, root_fd):
        if mounts.any_above(mnt_fd, shown.is_same):
            raise MountError(
                f"mount point {mnt!r} lies inside {path!r}, which the source {src!r} shows: "
                f"the mount would contain itself"
            )


def _shown_by(src: str, root_fd: int) -> Iterator[tuple[str, mounts.Place]]:
    """What a source that lies in a fusebpf mount shows, and that in turn, as far as paths lead there."""
    pending, seen = [(src, mounts.place_of(root_fd))], set()
    while pending:
        path, place = pending.pop()
        mounted = mounts.by_id(place.mount_id)
        entry = registry.entry_of(mounted) if mounted and mounted.is_ours else None
        if place in seen or mounted is None or entry is None:
            continue
        seen.add(place)
        below = os.path.relpath(path, mounted.point)
        for root in entry.roots:
            shown = os.path.normpath(os.path.join(root, below))  # noqa: PTH118
            with contextlib.suppress(OSError), mounts.opened(shown) as fd:
                pending.append((shown, mounts.place_of(fd)))
                yield pending[-1]


def _is_inside(path: str, source: mounts.Place) -> bool:
    try:
        with mounts.opened(path) as fd:
            return mounts.any_above(fd, source.is_same)
    except OSError:
        return False
