"""A minimal passthrough file system on pyfuse3, as its users write one: `plain_pyfuse3.py SRC MNT [SECONDS]`.

What our mounts are compared with; and, with the same handlers behind a stack (routed_pyfuse3.py), the daemon
route. So it keeps to what such a program needs, holds an O_PATH descriptor for each inode, and caches for a
second like the others; names for SECONDS, if it is told.
"""

import errno
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pyfuse3
import trio

CACHED_SECONDS = 1.0
FIELDS = (
    "st_ino",
    "st_mode",
    "st_nlink",
    "st_uid",
    "st_gid",
    "st_rdev",
    "st_size",
    "st_atime_ns",
    "st_mtime_ns",
    "st_ctime_ns",
)


def tried(call: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """Call, and turn an OSError into the kernel's answer."""
    try:
        return call(*args, **options)
    except OSError as error:
        raise pyfuse3.FUSEError(error.errno or errno.EIO) from None


class Passthrough(pyfuse3.Operations):
    """Every op on the source tree, by descriptors.

    Args:
        src: The tree.
        names_seconds: How long the kernel may keep a name.
    """

    supports_dot_lookup = False

    def __init__(self, src: str, names_seconds: float = CACHED_SECONDS) -> None:
        super().__init__()
        self._names_seconds = names_seconds
        fd = os.open(src, os.O_PATH | os.O_DIRECTORY)
        self._fds = {pyfuse3.ROOT_INODE: fd}
        self._keys: dict[tuple[int, int], int] = {}
        self._counts: dict[int, int] = {pyfuse3.ROOT_INODE: 1}
        self._next = pyfuse3.ROOT_INODE + 1

    def _attributes(self, fd: int, inode: int) -> pyfuse3.EntryAttributes:
        st = tried(os.stat, f"/proc/self/fd/{fd}")
        entry = pyfuse3.EntryAttributes()
        for field in FIELDS:
            setattr(entry, field, getattr(st, field))
        entry.st_ino = inode
        entry.st_blksize = 4096
        entry.st_blocks = st.st_blocks
        entry.attr_timeout = CACHED_SECONDS
        entry.entry_timeout = self._names_seconds
        return entry

    def _entry(self, parent: int, name: bytes) -> pyfuse3.EntryAttributes:
        fd = tried(os.open, name, os.O_PATH | os.O_NOFOLLOW, dir_fd=self._fds[parent])
        st = os.fstat(fd)
        inode = self._keys.get((st.st_dev, st.st_ino))
        if inode is None:
            inode = self._next
            self._next += 1
            self._keys[st.st_dev, st.st_ino] = inode
            self._fds[inode] = fd
        else:
            os.close(fd)
        self._counts[inode] = self._counts.get(inode, 0) + 1
        return self._attributes(self._fds[inode], inode)

    async def lookup(self, parent_inode: int, name: bytes, ctx: Any = None) -> pyfuse3.EntryAttributes:
        """Find a name."""
        return self._entry(parent_inode, name)

    async def forget(self, inode_list: Any) -> None:
        """Let inodes go."""
        for inode, n in inode_list:
            self._counts[inode] -= n
            if self._counts[inode] or inode == pyfuse3.ROOT_INODE:
                continue
            fd = self._fds.pop(inode)
            st = os.fstat(fd)
            self._keys.pop((st.st_dev, st.st_ino), None)
            del self._counts[inode]
            os.close(fd)

    async def getattr(self, inode: int, ctx: Any = None) -> pyfuse3.EntryAttributes:
        """Attributes."""
        return self._attributes(self._fds[inode], inode)

    async def setattr(self, inode: int, attr: Any, fields: Any, fh: Any, ctx: Any) -> pyfuse3.EntryAttributes:
        """Change attributes."""
        path = f"/proc/self/fd/{self._fds[inode]}"
        if fields.update_size:
            tried(os.truncate, path, attr.st_size)
        if fields.update_mode:
            tried(os.chmod, path, attr.st_mode & 0o7777)
        if fields.update_uid or fields.update_gid:
            uid = attr.st_uid if fields.update_uid else -1
            tried(os.chown, path, uid, attr.st_gid if fields.update_gid else -1)
        if fields.update_atime or fields.update_mtime:
            st = os.stat(path)
            atime = attr.st_atime_ns if fields.update_atime else st.st_atime_ns
            tried(os.utime, path, ns=(atime, attr.st_mtime_ns if fields.update_mtime else st.st_mtime_ns))
        return self._attributes(self._fds[inode], inode)

    async def readlink(self, inode: int, ctx: Any) -> bytes:
        """A link's target."""
        target: bytes = tried(os.readlink, b"", dir_fd=self._fds[inode])
        return target

    async def symlink(
        self, parent_inode: int, name: bytes, target: bytes, ctx: Any
    ) -> pyfuse3.EntryAttributes:
        """Make a symbolic link."""
        tried(os.symlink, target, name, dir_fd=self._fds[parent_inode])
        return self._entry(parent_inode, name)

    async def mkdir(self, parent_inode: int, name: bytes, mode: int, ctx: Any) -> pyfuse3.EntryAttributes:
        """Make a directory."""
        tried(os.mkdir, name, mode & ~ctx.umask, dir_fd=self._fds[parent_inode])
        return self._entry(parent_inode, name)

    async def unlink(self, parent_inode: int, name: bytes, ctx: Any) -> None:
        """Remove a file."""
        tried(os.unlink, name, dir_fd=self._fds[parent_inode])

    async def rmdir(self, parent_inode: int, name: bytes, ctx: Any) -> None:
        """Remove a directory."""
        tried(os.rmdir, name, dir_fd=self._fds[parent_inode])

    async def rename(
        self,
        parent_inode_old: int,
        name_old: bytes,
        parent_inode_new: int,
        name_new: bytes,
        flags: int,
        ctx: Any,
    ) -> None:
        """Rename."""
        if flags:
            raise pyfuse3.FUSEError(errno.EINVAL)
        tried(
            os.rename,
            name_old,
            name_new,
            src_dir_fd=self._fds[parent_inode_old],
            dst_dir_fd=self._fds[parent_inode_new],
        )

    async def link(
        self, inode: int, new_parent_inode: int, new_name: bytes, ctx: Any
    ) -> pyfuse3.EntryAttributes:
        """Make a hard link."""
        tried(
            os.link,
            f"/proc/self/fd/{self._fds[inode]}",
            new_name,
            dst_dir_fd=self._fds[new_parent_inode],
            follow_symlinks=True,
        )
        return self._entry(new_parent_inode, new_name)

    async def open(self, inode: int, flags: int, ctx: Any) -> pyfuse3.FileInfo:
        """Open a file."""
        fd = tried(
            os.open,
            f"/proc/self/fd/{self._fds[inode]}",
            flags & ~(os.O_CREAT | os.O_DIRECT | os.O_NOFOLLOW | os.O_APPEND),
        )
        return pyfuse3.FileInfo(fh=fd)

    async def create(self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: Any) -> Any:
        """Make a file and open it."""
        flags &= ~(os.O_DIRECT | os.O_APPEND)
        fd = tried(
            os.open, name, flags | os.O_CREAT | os.O_TRUNC, mode & ~ctx.umask, dir_fd=self._fds[parent_inode]
        )
        return pyfuse3.FileInfo(fh=fd), self._entry(parent_inode, name)

    async def read(self, fh: int, off: int, size: int) -> bytes:
        """Read."""
        data: bytes = tried(os.pread, fh, size, off)
        return data

    async def write(self, fh: int, off: int, buf: bytes) -> int:
        """Write."""
        n: int = tried(os.pwrite, fh, buf, off)
        return n

    async def release(self, fh: int) -> None:
        """Close a file."""
        os.close(fh)

    async def fsync(self, fh: int, datasync: bool) -> None:
        """Write a file to the disk."""
        tried(os.fsync, fh)

    async def opendir(self, inode: int, ctx: Any) -> int:
        """Open a directory: its handle is the inode."""
        return inode

    async def readdir(self, fh: int, start_id: int, token: Any) -> None:
        """List a directory."""
        names = sorted(tried(os.listdir, f"/proc/self/fd/{self._fds[fh]}"))
        for index in range(start_id, len(names)):
            name = os.fsencode(names[index])
            with suppress(pyfuse3.FUSEError):
                entry = self._entry(fh, name)
                if not pyfuse3.readdir_reply(token, name, entry, index + 1):
                    self._counts[entry.st_ino] -= 1
                    return

    async def statfs(self, ctx: Any) -> pyfuse3.StatvfsData:
        """The file system's numbers."""
        st = os.statvfs(self._fds[pyfuse3.ROOT_INODE])
        data = pyfuse3.StatvfsData()
        for field in (
            "f_bsize",
            "f_frsize",
            "f_blocks",
            "f_bfree",
            "f_bavail",
            "f_files",
            "f_ffree",
            "f_favail",
        ):
            setattr(data, field, getattr(st, field))
        return data


def arguments() -> tuple[str, Passthrough]:
    """The mountpoint and the handlers that the command line asks for."""
    src, mnt, *seconds = sys.argv[1:]
    return mnt, Passthrough(src, *(float(one) for one in seconds))


def main() -> None:
    """Mount and serve until it is unmounted."""
    os.umask(0)
    mnt, handlers = arguments()
    options = {*pyfuse3.default_options, "fsname=plain_pyfuse3", "allow_other", "default_permissions"}
    pyfuse3.init(handlers, mnt, options)
    try:
        trio.run(pyfuse3.main)
    finally:
        pyfuse3.close(unmount=True)


if __name__ == "__main__":
    main()
