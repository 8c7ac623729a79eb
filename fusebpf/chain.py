"""Which filters a mount is to have, as the user names them, and whether they form a chain.

Words become FilterSpec and MapSetting here; loaded filters become Links, top first. Nothing here touches the
kernel.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from fusebpf._core import OP_FLAGS, OPS, WANTS
from fusebpf.arguments import check_type, path_text
from fusebpf.errors import ChainError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from fusebpf.arguments import AnyPath
    from fusebpf.loader import Filter

ALTITUDES = range(1, 1000)


class MapSetting(NamedTuple):
    """One `--set FILTER.MAP=VALUE`."""

    filter: str
    map: str
    value: str

    @classmethod
    def parse(cls, text: str) -> MapSetting:
        """Read FILTER.MAP=VALUE.

        Raises:
            UsageError: It is not of that form, or holds a NUL byte.
        """
        check_type("set", text, str, "a text FILTER.MAP=VALUE")
        if "\0" in text:
            raise UsageError(f"{text!r} sets nothing: a NUL byte cannot be in a value")
        target, equals, value = text.partition("=")
        name, dot, map_name = target.partition(".")
        if not (equals and dot and name and map_name):
            raise UsageError(
                f"{text!r} sets nothing: FILTER.MAP=VALUE is wanted, such as hide.names='.ssh,*.key'"
            )
        return cls(name, map_name, value)


@dataclass(frozen=True)
class FilterSpec:
    """A filter, or all filters of a file, for the chain of a mount.

    Attributes:
        source: A stock filter's name, or the path of a C source (it has a '/' or ends in '.c').
        altitude: 1 to 999; None: the filter's own.
        beside: ("above", NAME) or ("below", NAME): the nearest free altitude there, in place of a number.
        pick: Which filter of the file; None: all.
        sets: Values for its maps, set before it is attached; for a file with one filter.
    """

    source: str
    altitude: int | None = None
    pick: str | None = None
    sets: Mapping[str, str] = field(default_factory=dict)
    beside: tuple[str, str] | None = None

    def __post_init__(self) -> None:
        """Refuse what is of another type, and what no file's name and no map's value can hold."""
        check_type("sets", self.sets, Mapping, "{MAP: VALUE}")
        check_type("beside", self.beside, (tuple, type(None)), "('above', NAME) or ('below', NAME)")
        check_type("altitude", self.altitude, (int, type(None)), "a number from 1 to 999")
        if self.altitude is not None and (self.altitude is True or self.altitude not in ALTITUDES):
            raise UsageError(f"altitude={self.altitude!r}: a number from 1 to 999 is wanted")
        for text in (self.source, self.pick or "", *self.sets, *self.sets.values()):
            if not isinstance(text, str):
                raise UsageError(f"filter {self.source!r}: a text is wanted, not {text!r}")
            if "\0" in text:
                raise UsageError(f"filter {self.source!r}: a NUL byte cannot be in {text!r}")

    @classmethod
    def parse(cls, text: str) -> FilterSpec:
        """Read NAME, FILE.c or FILE.c:NAME, each with @ALTITUDE, @above:NAME, @below:NAME or without.

        Raises:
            UsageError: The altitude is no number from 1 to 999, or there is no name.
        """
        source, at, altitude = text.rpartition("@")
        beside = None
        if not at or _is_path(altitude):
            source, altitude = text, ""
        elif match := re.fullmatch(r"(above|below):(\w+)", altitude):
            beside, altitude = (match[1], match[2]), ""
        elif not re.fullmatch(r"[0-9]{1,3}", altitude) or int(altitude) not in ALTITUDES:
            raise UsageError(
                f"filter {text!r}: the altitude {altitude!r} is not a number from 1 to 999, "
                f"above:NAME or below:NAME"
            )
        pick = None
        if (at_colon := source.rfind(".c:")) >= 0 and not source.endswith(".c"):
            source, pick = source[: at_colon + 2], source[at_colon + 3 :]
        if not source or pick == "":
            raise UsageError(
                f"filter {text!r} has no name: NAME, FILE.c or FILE.c:NAME, then @ALTITUDE, is wanted"
            )
        return cls(source, int(altitude) if altitude else None, pick, beside=beside)

    @classmethod
    def of(cls, item: AnyPath | FilterSpec) -> FilterSpec:
        """A spec as it is, a path as that file, text as for --filter."""
        if isinstance(item, FilterSpec):
            return item
        if isinstance(item, str):
            return cls.parse(item)
        path = path_text("filter", item, "a stock filter's name, a path or a FilterSpec")
        return cls(os.path.join(".", path))  # noqa: PTH118 - "./" marks a path, and Path would drop it

    @property
    def is_stock(self) -> bool:
        """Whether it names a stock filter."""
        return not _is_path(self.source)

    @property
    def text(self) -> str:
        """The same as for --filter; a path is made absolute."""
        source = self.source if self.is_stock else os.path.realpath(self.source)
        pick = f":{self.pick}" if self.pick else ""
        if self.beside:
            return f"{source}{pick}@{':'.join(self.beside)}"
        return source + pick + (f"@{self.altitude}" if self.altitude is not None else "")


def _is_path(text: str) -> bool:
    return "/" in text or text.endswith(".c")


class Link(NamedTuple):
    """One loaded filter at its place in the chain.

    Attributes:
        filter: The filter.
        altitude: Its place; 0: not known yet, see `beside`.
        id: What records, `stats` and `filters` know it by; -1: it was not in a chain yet.
        revision: Of the chain that it came with.
        keeps_open_files: Files that are passed through may be opened anew in spite of its data hooks.
        text: The filter as for --filter.
        source: Its C source, absolute: the server leaves the directory in which it was begun.
        beside: As in FilterSpec.
    """

    filter: Filter
    altitude: int
    id: int = -1
    revision: int = 0
    keeps_open_files: bool = False
    text: str = ""
    source: str = ""
    beside: tuple[str, str] | None = None

    @property
    def label(self) -> str:
        """Name@altitude."""
        return f"{self.filter.name}@{self.altitude}"


def place(spec: FilterSpec, filters: Sequence[Filter]) -> list[Link]:
    """Give the filters that a spec stands for their altitudes.

    Raises:
        UsageError: One altitude for several filters.
    """
    place_text = ":".join(spec.beside) if spec.beside else str(spec.altitude or "")
    if place_text and len(filters) > 1:
        names = ", ".join(filter_.name for filter_ in filters)
        raise UsageError(
            f"one altitude, {place_text}, for the {len(filters)} filters of {spec.source!r} ({names}): "
            f"pick one, {spec.source}:{filters[0].name}@{place_text}"
        )
    return [
        Link(
            filter_,
            0 if spec.beside else spec.altitude or filter_.altitude,
            text=spec.text,
            source=os.path.realpath(filter_.path),
            beside=spec.beside,
        )
        for filter_ in filters
    ]


def settle(links: Sequence[Link]) -> list[Link]:
    """Give those that are to stand beside another the nearest free altitude there, in the order given.

    Raises:
        ChainError: The other one is not there, or there is no room.
    """
    settled = [link for link in links if link.altitude]
    for link in (one for one in links if not one.altitude):
        side, name = link.beside or ("", "")
        other = next((one for one in settled if one.filter.name == name), None)
        if other is None:
            names = ", ".join(one.filter.name for one in settled) or "none"
            raise ChainError(
                f"filter {link.filter.name!r} is to stand {side} {name!r}, which is not in the chain: {names}"
            )
        taken = {one.altitude for one in settled}
        way = range(other.altitude + 1, 1000) if side == "above" else range(other.altitude - 1, 0, -1)
        free = next((altitude for altitude in way if altitude not in taken), None)
        if free is None:
            raise ChainError(f"there is no free altitude {side} filter {other.label}")
        settled.append(link._replace(altitude=free, beside=None))
    return settled


def arrange(links: Iterable[Link], max_filters: int, *, has_daemon: bool = False) -> list[Link]:
    """Put the filters of a mount into order, top first.

    Raises:
        ChainError: They do not form a chain.
    """
    ordered = sorted(links, key=lambda link: -link.altitude)
    if len(ordered) > max_filters:
        raise ChainError(f"{len(ordered)} filters are too many: a chain holds at most {max_filters}")
    by_name: dict[str, Link] = {}
    by_altitude: dict[int, Link] = {}
    for link in ordered:
        other = by_name.setdefault(link.filter.name, link)
        if other is not link:
            raise ChainError(
                f"two filters are named {link.filter.name!r}: one of {_origin(other)}, one of {_origin(link)}"
            )
        other = by_altitude.setdefault(link.altitude, link)
        if other is not link:
            free = " and ".join(map(str, nearest_free(link.altitude, {taken.altitude for taken in ordered})))
            raise ChainError(
                f"filters {other.filter.name!r} and {link.filter.name!r} both stand at altitude "
                f"{link.altitude}: the nearest free ones are {free} (say {link.filter.name}@…)"
            )
    _check_daemon(ordered, has_daemon=has_daemon)
    return ordered


def wants_daemon(links: Iterable[Link]) -> bool:
    """Whether one of the filters may say FB_DAEMON."""
    return any(link.filter.wants & WANTS["DAEMON"] for link in links)


def _check_daemon(links: Iterable[Link], *, has_daemon: bool) -> None:
    """See that the filters that may say FB_DAEMON can."""
    flags = {opcode: (name, op_flags) for name, opcode, _, op_flags, *_ in OPS}
    wanting = [link.filter for link in links if link.filter.wants & WANTS["DAEMON"]]
    for filter_ in wanting:
        if not has_daemon:
            raise ChainError(
                f"filter {filter_.name!r} uses the daemon, and this mount has none: "
                "mount with --daemon MODULE:CLASS"
            )
        for hook in filter_.hooks:
            op, op_flags = flags[hook.opcode]
            phase, _, named = hook.program.pin_name.partition("_")
            # One on getattr stands at statx too, and goes as getattr.
            if op_flags & (OP_FLAGS["DAEMON"] | OP_FLAGS["POST_ONLY"]) or (op, named) == ("statx", "getattr"):
                continue
            stands = f"stands at {op}, which" if named != op else f"is on {op}, an op that"
            raise ChainError(
                f"filter {filter_.name!r} may send ops to the daemon, and its hook "
                f"{phase.upper()}({filter_.name}, {named}) {stands} pyfuse3 cannot express: put that hook "
                "into a filter without FB_WANTS_DAEMON"
            )


def _origin(link: Link) -> str:
    return f"{link.filter.path!r} (altitude {link.altitude})"


def nearest_free(altitude: int, taken: set[int]) -> list[int]:
    """The nearest altitudes below and above that nobody has, as far as there are any."""
    below = next((number for number in range(altitude, 0, -1) if number not in taken), None)
    above = next((number for number in range(altitude, ALTITUDES.stop) if number not in taken), None)
    return [number for number in (below, above) if number is not None]


def check_stock(specs: Iterable[FilterSpec], stock_names: Sequence[str]) -> None:
    """See that the stock filters that are named exist.

    Raises:
        UsageError: There is no such stock filter.
    """
    for spec in specs:
        if spec.is_stock and spec.source not in stock_names:
            raise UsageError(
                f"there is no stock filter {spec.source!r}, there are: {', '.join(stock_names)} "
                f"(a file of your own: ./{spec.source}.c)"
            )


_OP_NAMES = {opcode: name for name, opcode, *_ in OPS}
_NOT_WITH_SMALL = (
    *("open", "release", "flush", "read", "write", "opendir", "releasedir"),
    *("getlk", "setlk", "flock"),
)
_KEPT = {"keeps_listings": ("readdir", "dirent"), "keeps_targets": ("readlink",)}
"""Ops that the kernel does not send where it keeps what they say for good, by the core's counter of that."""


def check_idmap(links: Iterable[Link]) -> None:
    """See that no filter of an id-mapped mount judges by callers' ids, which the kernel does not tell there.

    Raises:
        UsageError: One declares that it does.
    """
    for link in links:
        if link.filter.wants & WANTS["IDS"]:
            raise UsageError(
                f"filter {link.filter.name!r} reads callers' ids (FB_WANTS_IDS), and with '-o idmap' the "
                "kernel does not tell them: leave one of the two out"
            )


def check_sets(
    settings: Iterable[MapSetting], names: Sequence[str], there: Sequence[str] = (), mount: str = ""
) -> None:
    """See that values are for maps of filters that come.

    Args:
        settings: The values.
        names: The filters that come.
        there: Those that the mount has already.
        mount: What that mount is called.

    Raises:
        UsageError: A value is for a filter that does not come.
    """
    for setting in settings:
        if setting.filter in names:
            continue
        what = f"'{setting.filter}.{setting.map}' is to be set"
        if setting.filter in there:
            raise UsageError(
                f"{what}, but {setting.filter!r} is in the chain already: "
                f"`fusebpf map {mount} {setting.filter} {setting.map} set …` changes what is there"
            )
        known = f"its filters are: {', '.join(names)}" if names else "it has no filter"
        whose = "attach" if there else "mount"
        raise UsageError(f"{what}, but {setting.filter!r} is no filter of this {whose} ({known})")


def check_small(links: Iterable[Link], counters: Mapping[str, int]) -> None:
    """See that no filter hooks what the profile for small files keeps from the mount.

    Opens and locks are not sent at all, and of reads only those of pages that the kernel does not have.

    Args:
        links: The chain that is to be.
        counters: The core's: what the kernel was told that it may keep, for the life of the mount.

    Raises:
        UsageError: One does.
    """
    for link in links:
        hooked = {_OP_NAMES[hook.opcode] for hook in link.filter.hooks}
        if lost := [name for name in _NOT_WITH_SMALL if name in hooked]:
            raise UsageError(
                f"filter {link.filter.name!r} hooks {', '.join(lost)}, and with '-o profile=small' the "
                "kernel does not ask for each of these: leave one of the two out"
            )
        for kept, names in _KEPT.items():
            if counters[kept] and (lost := [name for name in names if name in hooked]):
                raise UsageError(
                    f"filter {link.filter.name!r} hooks {', '.join(lost)}: this mount with "
                    "'-o profile=small' began without such a filter, so the kernel keeps what these say for "
                    f"good: mount anew with --filter {link.filter.name}"
                )


def never_run(links: Iterable[Link], unsent: Mapping[str, str]) -> tuple[str, ...]:
    """A line for each hook on an op that this mount is never asked for: `unsent` says why, by op."""
    return tuple(
        f"{link.filter.path}: the hook on {op} of {link.filter.name!r} never runs: {why}"
        for link in links
        for op, why in unsent.items()
        if any(hook.program.pin_name in {f"pre_{op}", f"post_{op}"} for hook in link.filter.hooks)
    )
