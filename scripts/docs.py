"""Writes the generated blocks of docs/: `make docs`. With --check: says which are stale, and ends with 1.

A block stands between `<!-- NAME: written by make docs -->` and `<!-- NAME ends -->`; the op table comes from
`_core.OPS`, the table of edits from fusebpf/_core/verdict.c itself (see op_edits.c).
"""

# ruff: noqa: INP001 - a program, no package

import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from fusebpf._core import OP_FLAGS, OPS, SIZES
from fusebpf.watching import edit_names

CHECKOUT = Path(__file__).resolve().parent.parent
POST_ONLY, UNREFUSABLE = OP_FLAGS["POST_ONLY"], OP_FLAGS["UNREFUSABLE"]


class Told(NamedTuple):
    """What the table says of an op: what the mount does with it, and which test shows it."""

    does: str
    test: str = ""


HERE = "tests/docs/test_operations.py"
SEEN = "test_an_op_reaches_its_hooks"
WHAT = {
    "lookup": Told("name_to_handle_at(parent, name), statx; openat(O_PATH) where there are no handles"),
    "forget": Told("takes lookups back; the last one frees the inode", "test_forgotten_inodes_are_freed"),
    "getattr": Told("statx"),
    "setattr": Told("fchownat, truncate or ftruncate, chmod, utimensat, in this order; statx"),
    "readlink": Told("readlinkat"),
    "symlink": Told("symlinkat as the caller, lookup"),
    "mknod": Told("mknodat as the caller, lookup"),
    "mkdir": Told("mkdirat as the caller, lookup"),
    "unlink": Told("unlinkat"),
    "rmdir": Told("unlinkat(AT_REMOVEDIR)"),
    "rename": Told("renameat2 as the caller; the kernel sends it where there are no flags"),
    "link": Told("linkat, lookup"),
    "open": Told("open_by_handle_at, or by /proc/self/fd; passthrough where no hook needs the data"),
    "read": Told("pread; not sent for files that are passed through"),
    "write": Told("pwrite, pwritev2(RWF_APPEND) for appends; not sent for files that are passed through"),
    "statfs": Told("fstatfs"),
    "release": Told("closes the file"),
    "fsync": Told("fsync or fdatasync"),
    "setxattr": Told("setxattr"),
    "getxattr": Told("getxattr"),
    "listxattr": Told("listxattr"),
    "removexattr": Told("removexattr"),
    "flush": Told(
        "lets the closing process's locks go; on network file systems close of a duplicate, for its error"
    ),
    "init": Told("the handshake, once, before there are workers", "test_a_mount_speaks_the_kernels_protocol"),
    "opendir": Told("openat(O_DIRECTORY)"),
    "readdir": Told("getdents64"),
    "releasedir": Told("closes the directory"),
    "fsyncdir": Told("fsync or fdatasync"),
    "access": Told("faccessat; sent only with `-o nodefault_permissions`"),
    "getlk": Told(
        "fcntl(F_OFD_GETLK) on the owner's descriptor; with `--locks local` the kernel keeps to itself"
    ),
    "setlk": Told("fcntl(F_OFD_SETLK) on a descriptor of the owner's own, as `getlk`"),
    "setlkw": Told("the same; where it must wait, its thread steps out of the pool"),
    "flock": Told("flock on the handle's descriptor; SETLK or SETLKW with FUSE_LK_FLOCK"),
    "ioctl": Told("FS_IOC_GETFLAGS, SETFLAGS, FSGETXATTR, FSSETXATTR; else ENOTTY"),
    "poll": Told("poll of the backing file"),
    "fallocate": Told("fallocate"),
    "lseek": Told("lseek; sent for SEEK_DATA and SEEK_HOLE only"),
    "copy_file_range": Told(
        "copy_file_range, 64 MiB at most; EOPNOTSUPP where read or write is hooked: the kernel copies then"
    ),
    "tmpfile": Told("openat(O_TMPFILE) as the caller, statx"),
    "statx": Told(
        "statx; sent where the caller asks for the birth time; the hooks of getattr stand here too"
    ),
    "create": Told("openat(O_CREAT\\|O_EXCL) as the caller, statx; then as open"),
    "interrupt": Told(
        "ends the system call of the worker that serves the op; the op answers EINTR",
        "tests/core/test_pool.py::test_an_interrupted_client_returns_at_once",
    ),
    "destroy": Told("nothing: the connection's end frees what it held", "test_an_unmount_ends_the_server"),
    "batch_forget": Told(
        "forget, of many inodes at once",
        "tests/core/test_descriptors.py::test_many_inodes_are_forgotten_by_few_requests",
    ),
    "readdirplus": Told("getdents64, lookup of each entry, unless a filter hooks lookup and gives no ttl"),
    "rename2": Told("renameat2 with its flags, as the caller"),
    "dirent": Told("no request: the core asks for each entry of a listing, but not for . and .."),
}
"""One row for each op of bpf/fusebpf.h; an op that is missing here stops `make docs`."""

CUSE = "test_the_server_is_no_character_device"
PROTOCOL = "test_a_mount_speaks_the_kernels_protocol"
NO_DAX = "test_files_are_not_mapped_by_the_server"
# Opcode, name, what becomes of it, the test. Source: include/uapi/linux/fuse.h and who sends it in fs/fuse/.
OTHERS: dict[str, tuple[tuple[int, str, str, str], ...]] = {
    "absent": (
        (
            53,
            "COPY_FILE_RANGE_64",
            "gets ENOSYS once, remembers it for the life of the mount, and sends COPY_FILE_RANGE, see 47",
            "test_copy_file_range_copies",
        ),
    ),
    "unsent": (
        (37, "BMAP", "is for mounts of block devices (fuseblk)", "test_fibmap_finds_no_block"),
        (
            41,
            "NOTIFY_REPLY",
            "answers the NOTIFY_RETRIEVE of no bytes by which a new io_uring worker has its queue read",
            "test_nothing_is_retrieved_from_the_page_cache",
        ),
        (48, "SETUPMAPPING", "maps files of virtiofs (DAX)", NO_DAX),
        (49, "REMOVEMAPPING", "undoes it", NO_DAX),
        (50, "SYNCFS", "is sent to virtiofs and fuseblk alone: see below", "test_syncfs_succeeds"),
        (4096, "CUSE_INIT", "begins a character device on /dev/cuse", CUSE),
        (1048576, "CUSE_INIT_BSWAP_RESERVED", "is the same in the other byte order", CUSE),
        (436207616, "INIT_BSWAP_RESERVED", "is INIT in the other byte order", PROTOCOL),
    ),
}
"""The requests that the mount does not have, and those that the kernel does not send to it."""


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """Rows as a Markdown table."""
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in lines)


def shown_by(test: str) -> str:
    """A test by its path."""
    return f"`{test if '::' in test else f'{HERE}::{test}'}`"


def other_table(block: str, does: str) -> str:
    """Requests that are not served."""
    rows: list[tuple[str, ...]] = [
        (str(opcode), name, told, shown_by(test)) for opcode, name, told, test in OTHERS[block]
    ]
    return table(("no.", "request", does, "shown by"), rows)


def op_table() -> str:
    """The ops of the core, by number."""
    rows = []
    for name, opcode, n_names, flags, kind, of in sorted(OPS, key=lambda row: row[1]):
        told = WHAT[name]
        hook = {"plain": "none", "alias": f"as `{of}`"}.get(kind, f"`{name}`")
        phases = "" if kind != "hook" else "post" if flags & POST_ONLY else "pre, post"
        if flags & UNREFUSABLE and kind == "hook":
            phases += "; cannot be refused"
        names = str(n_names) if kind == "hook" else ""
        test = shown_by(told.test or f"{SEEN}[{name}]")
        rows.append((str(opcode), name.upper(), hook, phases, names, told.does, test))
    return table(("no.", "request", "hook", "phases", "names", "what the mount does", "shown by"), rows)


def masks() -> dict[str, tuple[int, int, int]]:
    """Which edits each op takes before it runs, with a reply in its stead, and after it ran."""
    with tempfile.TemporaryDirectory() as directory:
        program = Path(directory) / "op_edits"
        sources = (CHECKOUT / "scripts/op_edits.c", CHECKOUT / "fusebpf/_core/verdict.c")
        flags = ("-std=gnu11", "-D_GNU_SOURCE", f"-I{CHECKOUT}/bpf", f"-I{CHECKOUT}/fusebpf/_core")
        subprocess.run(["gcc", *flags, "-o", program, *sources], check=True)
        said = subprocess.run([program], check=True, capture_output=True, text=True).stdout
    rows = (line.split() for line in said.splitlines())
    return {name: (int(before, 16), int(reply, 16), int(after, 16)) for name, before, reply, after in rows}


def edit_table() -> str:
    """The edits of each op, by verdict.c's own word."""
    names = edit_names()

    def told(mask: int) -> str:
        return " ".join(name for bit, name in names.items() if mask & bit) or "—"

    flags = {name: row_flags for name, _, _, row_flags, _, _ in OPS}
    rows = []
    for name, (before, reply, after) in masks().items():
        can_reply = not flags[name] & (UNREFUSABLE | POST_ONLY)
        rows.append((f"`{name}`", told(before), told(reply) if can_reply else "—", told(after)))
    return table(("op", "pre, `FB_REWRITE`", "pre, `FB_REPLY`", "post, `FB_REWRITE`"), rows)


def limits() -> str:
    """The numbers of the ABI."""
    told = (
        ("filters in one chain", "max_filters", "FB_MAX_FILTERS"),
        ("backing roots of one mount", "max_roots", "FB_MAX_ROOTS"),
        ("threads that serve one mount at a time", "max_workers", "FB_MAX_WORKERS"),
        ("ops of one mount before filters at one time; more wait", "n_slots", "FB_N_SLOTS"),
        ("records that `recent` keeps", "n_recent", "FB_N_RECENT"),
        ("bytes of a payload that a hook sees at one time", "window", "FB_DATA_SIZE"),
        ("payloads of one mount before filters at one time; more wait", "n_windows", "FB_N_WINDOWS"),
        ("rows of `stats`", "n_stats", "FB_N_STATS"),
        ("places in a `struct fb_patterns`, of which the last stays empty", "n_patterns", "FB_N_PATTERNS"),
    )
    rows = [(what, f"{SIZES[key]:,}", f"`{name}`") for what, key, name in told]
    return table(("what", "at most", "name"), rows)


BLOCKS: dict[str, dict[str, Callable[[], str]]] = {
    "docs/operations.md": {
        "ops": op_table,
        "absent": lambda: other_table("absent", "what the kernel then does"),
        "unsent": lambda: other_table("unsent", "why"),
    },
    "docs/abi.md": {"edits": edit_table, "limits": limits},
}


def written(text: str, blocks: dict[str, Callable[[], str]]) -> str:
    """A file's text with its blocks as they should be.

    Raises:
        ValueError: A block's marks are not in the text.
    """
    for name, write in blocks.items():
        begin, end = f"<!-- {name}: written by make docs -->\n", f"<!-- {name} ends -->"
        head, mark, rest = text.partition(begin)
        _, end_mark, tail = rest.partition(end)
        if not (mark and end_mark):
            raise ValueError(f"the marks of the block {name!r} are missing")
        text = f"{head}{begin}\n{write()}\n\n{end}{tail}"
    return text


def main() -> int:
    """Write the blocks, or check them."""
    is_check = "--check" in sys.argv[1:]
    stale = []
    for name, blocks in BLOCKS.items():
        path = CHECKOUT / name
        old = path.read_text()
        new = written(old, blocks)
        if new != old:
            stale.append(name)
            if not is_check:
                path.write_text(new)
    for name in stale:
        print(f"docs: {name} {'is stale: make docs' if is_check else 'is written'}")
    return 1 if stale and is_check else 0


if __name__ == "__main__":
    sys.exit(main())
