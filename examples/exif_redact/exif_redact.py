"""JPEG files without their location, for callers who may not see it.

fusebpf mount SRC MNT --filter examples/exif_redact/exif_redact.c --set exif_redact.trusted=0,1000 \
    --daemon examples/exif_redact/exif_redact.py:ExifRedact
"""

import errno
import itertools
import os
import stat
from collections.abc import Sequence
from typing import Any

import pyfuse3
from jpeg import blanked, blanks
from pyfuse3 import EntryAttributes, FileInfo, FUSEError

import fusebpf

HEAD = 4 << 20
"""How much of a file is looked at: the segments with metadata come first."""


class ExifRedact(fusebpf.Daemon):
    """A redacted file is a node of the daemon's own, so its pages are never those of the real one."""

    def __init__(self) -> None:
        self.numbers = itertools.count(2)
        self.backings: dict[int, fusebpf.Backing] = {}
        self.places: dict[int, list[tuple[int, int]]] = {}

    def attributes(self, inode: int) -> EntryAttributes:
        """Those of the real file, which nobody may write through us."""
        attr = EntryAttributes()
        st = self.backings[inode].stat()
        for name in ("st_uid", "st_gid", "st_size", "st_atime_ns", "st_mtime_ns", "st_ctime_ns"):
            setattr(attr, name, getattr(st, name))
        attr.st_mode = pyfuse3.ModeT(st.st_mode & ~0o222)
        attr.st_ino = pyfuse3.InodeT(inode)
        attr.entry_timeout = attr.attr_timeout = 0
        return attr

    async def lookup(self, parent_inode: int, name: bytes, ctx: Any) -> EntryAttributes:
        """Another node for the same file. Only what the filter sends comes here."""
        try:
            entry = self.entry(parent_inode, name)
        except OSError as error:
            raise FUSEError(error.errno or errno.EIO) from error
        if not stat.S_ISREG(entry.st_mode):
            return entry  # what is in a directory, or behind a link, is looked up by itself
        inode = next(self.numbers)
        self.backings[inode] = self.stack.backing(entry.st_ino)
        return self.attributes(inode)

    async def getattr(self, inode: int, ctx: Any) -> EntryAttributes:
        """Of a node of ours."""
        return self.attributes(inode)

    async def open(self, inode: int, flags: int, ctx: Any) -> FileInfo:
        """Find out what is to be blanked."""
        if flags & os.O_ACCMODE:
            raise FUSEError(errno.EACCES)
        self.places[inode] = blanks(self.backings[inode].pread(HEAD, 0))
        return FileInfo(fh=inode, direct_io=True)

    async def read(self, fh: int, off: int, size: int) -> bytes:
        """Read it, change it, answer it."""
        return blanked(self.backings[fh].pread(size, off), off, self.places[fh])

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        """The kernel does not know the node any more."""
        for inode, _ in inode_list:
            if backing := self.backings.pop(inode, None):
                backing.close()
            self.places.pop(inode, None)
