"""A directory tree, mounted through a stack of eBPF filters.

General layout, from the user down to the kernel:

    cli, cli_numbers, mounthelper   the commands, and what mount(8) calls
    server, unmounting  a mount's background process, and how mounts are ended
    live_commands, watch_commands, control  the commands for a mount that works; the socket that they ask
    stack, steps        Stack: one mount, from its checks to its end
    daemon, daemon_leg  the user's pyfuse3.Operations behind a mount, and how it is reached
    daemon_calls, daemon_types   the table of calls that it shares with the core; what handlers get and give
    daemon_tasks, daemon_routes  the tasks in which its handlers run; which ops they may be asked about
    daemon_import       a daemon by its name
    live_chain, map_view, watching          its chain while it changes; its maps; its counts and records
    keeping, callers    what a replaced filter's maps keep; who calls
    joining             hooks that stand one after another become one program
    slot_pointers       which of them add to the slot
    options, chain, arguments   what the user asked for: -o, --filter, --set; what a program gave
    checks, registry    what must hold before; which mounts there are, and what dead ones left
    testing, slot, new  unit tests for filters without a mount; a filter to begin with
    loader, compiler    C source to loaded filters and maps
    compiler_child, kernel_stub, loops, compile_cache, refusal  its process; why the verifier said no
    policy_map, btf     the content of maps and its types; set_text; shared_maps, pins
    mounts, bpf         mount(2) and its table; bpf(2)
    _core               the native engine: the FUSE protocol and the way of one operation
"""

from typing import TYPE_CHECKING, Any

from fusebpf.errors import (
    ChainError,
    CompileError,
    FilterError,
    FusebpfError,
    MapValueError,
    MountError,
    NoSuchElement,
    NoSuchFilter,
    PlatformError,
    RevisionError,
    UnknownHook,
    UsageError,
    VerifierError,
)

if TYPE_CHECKING:
    from fusebpf.chain import FilterSpec
    from fusebpf.daemon import Backing, Continue, Daemon, FileInfo, Request, Result
    from fusebpf.options import MountOptions
    from fusebpf.stack import Stack, Statistic
    from fusebpf.watching import Event

    __version__: str

__all__ = [
    "Backing",
    "ChainError",
    "CompileError",
    "Continue",
    "Daemon",
    "Event",
    "FileInfo",
    "FilterError",
    "FilterSpec",
    "FusebpfError",
    "MapValueError",
    "MountError",
    "MountOptions",
    "NoSuchElement",
    "NoSuchFilter",
    "PlatformError",
    "Request",
    "Result",
    "RevisionError",
    "Stack",
    "Statistic",
    "UnknownHook",
    "UsageError",
    "VerifierError",
    "__version__",
]

_HOMES = {
    "Backing": "fusebpf.daemon",
    "Continue": "fusebpf.daemon",
    "Daemon": "fusebpf.daemon",
    "FileInfo": "fusebpf.daemon",
    "Request": "fusebpf.daemon",
    "Result": "fusebpf.daemon",
    "Event": "fusebpf.watching",
    "FilterSpec": "fusebpf.chain",
    "MountOptions": "fusebpf.options",
    "Stack": "fusebpf.stack",
    "Statistic": "fusebpf.stack",
}


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    """Import the larger parts when they are first used: the compiler's process needs none of them.

    It is asked for each module of ours, too, that is imported from here, so what takes time is imported last.
    """
    if name in _HOMES:
        import importlib  # noqa: PLC0415

        return getattr(importlib.import_module(_HOMES[name]), name)
    if name == "__version__":
        from importlib.metadata import version  # noqa: PLC0415

        return version("fusebpf")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
