"""What mount(8) calls for the type fuse.fusebpf: `mount.fuse.fusebpf SRC MNT [-sfnv] [-o OPTIONS] [-t TYPE]`.

Options carry the filters: `mount -t fuse.fusebpf SRC MNT -o filter=hide,set=hide.names=.ssh,ro`. A remount
changes mount(2)'s flags and nothing else.
"""

from __future__ import annotations

from fusebpf import checks, mounts, registry, server
from fusebpf.chain import FilterSpec
from fusebpf.errors import MountError, UsageError
from fusebpf.options import MountOptions, parse
from fusebpf.stack import Stack


def help_mount(
    src: str,
    mnt: str,
    texts: list[str],
    *,
    is_sloppy: bool = False,
    is_fake: bool = False,
    is_verbose: bool = False,
) -> str | None:
    """Do what mount(8) asks for.

    Args:
        src: The backing root; not looked at by a remount.
        mnt: The mount point.
        texts: What stood behind -o, one text for each.
        is_sloppy: Pass over unknown options.
        is_fake: Check only.
        is_verbose: Say what was done.

    Returns:
        A line for the user, if there is something to say.

    Raises:
        FusebpfError: It cannot be done.
    """
    options = parse(texts, is_sloppy=is_sloppy)
    if options.is_remount:
        checks.check_root()
        return _remount(mnt, options, is_fake=is_fake, is_verbose=is_verbose)
    stack = Stack(src, mnt, options=options, is_server=True)
    if is_fake:
        stack.reserve()
        stack.release()
        return None
    server.run_background(stack)
    return f"fusebpf: {src!r} is mounted on {mnt!r}" if is_verbose else None


def _remount(mnt: str, options: MountOptions, *, is_fake: bool, is_verbose: bool) -> str | None:
    try:
        mounted = mounts.mount_of(mnt)
    except OSError as error:
        raise MountError(f"mount point {mnt!r} cannot be opened: {error.strerror}") from error
    if mounted is None or not mounted.is_ours:
        raise MountError(f"{mnt!r} is not a fusebpf mount: there is nothing to remount")
    entry = registry.entry_of(mounted)
    if entry:
        _check_same_filters(entry, options)
    if is_fake:
        return None
    try:
        mounts.mount(mounted.source, mounted.point, mounts.FUSE_TYPE, mounts.MS_REMOUNT | options.flags)
    except OSError as error:
        raise MountError(f"{mnt!r} cannot be remounted: {error.strerror}") from error
    return f"fusebpf: {mnt!r} is remounted" if is_verbose else None


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
