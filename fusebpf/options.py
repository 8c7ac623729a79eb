"""What stands behind `-o`: mount(8)'s options, FUSE's and ours, as one value.

An option that is not known, or a value that cannot be used, is a UsageError that names it. Between options
stands a comma; a comma inside a value is escaped with a backslash (as libfuse has it) or the value is put in
double quotes (as mount(8) has it).
"""

from __future__ import annotations

import os
import re
import resource
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from fusebpf import mounts
from fusebpf._core import SIZES
from fusebpf.arguments import check_type, path_text
from fusebpf.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from fusebpf.arguments import AnyPath

SUBTYPE = "fusebpf"
CACHES = ("normal", "none", "watch")
LOCKS = ("backing", "local")
PROFILES = ("normal", "small")
TRANSPORTS = ("auto", "uring", "dev")
IDLES = ("auto", "poll", "leave")
_WORDS = {"cache": CACHES, "locks": LOCKS, "profile": PROFILES, "transport": TRANSPORTS, "idle": IDLES}

_SECURE = mounts.MS_NOSUID | mounts.MS_NODEV
_ATIMES = mounts.MS_NOATIME | mounts.MS_RELATIME | mounts.MS_STRICTATIME

# Option: the MS_ flags that it clears, and those that it then sets.
_FLAGS: dict[str, tuple[int, int]] = {
    "defaults": (0, 0),
    "rw": (mounts.MS_RDONLY, 0),
    "ro": (0, mounts.MS_RDONLY),
    "suid": (mounts.MS_NOSUID, 0),
    "nosuid": (0, mounts.MS_NOSUID),
    "dev": (mounts.MS_NODEV, 0),
    "nodev": (0, mounts.MS_NODEV),
    "exec": (mounts.MS_NOEXEC, 0),
    "noexec": (0, mounts.MS_NOEXEC),
    "async": (mounts.MS_SYNCHRONOUS, 0),
    "sync": (0, mounts.MS_SYNCHRONOUS),
    "dirsync": (0, mounts.MS_DIRSYNC),
    "atime": (mounts.MS_NOATIME, 0),
    "noatime": (_ATIMES, mounts.MS_NOATIME),
    "diratime": (mounts.MS_NODIRATIME, 0),
    "nodiratime": (0, mounts.MS_NODIRATIME),
    "relatime": (_ATIMES, mounts.MS_RELATIME),
    "norelatime": (mounts.MS_RELATIME, 0),
    "strictatime": (_ATIMES, mounts.MS_STRICTATIME),
    "nostrictatime": (mounts.MS_STRICTATIME, 0),
    "lazytime": (0, mounts.MS_LAZYTIME),
    "nolazytime": (mounts.MS_LAZYTIME, 0),
    "symfollow": (mounts.MS_NOSYMFOLLOW, 0),
    "nosymfollow": (0, mounts.MS_NOSYMFOLLOW),
    "loud": (mounts.MS_SILENT, 0),
    "silent": (0, mounts.MS_SILENT),
    # Who may mount is mount(8)'s business; what it implies is ours (mount(8): "unless overridden").
    "user": (0, _SECURE | mounts.MS_NOEXEC),
    "users": (0, _SECURE | mounts.MS_NOEXEC),
    "owner": (0, _SECURE),
    "group": (0, _SECURE),
}

# Options that are meant for mount(8), for the init system or for older kernels, and mean nothing here.
_SOURCE_BYTES = 4095  # what mount(2) takes
_IGNORED = frozenset(
    (
        *("auto", "noauto", "nouser", "nousers", "noowner", "nogroup", "_netdev", "nofail", "nonempty"),
        *("mand", "nomand", "iversion", "noiversion"),
    )
)
_IGNORED_PREFIXES = ("x-", "X-", "comment=", "uhelper=", "helper=")

# What fusebpf alone tells the kernel, and why an option cannot change it; a remount reads them back from the
# kernel.
_KERNELS = {
    "fd": "fusebpf opens /dev/fuse itself",
    "rootmode": "it is the mode of SRC",
    "user_id": "the mount belongs to who makes it",
    "group_id": "the mount belongs to who makes it",
    "blksize": "it is for block devices",
}
_LABELS = frozenset(("context", "fscontext", "defcontext", "rootcontext", "seclabel"))


@dataclass(frozen=True)
class MountOptions:
    """How a mount is to be made, apart from what its filters say.

    Attributes:
        flags: MS_… of mount(2).
        allow_other: Users other than the mount's owner may use it.
        default_permissions: The kernel checks modes and owners before it asks.
        fsname: What mount(8) shows as the device; None: SRC.
        max_read: The largest read in bytes; 0: the kernel's own limit.
        passthrough: Files that no filter hooks are read and written by the kernel alone, where it can.
        max_workers: How many threads may serve ops at a time, besides those that wait in a lock.
        ttl: For how many seconds the kernel may cache entries and attributes that no filter hooks.
        cache: "normal"; "none": the kernel caches no entries and attributes, whatever `ttl` says; "watch": it
            caches them without end, and is told of changes behind the mount; `ttl` is for the rest.
        max_descriptors: How many descriptors of inodes are kept open; 0: half of RLIMIT_NOFILE.
        one_file_system: What is mounted below SRC is not shown, but the directories on which it is.
        idmap: The mount may be cloned with mapped ids (mount_setattr(2)); filters see no callers' ids then.
        locks: "backing": locks are held on the backing files, for programs there to see; "local": the kernel
            keeps those of ranges for this mount alone.
        profile: "small" is for many small files: no opens are sent, and pages are kept as long as attributes
            hold. It goes with locks "local" and without passthrough.
        transport: How requests come: "uring", FUSE over io_uring; "dev", /dev/fuse; "auto", io_uring where
            the kernel has it.
        idle: "poll": while requests come in numbers, idle cores stay awake, and serve those of others;
            "leave": cores idle as they do without us; "auto": the first on a virtual machine that may, of 8
            cores at most.
        name: The mount's name; None: from MNT.
        roots: Backing roots behind SRC, which is number 0: paths.
        filters: Filters as for --filter.
        sets: Map values as for --set.
        is_remount: Change the flags of the mount that is there.
    """

    flags: int = _SECURE
    allow_other: bool = True
    default_permissions: bool = True
    fsname: str | None = None
    max_read: int = 0
    passthrough: bool = True
    max_workers: int = 64
    ttl: float = 1.0
    cache: str = "normal"
    max_descriptors: int = 0
    one_file_system: bool = False
    idmap: bool = False
    locks: str = "backing"
    profile: str = "normal"
    transport: str = "auto"
    idle: str = "auto"
    name: str | None = None
    roots: tuple[str, ...] = field(default=())
    filters: tuple[str, ...] = field(default=())
    sets: tuple[str, ...] = field(default=())
    is_remount: bool = False


def split(text: str) -> list[str]:
    """Split the text behind `-o` at its commas; escapes and quotes are undone.

    Raises:
        UsageError: A quote is not closed, or there is a NUL byte.

    Source: libfuse, lib/fuse_opt.c: process_real_option_group; util-linux, libmount: optstr.c.
    """
    options = [""]
    is_quoted = False
    for match in re.finditer(r"\\([0-7]{3})|\\(.)|(.)", text, re.DOTALL):
        octal, escaped, plain = match.groups()
        if octal:
            options[-1] += os.fsdecode(bytes((int(octal, 8) & 0xFF,)))
        elif escaped:
            options[-1] += escaped
        elif plain == '"':
            is_quoted = not is_quoted
        elif plain == "," and not is_quoted:
            options.append("")
        else:
            options[-1] += plain
    if is_quoted:
        raise UsageError(f'option text {text!r}: a double quote is not closed (write \\" for the character)')
    if any("\0" in option for option in options):
        raise UsageError(f"option text {text!r}: a NUL byte cannot be in an option")
    # Bytes that were escaped one by one may be one character together.
    return [os.fsdecode(os.fsencode(option)) for option in options if option]


def parse(
    texts: str | Iterable[str], base: MountOptions | None = None, *, is_sloppy: bool = False
) -> MountOptions:
    """Read the texts behind one or more `-o`; what comes later wins.

    Args:
        texts: Such as "ro,noatime", or several of them.
        base: What they change; None: the defaults.
        is_sloppy: Pass over options that are not known, as `mount -s` asks for.

    Raises:
        UsageError: An option is not known, or its value is of no use.
    """
    options = base or MountOptions()
    found = [option for text in ((texts,) if isinstance(texts, str) else texts) for option in split(text)]
    if "remount" in found:
        options = replace(options, is_remount=True)
    for option in found:
        options = _apply(options, option, is_sloppy=is_sloppy)
    if options.idmap and not options.default_permissions:
        raise UsageError("mount options 'idmap' and 'nodefault_permissions' exclude one another: "
                         "with mapped ids only the kernel can judge who may do what")  # fmt: skip
    if options.profile == "small":
        options = _small(options, found)
    _check_roots(options)
    with_ttl = [option for option in found if option.startswith("ttl=")]
    if with_ttl and options.cache == "none":
        raise UsageError(f"mount option {with_ttl[-1]!r} has no meaning beside 'cache=none'")
    return options


def with_roots(options: MountOptions, roots: Iterable[AnyPath]) -> MountOptions:
    """With further backing roots behind those that are there.

    Raises:
        UsageError: They are too many, or something does not go with more than one.
    """
    texts = [path_text("root", root) for root in roots]
    if not all(texts):
        raise UsageError("a backing root is a directory, and '' is none")
    more = tuple(os.path.abspath(text) for text in texts)  # noqa: PTH100 - it takes no symlinks away
    options = replace(options, roots=(*options.roots, *more))
    _check_roots(options)
    return options


def combined(
    options: MountOptions | str,
    *,
    name: str | None,
    cache: str | None,
    roots: Iterable[AnyPath],
) -> MountOptions:
    """What is said behind `-o` and beside it.

    Raises:
        UsageError: As `parse`, or the two contradict one another.
    """
    check_type("name", name, (str, type(None)))
    base = with_roots(parse(options) if isinstance(options, str) else _checked(options), roots)
    if cache is not None:
        _choice(f"cache={cache}", cache, *CACHES)
        told = (
            options if isinstance(options, str) else f"cache={base.cache}" if base.cache != "normal" else ""
        )
        check_agree([told], [f"cache={cache}"])
    if name and base.name not in {None, name}:
        raise UsageError(f"two names for one mount: {name!r} and {base.name!r}")
    named = replace(base, name=base.name if name is None else name)
    if named.name == "":
        raise UsageError("'' cannot be a mount's name: leave it out, or give one")
    return named if cache is None else parse(f"cache={cache}", named)


_TYPES: dict[str, tuple[type, ...]] = {
    "int": (int,),
    "float": (int, float),
    "bool": (bool,),
    "str": (str,),
    "str | None": (str, type(None)),
    "tuple[str, ...]": (tuple,),
}


def _checked(options: object) -> MountOptions:
    """Options that no text was read for, as a text of them would be."""
    if not isinstance(options, MountOptions):
        raise UsageError(f"options={options!r}: MountOptions is wanted, or a text as behind -o")
    for one in fields(options):
        value = getattr(options, one.name)
        items = value if isinstance(value, tuple) else ()
        if not isinstance(value, _TYPES[str(one.type)]) or not all(isinstance(item, str) for item in items):
            raise UsageError(f"mount option '{one.name}={value}': {one.type} is wanted")
        if one.name in _VALUES and isinstance(value, str | int | float) and value != one.default:
            text = f"{value:.9f}" if isinstance(value, float) else str(value)
            _VALUES[one.name](MountOptions(), f"{one.name}={value}", text)
    if options.is_remount:
        raise UsageError("a remount is mount(8)'s: mount -o remount,… MNT")
    permissions = "default_permissions" if options.default_permissions else "nodefault_permissions"
    words = [f"profile={options.profile}", permissions, *(["idmap"] if options.idmap else [])]
    parse(",".join(words))  # what excludes what
    return replace(options, locks="local", passthrough=False) if options.profile == "small" else options


def check_agree(texts: Iterable[str], beside: Iterable[str]) -> None:
    """See that options of these texts have no other value than what is said beside them, KEY=VALUE each.

    Raises:
        UsageError: One has.
    """
    told = dict(option.partition("=")[::2] for text in texts for option in split(text))
    for option in beside:
        key, value = option.split("=", 1)
        if not _is_same(told.get(key, value), value):
            raise UsageError(f"-o {key}={told[key]} contradicts {option}, said beside it: leave one out")


def _is_same(one: str, other: str) -> bool:
    try:
        return one == other or float(one) == float(other)
    except ValueError:
        return False


def _check_roots(options: MountOptions) -> None:
    if len(options.roots) >= SIZES["max_roots"]:
        raise UsageError(f"a mount has at most {SIZES['max_roots']} backing roots, SRC among them")
    if options.roots and options.cache == "watch":
        raise UsageError(
            "--cache watch is for one backing root: use --cache normal, or leave the other roots out"
        )


def _small(options: MountOptions, found: Sequence[str]) -> MountOptions:
    """What the profile for small files brings with it, and does not go with."""
    reasons = {
        "locks=backing": "locks are held by open files, and opens are not sent",
        "passthrough": "files are passed through when they are opened, and opens are not sent",
        "nodefault_permissions": "the backing file system would judge opens, and those are not sent",
    }
    for option, reason in reasons.items():
        if option in found:
            raise UsageError(f"mount options 'profile=small' and {option!r} exclude one another: {reason}")
    return replace(options, locks="local", passthrough=False)


def unsent(options: MountOptions) -> dict[str, str]:
    """The ops that the kernel keeps to itself with these options, and why."""
    found = {}
    if options.default_permissions:
        found["access"] = "the kernel sends ACCESS only with -o nodefault_permissions"
    if options.locks == "local":
        why = "with -o locks=local the kernel keeps locks of ranges to itself"
        found |= {"getlk": why, "setlk": why}
    return found


def lasting(options: MountOptions) -> dict[str, Any]:
    """What holds as long as the mount does: all but mount(2)'s flags, the name and the chain."""
    changing = ("flags", "name", "filters", "sets", "is_remount")
    return {name: value for name, value in asdict(options).items() if name not in changing}


def _apply(options: MountOptions, option: str, *, is_sloppy: bool) -> MountOptions:
    key, equals, value = option.partition("=")
    if option in _FLAGS:
        clear, flags = _FLAGS[option]
        return replace(options, flags=options.flags & ~clear | flags)
    if option in _IGNORED or option.startswith(_IGNORED_PREFIXES) or option == "remount":
        return options
    if key in _KERNELS or key in _LABELS:
        if not options.is_remount:
            raise UsageError(_reason(key, option))
        return options
    if option in _SWITCHES:
        return _SWITCHES[option](options)
    if key in _VALUES and equals:
        return _VALUES[key](options, option, value)
    if key in _VALUES:
        raise UsageError(f"mount option {option!r} needs a value: {key}=…")
    if is_sloppy:
        return options
    raise UsageError(f"unknown mount option {option!r}")


def _reason(key: str, option: str) -> str:
    if key in _LABELS:
        return f"mount option {option!r} is not supported: a fusebpf mount carries the labels of its files"
    return f"mount option {option!r} cannot be set: {_KERNELS[key]}"


def _number(option: str, value: str, lowest: int, highest: int) -> int:
    if not re.fullmatch(r"[0-9]{1,18}", value) or not lowest <= int(value) <= highest:
        raise UsageError(f"mount option {option!r}: not a number from {lowest} to {highest}")
    return int(value)


def _fsname(options: MountOptions, option: str, value: str) -> MountOptions:
    if not value:
        raise UsageError(f"mount option {option!r} needs a value")
    if len(os.fsencode(value)) > _SOURCE_BYTES:
        raise UsageError(f"mount option 'fsname': at most {_SOURCE_BYTES} bytes fit")
    return replace(options, fsname=value)


def _subtype(options: MountOptions, option: str, value: str) -> MountOptions:
    if value != SUBTYPE:
        raise UsageError(f"mount option {option!r} cannot be set: the subtype is always {SUBTYPE!r}")
    return options


def _max_read(options: MountOptions, option: str, value: str) -> MountOptions:
    # Source: fs/fuse/inode.c: fuse_fill_super_common takes 4096 for less.
    number = _number(option, value, 0, (1 << 32) - 1)
    return replace(options, max_read=max(number, 4096) if number else 0)


def _max_workers(options: MountOptions, option: str, value: str) -> MountOptions:
    return replace(options, max_workers=_number(option, value, 1, 64))


def _max_descriptors(options: MountOptions, option: str, value: str) -> MountOptions:
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return replace(options, max_descriptors=_number(option, value, 16, most))


def _ttl(options: MountOptions, option: str, value: str) -> MountOptions:
    if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", value):
        raise UsageError(f"mount option {option!r}: not a number of seconds, such as 1 or 0.5")
    return replace(options, ttl=float(value))


def _choice(option: str, value: str, *choices: str) -> str:
    if value not in choices:
        raise UsageError(f"mount option {option!r}: {', '.join(choices[:-1])} or {choices[-1]} is wanted")
    return value


def _word(key: str, options: MountOptions, option: str, value: str) -> MountOptions:
    changed: dict[str, Any] = {key: _choice(option, value, *_WORDS[key])}
    return replace(options, **changed)


def _name(options: MountOptions, option: str, value: str) -> MountOptions:
    if options.name is not None and options.name != value:
        raise UsageError(f"mount option {option!r}: the mount is named {options.name!r} already")
    return replace(options, name=value)


def _root(options: MountOptions, option: str, value: str) -> MountOptions:
    if not value:
        raise UsageError(f"mount option {option!r} needs a directory")
    if options.is_remount and os.path.abspath(value) in options.roots:  # noqa: PTH100 - bytes of any kind
        return options
    return with_roots(options, [value])


def _filter(options: MountOptions, option: str, value: str) -> MountOptions:
    if not value:
        raise UsageError(f"mount option {option!r} needs a filter")
    return replace(options, filters=(*options.filters, value))


def _set(options: MountOptions, _option: str, value: str) -> MountOptions:
    return replace(options, sets=(*options.sets, value))


_SWITCHES: dict[str, Callable[[MountOptions], MountOptions]] = {
    "allow_other": partial(replace, allow_other=True),
    "noallow_other": partial(replace, allow_other=False),
    "default_permissions": partial(replace, default_permissions=True),
    "nodefault_permissions": partial(replace, default_permissions=False),
    "one_file_system": partial(replace, one_file_system=True),
    "idmap": partial(replace, idmap=True),
    "passthrough": partial(replace, passthrough=True),
    "nopassthrough": partial(replace, passthrough=False),
}

_VALUES: dict[str, Callable[[MountOptions, str, str], MountOptions]] = {
    "fsname": _fsname,
    "subtype": _subtype,
    "max_read": _max_read,
    "max_workers": _max_workers,
    "max_descriptors": _max_descriptors,
    "ttl": _ttl,
    **{key: partial(_word, key) for key in _WORDS},
    "name": _name,
    "root": _root,
    "filter": _filter,
    "set": _set,
}
