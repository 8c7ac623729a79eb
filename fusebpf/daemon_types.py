"""pyfuse3's types at the border: the context that handlers get, and what each has to return."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyfuse3

if TYPE_CHECKING:
    from collections.abc import Callable

    from fusebpf.daemon import Request


class Context(pyfuse3.RequestContext):
    """pyfuse3's RequestContext with the caller's real pid."""

    __slots__ = ("_request",)

    def __init__(self, request: Request) -> None:
        self._request = request

    @property
    def uid(self) -> int:
        """The caller's user."""
        return self._request.uid

    @property
    def gid(self) -> int:
        """The caller's group."""
        return self._request.gid

    @property
    def pid(self) -> int:
        """The caller's process."""
        return self._request.pid

    @property
    def umask(self) -> int:
        """The caller's umask."""
        return self._request.umask


def _wanted(kind: type | tuple[type, ...]) -> Callable[[Any], bool]:
    return lambda result: isinstance(result, kind)


def _is_number(result: Any) -> bool:
    return isinstance(result, int) and 0 <= result < 1 << 64


def _is_buffer(result: Any) -> bool:
    try:
        return memoryview(result).contiguous
    except TypeError:
        return False


def _is_created(result: Any) -> bool:
    return (
        isinstance(result, tuple)
        and len(result) == 2
        and isinstance(result[0], pyfuse3.FileInfo)
        and isinstance(result[1], pyfuse3.EntryAttributes)
    )


def _is_names(result: Any) -> bool:
    return isinstance(result, (list, tuple)) and all(isinstance(one, bytes) for one in result)


# What a handler has to return, by op: a wrong type would end pyfuse3's session.
_entry = (_wanted(pyfuse3.EntryAttributes), "EntryAttributes")
RETURNS: dict[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys(("lookup", "getattr", "setattr", "mknod", "mkdir", "symlink", "link"), _entry),
    **dict.fromkeys(("readlink", "getxattr"), (_wanted(bytes), "bytes")),
    "open": (_wanted(pyfuse3.FileInfo), "FileInfo"),
    "create": (_is_created, "(FileInfo, EntryAttributes)"),
    "read": (_is_buffer, "bytes"),
    "write": (_is_number, "the number of bytes written"),
    "opendir": (_is_number, "a handle, a number"),
    "statfs": (_wanted(pyfuse3.StatvfsData), "StatvfsData"),
    "listxattr": (_is_names, "a sequence of bytes"),
}


def is_sane(check: Callable[[Any], bool], result: object) -> bool:
    """Whether a handler's result is what its op wants."""
    try:
        return check(result)
    except Exception:  # noqa: BLE001 - it cannot even be looked at
        return False


def shown_of(result: object) -> str:
    """A result in words."""
    try:
        return repr(result)
    except Exception:  # noqa: BLE001 - it is nonsense anyway
        return f"a {type(result).__name__}"
