"""Two programs as they are written for pyfuse3; only what stood in their `main` is replaced.

python programs.py hello|passthrough SRC MNT NAME FILTER…
"""

import errno
import os
import stat
import sys
from pathlib import Path
from typing import Any

import pyfuse3
import trio
from pyfuse3 import EntryAttributes, FileInfo, FUSEError

import fusebpf


class Hello(pyfuse3.Operations):
    """One file, `message`, in a directory; as in pyfuse3's documentation."""

    name, inode, data = b"message", pyfuse3.ROOT_INODE + 1, b"hello world\n"

    async def getattr(self, inode: int, ctx: Any = None) -> EntryAttributes:
        entry = EntryAttributes()
        if inode == pyfuse3.ROOT_INODE:
            entry.st_mode = pyfuse3.ModeT(stat.S_IFDIR | 0o755)
        elif inode == self.inode:
            entry.st_mode = pyfuse3.ModeT(stat.S_IFREG | 0o644)
            entry.st_size = len(self.data)
        else:
            raise FUSEError(errno.ENOENT)
        entry.st_ino = pyfuse3.InodeT(inode)
        return entry

    async def lookup(self, parent_inode: int, name: bytes, ctx: Any = None) -> EntryAttributes:
        if parent_inode != pyfuse3.ROOT_INODE or name != self.name:
            raise FUSEError(errno.ENOENT)
        return await self.getattr(self.inode)

    async def opendir(self, inode: int, ctx: Any) -> int:
        if inode != pyfuse3.ROOT_INODE:
            raise FUSEError(errno.ENOENT)
        return inode

    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        assert fh == pyfuse3.ROOT_INODE
        if start_id == 0:
            pyfuse3.readdir_reply(token, pyfuse3.FileNameT(self.name), await self.getattr(self.inode), 1)

    async def open(self, inode: int, flags: int, ctx: Any) -> FileInfo:
        if inode != self.inode:
            raise FUSEError(errno.ENOENT)
        if flags & os.O_ACCMODE:
            raise FUSEError(errno.EACCES)
        return FileInfo(fh=inode)

    async def read(self, fh: int, off: int, size: int) -> bytes:
        assert fh == self.inode
        return self.data[off : off + size]


def wrapped(error: OSError) -> FUSEError:
    """An error of the file below."""
    return FUSEError(error.errno or errno.EIO)


class Passthrough(pyfuse3.Operations):
    """A directory tree by paths, with inode numbers of its own."""

    def __init__(self, root: str) -> None:
        self.paths = {int(pyfuse3.ROOT_INODE): root}
        self.inodes = {root: int(pyfuse3.ROOT_INODE)}

    def _path(self, inode: int, name: bytes = b"") -> str:
        return os.path.join(self.paths[inode], os.fsdecode(name)) if name else self.paths[inode]

    def _entry(self, path: str) -> EntryAttributes:
        try:
            st = os.lstat(path)
        except OSError as error:
            raise wrapped(error) from error
        inode = self.inodes.setdefault(path, len(self.inodes) + 1)
        self.paths[inode] = path
        entry = EntryAttributes()
        for name in (
            "st_mode",
            "st_nlink",
            "st_uid",
            "st_gid",
            "st_size",
            "st_mtime_ns",
            "st_atime_ns",
            "st_ctime_ns",
        ):
            setattr(entry, name, getattr(st, name))
        entry.st_ino = pyfuse3.InodeT(inode)
        entry.entry_timeout = entry.attr_timeout = 0
        return entry

    async def lookup(self, parent_inode: int, name: bytes, ctx: Any) -> EntryAttributes:
        return self._entry(self._path(parent_inode, name))

    async def getattr(self, inode: int, ctx: Any) -> EntryAttributes:
        return self._entry(self._path(inode))

    async def setattr(
        self, inode: int, attr: EntryAttributes, fields: Any, fh: int | None, ctx: Any
    ) -> EntryAttributes:
        path = self._path(inode)
        if fields.update_size:
            os.truncate(path, attr.st_size)
        if fields.update_mode:
            os.chmod(path, stat.S_IMODE(attr.st_mode))
        if fields.update_mtime:
            os.utime(path, ns=(attr.st_atime_ns, attr.st_mtime_ns))
        return self._entry(path)

    async def opendir(self, inode: int, ctx: Any) -> int:
        return inode

    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        names = sorted(os.listdir(self._path(fh)))
        for number, name in enumerate(names[start_id:], start_id + 1):
            entry = self._entry(os.path.join(self._path(fh), name))
            if not pyfuse3.readdir_reply(token, pyfuse3.FileNameT(os.fsencode(name)), entry, number):
                return

    async def open(self, inode: int, flags: int, ctx: Any) -> FileInfo:
        return FileInfo(fh=os.open(self._path(inode), flags & ~os.O_CREAT))

    async def create(self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: Any) -> Any:
        path = self._path(parent_inode, name)
        fd = os.open(path, flags | os.O_CREAT | os.O_TRUNC, mode)
        return FileInfo(fh=fd), self._entry(path)

    async def read(self, fh: int, off: int, size: int) -> bytes:
        return os.pread(fh, size, off)

    async def write(self, fh: int, off: int, buf: bytes) -> int:
        return os.pwrite(fh, buf, off)

    async def release(self, fh: int) -> None:
        os.close(fh)

    async def mkdir(self, parent_inode: int, name: bytes, mode: int, ctx: Any) -> EntryAttributes:
        os.mkdir(self._path(parent_inode, name), mode & ~ctx.umask)
        return self._entry(self._path(parent_inode, name))

    async def unlink(self, parent_inode: int, name: bytes, ctx: Any) -> None:
        os.unlink(self._path(parent_inode, name))
        self.inodes.pop(self._path(parent_inode, name), None)

    async def rmdir(self, parent_inode: int, name: bytes, ctx: Any) -> None:
        try:
            os.rmdir(self._path(parent_inode, name))
        except OSError as error:
            raise wrapped(error) from error
        self.inodes.pop(self._path(parent_inode, name), None)

    async def rename(
        self,
        parent_inode_old: int,
        name_old: bytes,
        parent_inode_new: int,
        name_new: bytes,
        flags: int,
        ctx: Any,
    ) -> None:
        old, new = self._path(parent_inode_old, name_old), self._path(parent_inode_new, name_new)
        os.rename(old, new)
        if (inode := self.inodes.pop(old, None)) is not None:
            self.inodes[new], self.paths[inode] = inode, new


async def main() -> None:
    """What stood here was pyfuse3.init and pyfuse3.main."""
    kind, src, mnt, name, *filters = sys.argv[1:]
    program = Hello() if kind == "hello" else Passthrough(str(Path(src).with_name("tree")))
    async with fusebpf.Stack(src, mnt, name=name, filters=filters, daemon=program) as stack:
        print("ready", flush=True)
        await stack.wait()


if __name__ == "__main__":
    trio.run(main)
