"""A directory `.stats` that exists only in Python, beside the real tree: counters and a notepad.

fusebpf mount SRC MNT --daemon examples/virtual/virtual.py:Virtual
"""

import errno
import os
import stat
import time
from typing import Any

import pyfuse3
from pyfuse3 import EntryAttributes, FileInfo, FUSEError

import fusebpf

STATS, COUNTERS, NOTES = 2, 3, 4
FILES = {b"counters": COUNTERS, b"notes": NOTES}


class Virtual(fusebpf.Daemon):
    """Answers for `.stats` and what is in it; all else is the backing root's."""

    def __init__(self) -> None:
        self.notes = bytearray()
        self.began_ns = time.time_ns()

    def content(self, inode: int) -> bytes:
        """What is in a file of ours at this moment."""
        if inode == NOTES:
            return bytes(self.notes)
        return "".join(f"{name} {value}\n" for name, value in self.stack.counters().items()).encode()

    def attributes(self, inode: int) -> EntryAttributes:
        """The attributes of a node of ours; nothing of it is to be cached, since it changes."""
        attr = EntryAttributes()
        attr.st_ino = pyfuse3.InodeT(inode)
        mode = {STATS: stat.S_IFDIR | 0o555, COUNTERS: stat.S_IFREG | 0o444, NOTES: stat.S_IFREG | 0o644}[
            inode
        ]
        attr.st_mode = pyfuse3.ModeT(mode)
        attr.st_size = 0 if inode == STATS else len(self.content(inode))
        attr.st_atime_ns = attr.st_mtime_ns = attr.st_ctime_ns = self.began_ns
        attr.entry_timeout = attr.attr_timeout = 0
        return attr

    async def lookup(self, parent_inode: int, name: bytes, ctx: Any) -> EntryAttributes:
        """`.stats` in the mount's root, and its files."""
        if parent_inode == STATS:
            if name not in FILES:
                raise FUSEError(errno.ENOENT)
            return self.attributes(FILES[name])
        if parent_inode == pyfuse3.ROOT_INODE and name == b".stats":
            return self.attributes(STATS)
        raise fusebpf.Continue

    async def getattr(self, inode: int, ctx: Any) -> EntryAttributes:
        """What lookup said, as it is now."""
        if inode not in {STATS, COUNTERS, NOTES}:
            raise fusebpf.Continue
        return self.attributes(inode)

    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        """The files of `.stats`; in the root `.stats` and then, by Continue, what is really there."""
        in_root = self.request.inode == pyfuse3.ROOT_INODE
        if not in_root and self.request.inode != STATS:
            raise fusebpf.Continue
        entries = [(b".stats", STATS)] if in_root else list(FILES.items())
        for number, (name, inode) in enumerate(entries[start_id:], start_id + 1):
            if not pyfuse3.readdir_reply(token, pyfuse3.FileNameT(name), self.attributes(inode), number):
                return
        if in_root:
            raise fusebpf.Continue

    async def open(self, inode: int, flags: int, ctx: Any) -> FileInfo:
        """Ours are read past the page cache."""
        if inode not in FILES.values():
            raise fusebpf.Continue
        if inode == NOTES and flags & os.O_TRUNC:
            self.notes.clear()
        return FileInfo(fh=inode, direct_io=True)

    async def read(self, fh: int, off: int, size: int) -> bytes:
        """Of a file of ours; the data of all others is the kernel's alone."""
        return self.content(fh)[off : off + size]

    async def write(self, fh: int, off: int, buf: bytes) -> int:
        """To the notepad."""
        if fh != NOTES:
            raise FUSEError(errno.EACCES)
        self.notes[off:off] = bytes(max(0, off - len(self.notes)))
        self.notes[off : off + len(buf)] = buf
        return len(buf)

    async def setattr(
        self, inode: int, attr: EntryAttributes, fields: Any, fh: int | None, ctx: Any
    ) -> EntryAttributes:
        """Truncating the notepad; other changes of ours have no effect."""
        if inode not in FILES.values():
            raise fusebpf.Continue
        if inode == NOTES and fields.update_size:
            self.notes[attr.st_size :] = bytes(max(0, attr.st_size - len(self.notes)))
        return self.attributes(inode)
