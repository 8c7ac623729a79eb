"""What mounts there are: /run/fusebpf/NAME.json for each, and whose server is dead.

One lock (flock on the directory) stands around every look-and-change; it is held for milliseconds, never
while something is waited for. An entry belongs to the process that reserved it, which holds a lock of its own
as long as it lives: its pid says nothing to who is in another PID namespace. A dead server's mount, pins and
state are removed by whoever comes next; nothing is touched that is not known to be that server's.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import secrets
import shutil
import signal
import struct
import time
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusebpf import bpf, mounts
from fusebpf.errors import MountError, PlatformError, UsageError, reason

if TYPE_CHECKING:
    from collections.abc import Iterator

DIRECTORY = Path("/run/fusebpf")
PINS = bpf.BPFFS / "fusebpf"

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,62}")  # no option of a command
_LOCK_SECONDS = 10.0
_ENDING_SECONDS = 5.0
_PF_EXITING = 0x4  # include/linux/sched.h
_KILLED = 1 << (signal.SIGKILL - 1)
_FLOCK = struct.Struct("hhqqi4x")  # struct flock of fcntl(2): type, whence, start, length, pid
_held: dict[int, int] = {}  # the descriptor by which this process holds an entry's lock


@dataclass
class Entry:
    """One mount, as its state file has it.

    Attributes:
        name: Its name.
        pid: The process that serves it, in `pid_namespace`, the inode number of that namespace.
        lock: Which byte of the directory that process has locked as long as it lives; 0: none.
        is_server: That process is a server of `fusebpf mount`, which ends with its mount.
        src: The backing root, as a path.
        mnt: The mount point, free of symlinks.
        under: The id of the mount that the mount point lies in.
        options: Those that hold as long as the mount does, by name (options.lasting).
        filter_texts: Filters as for --filter, paths absolute.
        set_texts: Map values as for --set.
        filters: The loaded chain, top first: name, altitude, source.
        mount_id: Of the mount; None: it is not mounted yet.
        device: "major:minor" of the mount.
        unique_id: The mount's id that is never used again; 0: the kernel has none.
    """

    name: str
    pid: int
    pid_namespace: int
    lock: int
    is_server: bool
    src: str
    mnt: str
    under: int
    options: dict[str, Any] = field(default_factory=dict)
    filter_texts: list[str] = field(default_factory=list)
    set_texts: list[str] = field(default_factory=list)
    filters: list[dict[str, Any]] = field(default_factory=list)
    mount_id: int | None = None
    device: str | None = None
    unique_id: int = 0

    @property
    def roots(self) -> list[str]:
        """The backing roots, as paths."""
        return [self.src, *dict(self.options).get("roots", [])]

    @property
    def is_alive(self) -> bool:
        """Whether the process that serves it runs."""
        return self.lock > 0 and _is_locked(self.lock)

    @property
    def is_ending(self) -> bool:
        """Whether its process was killed and has threads that are still to end: its lock goes with the last.

        Source: proc_pid_stat(5), `flags` and `signal`.
        """
        fields = self._stat()
        was_killed = fields and (int(fields[6]) & _PF_EXITING or int(fields[28]) & _KILLED)
        return bool(was_killed) and self.is_alive

    @property
    def is_stopped(self) -> bool:
        """Whether its process was stopped (SIGSTOP, a debugger) and does nothing until it is let go on."""
        fields = self._stat()
        return bool(fields) and fields[0] in (b"T", b"t") and self.is_alive

    def _stat(self) -> list[bytes]:
        """Of its process, from `state` on; empty if it has none here."""
        if self.pid_namespace != pid_namespace():
            return []
        try:
            return Path(f"/proc/{self.pid}/stat").read_bytes().rpartition(b")")[2].split()
        except OSError:
            return []

    @contextlib.contextmanager
    def process(self) -> Iterator[list[int]]:
        """A descriptor that is readable when its process has ended; none if it has, or has no pid here."""
        fds: list[int] = []
        if self.pid_namespace == pid_namespace():
            with contextlib.suppress(ProcessLookupError):
                fds.append(os.pidfd_open(self.pid))
        try:
            yield fds if self.is_alive else []  # looked at last: a pid that is free is used again
        finally:
            for fd in fds:
                os.close(fd)

    @property
    def mounted(self) -> mounts.Mounted | None:
        """Its mount, as this mount namespace has it now; None: there is none."""
        table = mounts.table()
        if self.mount_id is None:
            # It may have died between the mount and the note of its id.
            found = [
                one for one in table if one.point == self.mnt and one.parent_id == self.under and one.is_ours
            ]
        else:
            found = [one for one in table if one.mount_id == self.mount_id and self._is_mine(one)]
        return next(iter(found), None)

    @property
    def point(self) -> str:
        """Where its mount is now: what lies above it may have been renamed."""
        mounted = self.mounted
        return mounted.point if mounted else self.mnt

    def _is_mine(self, mounted: mounts.Mounted) -> bool:
        """Whether a mount with our numbers is the one; those of mounts that are gone are used again."""
        if not mounted.is_ours or mounted.device != self.device:
            return False
        if self.unique_id:
            with contextlib.suppress(OSError), mounts.opened(mounted.point) as fd:
                if mounts.place_of(fd).mount_id == mounted.mount_id:
                    return mounts.unique_id_of(fd) == self.unique_id
        return True

    @property
    def state(self) -> str:
        """running, starting, stopped (by a signal), detached (no longer seen, but served) or dead."""
        if not self.is_alive:
            return "dead"
        if self.is_stopped:
            return "stopped"
        if self.mount_id is None:
            return "starting"
        return "running" if self.mounted else "detached"


def entry_of(mounted: mounts.Mounted) -> Entry | None:
    """The entry of the process that serves a mount."""
    return next((entry for entry in entries() if entry.is_alive and entry.mounted == mounted), None)


def pid_namespace() -> int:
    """The inode number of this process's PID namespace."""
    return Path("/proc/self/ns/pid").stat().st_ino


def _is_locked(byte: int) -> bool:
    """Whether somebody has locked that byte of the directory; where nobody can look nobody is taken for dead.

    Raises:
        OSError: There is no descriptor left to look with, say.
    """
    try:
        fd = _open_directory()
    except FileNotFoundError:
        return False
    try:
        asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0)
        kind, *_ = _FLOCK.unpack(fcntl.fcntl(fd, fcntl.F_OFD_GETLK, asked))
        return bool(kind != fcntl.F_UNLCK)
    finally:
        os.close(fd)


def _hold(entry: Entry) -> None:
    """Lock a byte for an entry of this process, until it lets go or ends: the lock goes with a descriptor."""
    entry.lock = 1 + secrets.randbits(62)
    fd = _open_directory()
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_RDLCK, os.SEEK_SET, entry.lock, 1, 0))
    except OSError:
        os.close(fd)
        raise
    _held[entry.lock] = fd


def _let_go(entry: Entry) -> None:
    fd = _held.pop(entry.lock, -1)
    if fd >= 0:
        os.close(fd)


def _open_directory() -> int:
    return os.open(DIRECTORY, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)


def check_name(name: str) -> None:
    """See that a mount may have this name.

    Raises:
        UsageError: It may not.
    """
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} cannot be a mount's name: 1 to 63 of A-Z, a-z, 0-9, '_' and '-', not '-' first"
        )


def name_for(mnt: str, taken: set[str]) -> str:
    """A name that is not taken, after the last component of a mount point."""
    base = re.sub(r"[^A-Za-z0-9_-]|^-", "_", os.path.basename(mnt))[:63] or "root"  # noqa: PTH119 - as text
    name, number = base, 1
    while name in taken:
        number += 1
        name = f"{base[: 62 - len(str(number))]}-{number}"
    return name


def pins(name: str) -> Path:
    """The directory of a mount's pins."""
    check_name(name)
    return PINS / name


def control_path(name: str) -> Path:
    """The socket at which a mount's server takes requests."""
    return DIRECTORY / f"{name}.sock"


def log_path(name: str) -> Path:
    """The file that a background server logs to."""
    return DIRECTORY / f"{name}.log"


def _state_path(name: str) -> Path:
    return DIRECTORY / f"{name}.json"


@contextlib.contextmanager
def locked() -> Iterator[None]:
    """Hold the registry's lock for the time of a `with` block; not to be nested.

    Raises:
        PlatformError: The directory is not root's own, or cannot be made.
        MountError: Somebody holds the lock for ten seconds.
    """
    try:
        DIRECTORY.mkdir(mode=0o700, exist_ok=True)
        fd = _open_directory()
    except OSError as error:
        raise PlatformError(f"{str(DIRECTORY)!r} cannot be used: {error.strerror}") from error
    try:
        status = os.fstat(fd)
        if status.st_uid != os.geteuid() or status.st_mode & 0o077:
            raise PlatformError(f"{str(DIRECTORY)!r} is not root's alone: chown root and chmod 700 it")
        _lock(fd)
        try:
            yield
        finally:
            fcntl.flock(fd, fcntl.LOCK_UN)  # another thread may have forked a process that has it open, too
    finally:
        os.close(fd)


def _lock(fd: int) -> None:
    end = time.monotonic() + _LOCK_SECONDS
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > end:
                raise MountError(
                    f"another fusebpf holds the lock on {str(DIRECTORY)!r} for {_LOCK_SECONDS:.0f} s now"
                ) from None
            time.sleep(0.01)
        else:
            return


def entries() -> list[Entry]:
    """All mounts that there are state files of, by name; an unreadable file counts as a dead mount's."""
    return [_read(path) for path in sorted(DIRECTORY.glob("*.json")) if _NAME.fullmatch(path.stem)]


def _read(path: Path) -> Entry:
    unreadable = Entry(path.stem, 0, 0, 0, is_server=True, src="", mnt="", under=0)
    try:
        data = json.loads(path.read_bytes())
        known = {key: data[key] for key in (one.name for one in fields(Entry)) if key in data}
        return Entry(**{**known, "name": path.stem})
    except (OSError, ValueError, TypeError):
        return unreadable


def find(target: str) -> Entry:
    """The mount that a name or a mount point means, which a server of ours serves.

    Raises:
        MountError: There is none, or its server is dead.
    """
    known = entries()
    there = [entry for entry in known if entry.is_alive]
    named = next((entry for entry in there if entry.name == target), None)
    try:
        path = mounts.canonical(target)
        mounted = mounts.mount_of(target)
    except OSError:
        path, mounted = None, None
    if named is None and mounted is not None and mounted.is_ours:
        named = entry_of(mounted)
    if named is None:
        named = next((entry for entry in there if path is not None and entry.mnt == path), None)
    if named is None:
        for entry in known:
            if entry not in there and (entry.name == target or entry.mnt == path):
                raise MountError(
                    f"the server of {entry.name!r} is dead: "
                    f"`fusebpf umount {entry.name}` removes what it left"
                )
        what = f"{target!r} is not a fusebpf mount" if path else f"there is no mount {target!r}"
        raise MountError(f"{what} (see `fusebpf list`)")
    return named


def write(entry: Entry) -> None:
    """Write an entry's state file, whole or not at all.

    Raises:
        PlatformError: It cannot be written: there is no room, say.
    """
    path, scratch = _state_path(entry.name), DIRECTORY / f".{entry.name}.new"
    try:
        scratch.write_text(json.dumps(asdict(entry), indent=1) + "\n")
        scratch.chmod(0o600)
        scratch.rename(path)
    except OSError as error:
        scratch.unlink(missing_ok=True)
        raise PlatformError(f"{str(path)!r} cannot be written: {reason(error)}") from error


def reserve(entry: Entry) -> Entry:
    """Take a name and a mount point, so that no other mount takes them; dead servers are cleaned up before.

    Args:
        entry: With the name wanted, or "" for one after the mount point.

    Raises:
        UsageError: It cannot be a name.
        MountError: The name or the mount point is in use.
    """
    if entry.name:
        check_name(entry.name)
    with locked():
        clean_dead()
        there = entries()
        for other in there:
            if other.name == entry.name:
                raise MountError(
                    f"the name {entry.name!r} is in use, for the mount on {other.mnt!r}: "
                    f"give another with --name"
                )
            if other.mnt == entry.mnt and other.mount_id is None:
                raise MountError(f"{entry.mnt!r} is being mounted by another fusebpf (pid {other.pid})")
        if not entry.name:
            entry.name = name_for(entry.mnt, {other.name for other in there})
        # Nobody has this name, so pins of that name are left-overs; so is an old log.
        remove_pins(entry.name)
        log_path(entry.name).unlink(missing_ok=True)
        control_path(entry.name).unlink(missing_ok=True)
        _hold(entry)
        try:
            write(entry)
        except PlatformError:
            _let_go(entry)
            raise
    return entry


def release(entry: Entry) -> None:
    """Remove an entry's pins and state; a log that says something stays until the next mount of that name.

    Where its mount is still there, since another covers it, it stays as a dead one, for whoever comes next.
    """
    with locked():
        if entry.mounted is None:
            _forget(entry)
        else:
            remove_pins(entry.name)
        _let_go(entry)


def _forget(entry: Entry) -> None:
    remove_pins(entry.name)
    log = log_path(entry.name)
    with contextlib.suppress(FileNotFoundError):
        if log.stat().st_size == 0:
            log.unlink()
    control_path(entry.name).unlink(missing_ok=True)
    _state_path(entry.name).unlink(missing_ok=True)


def await_killed() -> None:
    """Wait a moment for servers that were just killed, so that they are found dead. Call it without the lock.

    On a busy machine the threads of a process take their time to end. One that hangs there is given up.
    """
    end = time.monotonic() + _ENDING_SECONDS
    while any(entry.is_ending for entry in entries()) and time.monotonic() < end:
        time.sleep(0.005)


def clean_dead() -> list[Entry]:
    """Take down what dead servers left: their mounts, pins and state files. Call it with the lock held.

    Returns:
        The entries that were removed. One whose mount cannot be reached (another covers it) stays for the
        next time.
    """
    removed = []
    for entry in entries():
        if entry.is_alive:
            continue
        with contextlib.suppress(OSError):
            mounted = entry.mounted if entry.mnt else None
            # Where the kernel has no unique ids, a living mount may have been given the dead one's numbers.
            if mounted and not entry_of(mounted):
                mounts.unmount(mounted, is_lazy=True)
            _forget(entry)
            removed.append(entry)
    return removed


def remove_pins(name: str, filter_name: str = "") -> None:
    """Remove a mount's directory of pins, or one filter's in it, and the one above it if it is empty."""
    directory = pins(name) / filter_name
    if directory.is_symlink() or not directory.is_dir():
        return
    shutil.rmtree(directory)
    with contextlib.suppress(OSError):
        directory.parent.rmdir()


def make_pins(name: str) -> Path:
    """Make a mount's directory of pins, in a BPF file system that is mounted if need be.

    Raises:
        PlatformError: There is no BPF file system and none can be mounted.
    """
    directory = pins(name)
    with locked():
        bpf.ensure_bpffs()
        PINS.mkdir(mode=0o755, exist_ok=True)  # parents=True would leave its mode to the umask
        directory.mkdir(mode=0o700)
    return directory


def own_entry(*, name: str, src: str, mnt: str, under: int, is_server: bool) -> Entry:
    """An entry of this process."""
    return Entry(name, os.getpid(), pid_namespace(), 0, is_server=is_server, src=src, mnt=mnt, under=under)
