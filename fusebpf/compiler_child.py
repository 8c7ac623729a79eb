"""The process that compiles: bcc's library and with it LLVM are loaded here and nowhere else.

It reads one job from standard input, hands the result back on what was standard output, and leaves the
compiler's messages on standard error. Of bcc only the library is needed, not the Python package. It ends with
its parent.
"""

import base64
import ctypes
import json
import os
import resource
import signal
import struct
import sys
from typing import Any

from fusebpf import bpf

EXIT_COMPILE = 3
"""The compiler refused the text."""
EXIT_PLATFORM = 4
"""The library is missing or unusable; the reason is on standard error."""

DEBUG_TEXT = 4
"""bcc's flag that writes the text as it rewrote it to standard error."""
DEBUG_SOURCE = 8
"""bcc's flag that writes each function's instructions with their source lines to standard error."""

_LIBRARY = "libbcc.so.0"
# How the dynamic linker says it: glibc, elf/dl-load.c.
_SHORT_OF_MEMORY = ("failed to map segment", "cannot allocate memory", "Cannot allocate memory")
_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Do one job and leave without running anything else of this process."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    job = json.load(sys.stdin)
    if os.getppid() != job["parent"]:
        os._exit(EXIT_PLATFORM)
    result = os.dup(1)
    os.dup2(2, 1)  # whatever the library prints is a message
    answer = json.dumps(_compile(job["text"], job["flags"], job["debug"])).encode()
    with os.fdopen(result, "wb") as pipe:
        pipe.write(answer)
    os._exit(0)


def _compile(text: str, flags: list[str], debug: int) -> dict[str, Any]:
    library = _load_library()
    raw_flags = (ctypes.c_char_p * len(flags))(*(os.fsencode(flag) for flag in flags))
    module = library.bpf_module_create_c_from_string(text.encode(), debug, raw_flags, len(flags), True, None)
    if not module:
        os._exit(EXIT_COMPILE)
    maps, by_fd, btf_id = [], {}, 0
    for index in range(library.bpf_num_tables(module)):
        name = library.bpf_table_name(module, index).decode()
        fd = library.bpf_table_fd_id(module, index)
        info = bpf.map_info(fd)
        by_fd[fd] = name
        btf_id = btf_id or info.btf_id
        sizes = [info.key_size, info.value_size, info.max_entries, info.flags, info.btf_key, info.btf_value]
        maps.append([name, info.type, *sizes])
    functions = {}
    for index in range(library.bpf_num_functions(module)):
        raw_name = library.bpf_function_name(module, index)
        start = library.bpf_function_start(module, raw_name)
        code = ctypes.string_at(start, library.bpf_function_size(module, raw_name))
        plain, uses = _take_out_maps(code, by_fd)
        functions[raw_name.decode()] = [base64.b64encode(plain).decode(), uses]
    btf = bpf.btf_raw(btf_id) if btf_id else b""
    return {"functions": functions, "maps": maps, "btf": base64.b64encode(btf).decode()}


def _take_out_maps(code: bytes, by_fd: dict[int, str]) -> tuple[bytes, list[tuple[int, str]]]:
    """The code with zeros for this process's descriptors, and which instruction wants which map."""
    plain, uses, position = bytearray(code), [], 0
    while position < len(code):
        opcode, registers, _, immediate = struct.unpack_from("<BBhi", code, position)
        is_wide = opcode == bpf.LD_IMM64
        if is_wide and registers >> 4 == bpf.PSEUDO_MAP_FD:
            uses.append((position // 8, by_fd[immediate]))
            struct.pack_into("<i", plain, position + 4, 0)
        position += 16 if is_wide else 8
    return bytes(plain), uses


def _load_library() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(_LIBRARY)
    except OSError as error:
        is_limited = resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY
        is_short = is_limited and any(text in str(error) for text in _SHORT_OF_MEMORY)
        what = "there is no memory for bcc" if is_short else "bcc is missing"
        remedy = "ulimit -v says how much there may be" if is_short else "install python3-bpfcc"
        print(f"{what} ({error}): {remedy}", file=sys.stderr)
        os._exit(EXIT_PLATFORM)
    module, index, name = ctypes.c_void_p, ctypes.c_ulonglong, ctypes.c_char_p
    signatures: dict[str, tuple[Any, list[Any]]] = {
        "bpf_module_create_c_from_string": (
            module,
            [name, ctypes.c_uint, ctypes.POINTER(name), ctypes.c_int, ctypes.c_bool, name],
        ),
        "bpf_num_functions": (index, [module]),
        "bpf_function_name": (name, [module, index]),
        "bpf_function_start": (ctypes.c_void_p, [module, name]),
        "bpf_function_size": (ctypes.c_size_t, [module, name]),
        "bpf_num_tables": (index, [module]),
        "bpf_table_name": (name, [module, index]),
        "bpf_table_fd_id": (ctypes.c_int, [module, index]),
    }
    for function, (result, arguments) in signatures.items():
        getattr(library, function).restype = result
        getattr(library, function).argtypes = arguments
    return library
