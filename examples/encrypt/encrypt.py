"""Content encrypted at rest: what is written through the mount is sealed on the disk, and reads right.

ENCRYPT_KEY=FILE fusebpf mount SRC MNT --daemon examples/encrypt/encrypt.py:Encrypt
"""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import trio
from pyfuse3 import EntryAttributes, FUSEError
from sealed import BrokenError, Sealed, plain_size, stored_size

import fusebpf


class Encrypt(fusebpf.Daemon):
    """Reads, writes and sizes are the daemon's; names, modes and owners stay the backing root's."""

    def __init__(self) -> None:
        self.key = Path(os.environ["ENCRYPT_KEY"]).read_bytes()
        if len(self.key) != 32:
            raise ValueError("ENCRYPT_KEY names a file that has not 32 bytes")
        self.locks: dict[int, trio.Lock] = {}

    @contextmanager
    def sealed(self, inode: int) -> Iterator[Sealed]:
        """The file behind an inode."""
        with self.stack.backing(inode) as backing:
            fd = backing.open(os.O_RDWR)
            try:
                yield Sealed(fd, self.key)
            except BrokenError as error:
                raise FUSEError(errno.EIO) from error
            finally:
                os.close(fd)

    async def in_turn(self, what: Any, *args: Any) -> Any:
        """Do it in a thread, one op on an inode at a time: trio must not wait for the disk."""
        inode = self.request.inode

        def work() -> Any:
            with self.sealed(inode) as file:
                return what(file, *args)

        async with self.locks.setdefault(inode, trio.Lock()):
            return await trio.to_thread.run_sync(work)

    async def read(self, fh: int, off: int, size: int) -> bytes:
        """Decrypt the blocks that are asked for."""
        return bytes(await self.in_turn(Sealed.read, off, size))

    async def write(self, fh: int, off: int, buf: bytes) -> int:
        """Encrypt the blocks that are touched."""
        await self.in_turn(Sealed.write, off, buf)
        return len(buf)

    async def setattr(
        self, inode: int, attr: EntryAttributes, fields: Any, fh: int | None, ctx: Any
    ) -> EntryAttributes:
        """Another size: the last block is sealed anew; the rest is the backing root's."""
        if not fields.update_size:
            raise fusebpf.Continue
        await self.in_turn(Sealed.resize, attr.st_size)
        raise fusebpf.Continue(size=stored_size(attr.st_size))

    async def show_size(self, _request: fusebpf.Request, result: fusebpf.Result) -> None:
        """Sizes are those of what was written."""
        if result.attr is not None and stat.S_ISREG(result.attr.st_mode):
            result.attr.st_size = plain_size(result.attr.st_size)

    post_lookup = post_getattr = post_setattr = post_create = post_mknod = post_link = show_size
