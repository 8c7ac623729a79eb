"""The commands for a mount that works: change its chain, look at what it does."""

from __future__ import annotations

import json
import textwrap
from typing import Any

import click

from fusebpf import checks, registry
from fusebpf.cli_numbers import number
from fusebpf.errors import MountError, UsageError
from fusebpf.tables import article, shown, table, typed

# Each command imports what it needs, as those of cli.py do.
# ruff: noqa: PLC0415

TARGET = click.argument("target", metavar="MNT|NAME")
_SETS = click.option("--set", "sets", multiple=True, metavar="FILTER.MAP=VALUE",
                     help="Fill a map before the filter is attached.")  # fmt: skip
_REVISION = click.option("--revision", type=number(int, 0), metavar="N",
                         help="Fail if the chain has another revision by now.")  # fmt: skip
_OPEN_FILES = click.option("--open-files", type=click.Choice(("fail", "keep")), default="fail", help=(
    "Where the filter hooks read or write: new opens of files that are passed through to the kernel fail "
    "with EBUSY until the last old one is closed (fail, if not said), or go on unseen (keep)."
))  # fmt: skip
JSON = click.option("--json", "is_json", is_flag=True, help="Print JSON.")


def entry_at(target: str) -> registry.Entry:
    """The mount that a command is about, by its mount point or name.

    Raises:
        PlatformError: We are not root.
        MountError: There is no such mount.
    """
    checks.check_root()
    return registry.find(target)


# -------------------------------------------------------------------------------------- the chain


@click.command("attach")
@TARGET
@click.argument("filters", nargs=-1, required=True, metavar="FILTER…")
@_SETS
@_REVISION
@_OPEN_FILES
def attach_command(
    target: str, *, filters: tuple[str, ...], sets: tuple[str, ...], revision: int | None, open_files: str
) -> None:
    """Put filters into the chain of a mount while it works.

    FILTER is as for `fusebpf mount --filter`, and may end in @ALTITUDE, @above:NAME or @below:NAME. Several
    are attached in one step. Returns when every op that begins sees them.
    """
    from fusebpf.chain import FilterSpec

    texts = [FilterSpec.parse(text).text for text in filters]
    _change(target, "attach", filters=texts, sets=sets, revision=revision, open_files=open_files)


@click.command("detach")
@TARGET
@click.argument("name")
@_REVISION
def detach_command(target: str, *, name: str, revision: int | None) -> None:
    """Take the filter NAME out of the chain of a mount while it works.

    Returns when no op uses it any more; an op that takes longer than 5 s (one that waits for a lock) is told
    of instead, and keeps the filter's programs until it ends.
    """
    _change(target, "detach", name=name, revision=revision)


@click.command("replace")
@TARGET
@click.argument("name")
@click.argument("filter_", metavar="FILTER")
@_SETS
@click.option("--fresh-maps", is_flag=True, help="Begin with empty maps.")
@_REVISION
@_OPEN_FILES
def replace_command(
    target: str,
    *,
    name: str,
    filter_: str,
    sets: tuple[str, ...],
    fresh_maps: bool,
    revision: int | None,
    open_files: str,
) -> None:
    """Put FILTER in the place of the filter NAME, in one step.

    The mount works meanwhile. Maps of the same name and type keep their content. The altitude stays, unless
    FILTER ends in another.
    """
    from fusebpf.chain import FilterSpec

    text = FilterSpec.parse(filter_).text
    _change(
        target, "replace", name=name, filter=text, sets=sets, fresh_maps=fresh_maps, revision=revision,
        open_files=open_files,
    )  # fmt: skip


def _change(target: str, request: str, **arguments: Any) -> None:
    """Ask for a change, and tell what the user should know of how it went."""
    from fusebpf.control import ask

    told = ask(entry_at(target), request, **arguments)
    remarks = [f"warning: {line}" for line in told["warnings"]]
    if told["n_in_flight"]:
        remarks.append(
            f"done; ops that began before it still use the old chain ({told['n_in_flight']} in flight, "
            f"waiting for a lock, say), which goes when they end"
        )
    if told["passed_through"]:
        paths = ", ".join(shown(one["path"]) or f"inode {one['nodeid']}" for one in told["passed_through"])
        meanwhile = "go on unseen" if arguments["open_files"] == "keep" else "fail with EBUSY"
        remarks.append(
            f"these files are open and passed through to the kernel, unseen by hooks until they are closed; "
            f"new opens of them {meanwhile}: {paths}"
        )
    if told["fresh_maps"] and request == "replace" and not arguments["fresh_maps"]:
        remarks.append(f"these maps took nothing over: {', '.join(told['fresh_maps'])}")
    for line in remarks:
        click.echo(f"fusebpf: {line}", err=True)


@click.command("filters")
@TARGET
@JSON
def filters_command(target: str, *, is_json: bool) -> None:
    """Show the chain of a mount, top first, and its revision."""
    from fusebpf.control import ask

    told = ask(entry_at(target), "filters")
    if is_json:
        click.echo(json.dumps(told, indent=1))
        return
    click.echo(f"revision {told['revision']}")
    rows: list[tuple[Any, ...]] = [
        (
            one["name"],
            one["altitude"],
            one["revision"],
            _short(" ".join(one["hooks"]), 40),
            _short(one["doc"], 80),
        )
        for one in told["filters"]
    ]
    if rows:
        click.echo(table(rows, ("name", "altitude", "revision", "hooks", "doc")))


def _short(text: str, width: int) -> str:
    """A text that leaves a filter on one line; --json has all of it."""
    return textwrap.shorten(shown(text), width, placeholder=" …")


# -------------------------------------------------------------------------------------- the maps


@click.command("map", context_settings={"ignore_unknown_options": True})
@TARGET
@click.argument("filter_", metavar="FILTER")
@click.argument("map_name", metavar="MAP")
@click.argument("verb", type=click.Choice(("list", "get", "set", "delete")), default="list")
@click.argument("words", nargs=-1, metavar="[KEY [VALUE]]")
@JSON
def map_command(
    target: str, *, filter_: str, map_name: str, verb: str, words: tuple[str, ...], is_json: bool
) -> None:
    """Look at a policy map of a filter, or change it. What is set holds for the next op.

    \b
    list               all of it, an item on each line, as `--set` takes them
    get KEY            one value
    set KEY VALUE      a number, a name, or fields: 1:2 in their order, or a=1:b=2
    set PATTERN        adds to a list of names or patterns
    delete KEY         takes a key, or a pattern, out
    """  # noqa: D301 - click's own mark
    from fusebpf import map_view

    n_words = {"list": (0,), "get": (1,), "set": (1, 2), "delete": (1,)}[verb]
    if len(words) not in n_words:
        wanted = {"list": "nothing", "get": "KEY", "set": "KEY VALUE", "delete": "KEY"}[verb]
        raise UsageError(f"`{verb}` takes {wanted}, and there are {len(words)} words after it")
    entry = entry_at(target)

    found = map_view.pinned(registry.pins(entry.name), filter_, map_name)
    view = map_view.MapView(lambda: found, lambda: _tell_of_change(entry))
    try:
        if verb == "list":
            lines = [json.dumps(view.rows(), indent=1)] if is_json else map(typed, view.items_as_text())
            for line in lines:
                click.echo(line)
        elif verb == "get" and is_json:
            click.echo(json.dumps(map_view.for_json(view[words[0]])))
        elif verb == "get":
            click.echo(typed(view.get_as_text(*words)))
        elif verb == "delete":
            del view[words[0]]
        else:
            if len(words) == 1 and not (found.is_pattern_list or found.is_set):
                raise UsageError(f"{found.shown}: `set` takes KEY VALUE; it is {article(found.describe())}")
            view[words[0]] = words[1] if len(words) > 1 else "1"
    finally:
        found.close()


def _tell_of_change(entry: registry.Entry) -> None:
    """Have the server make the kernel forget what it cached of the policy before."""
    from fusebpf.control import StoppedError, ask

    try:
        ask(entry, "policy_changed")
    except StoppedError as error:
        raise MountError(f"it is changed, and what the kernel has cached goes later: {error}") from error
    except MountError:
        return  # a mount of a program that does not listen


COMMANDS: tuple[click.Command, ...] = (
    attach_command,
    detach_command,
    replace_command,
    filters_command,
    map_command,
)
