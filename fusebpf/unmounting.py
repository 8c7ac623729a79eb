"""`fusebpf umount`: find the mount that is meant, take it down, wait until its server has gone.

Only a fusebpf mount is ever taken down. The kernel says whether one is; the registry says whose it is.
"""

from __future__ import annotations

import contextlib
import errno
import select
import time
from pathlib import Path

from fusebpf import mounts, registry
from fusebpf.errors import MountError, UsageError

WAIT_SECONDS = 30.0
"""How long the server of an unmounted mount may take to end."""


def unmount(target: str, *, is_lazy: bool = False) -> str | None:
    """Unmount by mount point or name, and wait for the server's end; what dead servers left is removed too.

    Args:
        target: A path, or a name (without a '/') of a mount.
        is_lazy: Take it out of the tree now, even if it is busy; its server ends when nothing uses it.

    Returns:
        None; or a remark: it is unmounted, but something still uses it.

    Raises:
        MountError: There is no such mount, or it is busy.
        UsageError: The target may mean two mounts.
    """
    registry.await_killed()
    with registry.locked():
        dead = registry.clean_dead()
        mounted, entry = _find(target, dead)
    if mounted is None:
        return None
    with contextlib.ExitStack() as undo:
        watched = undo.enter_context(entry.process()) if entry and entry.is_server else []
        _take_down(mounted, entry, is_lazy=is_lazy)
        return _wait(entry, watched, is_lazy=is_lazy)


def _find(target: str, dead: list[registry.Entry]) -> tuple[mounts.Mounted | None, registry.Entry | None]:
    """The mount that is meant, and its entry; None for the mount if it was a dead one that is gone now."""
    entries = registry.entries()
    named = next((entry for entry in entries if entry.name == target), None)
    path = _canonical(target)
    mounted = mounts.mount_of(target) if path else None
    is_ours = mounted is not None and mounted.is_ours
    if named:
        if is_ours and mounted and named.mounted != mounted:
            raise UsageError(
                f"{target!r} is a mount's name and another's mount point: write ./{target} for the latter"
            )
        return _mount_of(named), named
    if is_ours and mounted:
        return mounted, registry.entry_of(mounted)
    if any(target == entry.name or path == entry.mnt for entry in dead):
        return None, None
    at_path = next((entry for entry in entries if entry.mnt == path), None)
    if at_path:
        return _mount_of(at_path), at_path
    if "/" not in target and not path:
        raise MountError(f"there is no mount named {target!r}, and no such directory (see `fusebpf list`)")
    if not path:
        raise MountError(f"{target!r} does not exist")
    raise MountError(f"{target!r} is not a fusebpf mount (see `fusebpf list`)")


def _canonical(target: str) -> str | None:
    try:
        return mounts.canonical(target)
    except OSError:
        return None


def _mount_of(entry: registry.Entry) -> mounts.Mounted:
    mounted = entry.mounted
    if mounted is not None:
        return mounted
    if entry.mount_id is None:
        raise MountError(f"{entry.name!r} is being mounted just now (pid {entry.pid})")
    if _is_in_table_of(entry):
        raise MountError(
            f"{entry.name!r} is mounted in another mount namespace, that of its server, pid {entry.pid}: "
            f"`nsenter -t {entry.pid} -m fusebpf umount {entry.name}`, or `kill -TERM {entry.pid}`"
        )
    raise MountError(
        f"{entry.name!r} is not mounted here any more, but still in use (unmounted lazily, by a bind "
        f"mount, or in another mount namespace); its server, pid {entry.pid}, ends when nothing uses it"
    )


def _is_in_table_of(entry: registry.Entry) -> bool:
    """Does the server itself see its mount? proc(5): /proc/PID/mountinfo."""
    try:
        table = Path(f"/proc/{entry.pid}/mountinfo").read_text(errors="replace")
    except OSError:
        return False
    return any(line.partition(" ")[0] == str(entry.mount_id) for line in table.splitlines())


def _take_down(mounted: mounts.Mounted, entry: registry.Entry | None, *, is_lazy: bool) -> None:
    try:
        mounts.unmount(mounted, is_lazy=is_lazy)
    except mounts.CoveredError as error:
        raise MountError(f"{mounted.point!r} is covered by another mount: unmount that first") from error
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise MountError(f"{mounted.point!r} cannot be unmounted: {error.strerror}") from error
        name = f" ({entry.name})" if entry else ""
        raise MountError(
            f"{mounted.point!r}{name} is busy: end what uses it (`fuser -vm {mounted.point}` shows that), "
            f"or detach it with --lazy"
        ) from error


def _wait(entry: registry.Entry | None, watched: list[int], *, is_lazy: bool) -> str | None:
    if entry is None:
        return None
    # One that was busy a moment ago need not be so for long; a lazy unmount is not to wait for it.
    end = time.monotonic() + (1 if is_lazy else WAIT_SECONDS)
    if watched:
        is_over = bool(select.select(watched, [], [], max(0, end - time.monotonic()))[0])
    else:
        is_over = _wait_for_release(entry, end)
    if not is_over and not is_lazy and entry.is_stopped:
        raise MountError(
            f"{entry.mnt!r} is unmounted, but its server is stopped: `kill -CONT {entry.pid}` lets it end"
        )
    if not is_over and not is_lazy:
        raise MountError(
            f"{entry.mnt!r} is unmounted, but its server (pid {entry.pid}) still serves it: it is in use by "
            f"a bind mount or in another mount namespace, or the server hangs (its log: "
            f"{registry.log_path(entry.name)})"
        )
    with registry.locked():
        registry.clean_dead()
    if not is_over:
        return f"{entry.mnt!r} is detached; its server (pid {entry.pid}) ends when nothing uses it any more"
    return None


def _wait_for_release(entry: registry.Entry, end: float) -> bool:
    """Wait until a process that goes on without its mount, or that has no pid here, has given it back."""
    while entry.is_alive and any(
        (one.name, one.mount_id) == (entry.name, entry.mount_id) for one in registry.entries()
    ):
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True
