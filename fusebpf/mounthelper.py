"""What mount(8) calls for the type fuse.fusebpf: `mount.fuse.fusebpf SRC MNT [-sfnv] [-o OPTIONS] [-t TYPE]`.

Options carry the filters: `mount -t fuse.fusebpf SRC MNT -o filter=hide,set=hide.names=.ssh,ro`. A remount
changes mount(2)'s flags and nothing else.

What mount(8) hands on is a full list of flags, from which it leaves those out that it takes for the default:
suid, dev, exec and so on. So where `nosuid` is missing, suid is meant.
Source: util-linux, libmount/src/context_mount.c: generate_helper_optstr; libfuse, util/mount.fuse.c.
"""

from __future__ import annotations

from dataclasses import replace

from fusebpf import checks, mounts, registry, server
from fusebpf.chain import FilterSpec
from fusebpf.errors import MountError, UsageError
from fusebpf.options import MountOptions, lasting, parse
from fusebpf.stack import Stack

_BASE = MountOptions(flags=0)


def help_mount(
    src: str,
    mnt: str,
    texts: list[str],
    *,
    namespace: str | None = None,
    is_sloppy: bool = False,
    is_fake: bool = False,
    is_verbose: bool = False,
) -> str | None:
    """Do what mount(8) asks for.

    Args:
        src: The backing root; not looked at by a remount.
        mnt: The mount point.
        texts: What stood behind -o, one text for each.
        namespace: The mount namespace to do it in, as a path; None: ours.
        is_sloppy: Pass over unknown options.
        is_fake: Check only.
        is_verbose: Say what was done.

    Returns:
        A line for the user, if there is something to say.

    Raises:
        FusebpfError: It cannot be done.
    """
    options = parse(texts, _BASE, is_sloppy=is_sloppy)
    if namespace is not None:
        checks.check_root()
        try:
            mounts.enter_namespace(namespace)
        except OSError as error:
            raise MountError(f"mount namespace {namespace!r} cannot be entered: {error.strerror}") from error
    if options.is_remount:
        checks.check_root()
        return _remount(mnt, texts, is_sloppy=is_sloppy, is_fake=is_fake, is_verbose=is_verbose)
    stack = Stack(src, mnt, options=options, is_server=True)
    if is_fake:
        stack.reserve()
        stack.release()
        return None
    server.run_background(stack)
    return f"fusebpf: {src!r} is mounted on {mnt!r}" if is_verbose else None


def _remount(mnt: str, texts: list[str], *, is_sloppy: bool, is_fake: bool, is_verbose: bool) -> str | None:
    try:
        mounted = mounts.mount_of(mnt)
    except OSError as error:
        raise MountError(f"mount point {mnt!r} cannot be opened: {error.strerror}") from error
    if mounted is None or not mounted.is_ours:
        raise MountError(f"{mnt!r} is not a fusebpf mount: there is nothing to remount")
    entry = registry.entry_of(mounted)
    base = replace(_BASE, **dict(entry.options)) if entry else _BASE
    options = parse(texts, base, is_sloppy=is_sloppy)
    if entry:
        _check_same_filters(entry, options)
        _check_lasting(base, options)
    if is_fake:
        return None
    try:
        mounts.mount(mounted.source, mounted.point, mounts.FUSE_TYPE, mounts.MS_REMOUNT | options.flags)
    except OSError as error:
        raise MountError(f"{mnt!r} cannot be remounted: {error.strerror}") from error
    return f"fusebpf: {mnt!r} is remounted" if is_verbose else None


def _check_lasting(base: MountOptions, options: MountOptions) -> None:
    """See that only flags change: anything else would be taken and not done."""
    before, after = lasting(base), lasting(options)
    changed = [name for name in before if before[name] != after[name]]
    if changed:
        raise UsageError(
            "a remount changes flags such as ro and noexec; what it cannot change: "
            + ", ".join(f"{name} ({before[name]!s} now, {after[name]!s} asked for)" for name in changed)
        )


def _check_same_filters(entry: registry.Entry, options: MountOptions) -> None:
    wanted = sorted(FilterSpec.parse(text).text for text in options.filters)
    if (wanted and wanted != sorted(entry.filter_texts)) or (
        options.sets and sorted(options.sets) != sorted(entry.set_texts)
    ):
        running = ", ".join(f"{one['name']}@{one['altitude']}" for one in entry.filters) or "none"
        raise UsageError(
            f"a remount of {entry.mnt!r} does not attach, detach or set filters: "
            f"leave filter= and set= out, or as they are ({running})"
        )
    if options.name not in {None, entry.name}:
        raise UsageError(f"a remount cannot rename {entry.name!r} to {options.name!r}")
