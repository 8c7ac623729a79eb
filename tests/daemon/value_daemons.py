"""Daemons for test_values.py."""

import errno
import time
from pathlib import Path

import pyfuse3
import trio

import fusebpf


class LetsGoOn(fusebpf.Daemon):
    """Sees xattrs set, and lets them be set."""

    async def setxattr(self, inode: int, name: bytes, value: bytes, ctx: pyfuse3.RequestContext) -> None:
        """Let it go on."""
        raise fusebpf.Continue


class HasValue(fusebpf.Daemon):
    """Has one xattr of its own."""

    async def getxattr(self, inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> bytes:
        """Answer for user.own."""
        if name == b"user.own":
            return b"a value"
        raise fusebpf.Continue


class LooksAtValue(fusebpf.Daemon):
    """Looks at xattrs."""

    async def post_getxattr(self, request: fusebpf.Request, result: fusebpf.Result) -> None:
        """Leave it, but for one that becomes longer."""
        if request.args["name"] == b"user.long":
            result.data = b"longer than it was"


class Counts(fusebpf.Daemon):
    """Looks at what is read."""

    async def post_read(self, request: fusebpf.Request, result: fusebpf.Result) -> None:
        """Note it."""
        with (Path(self.stack.src).parent / "asked").open("a") as file:
            print("post_read", request.args["offset"], len(result.data or b""), file=file)


class Late(fusebpf.Daemon):
    """Looks at what is read, and is late with what begins with an s."""

    async def post_read(self, request: fusebpf.Request, result: fusebpf.Result) -> None:
        """Block, and then write."""
        if result.data and result.data.startswith(b"s"):
            time.sleep(0.9)
            result.data = b"X" * len(result.data)


class Hangs(fusebpf.Daemon):
    """Looks names up, takes what is written, and hangs for the seconds that an xattr is set to."""

    async def lookup(
        self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        """What the backing root has."""
        try:
            attr = self.entry(parent_inode, name)
        except FileNotFoundError:
            raise fusebpf.Continue from None
        attr.entry_timeout = attr.attr_timeout = 60
        return attr

    async def write(self, fh: int, off: int, buf: bytes) -> int:
        """Nothing is kept."""
        return len(buf)

    async def setxattr(self, inode: int, name: bytes, value: bytes, ctx: pyfuse3.RequestContext) -> None:
        """Hang."""
        time.sleep(float(value))


class FailsToFlush(fusebpf.Daemon):
    """Has a late write error to tell at close(2), or hangs there."""

    async def flush(self, fh: int) -> None:
        """Fail at once, or in the end."""
        if (Path(self.stack.src).parent / "slow").exists():
            await trio.sleep(3)
        raise pyfuse3.FUSEError(errno.EIO)
