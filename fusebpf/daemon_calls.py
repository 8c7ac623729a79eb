"""The table of calls that the core shares, struct daemon_call of daemon.h: requests out, changes in."""

from __future__ import annotations

import ctypes
import errno
import stat
import struct
from typing import NamedTuple

import pyfuse3

from fusebpf._core import CALL_FIELDS, OP_FLAGS, OPS, SIZES
from fusebpf.daemon import Request, Result

# struct daemon_call of daemon.h, as far as its slot.
_HEAD = struct.Struct("=4I7Q4I2I4Q")
FLAGS_AT, ERROR_AT, EDITS_AT, _LENGTH_AT = 12, 88, 96, 112
_INDEX_MASK = 1023
_SIZE = SIZES["daemon_call"]
_NAMES = {opcode: name for name, opcode, *_ in OPS}
_OP_FLAGS = {name: flags for name, _, _, flags, *_ in OPS}
_ATTR = struct.Struct("=6Q6I")
_STATFS = struct.Struct("=5Q4I")
_ARGS_AT = CALL_FIELDS["args"][0]
_RESULT_AT = CALL_FIELDS["result"][0]
_EDIT_ERROR, _EDIT_ATTR, _EDIT_STATFS, _EDIT_COUNT = 1 << 12, 1 << 13, 1 << 14, 1 << 15

# The arguments of ops in the slot's union: where, and the edit that changes them.
_MODE, _FLAGS, _UID, _GID, _SIZE_EDIT, _OFFSET, _TIMES, _RDEV, _MASK = (1 << bit for bit in range(3, 12))
_OPEN = {"flags": (0, "I", _FLAGS)}
_RW = {"offset": (8, "Q", _OFFSET), "size": (16, "I", _SIZE_EDIT), "flags": (20, "I", 0)}
_FSYNC = {"flags": (8, "I", _FLAGS)}
_XATTR = {"size": (0, "I", _SIZE_EDIT), "flags": (4, "I", _FLAGS)}
ARGS: dict[str, dict[str, tuple[int, str, int]]] = {
    "setattr": {
        "valid": (0, "I", 0),
        "mode": (4, "I", _MODE),
        "uid": (8, "I", _UID),
        "gid": (12, "I", _GID),
        "size": (16, "Q", _SIZE_EDIT),
        "atime_ns": (32, "Q", _TIMES),
        "mtime_ns": (40, "Q", _TIMES),
    },
    "mknod": {"mode": (0, "I", _MODE), "rdev": (4, "I", _RDEV)},
    "mkdir": {"mode": (0, "I", _MODE)},
    "rename": {"flags": (8, "I", _FLAGS)},
    "open": _OPEN,
    "opendir": _OPEN,
    "create": {"mode": (0, "I", _MODE), "flags": (4, "I", _FLAGS)},
    "read": _RW,
    "write": _RW,
    "fsync": _FSYNC,
    "fsyncdir": _FSYNC,
    "setxattr": _XATTR,
    "getxattr": _XATTR,
    "listxattr": _XATTR,
    "access": {"mask": (0, "I", _MASK)},
}
# Which of setattr's are set (FB_SET_…): a time's own bit, and that for now.
_VALID = {"mode": 1, "uid": 2, "gid": 4, "size": 8, "atime_ns": 16 | 128, "mtime_ns": 32 | 256}
TEXTS = {
    "name": ("name.text", "name_len", 1),
    "new_name": ("name2.text", "name2_len", 2),
    "target": ("text", "text_len", 4),
}


class Calls:
    """The table.

    Args:
        table: As Mount.daemon_start gives it.
    """

    def __init__(self, table: memoryview) -> None:
        self._table = table

    def put(self, request: Request, at: int, kind: str, value: int) -> None:
        """Write one number."""
        struct.pack_into(f"={kind}", self._table, (request.token & _INDEX_MASK) * _SIZE + at, value)

    def get(self, request: Request, at: int, kind: str) -> int:
        """Read one number."""
        (value,) = struct.unpack_from(f"={kind}", self._table, (request.token & _INDEX_MASK) * _SIZE + at)
        return int(value)

    def argument(self, request: Request, name: str) -> int:
        """An argument of the op."""
        at, kind, _ = ARGS[request.op][name]
        return self.get(request, _ARGS_AT + at, kind)

    def put_text(self, request: Request, key: str, text: bytes) -> None:
        """Write a name."""
        field, length, _ = TEXTS[key]
        at, size = CALL_FIELDS[field]
        start = (request.token & _INDEX_MASK) * _SIZE + at
        self._table[start : start + size] = text[: size - 1].ljust(size, b"\0")
        self.put(request, CALL_FIELDS[length][0], "I", len(text))

    def text(self, request: Request, key: str) -> bytes:
        """A name of the op."""
        field, length, _ = TEXTS[key]
        start = (request.token & _INDEX_MASK) * _SIZE + CALL_FIELDS[field][0]
        return bytes(self._table[start : start + self.get(request, CALL_FIELDS[length][0], "I")])

    def change(self, request: Request, changes: dict[str, int | bytes | None]) -> int:
        """Write the arguments that Continue changes; which edits they are.

        Raises:
            KeyError: The op has no such argument.
            ValueError: A value that cannot be; so are TypeError and struct.error.
        """
        edits = 0
        if ("atime_ns" in changes) != ("mtime_ns" in changes):
            raise ValueError("atime_ns and mtime_ns go together")
        for key, value in changes.items():
            if value is None:
                edits |= self._leave(request, key)
                continue
            if isinstance(value, bytes):
                self.put_text(request, key, value)
                edits |= TEXTS[key][2]
                continue
            if key in {"uid", "gid"} and request.op != "setattr":
                at, edit, kind = CALL_FIELDS[key][0], _UID if key == "uid" else _GID, "I"
            else:
                at, kind, edit = ARGS[request.op][key]
                at += _ARGS_AT
            if not edit:
                raise KeyError(key)
            self.put(request, at, kind, self._typed(request, value) if key == "mode" else value)
            edits |= edit
        return edits

    def _leave(self, request: Request, key: str) -> int:
        """Take an attribute out of those that setattr sets."""
        at, kind, _ = ARGS[request.op]["valid"]
        self.put(request, _ARGS_AT + at, kind, self.argument(request, "valid") & ~_VALID[key])
        return _FLAGS

    def _typed(self, request: Request, mode: int) -> int:
        """A mode with the op's type, if it says that or none; mkdir's has none, though handlers see one."""
        had = stat.S_IFMT(self.argument(request, "mode"))
        said = stat.S_IFMT(mode)
        return mode - said + had if said in {0, had or stat.S_IFDIR} else mode

    def token_at(self, token: int) -> int:
        """Whose call the table has where this token's was."""
        (found,) = struct.unpack_from("=I", self._table, (token & _INDEX_MASK) * _SIZE)
        return int(found)

    def result(self, request: Request) -> Result:
        """The result that a handler is to look at."""
        head = _HEAD.unpack_from(self._table, (request.token & _INDEX_MASK) * _SIZE)
        error, data, length = head[15], head[18], head[19]
        at = (request.token & _INDEX_MASK) * _SIZE + _RESULT_AT
        result = Result(error)
        flags = _OP_FLAGS[request.op]
        if error:
            return result
        if flags & (OP_FLAGS["ENTRY"] | OP_FLAGS["ATTR"]):
            result.attr = _attr_of(_ATTR.unpack_from(self._table, at), request)
        elif flags & OP_FLAGS["STATFS"]:
            result.statfs = _statfs_of(_STATFS.unpack_from(self._table, at))
        elif data:
            result.data = ctypes.string_at(data, length)
        elif request.op == "write":
            (result.count,) = struct.unpack_from("=Q", self._table, at)
        return result

    def put_result(self, request: Request, before: Shown, result: Result) -> None:
        """Write what the handler changed in it."""
        if (result.attr is None, result.statfs is None) != (not before.attr, not before.statfs):
            raise TypeError("attr and statfs stay, or stay None")
        after = shown(result)
        at = (request.token & _INDEX_MASK) * _SIZE + _RESULT_AT
        edits = 0
        if result.attr is not None and after.attr != before.attr:
            _ATTR.pack_into(self._table, at, *after.attr)
            edits |= _EDIT_ATTR
        if result.statfs is not None and after.statfs != before.statfs:
            _STATFS.pack_into(self._table, at, *after.statfs)
            edits |= _EDIT_STATFS
        if result.count is not None and after.written != before.written:
            struct.pack_into("=Q", self._table, at, after.written)
            edits |= _EDIT_COUNT
        if before.data is not None and after.data != before.data:
            self._put_data(request, bytes(memoryview(after.data or b"")))
        self.put(request, EDITS_AT, "Q", edits)

    def _put_data(self, request: Request, data: bytes) -> None:
        head = _HEAD.unpack_from(self._table, (request.token & _INDEX_MASK) * _SIZE)
        if len(data) > head[20]:
            raise ValueError(f"{len(data)} bytes where {head[20]} were asked for")
        ctypes.memmove(head[18], data, len(data))
        self.put(request, _LENGTH_AT, "Q", len(data))

    def request(self, token: int) -> Request:
        """The request of a call.

        Raises:
            FUSEError: Nobody waits for it any more.
        """
        head = _HEAD.unpack_from(self._table, (token & _INDEX_MASK) * _SIZE)
        if head[0] != token:
            raise pyfuse3.FUSEError(errno.EINTR)  # nobody waits for it any more
        return Request(token, _NAMES[head[1]], *head[4:15])


class Shown(NamedTuple):
    """A result as the table has it, to see what a handler changed."""

    attr: tuple[int, ...]
    statfs: tuple[int, ...]
    written: int | None
    data: bytes | None


def shown(result: Result) -> Shown:
    """A result as the table has it."""
    attr: tuple[int, ...] = ()
    statfs: tuple[int, ...] = ()
    if (a := result.attr) is not None:
        times = (ns & (1 << 64) - 1 for ns in (a.st_atime_ns, a.st_mtime_ns, a.st_ctime_ns))
        attr = (
            0,
            a.st_size,
            a.st_blocks,
            *times,
            a.st_mode,
            a.st_nlink,
            a.st_uid,
            a.st_gid,
            a.st_rdev,
            a.st_blksize,
        )
    if (s := result.statfs) is not None:
        statfs = (
            s.f_blocks,
            s.f_bfree,
            s.f_bavail,
            s.f_files,
            s.f_ffree,
            s.f_bsize,
            s.f_namemax,
            s.f_frsize,
            0,
        )
    return Shown(attr, statfs, result.count, result.data)


def _attr_of(values: tuple[int, ...], request: Request) -> pyfuse3.EntryAttributes:
    a = pyfuse3.EntryAttributes()
    _, a.st_size, a.st_blocks, atime, mtime, ctime = values[:6]
    a.st_atime_ns, a.st_mtime_ns, a.st_ctime_ns = (
        ns - (1 << 64) if ns >> 63 else ns for ns in (atime, mtime, ctime)
    )
    a.st_mode, a.st_nlink, a.st_uid, a.st_gid, a.st_rdev, a.st_blksize = values[6:]
    a.st_ino = pyfuse3.InodeT(request.inode if request.op in {"getattr", "setattr"} else 0)
    return a


def _statfs_of(values: tuple[int, ...]) -> pyfuse3.StatvfsData:
    s = pyfuse3.StatvfsData()
    s.f_blocks, s.f_bfree, s.f_bavail, s.f_files, s.f_ffree, s.f_bsize, s.f_namemax, s.f_frsize, _ = values
    return s
