"""The command `fusebpf`: arguments in, one clear line out where something is wrong.

Exit codes: 0, 1 for what went wrong, 2 for a command that was put wrongly, 128 + n where signal n ended it.
Results go to stdout; errors go to stderr, one line each, with a filter's compiler or verifier lines indented
below it.
"""

from __future__ import annotations

import errno
import json
import os
import shlex
import signal
import sys
import textwrap
from typing import TYPE_CHECKING, Any, NoReturn

import click

from fusebpf import checks, live_commands, registry, watch_commands
from fusebpf.cli_numbers import number
from fusebpf.errors import FilterError, FusebpfError, UsageError
from fusebpf.options import CACHES, LOCKS, PROFILES, TRANSPORTS, check_agree, parse
from fusebpf.tables import shown, table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fusebpf.loader import CheckedFilter
    from fusebpf.server import ServerError

# Each command imports what it needs: `fusebpf list` shall not wait for trio and the loader.
# ruff: noqa: PLC0415

_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 110}


@click.group(context_settings=_SETTINGS, invoke_without_command=True)
@click.version_option(package_name="fusebpf", message="fusebpf %(version)s")
@click.pass_context
def cli(context: click.Context) -> None:
    """Mount directories through stacks of eBPF filters."""
    if context.invoked_subcommand is None:
        names = ", ".join(name for name, command in sorted(cli.commands.items()) if not command.hidden)
        raise UsageError(f"a command is missing: {names} (fusebpf --help says more)")


@cli.command("mount")
@click.argument("src")
@click.argument("mnt", required=False, metavar="MNT")
@click.option("--filter", "filters", multiple=True, metavar="FILTER", help=(
    "Put a filter into the chain: a stock filter's name, or FILE.c (all its filters) or FILE.c:NAME; "
    "@ALTITUDE (1 to 999, high is near the caller) if not its own."
))  # fmt: skip
@click.option("--set", "sets", multiple=True, metavar="FILTER.MAP=VALUE",
              help="Fill a filter's policy map before it is attached.")  # fmt: skip
@click.option("--name", help="The mount's name; else after MNT.")
@click.option("-o", "texts", multiple=True, metavar="OPTIONS",
              help="mount(8)'s and FUSE's options: ro, noexec, noatime, suid, dev, fsname=…, …")  # fmt: skip
@click.option("--locks", type=click.Choice(LOCKS),
              help="Hold locks on the backing files, or for this mount alone.")  # fmt: skip
@click.option("--cache", type=click.Choice(CACHES),
              help="Keep entries and attributes for a time; not at all; or without end, with a watch for "
                   "changes behind the mount.")  # fmt: skip
@click.option("--cache-ttl", metavar="SECONDS", help="For how long with --cache normal; 1 if not said.")
@click.option("--transport", type=click.Choice(TRANSPORTS),
              help="How requests come: over io_uring, or over /dev/fuse.")  # fmt: skip
@click.option("--profile", type=click.Choice(PROFILES),
              help="small: no opens are sent and pages are kept, for many small files.")  # fmt: skip
@click.option("--one-file-system", is_flag=True, help="Leave out what is mounted below SRC.")
@click.option("--root-fd", type=number(int, 3), metavar="N",
              help="The open directory N is the source: fusebpf mount --root-fd N MNT.")  # fmt: skip
@click.option("--root", "roots", multiple=True, metavar="DIR",
              help="A further backing root, numbered from 1, to which filters can lead ops.")  # fmt: skip
@click.option("--daemon", metavar="MODULE:CLASS",
              help="Answer ops by a pyfuse3.Operations: MODULE:CLASS or FILE.py:CLASS.")  # fmt: skip
@click.option("--route", "routes", multiple=True, metavar="OP=daemon|backing",
              help="Where an op goes if no filter says so; post_OP=daemon: its result.")  # fmt: skip
@click.option("--daemon-timeout", type=number(float, 0.001, 1000000), metavar="SECONDS",
              help="How long the daemon may take for an op, then ETIMEDOUT; 30 if not said.")  # fmt: skip
@click.option("--on-daemon-failure", type=click.Choice(("fail", "backing")),
              help="What ops of a daemon that has died get: an error, or the backing root.")  # fmt: skip
@click.option("--foreground", "-f", is_flag=True, help="Serve in this process; ^C unmounts.")
def mount_command(
    src: str,
    mnt: str | None,
    *,
    filters: tuple[str, ...],
    sets: tuple[str, ...],
    name: str | None,
    texts: tuple[str, ...],
    locks: str | None,
    cache: str | None,
    cache_ttl: str | None,
    transport: str | None,
    profile: str | None,
    one_file_system: bool,
    root_fd: int | None,
    roots: tuple[str, ...],
    daemon: str | None,
    routes: tuple[str, ...],
    daemon_timeout: float | None,
    on_daemon_failure: str | None,
    foreground: bool,
) -> None:
    """Mount the directory SRC on MNT. Returns when the mount is usable."""
    from fusebpf import server
    from fusebpf.stack import Stack

    ours = {"locks": locks, "cache": cache, "ttl": cache_ttl, "transport": transport, "profile": profile}
    words = [f"{key}={value}" for key, value in ours.items() if value is not None]
    check_agree(texts, words)
    options = parse([*texts, *words, *(["one_file_system"] if one_file_system else [])])
    if options.is_remount:
        raise UsageError("a remount is mount(8)'s: mount -o remount,… MNT")
    if root_fd is not None:
        if mnt is not None:
            raise UsageError(f"--root-fd {root_fd} stands for SRC, so leave {src!r} out")
        source: str | int = root_fd
        mnt = src
    else:
        source = src
    if mnt is None:
        raise UsageError("MNT, the mount point, is missing: fusebpf mount SRC MNT")
    if name is not None:
        registry.check_name(name)
    for option, value in (("daemon-timeout", daemon_timeout), ("on-daemon-failure", on_daemon_failure)):
        if value is not None and daemon is None:
            raise UsageError(f"--{option} {value}: the mount has no daemon, say --daemon too")
    stack = Stack(
        source,
        mnt,
        filters=filters,
        sets=sets,
        name=name,
        roots=roots,
        options=options,
        is_server=True,
        daemon=_daemon_of(daemon) if daemon is not None else None,
        routes=routes,
        daemon_timeout=30.0 if daemon_timeout is None else daemon_timeout,
        on_daemon_failure=on_daemon_failure or "fail",
    )
    if foreground:
        server.run_foreground(stack)
    else:
        server.run_background(stack, root_fd=root_fd)


def _daemon_of(text: str) -> object:
    from fusebpf.daemon_import import daemon_of

    return daemon_of(text)


@cli.command("umount")
@click.argument("target", metavar="MNT|NAME")
@click.option("--lazy", "-l", is_flag=True, help="Detach it even if it is busy; what uses it may go on.")
def umount_command(target: str, *, lazy: bool) -> None:
    """Unmount, and wait until the server has gone."""
    from fusebpf.unmounting import unmount

    checks.check_root()
    remark = unmount(target, is_lazy=lazy)
    if remark:
        click.echo(f"fusebpf: {remark}", err=True)


@cli.command("list")
@click.option("--json", "is_json", is_flag=True, help="Print it as JSON.")
def list_command(*, is_json: bool) -> None:
    """Show the mounts. What dead servers left is removed by the next mount or umount."""
    checks.check_root()
    with registry.locked():
        states = [(entry, entry.state) for entry in registry.entries()]
    if is_json:
        rows = [
            {
                "name": entry.name,
                "source": entry.src,
                "roots": entry.roots,
                "mnt": entry.point,
                "pid": entry.pid,
                "state": state,
                "filters": entry.filters,
                "sets": entry.set_texts,
            }
            for entry, state in states
        ]
        click.echo(json.dumps(rows, indent=1))
        return
    if not states:
        return
    listed: list[tuple[Any, ...]] = [
        (entry.name, shown(entry.src), shown(entry.point), entry.pid, _chain_of(entry), state)
        for entry, state in states
    ]
    click.echo(table(listed, ("name", "source", "mount point", "pid", "filters", "state")))
    for entry in (entry for entry, state in states if state == "dead"):
        click.echo(
            f"fusebpf: {entry.name!r} is dead: `fusebpf umount {entry.name}` removes what it left", err=True
        )


def _chain_of(entry: registry.Entry) -> str:
    return " ".join(f"{one['name']}@{one['altitude']}" for one in entry.filters) or "-"


@cli.command("check")
@click.argument("files", nargs=-1, required=True, metavar="FILE…")
def check_command(files: tuple[str, ...]) -> int:
    """Compile, load and verify filters, and show what is in them. Nothing is mounted."""
    from fusebpf import chain
    from fusebpf.compiler import stock, stock_names

    names = stock_names()
    for file in (file for file in files if not os.path.lexists(file)):
        spec = chain.FilterSpec.parse(file)
        if spec.source != file:
            raise UsageError(f"{file!r}: `check` is for all that is in a file, so say {spec.source!r}")
        chain.check_stock([spec], names)
    return _check_and_show([stock(file) if file in names else file for file in files])


@cli.command("stock")
def stock_command() -> int:
    """Show the stock filters."""
    from fusebpf.compiler import stock, stock_names

    return _check_and_show([stock(name) for name in stock_names()])


def _check_and_show(paths: Sequence[str | os.PathLike[str]]) -> int:
    """Check files side by side and show, in order, what is in them or what is wrong. Returns an exit code."""
    from concurrent.futures import ThreadPoolExecutor

    from fusebpf import bpf, loader
    from fusebpf.server import as_told

    checks.check_root()
    bpf.require()
    shown: list[CheckedFilter] = []
    exit_code = 0
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for each in [pool.submit(loader.check, path) for path in paths]:
            try:
                found = each.result()
            except FilterError as error:
                exit_code = _tell(as_told(error))
                continue
            for one in found:
                click.echo(_summary(one))
            shown += found
    _warn_of_clashes(shown)
    return exit_code


def _warn_of_clashes(filters: Sequence[CheckedFilter]) -> None:
    """Tell which of them cannot be in one chain as they are."""
    known: dict[str | int, CheckedFilter] = {}
    for one in filters:
        other = known.setdefault(one.name, one)
        if other is not one:
            told = f"two filters are named {one.name!r}, one of {other.path!r}, one of {one.path!r}"
            click.echo(f"fusebpf: warning: {told}: one chain cannot have both", err=True)
            continue
        other = known.setdefault(one.altitude, one)
        if other is not one:
            told = f"filters {other.name!r} and {one.name!r} both stand at altitude {one.altitude}"
            click.echo(f"fusebpf: warning: {told}: in one chain say @ALTITUDE for one of them", err=True)


def _summary(one: CheckedFilter) -> str:
    lines = [f"{one.name}@{one.altitude}  {one.path}"]
    if one.doc:
        lines += textwrap.wrap(one.doc, 100, initial_indent="  ", subsequent_indent="  ")
    lines += textwrap.wrap(" ".join(one.hooks), 100, initial_indent="  hooks  ", subsequent_indent=" " * 9)
    lines += [f"  map    {name}: {text}" for name, text in one.maps.items()]
    return "\n".join(lines)


@cli.command("new")
@click.argument("name")
def new_command(name: str) -> None:
    """Write NAME.c, a filter to begin with, and test_NAME.py for it."""
    from importlib.util import find_spec

    from fusebpf import new

    source, tests = new.write(name)
    click.echo(f"{source} and {tests} are written; as root:")
    click.echo(f"  fusebpf check ./{source}")
    if find_spec("pytest") is None:
        click.echo(f"  {shlex.quote(sys.executable)} -m pip install pytest")
    click.echo(f"  {shlex.quote(sys.executable)} -m pytest {tests}")
    click.echo(f"  fusebpf mount SRC MNT --filter ./{source} --set {name}.names='*.bak'")


@cli.command("ops")
def ops_command() -> None:
    """Show the op table: what a filter can hook."""
    from fusebpf._core import OP_FLAGS, OPS

    rows: list[tuple[Any, ...]] = []
    for name, opcode, n_names, flags, kind, of in OPS:
        if kind == "alias":
            hooks = f"as {of}"
        elif kind == "plain":
            hooks = "none"
        else:
            hooks = "post" if flags & OP_FLAGS["POST_ONLY"] else "pre post"
        rows.append(
            (name, opcode, n_names, hooks, "cannot be refused" if flags & OP_FLAGS["UNREFUSABLE"] else "")
        )
    click.echo(table(rows, ("op", "opcode", "names", "hooks", "")).rstrip())


@cli.command("mount-helper", hidden=True)
@click.argument("src")
@click.argument("mnt")
@click.option("-o", "texts", multiple=True)
@click.option("-t", "fs_type")
@click.option("-N", "namespace")
@click.option("-s", "sloppy", is_flag=True)
@click.option("-f", "fake", is_flag=True)
@click.option("-n", "no_mtab", is_flag=True)
@click.option("-v", "verbose", is_flag=True)
def mount_helper_command(
    src: str,
    mnt: str,
    *,
    texts: tuple[str, ...],
    fs_type: str | None,
    namespace: str | None,
    sloppy: bool,
    fake: bool,
    no_mtab: bool,
    verbose: bool,
) -> None:
    """Do what mount(8) asks for; it calls this as mount.fuse.fusebpf."""
    from fusebpf.mounthelper import help_mount

    del fs_type, no_mtab  # mount(8) passes them; there is one type, and no mtab
    line = help_mount(
        src, mnt, list(texts), namespace=namespace, is_sloppy=sloppy, is_fake=fake, is_verbose=verbose
    )
    if line:
        click.echo(line)


for _command in (*live_commands.COMMANDS, *watch_commands.COMMANDS):
    cli.add_command(_command)


# ---------------------------------------------------------------------------------------- the door


def main() -> NoReturn:
    """Run the command; every way out ends here."""
    _open_standard_streams()
    sys.exit(_run(sys.argv[1:]))


def _open_standard_streams() -> None:
    """Put /dev/null where a standard stream is closed, before another file takes its number."""
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
            os.set_inheritable(fd, True)
    if sys.stdout is None:
        sys.stdout = os.fdopen(1, "w", closefd=False)
    if sys.stderr is None:
        sys.stderr = os.fdopen(2, "w", closefd=False)


def _run(arguments: list[str]) -> int:
    try:
        result = cli.main(arguments, prog_name="fusebpf", standalone_mode=False)
        sys.stdout.flush()
    except click.ClickException as error:
        _complain(" ".join(error.format_message().split()) + _usage(error))
        return error.exit_code
    except click.Abort:
        return 128 + signal.SIGINT
    except BrokenPipeError:
        _let_go_of_stdout()  # whoever read our output has had enough of it
        return 1
    except Exception as error:  # noqa: BLE001 - never a traceback at the user
        from fusebpf.server import Interrupted, as_told

        if isinstance(error, Interrupted):
            return 128 + error.number
        if isinstance(error, OSError) and error.errno in _NO_ROOM and error.filename is None:
            _let_go_of_stdout()
            error = FusebpfError(f"cannot write: {error.strerror}")
        return _tell(as_told(error))
    return result if isinstance(result, int) else 0


def _let_go_of_stdout() -> None:
    """The interpreter shall not complain when it flushes."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _usage(error: click.ClickException) -> str:
    """How the command is put, where words are missing or too many."""
    is_value = isinstance(error, click.BadParameter) and not isinstance(error, click.MissingParameter)
    context = error.ctx if isinstance(error, click.UsageError) and not is_value else None
    if context is None or isinstance(context.command, click.Group):
        return ""
    return f" (usage: {' '.join([context.command_path, *context.command.collect_usage_pieces(context)])})"


def _tell(told: ServerError) -> int:
    _complain(" ".join(str(told).split("\n")))
    for line in told.detail.splitlines():
        sys.stderr.write(f"  {line}\n")
    if told.bug and os.environ.get("FUSEBPF_DEBUG"):
        sys.stderr.write(told.bug)
    return told.exit_code


def _complain(line: str) -> None:
    sys.stderr.write(f"fusebpf: {line}\n")
