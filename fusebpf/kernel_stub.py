"""The header tree that bcc is given in place of a kernel's: filters touch their own maps and helpers only.

bcc insists on kernel headers, of which it needs a handful for such programs; what filters may want to include
(linux/*.h, asm-generic/*.h) is linked to the C library's copies. The tree lies in a tmpfs that is mounted
nowhere and goes with its descriptor, so that a process that is killed leaves nothing behind.
"""

import contextlib
import ctypes
import os
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path

from fusebpf.errors import PlatformError

# These numbers are the same on every machine.
_FSOPEN, _FSCONFIG, _FSMOUNT = 430, 431, 432
_FSOPEN_CLOEXEC = _FSMOUNT_CLOEXEC = 1
_FSCONFIG_CMD_CREATE = 6
_libc = ctypes.CDLL(None, use_errno=True)
_INCLUDE = Path("/usr/include")
_EMPTY = ("include/linux/kconfig.h", "include/linux/log2.h", "include/asm/page.h", "include/uapi/linux/bpf.h")
_VERSION = """\
#define LINUX_VERSION_CODE 0x061200
#define KERNEL_VERSION(a, b, c) (((a) << 16) + ((b) << 8) + (c))
"""
_TYPES = """\
#ifndef FUSEBPF_STUB_TYPES_H
#define FUSEBPF_STUB_TYPES_H
typedef unsigned char u8, __u8;
typedef signed char s8, __s8;
typedef unsigned short u16, __u16;
typedef short s16, __s16;
typedef unsigned int u32, __u32;
typedef int s32, __s32;
typedef unsigned long long u64, __u64;
typedef long long s64, __s64;
typedef u16 __le16, __be16, __sum16;
typedef u32 __le32, __be32, __wsum;
typedef u64 __le64, __be64, __aligned_u64;
typedef _Bool bool;
typedef unsigned long size_t, uintptr_t;
typedef int pid_t;
#define __bitwise
#include <linux/posix_types.h>
#define CONFIG_BPF_SYSCALL 1
#define PAGE_SIZE 4096
#define true 1
#define false 0
#endif
"""


@contextlib.contextmanager
def stub() -> Iterator[tuple[Path, list[int]]]:
    """The tree, to be named in BCC_KERNEL_SOURCE, and the descriptors that a child needs to reach it.

    Raises:
        PlatformError: The C library's kernel headers are not installed.
    """
    with contextlib.ExitStack() as undo:
        tmpfs = _detached_tmpfs()
        if tmpfs is None:
            root, passed = Path(undo.enter_context(tempfile.TemporaryDirectory(prefix="fusebpf-"))), []
        else:
            undo.callback(os.close, tmpfs)
            root, passed = Path(f"/proc/self/fd/{tmpfs}"), [tmpfs]
        _make(root)
        yield root, passed


def _detached_tmpfs() -> int | None:
    """A descriptor of the root of a fresh tmpfs, None where that is not allowed."""
    context = _libc.syscall(_FSOPEN, b"tmpfs", _FSOPEN_CLOEXEC)
    if context < 0:
        return None
    try:
        if _libc.syscall(_FSCONFIG, context, _FSCONFIG_CMD_CREATE, None, None, 0) < 0:
            return None
        mounted = int(_libc.syscall(_FSMOUNT, context, _FSMOUNT_CLOEXEC, 0))
    finally:
        os.close(context)
    return None if mounted < 0 else mounted


def _make(root: Path) -> None:
    uapi = root / "include/uapi"
    for name in _EMPTY:
        _write(root / name, "")
    _write(root / "include/linux/version.h", _VERSION)
    _write(root / "include/linux/types.h", _TYPES)
    if not (_INCLUDE / "linux/types.h").is_file():
        raise PlatformError(f"no kernel headers for programs in {_INCLUDE}/linux: install linux-libc-dev")
    for entry in os.scandir(_INCLUDE / "linux"):
        if entry.name != "bpf.h":
            (uapi / "linux" / entry.name).symlink_to(entry.path)
    (uapi / "asm-generic").symlink_to(_INCLUDE / "asm-generic")
    (uapi / "asm").symlink_to(_asm())


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8")


def _asm() -> Path:
    """This machine's asm/: below a multiarch directory on Debian, straight in /usr/include elsewhere."""
    multiarch = sysconfig.get_config_var("MULTIARCH")
    places: list[Path] = [_INCLUDE / str(multiarch) / "asm"] if multiarch else []
    places += [_INCLUDE / "asm", *sorted(_INCLUDE.glob("*-linux-*/asm"))]
    for place in places:
        if (place / "types.h").is_file():
            return place
    raise PlatformError(f"no asm/types.h in {_INCLUDE}: install linux-libc-dev")
