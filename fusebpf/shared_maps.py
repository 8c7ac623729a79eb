"""The maps that all filters of a mount share: slots, windows, hooks, rings, `stats`, `recent`, `filters`."""

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Self

from fusebpf import _core, bpf
from fusebpf.bpf import MapType
from fusebpf.btf import Btf, Kind
from fusebpf.compiler import Compiled, compile_header
from fusebpf.pins import close_all, hold, pin_all

_RING_BYTES = 4096
# A program that returns the number of the thread that runs it as hooks see it: in a PID namespace gettid(2)
# says another one.
_THREAD_NUMBER = bytes.fromhex("85000000 0e000000 95000000 00000000")  # bpf_get_current_pid_tgid, exit


class SharedMaps:
    """The maps that all filters of one mount share. It owns their descriptors."""

    def __init__(
        self, btf: Btf, *, slots: int, windows: int, hooks: int, stats: int, recent: int, filters: int
    ) -> None:
        self._btf = btf
        self.slots = slots
        self.windows = windows
        self.hooks = hooks
        self.stats = stats
        self.recent = recent
        self.filters = filters
        self.rings_map = -1
        self.rings: list[int] = []
        self.thread = -1
        self._is_open = True

    @classmethod
    def create(cls, n_rings: int = _core.SIZES["max_workers"], types: Compiled | None = None) -> Self:
        """Make them, `n_rings` for the threads that will run hooks.

        `types` is any compiled file; it saves compiling the bare header for the types, about 0.6 s.

        Raises:
            PlatformError: There is no bcc, or no BPF.
            OSError: The kernel made no map.
        """
        types = types or compile_header()
        sizes = _core.SIZES
        with contextlib.ExitStack() as undo:
            btf_fd = bpf.btf_load(types.btf)
            try:

                def make(name: str, n: int, flags: int = 0) -> int:
                    like = types.maps[name]
                    btf = (btf_fd, like.btf_key, like.btf_value)
                    shape = (like.type, like.key_size, like.value_size, n)
                    return hold(undo, bpf.map_create(*shape, name=name, flags=flags, btf=btf))

                slots = make("fb_slots", sizes["n_slots"], bpf.F_MMAPABLE)
                windows = make("fb_windows", sizes["n_windows"], bpf.F_MMAPABLE)
                hooks = make("fb_hooks", sizes["n_places"], bpf.F_MMAPABLE)
                stats = make("fb_stats", sizes["n_stats"])
                recent = make("fb_recent", sizes["n_recent"], bpf.F_MMAPABLE)
                filters = make("fb_filters", sizes["max_filters"])
            finally:
                os.close(btf_fd)
            ring = (MapType.RINGBUF, 0, 0, _RING_BYTES)
            rings = [hold(undo, bpf.map_create(*ring, name=f"fb_ring{index}")) for index in range(n_rings)]
            shape = (MapType.ARRAY_OF_MAPS, 4, 4, n_rings)
            rings_map = hold(undo, bpf.map_create(*shape, name="fb_rings", inner=rings[0]))
            bpf.array_fill(rings_map, [fd.to_bytes(4, "little") for fd in rings])
            thread = hold(undo, bpf.prog_load(_THREAD_NUMBER, "fb_thread"))
            own = {"slots": slots, "windows": windows, "hooks": hooks, "stats": stats}
            made = cls(Btf(types.btf), **own, recent=recent, filters=filters)
            undo.pop_all()
        made.rings_map, made.rings, made.thread = rings_map, rings, thread
        return made

    def by_name(self) -> dict[str, int]:
        """Descriptors by the names that filters know the maps by."""
        return {
            "fb_slots": self.slots,
            "fb_windows": self.windows,
            "fb_hooks": self.hooks,
            "fb_stats": self.stats,
            "fb_recent": self.recent,
            "fb_filters": self.filters,
            "fb_rings": self.rings_map,
        }

    def give_to(self, core: _core.Mount) -> None:
        """Let the core of the mount use them, by descriptors of its own.

        Raises:
            OSError: One could not be mapped.
        """
        core.share(
            slots=self.slots,
            windows=self.windows,
            hooks=self.hooks,
            stats=self.stats,
            recent=self.recent,
            thread=self.thread,
            rings=self.rings,
        )

    def describe_chain(self, rows: Iterable[tuple[int, str, int, int]]) -> None:
        """Fill the map `filters` with (id, name, altitude, wants) of a chain; other ids are emptied."""
        info = self._btf.find(Kind.STRUCT, "fb_filter_info")
        elements = [self._btf.pack(info, {})] * _core.SIZES["max_filters"]
        for number, name, altitude, wants in rows:
            elements[number] = self._btf.pack(info, {"name": name, "altitude": altitude, "wants": wants})
        bpf.array_fill(self.filters, elements)

    def pin(self, directory: Path) -> None:
        """Pin slots, stats, recent and filters in a directory, which is made.

        Raises:
            MountError: Something could not be pinned; nothing is.
        """
        names = ("slots", "stats", "recent", "filters")
        pin_all(directory, [(name, getattr(self, name)) for name in names])

    def close(self) -> None:
        """Give the descriptors back; pins and filters keep what they need."""
        if self._is_open:
            self._is_open = False
            close_all({*self.by_name().values(), *self.rings, self.thread})

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
