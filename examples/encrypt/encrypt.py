"""Content encrypted at rest: what is written through the mount is sealed on the disk, and reads right.

ENCRYPT_KEY=FILE fusebpf mount SRC MNT --daemon examples/encrypt/encrypt.py:Encrypt
"""

import errno
import os
import stat
from pathlib import Path
from typing import Any

import trio
from pyfuse3 import EntryAttributes, FUSEError
from sealed import BrokenError, Sealed, plain_size

import fusebpf

N_LOCKS = 256


class Encrypt(fusebpf.Daemon):
    """Reads, writes and sizes are the daemon's; names, modes and owners stay the backing root's."""

    def __init__(self) -> None:
        self.key = Path(os.environ["ENCRYPT_KEY"]).read_bytes()
        if len(self.key) != 32:
            raise ValueError("ENCRYPT_KEY names a file that has not 32 bytes")
        self.locks = [trio.Lock() for _ in range(N_LOCKS)]

    async def in_turn(self, flags: int, what: Any, *args: Any) -> Any:
        """Do it in a thread, since trio must not wait for the disk: one op on a file at a time.

        A file, not an inode: what two bind mounts show is two inodes and one file.
        """
        with self.stack.backing(self.request.inode) as backing:

            def work() -> Any:
                fd = backing.open(flags)
                try:
                    return what(Sealed(fd, self.key), *args)
                except BrokenError as error:
                    raise FUSEError(errno.EIO) from error
                except OSError as error:
                    raise FUSEError(error.errno or errno.EIO) from error
                finally:
                    os.close(fd)

            found = backing.stat()
            async with self.locks[hash((found.st_dev, found.st_ino)) % N_LOCKS]:
                return await trio.to_thread.run_sync(work)

    async def read(self, fh: int, off: int, size: int) -> bytes:
        """Decrypt the blocks that are asked for."""
        return bytes(await self.in_turn(os.O_RDONLY, Sealed.read, off, size))

    async def write(self, fh: int, off: int, buf: bytes) -> int:
        """Encrypt the blocks that are touched."""
        await self.in_turn(os.O_RDWR, Sealed.write, off, buf)
        return len(buf)

    async def setattr(
        self, inode: int, attr: EntryAttributes, fields: Any, fh: int | None, ctx: Any
    ) -> EntryAttributes:
        """Another size is set here, in its turn; the rest is the backing root's."""
        if not fields.update_size:
            raise fusebpf.Continue
        await self.in_turn(os.O_RDWR, Sealed.resize, attr.st_size)
        raise fusebpf.Continue(size=None)

    async def show_size(self, _request: fusebpf.Request, result: fusebpf.Result) -> None:
        """Sizes are those of what was written."""
        if result.attr is not None and stat.S_ISREG(result.attr.st_mode):
            result.attr.st_size = plain_size(result.attr.st_size)

    post_lookup = post_getattr = post_setattr = post_create = post_mknod = post_link = show_size
