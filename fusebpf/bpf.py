"""bpf(2) by ctypes: the commands that loading, filling and pinning need, typed, with errors in words.

Every function raises OSError with the command and its object in `strerror`. Descriptors that are returned
belong to the caller and are closed on exec. The calls run without the GIL.
"""

import contextlib
import ctypes
import errno
import os
import platform
import struct
from collections.abc import Iterator, Sequence
from enum import IntEnum
from pathlib import Path
from typing import NamedTuple

from fusebpf.errors import SHORTAGES, PlatformError

BPFFS = Path("/sys/fs/bpf")
F_SLEEPABLE = 1 << 4
F_MMAPABLE = 1 << 10
PSEUDO_MAP_FD = 1
LD_IMM64 = 0x18

_PROG_TYPE_RAW_TRACEPOINT = 17
_PROG_TYPE_SYSCALL = 31
_LICENSE = b"Dual MIT/GPL"
_LOG_LEVEL_STEPS = 1
_LOG_LEVEL_STATS = 4
_LOG_SIZES = (1 << 18, 1 << 22, 1 << 26)
_BTF_MAX_BYTES = 16 << 20
_ATTR_BYTES = 128
_SYSCALL_NUMBERS = {
    "x86_64": 321,
    "aarch64": 280,
    "riscv64": 280,
    "loongarch64": 280,
    "ppc64le": 361,
    "s390x": 351,
}
_libc = ctypes.CDLL(None, use_errno=True)


class Command(IntEnum):
    """The commands of bpf(2) that are used here (linux/bpf.h: enum bpf_cmd)."""

    MAP_CREATE = 0
    MAP_LOOKUP_ELEM = 1
    MAP_UPDATE_ELEM = 2
    MAP_DELETE_ELEM = 3
    MAP_GET_NEXT_KEY = 4
    PROG_LOAD = 5
    OBJ_PIN = 6
    OBJ_GET = 7
    PROG_RUN = 10
    OBJ_GET_INFO_BY_FD = 15
    RAW_TRACEPOINT_OPEN = 17
    BTF_LOAD = 18
    BTF_GET_FD_BY_ID = 19
    MAP_UPDATE_BATCH = 26


class MapType(IntEnum):
    """The kinds of maps (linux/bpf.h: enum bpf_map_type) that fusebpf itself names."""

    HASH = 1
    ARRAY = 2
    PROG_ARRAY = 3
    PERF_EVENT_ARRAY = 4
    PERCPU_HASH = 5
    PERCPU_ARRAY = 6
    STACK_TRACE = 7
    CGROUP_ARRAY = 8
    LRU_HASH = 9
    LRU_PERCPU_HASH = 10
    LPM_TRIE = 11
    ARRAY_OF_MAPS = 12
    HASH_OF_MAPS = 13
    DEVMAP = 14
    SOCKMAP = 15
    CPUMAP = 16
    XSKMAP = 17
    SOCKHASH = 18
    QUEUE = 22
    STACK = 23
    RINGBUF = 27
    BLOOM_FILTER = 30


class MapInfo(NamedTuple):
    """What the kernel says of a map; the BTF ids are 0 where it has none."""

    type: int
    id: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int
    name: str
    btf_id: int
    btf_key: int
    btf_value: int


class ProgramRefusedError(OSError):
    """The verifier refused a program. `log` is its last word, `steps` what it walked up to there."""

    def __init__(self, number: int, name: str, log: str, steps: str) -> None:
        super().__init__(number, f"BPF_PROG_LOAD of {name}: {os.strerror(number)}")
        self.log = log
        self.steps = steps


def _call(command: Command, attr: ctypes.Array[ctypes.c_char], about: str) -> int:
    number = _SYSCALL_NUMBERS.get(platform.machine())
    if number is None:
        raise PlatformError(f"the number of bpf(2) on {platform.machine()!r} is not known to fusebpf")
    while True:
        result = int(_libc.syscall(number, int(command), attr, _ATTR_BYTES))
        if result >= 0:
            return result
        error = ctypes.get_errno()
        # kernel/bpf/verifier.c: do_check: a pending signal ends a verification with EAGAIN.
        if error == errno.EINTR or (error == errno.EAGAIN and command == Command.PROG_LOAD):
            continue
        raise OSError(error, f"BPF_{command.name} of {about}: {os.strerror(error)}")


def _attr(layout: str, *values: int | bytes) -> ctypes.Array[ctypes.c_char]:
    """A union bpf_attr whose members are laid out as `layout` says, zero behind them."""
    return ctypes.create_string_buffer(struct.pack(layout, *values), _ATTR_BYTES)


def _address(buffer: ctypes.Array[ctypes.c_char] | None) -> int:
    return ctypes.addressof(buffer) if buffer is not None else 0


def _input(data: bytes) -> ctypes.Array[ctypes.c_char]:
    return ctypes.create_string_buffer(data, max(len(data), 1))


def object_name(text: str) -> bytes:
    """A name as the kernel takes it: at most 15 bytes of letters, digits, `_` and `.`."""
    return "".join(c if c.isascii() and (c.isalnum() or c in "_.") else "_" for c in text)[:15].encode()


# ----------------------------------------------------------------------------------------- maps


def map_create(
    map_type: int,
    key_size: int,
    value_size: int,
    max_entries: int,
    *,
    name: str,
    flags: int = 0,
    btf: tuple[int, int, int] = (0, 0, 0),
    inner: int = 0,
) -> int:
    """Create a map; returns its descriptor.

    `btf` is a descriptor of loaded BTF, the type id of the key and that of the value; zeros for none. `inner`
    is the descriptor of a map like those that a map of maps will hold.
    """
    attr = _attr(
        "IIIIIII16sIIII",
        map_type,
        key_size,
        value_size,
        max_entries,
        flags,
        inner,
        0,
        object_name(name),
        0,
        *btf,
    )
    return _call(Command.MAP_CREATE, attr, f"map {name}")


def map_lookup(fd: int, key: bytes, value_size: int) -> bytes | None:
    """The value of a key, None if it is not in the map."""
    key_buffer, value = _input(key), ctypes.create_string_buffer(value_size)
    attr = _attr("IxxxxQQQ", fd, _address(key_buffer), _address(value), 0)
    try:
        _call(Command.MAP_LOOKUP_ELEM, attr, "a map's element")
    except FileNotFoundError:
        return None
    return value.raw


def map_update(fd: int, key: bytes, value: bytes) -> None:
    """Set the value of a key."""
    key_buffer, value_buffer = _input(key), _input(value)
    attr = _attr("IxxxxQQQ", fd, _address(key_buffer), _address(value_buffer), 0)
    _call(Command.MAP_UPDATE_ELEM, attr, "a map's element")


def array_fill(fd: int, values: Sequence[bytes]) -> None:
    """Set the first elements of an array, in one call where the kernel can.

    Into a map of maps each call waits for an RCU grace period, some 10 ms.

    Source: kernel/bpf/syscall.c: maybe_wait_bpf_programs.
    """
    keys = [index.to_bytes(4, "little") for index in range(len(values))]
    key_buffer, value_buffer = _input(b"".join(keys)), _input(b"".join(values))
    attr = _attr("QQQQIIQQ", 0, 0, _address(key_buffer), _address(value_buffer), len(keys), fd, 0, 0)
    try:
        _call(Command.MAP_UPDATE_BATCH, attr, "an array's elements")
    except OSError:
        for key, value in zip(keys, values, strict=True):
            map_update(fd, key, value)


def map_delete(fd: int, key: bytes) -> None:
    """Take a key out; no error if it is not there."""
    key_buffer = _input(key)
    attr = _attr("IxxxxQQQ", fd, _address(key_buffer), 0, 0)
    with contextlib.suppress(FileNotFoundError):
        _call(Command.MAP_DELETE_ELEM, attr, "a map's element")


def map_keys(fd: int, key_size: int) -> Iterator[bytes]:
    """The keys of a map; one that changes meanwhile may show some twice or not at all."""
    key: ctypes.Array[ctypes.c_char] | None = None
    while True:
        following = ctypes.create_string_buffer(key_size)
        attr = _attr("IxxxxQQQ", fd, _address(key), _address(following), 0)
        try:
            _call(Command.MAP_GET_NEXT_KEY, attr, "a map")
        except FileNotFoundError:
            return
        yield following.raw
        key = following


def map_info(fd: int) -> MapInfo:
    """What the kernel says of a map."""
    raw = _info(fd, 88, "a map")
    kind, number, key_size, value_size, max_entries, flags, name = struct.unpack_from("6I16s", raw)
    btf_id, btf_key, btf_value = struct.unpack_from("3I", raw, 64)
    text = name.rstrip(b"\0").decode()
    return MapInfo(kind, number, key_size, value_size, max_entries, flags, text, btf_id, btf_key, btf_value)


def is_map(fd: int) -> bool:
    """Whether a descriptor is a map's."""
    return "map_type:" in Path(f"/proc/self/fdinfo/{fd}").read_text()


# ------------------------------------------------------------------------------------- programs


def prog_load(code: bytes, name: str) -> int:
    """Load and verify instructions as a sleepable SYSCALL program.

    Returns:
        The program's descriptor.

    Raises:
        ProgramRefusedError: The verifier says no.
        OSError: It did not come to that.
    """
    try:
        return _prog_load(code, name, 0, None)
    except OSError as refusal:
        if refusal.errno in SHORTAGES:
            raise
        last = _refusal_log(code, name, _LOG_LEVEL_STATS, "")
        if not last:
            raise
        number = refusal.errno or errno.EINVAL
        steps = _refusal_log(code, name, _LOG_LEVEL_STEPS, last.splitlines()[0])
        raise ProgramRefusedError(number, name, last, steps) from None


def joined_load(code: bytes, name: str, btf_fd: int, functions: bytes) -> int:
    """Load instructions that call functions of their own; no log is kept of a refusal.

    Args:
        code: The main program and, behind it, the functions.
        name: For bpftool.
        btf_fd: Loaded BTF that has the functions' types.
        functions: Of each the index of its first instruction and its type id, u32 (struct bpf_func_info).

    Returns:
        The program's descriptor.

    Raises:
        OSError: The verifier says no, or it did not come to that.

    Source: linux/bpf.h: union bpf_attr.
    """
    instructions, licence, infos = _input(code), _input(_LICENSE + b"\0"), _input(functions)
    attr = _attr(
        "IIQQIIQII16sIIIIQI",
        _PROG_TYPE_SYSCALL,
        len(code) // 8,
        _address(instructions),
        _address(licence),
        0,
        0,
        0,
        0,
        F_SLEEPABLE,
        object_name(name),
        0,
        0,
        btf_fd,
        8,
        _address(infos),
        len(functions) // 8,
    )
    return _call(Command.PROG_LOAD, attr, f"program {name}")


def _refusal_log(code: bytes, name: str, level: int, awaited: str) -> str:
    """The log of a load that fails, as far as the line that is awaited.

    One that is too long for its buffer loses its start; before Linux 6.4 its end, and a larger one is tried.
    """
    text = ""
    for size in _LOG_SIZES:
        log = ctypes.create_string_buffer(size)
        try:
            os.close(_prog_load(code, name, level, log))
        except OSError as error:
            text = log.value.decode(errors="replace")
            if error.errno != errno.ENOSPC or (awaited and awaited in text):
                break
    return text


def _prog_load(
    code: bytes,
    name: str,
    level: int,
    log: ctypes.Array[ctypes.c_char] | None,
    kind: int = _PROG_TYPE_SYSCALL,
) -> int:
    instructions, licence = _input(code), _input(_LICENSE + b"\0")
    attr = _attr(
        "IIQQIIQII16s",
        kind,
        len(code) // 8,
        _address(instructions),
        _address(licence),
        level,
        len(log) if log is not None else 0,
        _address(log),
        0,
        F_SLEEPABLE if kind == _PROG_TYPE_SYSCALL else 0,
        object_name(name),
    )
    return _call(Command.PROG_LOAD, attr, f"program {name}")


def prog_run(fd: int, ctx: bytes) -> tuple[int, bytes]:
    """Run a SYSCALL program once.

    Returns:
        Its return value, and the context as the program left it.
    """
    context = _input(ctx) if ctx else None
    attr = _attr("IIIIQQIIIIQQIII", fd, 0, 0, 0, 0, 0, 0, 0, len(ctx), 0, _address(context), 0, 0, 0, 0)
    _call(Command.PROG_RUN, attr, "a program")
    (returned,) = struct.unpack_from("i", attr.raw, 4)
    return returned, context.raw[: len(ctx)] if context is not None else b""


def tracepoint_load(code: bytes, name: str) -> int:
    """Load and verify instructions as a program for a raw tracepoint; returns its descriptor."""
    return _prog_load(code, name, 0, None, _PROG_TYPE_RAW_TRACEPOINT)


def tracepoint_open(program: int, tracepoint: str) -> int:
    """Run a program at each hit of a tracepoint, until the descriptor that is returned is closed."""
    name = _input(tracepoint.encode() + b"\0")
    return _call(Command.RAW_TRACEPOINT_OPEN, _attr("QI", _address(name), program), f"{tracepoint!r}")


# ------------------------------------------------------------------------------------------ BTF


def btf_load(raw: bytes) -> int:
    """Give BTF to the kernel; returns its descriptor, which the maps that are created with it keep alive."""
    data = _input(raw)
    return _call(Command.BTF_LOAD, _attr("QQIII", _address(data), 0, len(raw), 0, 0), "type information")


def btf_raw(btf_id: int) -> bytes:
    """The bytes of loaded BTF, by its id."""
    fd = _call(Command.BTF_GET_FD_BY_ID, _attr("III", btf_id, 0, 0), f"type information {btf_id}")
    try:
        (_, size) = struct.unpack_from("QI", _info(fd, 32, "type information"))
        if size > _BTF_MAX_BYTES:
            raise OSError(errno.EFBIG, f"type information {btf_id} is of {size} bytes")
        data = ctypes.create_string_buffer(size)
        _info(fd, 32, "type information", struct.pack("QI", _address(data), size))
        return data.raw
    finally:
        os.close(fd)


# ------------------------------------------------------------------------------- objects and pins


def _info(fd: int, size: int, about: str, filled: bytes = b"") -> bytes:
    info = ctypes.create_string_buffer(filled, size)
    _call(Command.OBJ_GET_INFO_BY_FD, _attr("IIQ", fd, size, _address(info)), about)
    return info.raw


def obj_pin(fd: int, path: Path) -> None:
    """Pin a map or program to a path on a BPF file system that does not exist yet."""
    name = _input(os.fsencode(path) + b"\0")
    _call(Command.OBJ_PIN, _attr("QII", _address(name), fd, 0), f"{path}")


def obj_get(path: Path) -> int:
    """The descriptor of what is pinned at a path."""
    name = _input(os.fsencode(path) + b"\0")
    return _call(Command.OBJ_GET, _attr("QII", _address(name), 0, 0), f"{path}")


def ensure_bpffs() -> Path:
    """Mount the BPF file system at /sys/fs/bpf if it is not there; returns that path.

    Raises:
        PlatformError: It cannot be mounted.
    """
    if not _is_bpffs(BPFFS) and _libc.mount(b"bpf", bytes(BPFFS), b"bpf", 0b1110, b"mode=0700") != 0:
        reason = os.strerror(ctypes.get_errno())
        if not _is_bpffs(BPFFS):  # another process may have been quicker
            raise PlatformError(f"the BPF file system cannot be mounted at {BPFFS}: {reason}; run as root")
    return BPFFS


def _is_bpffs(path: Path) -> bool:
    """Whether it is mounted there, and not below what was mounted over it or over a parent since."""
    kind, device = "", None
    for line in Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines():
        fields, _, rest = line.partition(" - ")
        if fields.split()[4] == str(path):
            kind, device = rest.split()[0], fields.split()[2]
    if kind != "bpf":
        return False
    try:
        here = path.stat().st_dev
    except FileNotFoundError:
        return False
    return f"{os.major(here)}:{os.minor(here)}" == device


def require() -> None:
    """Make sure that this machine loads and runs SYSCALL programs, by doing it.

    Raises:
        PlatformError: It does not, and why.
    """
    leave = bytes.fromhex("b700000000000000 9500000000000000")  # r0 = 0; exit
    try:
        fd = _prog_load(leave, "fusebpf_probe", 0, None)
    except OSError as error:
        advice = {
            errno.EPERM: "run as root (CAP_BPF and CAP_SYS_ADMIN), on a kernel that is not locked down",
            errno.ENOSYS: "this kernel is built without bpf(2)",
            errno.EINVAL: "this kernel has no sleepable SYSCALL programs (they came with Linux 5.14)",
        }.get(error.errno or 0, "see bpf(2)")
        raise PlatformError(f"BPF programs cannot be loaded here: {error.strerror}: {advice}") from None
    try:
        prog_run(fd, b"")
    except OSError as error:
        raise PlatformError(f"BPF programs cannot be run here: {error.strerror}") from None
    finally:
        os.close(fd)
