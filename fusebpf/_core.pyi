"""The native engine. Built from fusebpf/_core/*.c; never calls back into Python."""

from collections.abc import Sequence
from typing import Any

ABI_VERSION: int
"""major << 16 | minor of bpf/fusebpf.h."""

OPS: tuple[tuple[str, int, int, int, str, str], ...]
"""The op table, a row (name, opcode, n_names, flags, kind, of): kind is "hook", "alias" (of another op) or
"plain"."""

OP_FLAGS: dict[str, int]
"""The bits of a row's flags: enum fb_op_flags, {"ENTRY": 1, …, "POST_ONLY": 1024, …}."""

WANTS: dict[str, int]
"""The bits of a filter's `wants`: enum fb_wants, {"PATH": 1, …}."""

VERDICTS: dict[int, str]
"""What hooks say, by number: enum fb_verdict, {0: "continue", 0xf1: "backing", …}."""

ARGS: dict[str, str]
"""Which member of `args` of struct fb_slot each op has: {"open": "open", "lookup": "nothing", …}."""

SIZES: dict[str, int]
"""Of the ABI, as the C compiler has it: sizes in bytes (slot, window, hook, record, verdict_record, stat_key,
stat, filter_info, declaration, daemon_call), counts (n_slots, n_windows, n_recent, n_stats, n_patterns,
n_places, n_tries, next_place, max_filters, max_roots, max_workers), and where members lie, in bytes
(hook_slot_at, hook_filter_at, hook_thread_at, slot_filter_at)."""

CALL_FIELDS: dict[str, tuple[int, int]]
"""Where in a daemon's call its names, arguments and results lie: offset and size, in bytes."""

class Mount:
    """One mount: the FUSE connection, its inodes and its worker threads. Nothing is mounted before
    `start`."""

    def __init__(
        self,
        root_fd: int,
        mountpoint: str,
        *,
        source: str,
        flags: int = 0,
        allow_other: bool = True,
        default_permissions: bool = True,
        max_read: int = 0,
        passthrough: bool = True,
        max_workers: int = 64,
        ttl_ns: int = 1_000_000_000,
        backing_locks: bool = True,
        watch: bool = False,
        transport: str = "auto",
        max_descriptors: int = 0,
        one_file_system: bool = False,
        idmap: bool = False,
        small: bool = False,
        idle: str = "auto",
        more_roots: Sequence[int] = (),
    ) -> None:
        """Prepare a mount of the directory `root_fd` (duplicated, so the caller may close its own).

        Args:
            mountpoint: Where it is to be mounted.
            source: What mount(8) shows as the device.
            flags: MS_… of mount(2).
            allow_other: Others than root may use it.
            default_permissions: The kernel judges permissions; False: the backing file system does.
            max_read: The largest read that the kernel asks for, in bytes; 0: it decides.
            passthrough: Data of files that no filter hooks goes by the kernel alone, where it can.
            max_workers: How many threads may serve, 1 to 64.
            ttl_ns: How long the kernel may cache entries and attributes that no filter hooks, in nanoseconds.
            backing_locks: Locks of ranges are held on the backing files; False: the kernel keeps them for
                this mount alone. flock(2)'s always come to the mount.
            watch: The kernel caches without end what no filter hooks; fanotify tells what changed behind
                the mount.
            transport: "dev": /dev/fuse; "uring": FUSE over io_uring; "auto": that where it can be had.
            max_descriptors: How many descriptors of inodes are kept open; 0: half of RLIMIT_NOFILE.
            one_file_system: What is mounted below the backing root is not shown.
            idmap: The mount may be cloned with mapped ids; callers' ids are seen by ops that create alone.
            small: The kernel sends no opens of files; their pages are kept as long as their attributes hold.
            idle: "poll": while requests come in numbers idle cores stay awake and serve those of others;
                "leave": not; "auto": in a virtual machine that may, of 8 cores at most.
            more_roots: The backing roots from 1 on, open directories (duplicated); root_fd is 0.

        Raises:
            OSError: root_fd is no directory, a number is out of range, or memory is short.
        """

    def share(
        self,
        *,
        slots: int,
        windows: int,
        hooks: int,
        stats: int,
        recent: int,
        thread: int,
        rings: Sequence[int],
    ) -> None:
        """Take the descriptors of the maps that all filters share (duplicated), and of a program that returns
        the number of the thread that runs it; slots, windows, hooks, recent and the rings get mapped.

        Raises:
            OSError: a map could not be mapped.
        """

    def set_chain(
        self,
        filters: Sequence[tuple[int, str, int, int, Sequence[tuple[int, int, int]]]],
        *,
        keep_open_files: bool = False,
    ) -> int:
        """Publish a chain: (id, name, altitude, wants, ((opcode, phase, program descriptor), …)) of each
        filter. With `keep_open_files` a file that is passed through can be opened anew, and goes on so.

        Descriptors are duplicated. Returns the new chain's revision.

        Raises:
            ValueError: ids or altitudes clash, or there are more than `max_filters`.
            OSError: hooks without `share`, or memory is short.
        """

    def join(self, revision: int, opcode: int, phase: int, first: int, n: int, program: int) -> bool:
        """Have the n hooks of an op from the first-th on asked by one program (`fusebpf.joining` makes it).

        Returns whether that is so: the chain has still that revision, and the hooks can be joined. The
        descriptor is duplicated.
        """

    def rehearse(
        self, slot: bytes, *, error: int = 0, skips: int = 0, data: bytes | None = None
    ) -> dict[str, Any]:
        """Run the chain on a described op, where nothing is mounted: `fusebpf.testing` does it.

        Args:
            slot: A struct fb_slot: the op before it runs, and in `result` and `text` what the
                backing root would answer.
            error: The errno that it would answer.
            skips: 1: no pre hooks; 2: no post hooks.
            data: The payload, at most 1 MiB: what is to be written, or what the backing root would answer.

        Returns:
            slot (the op as it would be done and answered), data (likewise), error, route, is_listed (dirent),
            edits, decider, and pre_ran, pre_edited, post_ran, post_edited, no_post: bits by filter id.

        Raises:
            OSError: It is no slot, no op that filters see, or the mount is started.
        """

    def drain(self, revision: int, timeout_ms: int) -> int:
        """Wait until no op uses a chain older than `revision`, at most so many milliseconds; how many still
        do."""

    def oldest_revision(self) -> int:
        """The oldest revision that an op may still use; 0 if there was never a chain."""

    def passed_through(self) -> list[tuple[int, int, bytes]]:
        """The inodes whose data the kernel reads and writes alone now: (nodeid, open files, path or b"")."""

    def set_callers(self, callers: int, /) -> None:
        """Take the map in which callers are noted (duplicated), for filters that want them. Once.

        Raises:
            OSError: It was done before, or that is no descriptor.
        """

    def start(self) -> None:
        """Open /dev/fuse, mount, answer INIT, start the workers; returns when the mount is usable.

        Raises:
            OSError: with the failing call in `strerror`; nothing stays mounted.
        """

    def stop(self) -> None:
        """End the workers (ops in flight finish), close the connection, free everything. Idempotent. Does
        not unmount."""

    def invalidate(self, timeout_ms: int, by_filters: bool = False, /) -> bool:
        """Make the kernel ask anew for all entries, attributes and pages that it has cached, or with
        `by_filters` only if filters have let it keep something; False if it had not heeded that within so
        many milliseconds."""

    def daemon_start(
        self, routes: bytes, timeout_ms: int, falls_back: bool, /
    ) -> tuple[int, int, memoryview]:
        """Make the daemon's leg, before `start`.

        Args:
            routes: For each opcode: 1 the daemon answers it, 2 it sees its result, 4 it defines it; or-ed.
            timeout_ms: How long a call may take.
            falls_back: Ops of a daemon that has ended go to the backing root.

        Returns:
            pyfuse3's descriptor (the caller's), an eventfd (the mount's) that says that `daemon_next` has
            some, and the table of calls: 1,024 of SIZES["daemon_call"] bytes, valid as long as the mount is.

        Raises:
            OSError: There is a leg already, the mount is started, or memory or descriptors are short.
        """

    def daemon_end(self) -> None:
        """The daemon has ended: what waits for it fails with ENOTCONN."""

    def daemon_next(self) -> int:
        """The next event, kind << 32 | token: 1 look at a result, 2 cancel a call; 0: there is none."""

    def daemon_spin(self, fd: int, /) -> bool:
        """Look for a request at pyfuse3's descriptor for a moment, where that was worth it of late."""

    def daemon_finish(self, token: int, /) -> bool:
        """The look at a result has ended; False: nobody waits for it any more."""

    def daemon_backing(self, number: int, /) -> int:
        """A new descriptor of the backing file of an inode or handle of ours.

        Raises:
            OSError: There is none (EBADF), or it is gone.
        """

    def daemon_hold(self, token: int, parent: int, name: bytes, /) -> int:
        """The number of an entry of the backing root; valid while the call lasts.

        Raises:
            OSError: There is no such entry, or no such call.
        """

    def fileno(self) -> int:
        """An eventfd that becomes readable when the connection has ended (unmounted, aborted, or a worker
        failed)."""

    def log_fileno(self) -> int:
        """The read end of a pipe with the core's log: text lines "LEVEL message", e.g. a hook that was
        failed closed."""

    def counters(self) -> dict[str, int]:
        """inodes, descriptors, handles, workers, slots_in_use, requests, failed_closed, passthrough (1 if
        negotiated), …"""
