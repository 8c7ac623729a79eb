"""One process of the model test: what it has open, and how it does one step. Runs on both sides alike."""

import ctypes
import errno
import fcntl
import mmap
import os
import select
import stat
import struct
from collections.abc import Iterator
from typing import Any

from core.table import OLD, checked, libc, when

USERS = ((0, 0, ()), (61001, 61001, (61777,)), (61002, 61002, (61777, 61778)))
"""(uid, gid, further groups) that steps are done as."""

N_FILES = 5
PAGE = 4096
UNALIGNED = 1  # as what a pipe carries may lie in memory: never for O_DIRECT
AT_FDCWD, AT_SYMLINK_NOFOLLOW, AT_EMPTY_PATH, AT_EACCESS = -100, 0x100, 0x1000, 0x200
SYS_GETDENTS64, SYS_RENAMEAT2, SYS_STATX, SYS_FACCESSAT2 = 217, 316, 332, 439
STATX_BASIC_AND_BTIME = 0xFFF
FS_IOC_GETFLAGS, FS_IOC_SETFLAGS = 0x80086601, 0x40086602
# Not append-only and immutable: the kernel does not know that of a FUSE file, so errors come in another order
# (core/scenarios_more.py has them).
FLAGS_SEEN = 0x40 | 0x80  # nodump, noatime
LOCK_FORMAT = "hhqqi4x"

libc.syscall.restype = ctypes.c_long
libc.utimensat.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_int]


class Empty(Exception):  # noqa: N818 - says that there is nothing to do it with
    """The step names a descriptor that is not open."""


def pattern(seed: int, size: int) -> bytes:
    """Bytes that tell where they came from."""
    unit = b"%03d-abcdefghijkl" % (seed % 1000)
    return (unit * (size // len(unit) + 1))[:size]


def brief(data: bytes) -> Any:
    """Content as it is compared, short enough to be read in a failure."""
    zeros = len(data) - len(data.strip(b"\0"))
    return data if len(data) <= 48 else (len(data), zeros, data[:16], data[-16:], hash(data))


class Actor:
    """Does steps below its working directory."""

    def __init__(self) -> None:
        self.files: dict[int, int] = {}
        self.listed: dict[int, dict[bytes, int]] = {}
        self.buffer = mmap.mmap(-1, 1 << 20)
        self.keeps_bits = True

    def begin(self, top: bytes, keeps_bits: bool) -> None:
        """Start anew, below another directory; see `target`."""
        self.end()
        self.keeps_bits = keeps_bits
        os.chdir(top)
        os.umask(0o022)
        for slot, name in enumerate((b"a", b"b", b"d/a")):
            self.keep(slot, os.open(name, os.O_RDWR))
        self.keep(3, os.open(b".", os.O_RDONLY))

    def end(self) -> None:
        """Close everything, and stay nowhere on the file system."""
        for fd in self.files.values():
            os.close(fd)
        self.files.clear()
        self.listed.clear()
        os.chdir("/")

    def step(self, user: int, name: str, args: tuple[Any, ...]) -> Any:
        """Do one step as a user; what it returned, or its errno's name."""
        uid, gid, groups = USERS[user]
        call = getattr(self, f"do_{name}")
        if user:
            os.setgroups(groups)
            os.setegid(gid)
            os.seteuid(uid)
        try:
            return call(*args)
        except OSError as error:
            return errno.errorcode[error.errno or 0]
        except Empty:
            return "nothing open"
        finally:
            if user:
                os.seteuid(0)
                os.setegid(0)
                os.setgroups([])

    # ------------------------------------------------------------------------------ descriptors

    def fd(self, slot: int) -> int:
        """The descriptor in this slot; where there is none, another one."""
        if not self.files:
            raise Empty
        return self.files[self._slot(slot)]

    def _slot(self, slot: int) -> int:
        return slot if slot in self.files else sorted(self.files)[slot % len(self.files)]

    def keep(self, slot: int, fd: int) -> None:
        self.do_close(slot)
        self.files[slot] = fd
        self.listed.pop(slot, None)

    def data_fd(self, slot: int, *numbers: int) -> int:
        """A descriptor for data; with O_DIRECT for aligned transfers only, since FUSE has no dio_align."""
        fd = self.fd(slot)
        flags = fcntl.fcntl(fd, fcntl.F_GETFL)
        is_direct = flags & os.O_DIRECT and not flags & os.O_PATH
        ends = self._position(fd), os.fstat(fd).st_size  # appends go to the latter
        if is_direct and any(number % PAGE for number in (*numbers, *ends)):
            raise Empty
        return fd

    def target(self, slot: int, *numbers: int) -> int:
        """A descriptor to write to.

        Where a file is passed through, the kernel writes without privileges and groups, whoever writes
        (docs/operations.md). So what keeps suid and sgid bits is not tried there.
        """
        fd = self.data_fd(slot, *numbers)
        mode = os.fstat(fd).st_mode
        is_member = mode & stat.S_ISGID and not mode & stat.S_IXGRP
        is_root = os.geteuid() == 0 and mode & (stat.S_ISUID | stat.S_ISGID)
        if not self.keeps_bits and (is_root or is_member):
            raise Empty
        return fd

    @staticmethod
    def _refuse_one_file(to: int, source: int) -> None:
        """A pipe carries pages, not copies: what overlaps is as the order of copying makes it."""
        if os.path.sameopenfile(to, source):
            raise Empty

    @staticmethod
    def _position(fd: int) -> int:
        try:
            return os.lseek(fd, 0, os.SEEK_CUR)
        except OSError:
            return 0

    def do_open(self, path: bytes, flags: int, mode: int, slot: int) -> Any:
        self.keep(slot, os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY, mode))
        return self.do_statx_fd(slot)

    def do_openat(self, directory: int, path: bytes, flags: int, mode: int, slot: int) -> Any:
        self.keep(slot, os.open(path, flags | os.O_NONBLOCK, mode, dir_fd=self.fd(directory)))

    def do_close(self, slot: int) -> Any:
        if slot in self.files:
            os.close(self.files.pop(slot))

    def do_dup(self, slot: int, other: int) -> Any:
        fd = self.fd(slot)
        if slot != other:
            self.keep(other, os.dup(fd))

    def do_getfl(self, slot: int) -> Any:
        return fcntl.fcntl(self.fd(slot), fcntl.F_GETFL)

    def do_setfl(self, slot: int, flags: int) -> Any:
        return fcntl.fcntl(self.fd(slot), fcntl.F_SETFL, flags | os.O_NONBLOCK)

    def do_linkat_fd(self, slot: int, path: bytes) -> Any:
        old = b"/proc/self/fd/%d" % self.fd(slot)
        return checked(libc.linkat(AT_FDCWD, old, AT_FDCWD, path, 0x400))

    # ------------------------------------------------------------------------------------ data

    def do_read(self, slot: int, size: int) -> Any:
        n = os.readv(self.data_fd(slot, size), [memoryview(self.buffer)[:size]])
        return brief(self.buffer[:n])

    def do_write(self, slot: int, size: int, seed: int) -> Any:
        self.buffer[:size] = pattern(seed, size)
        return os.write(self.target(slot, size), memoryview(self.buffer)[:size])

    def do_preadv2(self, slot: int, size: int, offset: int, flags: int) -> Any:
        n = os.preadv(self.data_fd(slot, size, offset), [memoryview(self.buffer)[:size]], offset, flags)
        return brief(self.buffer[:n])

    def do_pwritev2(self, slot: int, size: int, seed: int, offset: int, flags: int) -> Any:
        fd = self.target(slot, size, offset)
        self.buffer[:size] = pattern(seed, size)
        half = size // 2 // PAGE * PAGE
        view = memoryview(self.buffer)
        return os.pwritev(fd, [view[:half], view[half:size]], offset, flags)

    def do_lseek(self, slot: int, offset: int, whence: int) -> Any:
        fd = self.fd(slot)
        if stat.S_ISDIR(os.fstat(fd).st_mode) and (offset or whence not in {os.SEEK_SET, os.SEEK_CUR}):
            raise Empty  # a directory's offsets are the file system's own numbers
        return os.lseek(fd, offset, whence) and whence in {os.SEEK_SET, os.SEEK_DATA, os.SEEK_HOLE}

    def do_truncate(self, path: bytes, size: int) -> Any:
        return os.truncate(path, size)

    def do_ftruncate(self, slot: int, size: int) -> Any:
        return os.ftruncate(self.fd(slot), size)

    def do_fallocate(self, slot: int, mode: int, offset: int, size: int) -> Any:
        return checked(libc.fallocate(self.fd(slot), mode, offset, size))

    def do_copy_file_range(self, slot: int, other: int, size: int, offset: int, offset_out: int) -> Any:
        fds = self.data_fd(slot, size, offset), self.target(other, size, offset_out)
        return os.copy_file_range(*fds, size, offset, offset_out)

    def do_sendfile(self, slot: int, other: int, size: int) -> Any:
        to, source = self.target(other, UNALIGNED), self.data_fd(slot, UNALIGNED)
        self._refuse_one_file(to, source)
        return os.sendfile(to, source, None, size)

    def do_splice(self, slot: int, other: int, size: int) -> Any:
        source, target = self.data_fd(slot, UNALIGNED), self.target(other, UNALIGNED)
        self._refuse_one_file(target, source)
        reader, writer = os.pipe2(os.O_NONBLOCK)
        try:
            n = os.splice(source, writer, size, flags=2)
            return n, os.splice(reader, target, n, flags=2) if n else 0
        finally:
            os.close(reader)
            os.close(writer)

    def do_mmap(self, slot: int, offset: int, size: int, shared: bool, seed: int | None) -> Any:
        fd = self.fd(slot)
        st = os.fstat(fd)
        if not stat.S_ISREG(st.st_mode) or not 0 < size <= st.st_size - offset:
            raise Empty
        prot = mmap.PROT_READ | (0 if seed is None else mmap.PROT_WRITE)
        with mmap.mmap(
            fd, size, mmap.MAP_SHARED if shared else mmap.MAP_PRIVATE, prot, offset=offset
        ) as area:
            before = area[:]
            if seed is not None:
                area[size // 3 :] = pattern(seed, size - size // 3)
                area.flush()
            return brief(before), brief(area[:])

    def do_fsync(self, slot: int, only_data: bool) -> Any:
        return (os.fdatasync if only_data else os.fsync)(self.fd(slot))

    def do_fadvise(self, slot: int, advice: int) -> Any:
        return os.posix_fadvise(self.fd(slot), 0, 0, advice)

    def do_poll(self, slot: int) -> Any:
        fd = self.fd(slot)
        poll = select.poll()
        poll.register(fd, select.POLLIN | select.POLLOUT)
        return [events for _, events in poll.poll(0)]

    # ----------------------------------------------------------------------------------- names

    def do_rename(self, old: bytes, new: bytes, flags: int) -> Any:
        return checked(libc.syscall(SYS_RENAMEAT2, AT_FDCWD, old, AT_FDCWD, new, flags))

    def do_link(self, old: bytes, new: bytes, follows: bool) -> Any:
        return checked(libc.linkat(AT_FDCWD, old, AT_FDCWD, new, 0x400 if follows else 0))

    def do_unlink(self, path: bytes) -> Any:
        return os.unlink(path)

    def do_mkdir(self, path: bytes, mode: int) -> Any:
        return os.mkdir(path, mode)

    def do_rmdir(self, path: bytes) -> Any:
        return os.rmdir(path)

    def do_symlink(self, target: bytes, path: bytes) -> Any:
        return os.symlink(target, path)

    def do_readlink(self, path: bytes) -> Any:
        return os.readlink(path)

    def do_mknod(self, path: bytes, mode: int, device: int) -> Any:
        return os.mknod(path, mode, device)

    def do_listdir(self, path: bytes) -> Any:
        return sorted(os.listdir(path))

    def do_getdents(self, slot: int, size: int) -> Any:
        """All entries from here to the end, in calls of this size.

        Whether one that was made or removed since the listing began is in it is open (readdir(3p)), so
        those are left out.
        """
        fd, slot = self.fd(slot), self._slot(slot)
        is_begin = self._position(fd) == 0
        found = dict(_entries(fd, size))
        known = self.listed.setdefault(slot, {})
        if is_begin:
            known.clear()
        known.update({name: offset for name, (offset, _) in found.items() if is_begin or name in known})
        if is_begin:
            return sorted((name, kind) for name, (_, kind) in found.items())
        return sorted(name for name in found if name in known and _is_there(fd, name))

    def do_seekdir(self, slot: int, index: int) -> Any:
        """To behind an entry that was listed."""
        fd, known = self.fd(slot), self.listed.get(self._slot(slot))
        if not known:
            raise Empty
        os.lseek(fd, known[sorted(known)[index % len(known)]], os.SEEK_SET)

    # ------------------------------------------------------------------------------ attributes

    def do_chmod(self, path: bytes, mode: int) -> Any:
        return os.chmod(path, mode)

    def do_fchmod(self, slot: int, mode: int) -> Any:
        return os.fchmod(self.fd(slot), mode)

    def do_chown(self, path: bytes, owner: tuple[int, int], follows: bool) -> Any:
        return os.chown(path, *owner, follow_symlinks=follows)

    def do_fchown(self, slot: int, owner: tuple[int, int]) -> Any:
        return os.fchown(self.fd(slot), *owner)

    def do_utimens(self, path: bytes, atime: int, mtime: int, follows: bool) -> Any:
        how = 0 if follows else AT_SYMLINK_NOFOLLOW
        return checked(libc.utimensat(AT_FDCWD, path, _times(atime, mtime), how))

    def do_futimens(self, slot: int, atime: int, mtime: int) -> Any:
        return checked(libc.utimensat(self.fd(slot), None, _times(atime, mtime), 0))

    def do_statx(self, path: bytes, follows: bool) -> Any:
        return _statx(AT_FDCWD, path, 0 if follows else AT_SYMLINK_NOFOLLOW)

    def do_statx_fd(self, slot: int) -> Any:
        return _statx(self.fd(slot), b"", AT_EMPTY_PATH)

    def do_access(self, path: bytes, mode: int) -> Any:
        return checked(libc.syscall(SYS_FACCESSAT2, AT_FDCWD, path, mode, AT_EACCESS))

    def do_umask(self, mask: int) -> Any:
        return os.umask(mask)

    def do_statfs(self, path: bytes) -> Any:
        st = os.statvfs(path)
        return st.f_bsize, st.f_frsize, st.f_namemax, st.f_blocks

    def do_getflags(self, slot: int) -> Any:
        return struct.unpack("l", fcntl.ioctl(self.fd(slot), FS_IOC_GETFLAGS, bytes(8)))[0] & FLAGS_SEEN

    def do_setflags(self, slot: int, flags: int) -> Any:
        fd = self.fd(slot)
        if not stat.S_IFMT(os.fstat(fd).st_mode) & stat.S_IFREG:
            raise Empty  # a directory's flags are inherited, and the tree could not be removed
        old = struct.unpack("l", fcntl.ioctl(fd, FS_IOC_GETFLAGS, bytes(8)))[0]
        fcntl.ioctl(fd, FS_IOC_SETFLAGS, struct.pack("l", old & ~FLAGS_SEEN | flags))

    def do_ioctl(self, slot: int, number: int) -> Any:
        return fcntl.ioctl(self.fd(slot), number, bytes(32))

    def do_setxattr(self, path: bytes, name: str, value: bytes, flags: int, follows: bool) -> Any:
        return os.setxattr(path, name, value, flags, follow_symlinks=follows)

    def do_set_acl(self, path: bytes, name: str, value: bytes) -> Any:
        return os.setxattr(path, name, value)

    def do_fsetxattr(self, slot: int, name: str, value: bytes) -> Any:
        return os.setxattr(self.fd(slot), name, value)

    def do_getxattr(self, path: bytes, name: str, follows: bool) -> Any:
        return os.getxattr(path, name, follow_symlinks=follows)

    def do_listxattr(self, path: bytes, follows: bool) -> Any:
        return sorted(os.listxattr(path, follow_symlinks=follows))

    def do_removexattr(self, path: bytes, name: str, follows: bool) -> Any:
        return os.removexattr(path, name, follow_symlinks=follows)

    # ----------------------------------------------------------------------------------- locks

    def do_flock(self, slot: int, how: int) -> Any:
        return fcntl.flock(self.fd(slot), how | fcntl.LOCK_NB)

    def do_lock(self, slot: int, command: int, kind: int, start: int, size: int) -> Any:
        data = struct.pack(LOCK_FORMAT, kind, os.SEEK_SET, start, size, 0)
        found, *where, _ = struct.unpack(LOCK_FORMAT, fcntl.fcntl(self.fd(slot), command, data))
        if command not in {fcntl.F_GETLK, fcntl.F_OFD_GETLK}:
            return None
        # Not the pid: an open file's own lock has none, and FUSE does not tell which kind a lock is.
        return (found,) if found == fcntl.F_UNLCK else (found, *where)


def _entries(fd: int, size: int) -> Iterator[tuple[bytes, tuple[int, int]]]:
    """(name, (offset behind it, kind)) of a directory, from where it stands."""
    data = ctypes.create_string_buffer(size)
    while n := checked(libc.syscall(SYS_GETDENTS64, fd, data, size)):
        at = 0
        while at < n:
            _, offset, length, kind = struct.unpack_from("=QqHB", data, at)
            yield data.raw[at + 19 : at + length].split(b"\0")[0], (offset, kind)
            at += length


def _is_there(fd: int, name: bytes) -> bool:
    try:
        os.stat(name, dir_fd=fd, follow_symlinks=False)
    except FileNotFoundError:
        return False
    except OSError:  # no right to look
        return True
    return True


def _times(atime: int, mtime: int) -> Any:
    """Two timespecs; -1: now, -2: leave it."""
    special = {-1: 0x3FFFFFFF, -2: 0x3FFFFFFE}
    words = []
    for each in (atime, mtime):
        seconds, rest = divmod(OLD + each, 10**9)
        words += [0, special[each]] if each in special else [seconds, rest]
    return (ctypes.c_long * 4)(*words)


def _statx(fd: int, path: bytes, flags: int) -> Any:
    """What statx(2) says, without what depends on when and where, and without what FUSE does not carry."""
    data = ctypes.create_string_buffer(256)
    checked(libc.syscall(SYS_STATX, fd, path, flags, STATX_BASIC_AND_BTIME, data))
    mask, _, _, nlink, uid, gid, mode = struct.unpack_from("=IIQIIIH", data)
    size = struct.unpack_from("=Q", data, 40)[0]
    # atime is not compared: data that the kernel has cached is read without the server.
    times = [struct.unpack_from("=qI", data, at) for at in (80, 96, 112)]
    btime, ctime, mtime = (when(seconds * 10**9 + rest) for seconds, rest in times)
    device = struct.unpack_from("=II", data, 128)
    size = 0 if stat.S_ISDIR(mode) else size
    return mask & STATX_BASIC_AND_BTIME, oct(mode), nlink, uid, gid, size, btime, ctime, mtime, device
