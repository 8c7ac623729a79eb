"""Daemons that the tests mount with `--daemon …/daemons.py:CLASS`. What they were asked is in a file `asked`
beside the backing root.
"""

import errno
import os
import stat
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyfuse3
import trio
from pyfuse3 import EntryAttributes, FileInfo, FUSEError

import fusebpf

OWN = 77


def own_file(inode: int, size: int, mode: int = stat.S_IFREG | 0o644) -> EntryAttributes:
    """Attributes of a node of the daemon's own, cached for no time."""
    attr = EntryAttributes()
    attr.st_ino = pyfuse3.InodeT(inode)
    attr.st_mode = pyfuse3.ModeT(mode)
    attr.st_size = size
    attr.entry_timeout = attr.attr_timeout = 0
    return attr


class Telling(fusebpf.Daemon):
    """Writes down what it is asked."""

    def tell(self, *words: object) -> None:
        """One line to the file `asked`."""
        with (Path(self.stack.src).parent / "asked").open("a") as file:
            file.write(" ".join(map(str, words)) + "\n")


class Answers(Telling):
    """Answers lookup, getattr, open and read of one file of its own; all else is the backing root's."""

    data = b"from the daemon\n"

    async def lookup(self, parent_inode: int, name: bytes, ctx: Any) -> EntryAttributes:
        self.tell("lookup", name.decode(), ctx.uid, ctx.pid)
        if name == b"own":
            return own_file(OWN, len(self.data))
        raise fusebpf.Continue

    async def getattr(self, inode: int, ctx: Any) -> EntryAttributes:
        if inode == OWN:
            return own_file(OWN, len(self.data))
        raise fusebpf.Continue

    async def open(self, inode: int, flags: int, ctx: Any) -> FileInfo:
        self.tell("open", inode)
        if inode != OWN:
            raise fusebpf.Continue
        return FileInfo(fh=5)

    async def read(self, fh: int, off: int, size: int) -> bytes:
        self.tell("read", fh)
        assert fh == 5
        return self.data[off : off + size]

    async def release(self, fh: int) -> None:
        self.tell("release", fh)


class Upper(Telling):
    """Reads the backing file and answers in upper case: read it, change it, answer it."""

    async def read(self, fh: int, off: int, size: int) -> bytes:
        return self.stack.backing(fh).pread(size, off).upper()


class Stores(Telling):
    """Writes to the backing file, and truncates it itself."""

    async def write(self, fh: int, off: int, buf: bytes) -> int:
        return self.stack.backing(self.request.inode).pwrite(buf, off)

    async def setattr(
        self, inode: int, attr: EntryAttributes, fields: Any, fh: int | None, ctx: Any
    ) -> EntryAttributes:
        if not fields.update_size:
            raise fusebpf.Continue
        self.tell("truncate", attr.st_size)
        os.truncate(self.stack.backing(inode), attr.st_size + 1)
        raise fusebpf.Continue(size=None)


class Renames(Telling):
    """Continue with changed arguments: what is called `alias` is `real`, new files get mode 0640."""

    async def lookup(self, parent_inode: int, name: bytes, ctx: Any) -> EntryAttributes:
        self.tell("lookup", name.decode())
        raise fusebpf.Continue(name=b"real") if name == b"alias" else fusebpf.Continue

    async def create(self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: Any) -> Any:
        raise fusebpf.Continue(mode=0o640)

    async def mkdir(self, parent_inode: int, name: bytes, mode: int, ctx: Any) -> Any:
        raise fusebpf.Continue(nonsense=1)

    async def unlink(self, parent_inode: int, name: bytes, ctx: Any) -> None:
        raise fusebpf.Continue(name=b"../escape")


class Looks(Telling):
    """Sees results of the backing root, and changes some."""

    async def post_lookup(self, request: fusebpf.Request, result: fusebpf.Result) -> None:
        self.tell("post_lookup", request.args["name"].decode(), result.error)

    async def post_getattr(self, request: fusebpf.Request, result: fusebpf.Result) -> None:
        assert result.attr is not None
        result.attr.st_mtime_ns = 1_000_000_000

    async def post_read(self, request: fusebpf.Request, result: fusebpf.Result) -> None:
        assert result.data is not None
        result.data = result.data.replace(b"secret", b"******")

    async def post_unlink(self, request: fusebpf.Request, result: fusebpf.Result) -> None:
        if request.args["name"] == b"loud":
            raise FUSEError(errno.ENOTEMPTY)

    async def post_statfs(self, request: fusebpf.Request, result: fusebpf.Result) -> None:
        assert result.statfs is not None
        result.statfs.f_bavail = 4242

    async def post_getxattr(self, request: fusebpf.Request, result: fusebpf.Result) -> None:
        if result.data is not None and request.args["name"] == b"user.long":
            result.data += b"x" * 100_000


class Nodes(Telling):
    """Nodes of its own in a directory `own`: files that can be made, written, renamed and removed."""

    def __init__(self) -> None:
        self.files: dict[bytes, int] = {}
        self.data: dict[int, bytearray] = {}
        self.forgotten = 0
        self.next = OWN

    def _attr(self, inode: int) -> EntryAttributes:
        if inode == OWN:
            return own_file(OWN, 0, stat.S_IFDIR | 0o755)
        return own_file(inode, len(self.data[inode]))

    def _file(self, name: bytes) -> int:
        if name not in self.files:
            raise FUSEError(errno.ENOENT)
        return self.files[name]

    async def lookup(self, parent_inode: int, name: bytes, ctx: Any) -> EntryAttributes:
        if parent_inode == OWN:
            return self._attr(self._file(name))
        if parent_inode == pyfuse3.ROOT_INODE and name == b"own":
            return self._attr(OWN)
        raise fusebpf.Continue

    async def getattr(self, inode: int, ctx: Any) -> EntryAttributes:
        if inode >= 1 << 62 or inode == pyfuse3.ROOT_INODE:
            raise fusebpf.Continue
        return self._attr(inode)

    async def setattr(
        self, inode: int, attr: EntryAttributes, fields: Any, fh: int | None, ctx: Any
    ) -> EntryAttributes:
        if inode not in self.data:
            raise fusebpf.Continue
        if fields.update_size:
            self.data[inode] = self.data[inode][: attr.st_size].ljust(attr.st_size, b"\0")
        return self._attr(inode)

    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        if self.request.inode == OWN:
            entries = list(self.files.items())
        elif self.request.inode == pyfuse3.ROOT_INODE:
            entries = [(b"own", OWN)]
        else:
            raise fusebpf.Continue
        for number, (name, inode) in enumerate(entries[start_id:], start_id + 1):
            if not pyfuse3.readdir_reply(token, pyfuse3.FileNameT(name), self._attr(inode), number):
                return
        if self.request.inode == pyfuse3.ROOT_INODE:
            raise fusebpf.Continue

    async def create(self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: Any) -> Any:
        if parent_inode != OWN:
            raise fusebpf.Continue
        self.next += 1
        self.files[name], self.data[self.next] = self.next, bytearray()
        return FileInfo(fh=self.next), self._attr(self.next)

    async def open(self, inode: int, flags: int, ctx: Any) -> FileInfo:
        if inode not in self.data:
            raise fusebpf.Continue
        if flags & os.O_TRUNC:
            self.data[inode].clear()
        return FileInfo(fh=inode, keep_cache=False)

    async def read(self, fh: int, off: int, size: int) -> bytes:
        return bytes(self.data[fh][off : off + size])

    async def write(self, fh: int, off: int, buf: bytes) -> int:
        data = self.data[fh]
        data[off:off] = b"\0" * max(0, off - len(data))
        data[off : off + len(buf)] = buf
        return len(buf)

    async def unlink(self, parent_inode: int, name: bytes, ctx: Any) -> None:
        if parent_inode != OWN:
            raise fusebpf.Continue
        self._file(name)
        del self.files[name]

    async def rename(
        self,
        parent_inode_old: int,
        name_old: bytes,
        parent_inode_new: int,
        name_new: bytes,
        flags: int,
        ctx: Any,
    ) -> None:
        if OWN not in {parent_inode_old, parent_inode_new}:
            raise fusebpf.Continue
        if parent_inode_old != parent_inode_new:
            raise FUSEError(errno.EXDEV)
        there = self.files.get(name_new)
        self.files[name_new] = self._file(name_old)
        del self.files[name_old]
        if flags & pyfuse3.RENAME_EXCHANGE and there is not None:
            self.files[name_old] = there

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        for inode, n_lookup in inode_list:
            self.tell("forget", inode, n_lookup)


class Opens(Telling):
    """Opens files of the backing root: the data of `left…` is left to it, of others it answers itself."""

    async def open(self, inode: int, flags: int, ctx: Any) -> FileInfo:
        path = self.stack.backing(inode).path
        self.tell("open", Path(path).name)
        return fusebpf.FileInfo(fh=9, passthrough=Path(path).name.startswith("left"))

    async def read(self, fh: int, off: int, size: int) -> bytes:
        self.tell("read", fh)
        return b"answered"[off : off + size]

    async def release(self, fh: int) -> None:
        self.tell("release", fh)


class Entries(Telling):
    """Answers with entries of the backing root, which then take any route."""

    async def lookup(self, parent_inode: int, name: bytes, ctx: Any) -> EntryAttributes:
        try:
            return self.entry(parent_inode, b"target" if name == b"link" else name)
        except OSError as error:
            raise FUSEError(error.errno or errno.EIO) from error

    async def create(self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: Any) -> Any:
        with self.stack.backing(parent_inode) as directory:
            fd = os.open(directory, os.O_PATH)
            os.close(os.open(name, os.O_CREAT | os.O_WRONLY, mode, dir_fd=fd))
            os.close(fd)
        return fusebpf.FileInfo(fh=3, passthrough=True), self.entry(parent_inode, name)


class Mute:
    """Nonsense that cannot even be shown."""

    def __repr__(self) -> str:
        raise ValueError("no words")


class Fails(Telling):
    """Goes wrong in all ways, by the name that is looked up."""

    async def lookup(self, parent_inode: int, name: bytes, ctx: Any) -> Any:  # noqa: PLR0912 - a list
        if name == b"raises":
            raise RuntimeError("something is wrong in here")
        if name == b"denies":
            raise FUSEError(errno.EDQUOT)
        if name == b"absurd":
            raise FUSEError(4000)
        if name == b"nonsense":
            return "a string"
        if name == b"mute":
            return Mute()
        if name == b"stranger":
            return own_file((1 << 62) + 12345, 0)
        if name == b"typeless":
            return own_file(88, 0, 0o644)
        if name == b"hangs":
            try:
                await trio.sleep_forever()
            finally:
                self.tell("hangs", "cancelled")
        if name == b"deaf":
            with trio.CancelScope(shield=True):
                await trio.sleep(60)
        if name == b"busy":
            await trio.lowlevel.checkpoint()
        if name == b"dies":
            sys.exit("the end")
        if name == b"slow":
            await trio.sleep(0.5)
            raise fusebpf.Continue
        raise fusebpf.Continue

    async def read(self, fh: int, off: int, size: int) -> Any:
        return b"x" * (size + 1)


class Ponders(Telling):
    """Looks at results for ever, until it is cancelled; or where the name says so, in spite of that."""

    async def _ponder(self, request: fusebpf.Request, result: fusebpf.Result) -> None:
        self.tell("ponders", request.op)
        with trio.CancelScope(shield=request.args.get("name") == b"deaf"):
            await trio.sleep_forever()

    post_mkdir = post_symlink = post_unlink = post_rmdir = post_rename = post_link = post_mknod = _ponder
    post_setattr = post_setxattr = post_removexattr = post_write = post_fsync = _ponder
    post_create = post_readlink = post_getxattr = _ponder


class Order(Telling):
    """Sees an op before and after the backing root."""

    async def mkdir(self, parent_inode: int, name: bytes, mode: int, ctx: Any) -> Any:
        self.tell("daemon", "pre", name.decode())
        if name == b"daemon-only":
            return own_file(99, 0, stat.S_IFDIR | 0o711)
        raise fusebpf.Continue(name=name + b"-d")

    async def post_mkdir(self, request: fusebpf.Request, result: fusebpf.Result) -> None:
        assert result.attr is not None
        self.tell("daemon", "post", request.args["name"].decode())
        result.attr.st_nlink = 42


class Refuses(fusebpf.Daemon):
    """Cannot be made."""

    def __init__(self) -> None:
        raise ValueError("no such luck")


class Groups(Telling):
    """Fails in the middle of tasks of its own, by the name that is looked up."""

    async def lookup(self, parent_inode: int, name: bytes, ctx: Any) -> EntryAttributes:
        async def cleans_up_badly() -> None:
            try:
                await trio.sleep_forever()
            finally:
                raise ValueError("cleaning up went wrong")

        if name == b"badly":
            async with trio.open_nursery() as nursery:
                nursery.start_soon(cleans_up_badly)
                nursery.start_soon(trio.sleep_forever)
        if name == b"refuses":
            async with trio.open_nursery():
                raise FUSEError(errno.EDQUOT)
        if name == b"goes-on":
            async with trio.open_nursery():
                raise fusebpf.Continue
        if name == b"both":
            with trio.CancelScope(shield=True):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(cleans_up_badly)
                    nursery.cancel_scope.cancel()
        if name == b"late":
            raise trio.TooSlowError
        raise fusebpf.Continue


class LooksInVain(fusebpf.Daemon):
    """Wants to see what pyfuse3 cannot express."""

    async def post_lseek(self, request: fusebpf.Request, result: fusebpf.Result) -> None:
        """Never called."""


class LeavesNonsense(fusebpf.Daemon):
    """Leaves results that make no sense, by the name of the file."""

    def _kind(self, request: fusebpf.Request) -> str:
        with self.stack.backing(request.inode) as backing:
            return Path(backing.path).name

    async def post_getattr(self, request: fusebpf.Request, result: Any) -> None:
        kind = self._kind(request)
        if kind == "text":
            result.attr = "text"
        if kind == "none":
            result.attr = None
        if kind == "size":
            result.attr.st_size = -1

    async def post_getxattr(self, request: fusebpf.Request, result: Any) -> None:
        kind = self._kind(request)
        if kind == "number":
            result.data = 1
        if kind == "huge":
            result.data = bytes(1 << 20)
        if kind == "gone":
            result.error = "gone"

    async def post_readlink(self, request: fusebpf.Request, result: Any) -> None:
        result.data = b""


class Judges(Telling):
    """Lets what changes go on, and says which two inodes rename and link are about."""

    async def lookup(self, parent_inode: int, name: bytes, ctx: Any) -> EntryAttributes:
        raise fusebpf.Continue

    async def setxattr(self, inode: int, name: bytes, value: bytes, ctx: Any) -> None:
        raise fusebpf.Continue

    async def setattr(
        self, inode: int, attr: EntryAttributes, fields: Any, fh: int | None, ctx: Any
    ) -> EntryAttributes:
        raise fusebpf.Continue(mode=0o604)

    async def mkdir(self, parent_inode: int, name: bytes, mode: int, ctx: Any) -> EntryAttributes:
        raise fusebpf.Continue(mode=mode & ~0o077)

    async def link(self, inode: int, new_parent_inode: int, new_name: bytes, ctx: Any) -> EntryAttributes:
        self._tell_both("link", new_parent_inode, inode)
        raise fusebpf.Continue

    async def post_rename(self, request: fusebpf.Request, result: fusebpf.Result) -> None:
        self._tell_both("rename", request.inode, request.other)

    def _tell_both(self, op: str, first: int, second: int) -> None:
        with self.stack.backing(first) as one, self.stack.backing(second) as two:
            self.tell(op, Path(one.path).name, Path(two.path).name)


class Notifies(Telling):
    """A file `own` that the kernel keeps; `user.size` and `user.gone` change it, and tell the kernel."""

    size, is_there = 3, True

    def _attr(self) -> EntryAttributes:
        attr = own_file(OWN, self.size)
        attr.entry_timeout = attr.attr_timeout = 1000
        return attr

    async def lookup(self, parent_inode: int, name: bytes, ctx: Any) -> EntryAttributes:
        if name != b"own":
            raise fusebpf.Continue
        if not self.is_there:
            raise FUSEError(errno.ENOENT)
        return self._attr()

    async def getattr(self, inode: int, ctx: Any) -> EntryAttributes:
        if inode != OWN:
            raise fusebpf.Continue
        return self._attr()

    async def setxattr(self, inode: int, name: bytes, value: bytes, ctx: Any) -> None:
        if name == b"user.size":
            self.size = int(value)
            pyfuse3.invalidate_inode(pyfuse3.InodeT(OWN))
        elif name == b"user.gone":
            self.is_there = False
            pyfuse3.invalidate_entry_async(pyfuse3.ROOT_INODE, pyfuse3.FileNameT(b"own"))
        else:
            raise fusebpf.Continue
