"""What the maps of a mount tell those who watch: counts by hook and verdict, the records of finished ops.

Everything here reads maps, of this process or pinned; the server that writes them is not asked, and does not
wait.
"""

from __future__ import annotations

import contextlib
import itertools
import mmap
import os
import re
import struct
import weakref
from collections import deque
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import trio

from fusebpf import bpf
from fusebpf._core import OPS, SIZES, VERDICTS
from fusebpf.btf import Btf, Kind
from fusebpf.paths import bpf_dir

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

PHASES = ("pre", "post")

_OP_NAMES = {opcode: name for name, opcode, *_ in OPS}
_N_RECENT = SIZES["n_recent"]
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.001, 0.05


class Statistic(NamedTuple):
    """How often a hook of a filter gave a verdict."""

    filter: str
    phase: str
    op: str
    verdict: str
    times: int


def statistics(stats_fd: int, names: Mapping[int, str]) -> list[Statistic]:
    """The map `stats`, with the filters' names by id; sorted."""
    rows = []
    for key in bpf.map_keys(stats_fd, SIZES["stat_key"]):
        value = bpf.map_lookup(stats_fd, key, SIZES["stat"])
        if value is None:
            continue
        filter_id, phase, op, verdict = struct.unpack("=4I", key)
        rows.append(
            Statistic(
                names.get(filter_id, str(filter_id)),
                PHASES[phase],
                _OP_NAMES.get(op, str(op)),
                VERDICTS.get(verdict, str(verdict)),
                struct.unpack_from("=Q", value)[0],
            )
        )
    return sorted(rows)


def filter_names(filters_fd: int) -> dict[int, str]:
    """The map `filters`: names by id, of those that are attached."""
    names = {}
    size = SIZES["filter_info"]
    for number in range(SIZES["max_filters"]):
        value = bpf.map_lookup(filters_fd, number.to_bytes(4, "little"), size)
        if value and value[32:36] != bytes(4):  # the altitude
            names[number] = value[:32].rstrip(b"\0").decode()
    return names


def edit_names() -> dict[int, str]:
    """The bits of enum fb_edit, by their names without FB_EDIT_."""
    header = (bpf_dir() / "fusebpf.h").read_text("utf-8")
    return {1 << int(bit): name for name, bit in re.findall(r"FB_EDIT_(\w+) = 1 << (\d+)", header)}


def pinned_statistics(pins: Path) -> list[Statistic]:
    """The counts of a mount, by its directory of pins; none where it has no filter yet."""
    with contextlib.ExitStack() as undo:
        fds = []
        for name in ("stats", "filters"):
            try:
                fds.append(bpf.obj_get(pins / name))
            except FileNotFoundError:
                return []
            undo.callback(os.close, fds[-1])
        return statistics(fds[0], filter_names(fds[1]))


@dataclass(frozen=True)
class Event:
    """One finished op that at least one hook saw; docs/abi.md, "Records", says what each field is.

    `missed` counts the records just before this one that were overwritten before they were read.
    """

    sequence: int
    time_ns: int
    unique: int
    nodeid: int
    op: str
    route: str
    error: str
    """The errno's name, "" for success."""
    verdict: str
    filter: str
    uid: int
    gid: int
    pid: int
    name: str
    name2: str
    result: int
    edits: tuple[str, ...]
    pre_ran: tuple[str, ...]
    pre_edited: tuple[str, ...]
    post_ran: tuple[str, ...]
    post_edited: tuple[str, ...]
    missed: int = 0

    @property
    def seen_by(self) -> frozenset[str]:
        """The filters whose hooks ran."""
        return frozenset(self.pre_ran) | frozenset(self.post_ran)

    def as_dict(self) -> dict[str, Any]:
        """For JSON; without `missed`."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name != "missed"}


class _Layout:
    """How a record lies in memory, from the map's own type information."""

    def __init__(self, btf: Btf, type_id: int) -> None:
        self._btf = btf
        found = btf.resolve(type_id)
        self._names = [member.name for member in found.members]
        parts, at = [], 0
        for member in found.members:
            start, size = member.bit_offset // 8, btf.size(member.type)
            parts.append(f"{start - at}x")
            numbers = {8: "Q", 4: "I"}
            is_text = btf.is_text(member.type)
            parts.append(f"{size}s" if is_text or size not in numbers else numbers[size])
            at = start + size
        self._struct = struct.Struct("=" + "".join(parts))
        self._edits = edit_names()
        self._errnos = self._enum("fb_errno")
        self._routes = self._enum("fb_route")

    def _enum(self, name: str) -> dict[int, str]:
        values = self._btf.resolve(self._btf.find(Kind.ENUM, name)).values
        return {number: word for word, number in values.items()}

    def event(self, raw: bytes, filters: Mapping[int, str], missed: int) -> Event:
        row: dict[str, Any] = dict(zip(self._names, self._struct.unpack_from(raw), strict=True))
        errno_name = self._errnos.get(row["error"], f"E{row['error']}").removeprefix("FB_")
        names: dict[str, Any] = {
            mask: tuple(filters.get(bit, f"#{bit}") for bit in range(32) if row[mask] >> bit & 1)
            for mask in ("pre_ran", "pre_edited", "post_ran", "post_edited")
        }
        return Event(
            op=_OP_NAMES.get(row["op"], str(row["op"])),
            route=self._routes.get(row["route"], str(row["route"])).removeprefix("FB_ROUTE_").lower(),
            error="" if row["error"] == 0 else errno_name,
            verdict=VERDICTS.get(row["verdict"], str(row["verdict"])),
            filter=_text(row["filter"]),
            uid=_signed(row["uid"]),
            gid=_signed(row["gid"]),
            name=_text(row["name"]),
            name2=_text(row["name2"]),
            edits=tuple(word.lower() for bit, word in self._edits.items() if row["edits"] & bit),
            missed=missed,
            **names,
            **{key: row[key] for key in ("sequence", "time_ns", "unique", "nodeid", "pid", "result")},
        )


def _text(raw: bytes) -> str:
    return os.fsdecode(raw.partition(b"\0")[0])


def _signed(number: int) -> int:
    """An id; -1 where there is no caller."""
    return -1 if number == 0xFFFFFFFF else number


class Records:
    """The map `recent`, read from where it is now on. It owns its mapping and descriptor."""

    def __init__(self, recent_fd: int, filters_fd: int, *, is_new: bool = False) -> None:
        """Take duplicates of the descriptors. With `is_new` all that was ever written is to be read.

        Raises:
            OSError: They are not those of such maps.
        """
        info = bpf.map_info(recent_fd)
        self._stride = -(-info.value_size // 8) * 8
        self._size = info.value_size
        self._layout = _Layout(Btf(bpf.btf_raw(info.btf_id)), info.btf_value)
        length = -(-self._stride * _N_RECENT // mmap.PAGESIZE) * mmap.PAGESIZE
        self._memory = mmap.mmap(recent_fd, length, mmap.MAP_SHARED, mmap.PROT_READ)
        self._filters_fd = os.dup(filters_fd)
        self._close_fd = weakref.finalize(self, os.close, self._filters_fd)
        self._filters: dict[int, str] = {}
        self._next = 1 if is_new else self._newest() + 1
        self._n_missed = 0

    @classmethod
    def pinned(cls, pins: Path, *, is_new: bool = False) -> Self:
        """Those of a mount, by its directory of pins.

        Raises:
            OSError: There are none: the mount has no filter yet, or has gone.
        """
        with contextlib.ExitStack() as undo:
            fds = []
            for name in ("recent", "filters"):
                fds.append(bpf.obj_get(pins / name))
                undo.callback(os.close, fds[-1])
            return cls(*fds, is_new=is_new)

    def close(self) -> None:
        """Give everything back."""
        self._memory.close()
        self._close_fd()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def read(self) -> Iterator[Event]:
        """The records since the last call; each says how many before it were overwritten unread."""
        if self._sequence_at(self._next) < self._next:
            return  # not written yet
        # Ids are given again late, so one that has just gone keeps its name here.
        self._filters |= filter_names(self._filters_fd)
        while True:
            sequence, raw = self._take(self._next)
            if sequence > self._next:
                # Overtaken: go on in the middle of what is there, to have time for the rest.
                following = sequence - _N_RECENT // 2
                self._n_missed += following - self._next
                self._next = following
                continue
            if sequence != self._next:
                return
            missed, self._n_missed = self._n_missed, 0
            self._next += 1
            yield self._layout.event(raw, self._filters, missed)

    def _newest(self) -> int:
        return max(self._sequence_at(number) for number in range(1, _N_RECENT + 1))

    def _sequence_at(self, sequence: int) -> int:
        """The sequence of the record that stands in the place of this one; 0 while it is being written."""
        at = (sequence - 1) % _N_RECENT * self._stride
        return int.from_bytes(self._memory[at : at + 8], "little")

    def _take(self, wanted: int) -> tuple[int, bytes]:
        """What stands in the place of a record: its sequence, and its bytes if it is the one."""
        sequence = self._sequence_at(wanted)
        if sequence != wanted:
            return sequence, b""
        at = (wanted - 1) % _N_RECENT * self._stride
        raw = self._memory[at : at + self._size]
        after = self._sequence_at(wanted)
        if after == wanted:
            return wanted, raw
        # It was overwritten while it was copied; 0 says that the next one is being written.
        return after or wanted + _N_RECENT, b""


class Events:
    """The records of a mount as an async iterator; it ends with the mount.

    The records begin where it was made, not where the first one is asked for. What comes faster than it is
    read is overwritten: `Event.missed` says how many were.
    """

    def __init__(self, find: Callable[[], Records | None], is_over: Callable[[], bool]) -> None:
        """`find` gives the records as soon as there are maps; after `is_over` nothing is written any more."""
        self._find = find
        self._is_over = is_over
        self._records = find()
        self._read: deque[Event] = deque()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        pause = _FIRST_PAUSE_S
        while not self._read:
            is_last = self._is_over()
            if self._records is None and not is_last:
                self._records = self._find()
            if self._records is not None:
                self._read.extend(itertools.islice(self._records.read(), _N_RECENT))
            if self._read:
                break
            if is_last:
                self.close()
                raise StopAsyncIteration
            await trio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_S)
        await trio.lowlevel.checkpoint()
        return self._read.popleft()

    def close(self) -> None:
        """Give back what it holds; it is over then."""
        self._is_over = lambda: True
        if self._records is not None:
            self._records.close()
        self._records = None

    async def aclose(self) -> None:
        """Like `close`, for contextlib.aclosing."""
        self.close()
        await trio.lowlevel.checkpoint()
