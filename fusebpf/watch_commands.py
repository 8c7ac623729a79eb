"""The commands that watch a mount: the records of its ops, and how often hooks said what.

They read the mount's pinned maps; its server does nothing for them.
"""

from __future__ import annotations

import contextlib
import json
import select
import time
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from fusebpf import registry
from fusebpf.cli_numbers import number
from fusebpf.errors import UsageError
from fusebpf.live_commands import JSON, TARGET, entry_at
from fusebpf.tables import shown, table

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.table import Table

    from fusebpf.watching import Event, Records, Statistic

# Each command imports what it needs, as those of cli.py do.
# ruff: noqa: PLC0415

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.001, 0.05
_OF_ENTRIES = ("dirent", "drop")
_HEADERS = ("filter", "phase", "op", "verdict", "count", "per second")


# ---------------------------------------------------------------------------------------- records


@click.command("trace")
@TARGET
@click.option(
    "--op", "ops", multiple=True, metavar="OP", help="Only this op (`fusebpf ops`); more than once."
)
@click.option("--filter", "filters", multiple=True, metavar="NAME", help="Only what this filter's hooks saw.")
@click.option("--verdict", "verdicts", multiple=True, metavar="VERDICT",
              help="Only this verdict: continue, backing, daemon, reply, negative, broken.")  # fmt: skip
@click.option("--count", type=number(int, 1), metavar="N", help="End after N records.")
@JSON
def trace_command(
    target: str,
    *,
    ops: tuple[str, ...],
    filters: tuple[str, ...],
    verdicts: tuple[str, ...],
    count: int | None,
    is_json: bool,
) -> None:
    """Show ops as they finish, from now on until the mount ends.

    Shown are those that at least one hook saw. Where they come faster than they are printed, a line says how
    many were missed. With --json each line is an object, {"missed": N} for those.
    """
    from fusebpf._core import OPS, VERDICTS
    from fusebpf.map_view import check_filter

    _check_known("op", ops, [name for name, *_, kind, _ in OPS if kind == "hook"])
    _check_known("verdict", verdicts, list(VERDICTS.values()))
    entry = entry_at(target)
    pins = registry.pins(entry.name)
    for name in filters if pins.is_dir() else ():  # where there is none yet, what comes is waited for
        check_filter(pins, name)
    left = count
    for event in _follow(entry):
        if event.missed:
            _say(json.dumps({"missed": event.missed}) if is_json else f"({event.missed} records missed)")
        is_wanted = (
            (not ops or event.op in ops)
            and (not filters or any(one in event.seen_by for one in filters))
            and (not verdicts or event.verdict in verdicts)
        )
        if not is_wanted:
            continue
        _say(json.dumps(event.as_dict()) if is_json else _line(event))
        if left is not None:
            left -= 1
            if not left:
                return


def _check_known(what: str, given: tuple[str, ...], known: list[str]) -> None:
    """See that there will be records with these."""
    for one in given:
        if one in _OF_ENTRIES:
            raise UsageError(
                f"{one!r} is about entries of listings, which have no records: see `fusebpf stats`"
            )
        if one not in known:
            there_are = " ".join(name for name in known if name not in _OF_ENTRIES)
            raise UsageError(f"there is no {what} {one!r}, there are: {there_are}")


def _say(line: str) -> None:
    click.echo(line)  # and flushes it


def _line(event: Event) -> str:
    at = datetime.fromtimestamp(event.time_ns / 1e9).astimezone()
    names = " ".join(f'"{shown(name)}"' for name in (event.name, event.name2) if name)
    caller = "kernel" if event.uid < 0 else f"uid {event.uid} pid {event.pid}"
    parts = [f"{at:%H:%M:%S.%f}", f"{event.op:<12}", names or f"inode {event.nodeid}", f"({caller})"]
    parts.append(event.error or "ok")
    if event.verdict != "continue":
        parts.append(event.verdict)
    if event.filter:
        parts.append(f"by {event.filter}")
    if event.edits:
        parts.append(f"edited {','.join(event.edits)}")
    if event.result:
        parts.append(f"result {event.result}")
    return " ".join(parts)


def _follow(entry: registry.Entry) -> Iterator[Event]:
    """The records of a mount from now on, until it has ended."""
    from fusebpf.watching import Records

    pins = registry.pins(entry.name)
    records: Records | None = None
    is_new = False
    pause = _FIRST_PAUSE_S
    with entry.process() as process, contextlib.ExitStack() as undo:
        while True:
            is_over = not entry.is_alive or (records is not None and not pins.exists())
            if records is None:
                try:
                    records = Records.pinned(pins, is_new=is_new)
                    undo.callback(records.close)
                except FileNotFoundError:
                    is_new = True  # what comes is all that there will have been
            n = 0
            for event in records.read() if records else ():
                n += 1
                yield event
            if is_over and not n:
                return
            pause = _FIRST_PAUSE_S if n else min(2 * pause, _LONGEST_PAUSE_S)
            select.select(process, [], [], pause)


# ----------------------------------------------------------------------------------------- counts


@click.command("stats")
@TARGET
@JSON
def stats_command(target: str, *, is_json: bool) -> None:
    """Show how often each hook of a mount gave which verdict."""
    from fusebpf.watching import pinned_statistics

    rows = pinned_statistics(registry.pins(entry_at(target).name))
    if is_json:
        click.echo(json.dumps([dict(zip(_HEADERS, row, strict=False)) for row in rows], indent=1))
    elif rows:
        click.echo(table([tuple(row) for row in rows], _HEADERS[:5]))


@click.command("top")
@TARGET
@click.option("--interval", type=number(float, 0.05, 86400), default=1.0, metavar="SECONDS",
              help="Between two looks; 1 if not said.")  # fmt: skip
@click.option("--count", type=number(int, 1), metavar="N", help="End after N looks.")
def top_command(target: str, *, interval: float, count: int | None) -> None:
    """Show how often each hook gives which verdict, as a live table.

    The busiest stand on top. Where the output is no terminal, each look is a table of its own. Ends with the
    mount.
    """
    from rich.console import Console
    from rich.live import Live

    entry = entry_at(target)
    console = Console()
    looks = _looks(entry, interval, count)
    if not console.is_terminal:
        for rows in looks:
            click.echo(table([(*row, f"{rate:.0f}") for row, rate in rows], _HEADERS) + "\n")
        return
    with Live(console=console, auto_refresh=False, screen=True) as live:
        for rows in looks:
            live.update(_rich_table(entry.name, rows), refresh=True)


def _looks(
    entry: registry.Entry, interval: float, count: int | None
) -> Iterator[list[tuple[Statistic, float]]]:
    """Rows with how much they grow in a second, the fastest first."""
    from fusebpf.watching import pinned_statistics

    pins = registry.pins(entry.name)
    before: dict[tuple[str, ...], int] | None = None
    last = 0.0
    with entry.process() as process:
        while entry.is_alive:
            now, rows = time.monotonic(), pinned_statistics(pins)
            if before is not None:
                grown = [(row, (row.times - before.get(row[:4], 0)) / (now - last)) for row in rows]
                # A filter that was detached and came back counts anew.
                yield sorted(
                    ((row, max(rate, 0.0)) for row, rate in grown), key=lambda one: (-one[1], -one[0].times)
                )
                if count is not None:
                    count -= 1
                    if not count:
                        return
            before, last = {row[:4]: row.times for row in rows}, now
            select.select(process, [], [], interval)


def _rich_table(name: str, rows: list[tuple[Statistic, float]]) -> Table:
    from rich.table import Table

    made: Any = Table(title=f"{name}, {datetime.now().astimezone():%H:%M:%S}", title_justify="left")
    for header in _HEADERS:
        made.add_column(header, justify="right" if header in _HEADERS[4:] else "left")
    for row, rate in rows:
        made.add_row(*row[:4], str(row.times), f"{rate:.0f}", style="" if rate else "dim")
    result: Table = made
    return result


COMMANDS: tuple[click.Command, ...] = (trace_command, top_command, stats_command)
