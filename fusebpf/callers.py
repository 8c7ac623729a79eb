"""Who sends the requests of one mount: a program on the kernel's FUSE tracepoint notes it for the core.

It runs in the caller's own context, so what it notes is so. Where the kernel has no such tracepoint, or a
request was sent on somebody's behalf, the caller is unknown, and nothing is guessed.
"""

from __future__ import annotations

import contextlib
import os
import struct
from pathlib import Path
from typing import TYPE_CHECKING

from fusebpf import bpf
from fusebpf._core import WANTS
from fusebpf.bpf import MapType
from fusebpf.compiler import compile_caller
from fusebpf.pins import close_all, hold

if TYPE_CHECKING:
    from collections.abc import Iterable

    from fusebpf._core import Mount
    from fusebpf.chain import Link

TRACEPOINT = "fuse_request_send"
N_CALLERS = 16384
"""Requests that are kept before the oldest are forgotten; what no filter asks for stays until then."""

_KERNEL_TYPES = Path("/sys/kernel/btf")
_PROGRAM = "fb_caller_note"
_MAPS = ("fb_caller_place", "fb_callers")
_UNIQUE_IN_HEADER, _PID_IN_HEADER = 8, 32
"""In struct fuse_in_header (linux/fuse.h)."""
_KIND_STRUCT = 4
_FIRST_PID_NAMESPACE = 0xEFFFFFFC
"""PROC_PID_INIT_INO of include/linux/proc_ns.h."""


class UnknownCallersError(Exception):
    """Callers cannot be known here; the text says why."""


class Callers:
    """What notes the callers of one mount, from the first filter on that wants them."""

    def __init__(self) -> None:
        self._fds: set[int] = set()
        self._unknown = ""

    def note(self, core: Mount, device: str | None, links: Iterable[Link]) -> None:
        """Have them noted if a filter wants it; where that cannot be, they are unknown to it.

        Args:
            core: A mount that is started.
            device: Its device, as mountinfo has it: "0:45".
            links: Its filters.

        Raises:
            PlatformError: There is no bcc.
        """
        if self._fds or not device or not any(link.filter.wants & WANTS["CALLER"] for link in links):
            return
        major, minor = map(int, device.split(":"))
        try:
            self._fds, noted = _begin(major, minor)
        except UnknownCallersError as error:
            self._unknown = str(error)
            return
        core.set_callers(noted)

    def warnings(self, links: Iterable[Link]) -> tuple[str, ...]:
        """A line for each filter that wants to know callers where they are unknown."""
        return tuple(
            f"filter {link.filter.name!r} wants to know callers, and all are unknown here: {self._unknown}"
            for link in links
            if self._unknown and link.filter.wants & WANTS["CALLER"]
        )

    def close(self) -> None:
        """Stop noting."""
        close_all(self._fds)
        self._fds = set()


def _begin(major: int, minor: int) -> tuple[set[int], int]:
    """Note the callers of the mount that has this device: the descriptors that keep it so, and the map's.

    Raises:
        UnknownCallersError: This kernel does not tell.
        PlatformError: There is no bcc.
    """
    place = struct.pack("6I2Q", *_offsets(), major << 20 | minor, *_pid_namespace())
    compiled = compile_caller()
    fds = {}
    with contextlib.ExitStack() as undo:
        try:
            for name in _MAPS:
                like = compiled.maps[name]
                n = N_CALLERS if like.type == MapType.LRU_HASH else 1
                shape = (like.type, like.key_size, like.value_size, n)
                fds[name] = hold(undo, bpf.map_create(*shape, name=name))
            bpf.map_update(fds["fb_caller_place"], bytes(4), place)
            program = hold(undo, bpf.tracepoint_load(compiled.functions[_PROGRAM].linked(fds), _PROGRAM))
            link = hold(undo, bpf.tracepoint_open(program, TRACEPOINT))
        except OSError as error:
            raise UnknownCallersError(f"the tracepoint {TRACEPOINT}: {error.strerror}") from error
        undo.pop_all()
    return {*fds.values(), program, link}, fds["fb_callers"]


def _pid_namespace() -> tuple[int, int]:
    """Device and number of this process's pid namespace; zeros for the first one."""
    namespace = Path("/proc/self/ns/pid").stat()
    if namespace.st_ino == _FIRST_PID_NAMESPACE:
        return 0, 0
    return os.major(namespace.st_dev) << 20 | os.minor(namespace.st_dev), namespace.st_ino


def _offsets() -> tuple[int, int, int, int, int]:
    """Struct fb_caller_place without the device."""
    types = _types()
    request, mount, connection = (types.members(name) for name in ("fuse_req", "fuse_mount", "fuse_conn"))
    try:
        header = request["in"]
        return (
            header + _UNIQUE_IN_HEADER,
            header + _PID_IN_HEADER,
            request["fm"],
            mount["fc"],
            connection["dev"],
        )
    except KeyError as error:
        raise UnknownCallersError(f"the kernel's struct for FUSE requests has no {error}") from error


class _Types:
    """Type information of the kernel, and of its module on top; searched, since it is megabytes."""

    def __init__(self, files: list[bytes]) -> None:
        self._types = b""
        self._strings = b""
        for data in files:
            head, type_at, type_len, string_at, string_len = struct.unpack_from("<5I", data, 4)
            self._types += data[head + type_at :][:type_len]
            self._strings += data[head + string_at :][:string_len]

    def members(self, name: str) -> dict[str, int]:
        """Where the members of a struct lie, in bytes; empty if there is no such struct."""
        wanted = self._strings.find(b"\0" + name.encode() + b"\0") + 1
        needle, at = struct.pack("<I", wanted), -1
        while wanted and (at := self._types.find(needle, at + 1)) >= 0:
            info = struct.unpack_from("<I", self._types, at + 4)[0] if at % 4 == 0 else 0
            count = info & 0xFFFF
            if info >> 24 & 0x1F == _KIND_STRUCT and count:
                rows = struct.iter_unpack("<III", self._types[at + 12 : at + 12 + 12 * count])
                return {self._text(text): bits // 8 for text, _, bits in rows}
        return {}

    def _text(self, offset: int) -> str:
        return self._strings[offset : self._strings.find(b"\0", offset)].decode()


def _types() -> _Types:
    try:
        files = [(_KERNEL_TYPES / "vmlinux").read_bytes()]
        # Where FUSE is a module, its types follow on the kernel's.
        with contextlib.suppress(FileNotFoundError):
            files.append((_KERNEL_TYPES / "fuse").read_bytes())
    except OSError as error:
        raise UnknownCallersError(f"the kernel's types: {os.strerror(error.errno or 0)}") from error
    return _Types(files)
