"""Compiled filters, kept from one mount to the next under /var/cache/fusebpf.

What the compiler made of a text is the same as long as the text with the ABI's headers, bcc's library and
the kernel are: the four together name the file. A text that includes other files is not kept, since they may
change. Whatever is wrong with the cache, the filter is compiled anew and the mount works.
"""

import contextlib
import hashlib
import os
import platform
import re
import stat
import tempfile
from collections.abc import Sequence
from pathlib import Path

DIRECTORY = Path("/var/cache/fusebpf")
"""Root's alone; may be removed at any time."""

MAX_KEPT = 64
"""Files; the ones that were used longest ago go first."""

_LIBRARIES = ("/usr/lib/*-linux-*/libbcc.so.0", "/usr/lib64/libbcc.so.0", "/usr/lib/libbcc.so.0")
_KERNELS = ("linux", "asm", "asm-generic")
_OTHER_INCLUDE = re.compile(
    r'#[ \t]*include(?![ \t]*"fusebpf(?:_filter)?\.h"|[ \t]*<(?:' + "|".join(_KERNELS) + ")/)"
)
_FORMAT = b"1"


def key(source: str, text: str, place: Path, flags: Sequence[str]) -> str | None:
    """The name under which the compiled form of a text is kept.

    Args:
        source: What the author wrote.
        text: What the compiler gets, with all of the ABI's headers.
        place: Where what it includes is sought.
        flags: What else decides over the result.

    Returns:
        None if it is not kept.
    """
    library = _library()
    has_own = any((place / name).exists() for name in _KERNELS)
    if library is None or has_own or _OTHER_INCLUDE.search(source):
        return None
    made = hashlib.sha256(_FORMAT)
    for part in (library, platform.release(), "\0".join((str(place), *flags)), text):
        made.update(hashlib.sha256(part.encode()).digest())
    return made.hexdigest()


def load(name: str) -> bytes | None:
    """What was kept under a key; None if there is nothing that can be trusted."""
    path = DIRECTORY / name
    try:
        with open(path, "rb", opener=_open_at_once) as file:
            if not _is_ours(os.fstat(file.fileno())):
                return None
            content = file.read()
        os.utime(path)
    except OSError:
        return None
    digest, data = content[:32], content[32:]
    return data if hashlib.sha256(data).digest() == digest else None


def save(name: str, data: bytes) -> None:
    """Keep something under a key. Where that is not possible nothing is kept."""
    with contextlib.suppress(OSError):
        DIRECTORY.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not _is_ours(DIRECTORY.lstat()):
            return
        descriptor, temporary = tempfile.mkstemp(dir=DIRECTORY, prefix=".new-")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(hashlib.sha256(data).digest() + data)
            Path(temporary).rename(DIRECTORY / name)
        except OSError:
            Path(temporary).unlink(missing_ok=True)
        _prune()


def _open_at_once(path: str, flags: int) -> int:
    """What is no file, say a FIFO, is not waited for."""
    return os.open(path, flags | os.O_NONBLOCK)


def _is_ours(st: os.stat_result) -> bool:
    return st.st_uid == os.geteuid() and not st.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _prune() -> None:
    """Keep the newest ones."""
    kept = sorted(DIRECTORY.iterdir(), key=lambda path: path.lstat().st_mtime_ns, reverse=True)
    for path in kept[MAX_KEPT:]:
        path.unlink(missing_ok=True)


def _library() -> str | None:
    """Which bcc this is: its library's file, size and time. None where it cannot be told."""
    if os.environ.get("LD_LIBRARY_PATH"):
        return None
    for pattern in _LIBRARIES:
        for path in Path("/").glob(pattern.lstrip("/")):
            st = path.stat()
            return f"{path.resolve()}\0{st.st_size}\0{st.st_mtime_ns}"
    return None
