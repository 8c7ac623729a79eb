"""What programs of the model test are made of: a strategy for each kind of step. A step is plain data."""

import fcntl
import os
import stat
from typing import Any

from core.table import acl
from hypothesis import strategies as st
from model.actor import N_FILES, USERS
from model.side import NOBODY, Step

FOLLOW = st.booleans()
SLOT = st.integers(0, N_FILES - 1)
SEED = st.integers(0, 999)

_PARENTS = [b"", b"d/", b"e/", b"s/", b"x/", b"d/d/"]
_NAMES = [b"a", b"b", b"c", b"d", b"e", b"l"]
_ODD = [
    *(b".", b"d/..", b"", b"d/", b"a/", b"l/", b"a/x", b"missing/a", b"d/.", b"d/.."),
    *(b"n" * 255, b"n" * 256, b"\xff\xfe\x80", b"new\nline", b"d/" * 2047 + b"a", b"d/" * 2049 + b"a"),
]
PATH = st.one_of(
    st.builds(bytes.__add__, st.sampled_from(_PARENTS), st.sampled_from(_NAMES)),
    st.sampled_from([b"a", b"b", b"d/a"]),
    st.sampled_from([b"a", b"b", b"d", b"e", b"s", b"x", b"l"]),
    st.sampled_from(_ODD),
)
DIRECTORY = st.sampled_from([b".", b"d", b"e", b"s", b"x", b"d/d", b"a"])
SIZE = st.sampled_from([0, 1, 10, 100, 511, 4095, 4096, 4097, 8192, 12288, 65536, 70000])
OFFSET = st.sampled_from([0, 1, 100, 4000, 4096, 4097, 8192, 16384, 100_000])
# Where to: not beyond what the backing file system can hold, since the kernel asks no FUSE server about it.
SEEK_TO = OFFSET | st.sampled_from([-1, 1 << 40])
ODD_OFFSET = OFFSET | st.sampled_from([-1, 1 << 40, (1 << 63) - 1, (1 << 63) - 4096])
WHOLE_MODE = st.sampled_from(
    [0o644, 0o600, 0o666, 0o777, 0o755, 0o4755, 0o2755, 0o2745, 0o2777, 0o6777, 0o1777, 0]
)
UID = st.sampled_from([-1, 0, 61001, 61002])
GID = st.sampled_from([-1, 0, 61001, 61777, 61778])
# Not a chown(2) of neither, which clears suid: it reaches no FUSE server.
OWNER = st.tuples(UID, GID).filter(lambda ids: ids != (-1, -1))
TIME = st.sampled_from([-1, -2, 0, 1, 10**9 + 7, 10**15])
ACCESS = st.sampled_from([os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_RDWR])


def _flags(*choices: int) -> st.SearchStrategy[int]:
    return st.lists(st.sampled_from(choices), max_size=3).map(_joined)


def _joined(bits: list[int]) -> int:
    joined = 0
    for bit in bits:
        joined |= bit
    return joined


OPEN_FLAGS = st.builds(
    int.__or__,
    ACCESS,
    _flags(
        *(os.O_CREAT, os.O_CREAT, os.O_CREAT, os.O_EXCL, os.O_TRUNC, os.O_APPEND, os.O_DIRECT, os.O_SYNC),
        *(os.O_DSYNC, os.O_NOFOLLOW, os.O_DIRECTORY, os.O_NOATIME, os.O_PATH),
    ),
)
RWF = st.sampled_from([0, 0, 0, os.RWF_SYNC, os.RWF_DSYNC, os.RWF_HIPRI])
RWF_WRITE = RWF | st.just(0x10)  # RWF_APPEND
RENAME_FLAGS = st.sampled_from([0, 0, 0, 1, 2, 4, 3, 5, 8])
KINDS = st.sampled_from(
    [stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFREG, stat.S_IFCHR, stat.S_IFBLK, 0, stat.S_IFDIR]
)
XATTR = st.sampled_from(
    ["user.a", "user.b", "user." + "n" * 250, "user.", "trusted.a", "security.a", "system.a", "odd"]
)
VALUE = st.sampled_from([b"", b"x", b"value", b"v" * 1000, b"w" * 5000])
ACL_NAME = st.sampled_from(["system.posix_acl_access", "system.posix_acl_default"])
PERMISSIONS = st.integers(0, 7)


@st.composite
def acls(draw: st.DrawFn) -> bytes:
    """An ACL, most of them valid."""
    is_named, is_short = st.booleans(), st.integers(0, 9)
    entries = [(1, draw(PERMISSIONS), NOBODY)]
    named = [(2, draw(PERMISSIONS), uid) for uid in (61001, 61002) if draw(is_named)]
    entries += [*named, (4, draw(PERMISSIONS), NOBODY)]
    groups = [(8, draw(PERMISSIONS), gid) for gid in (61777, 61778) if draw(is_named)]
    entries += groups
    has_mask = draw(is_named)
    if named or groups or has_mask:
        entries.append((16, draw(PERMISSIONS), NOBODY))
    entries.append((32, draw(PERMISSIONS), NOBODY))
    if draw(is_short) == 9:
        entries.pop(draw(st.integers(0, len(entries) - 1)))
    return acl(*entries)


LOCK_KIND = st.sampled_from([fcntl.F_RDLCK, fcntl.F_WRLCK, fcntl.F_UNLCK])
LOCK_COMMAND = st.sampled_from(
    [fcntl.F_SETLK, fcntl.F_SETLK, fcntl.F_GETLK, fcntl.F_OFD_SETLK, fcntl.F_OFD_GETLK]
)
LOCK_START = st.sampled_from([0, 5, 10, 100])
LOCK_SIZE = st.sampled_from([0, 1, 5, 50])
FALLOCATE_MODE = st.sampled_from([0, 1, 2, 3, 16, 17, 4])
PAGES = st.sampled_from([0, 4096, 8192])
MAP_SIZE = st.sampled_from([1, 100, 4096, 5000])
DEVICE = st.sampled_from([0, os.makedev(1, 3), os.makedev(300, 70000)])

STEPS: dict[str, tuple[st.SearchStrategy[Any], ...]] = {
    "open": (PATH, OPEN_FLAGS, WHOLE_MODE, SLOT),
    "openat": (SLOT, PATH, OPEN_FLAGS, WHOLE_MODE, SLOT),
    "close": (SLOT,),
    "dup": (SLOT, SLOT),
    "getfl": (SLOT,),
    "setfl": (SLOT, _flags(os.O_APPEND, os.O_DIRECT, os.O_NOATIME)),
    "linkat_fd": (SLOT, PATH),
    "read": (SLOT, SIZE),
    "write": (SLOT, SIZE, SEED),
    "preadv2": (SLOT, SIZE, ODD_OFFSET, RWF),
    "pwritev2": (SLOT, SIZE, SEED, OFFSET, RWF_WRITE),
    "lseek": (SLOT, SEEK_TO, st.sampled_from([0, 1, 2, os.SEEK_DATA, os.SEEK_HOLE, 9])),
    "truncate": (PATH, ODD_OFFSET),
    "ftruncate": (SLOT, ODD_OFFSET),
    "fallocate": (SLOT, FALLOCATE_MODE, OFFSET, SIZE | st.just(-1)),
    "copy_file_range": (SLOT, SLOT, SIZE, OFFSET, OFFSET),
    "sendfile": (SLOT, SLOT, SIZE),
    "splice": (SLOT, SLOT, st.sampled_from([1, 100, 4096, 40000])),
    "mmap": (SLOT, PAGES, MAP_SIZE, st.booleans(), SEED | st.none()),
    "fsync": (SLOT, st.booleans()),
    "fadvise": (SLOT, st.integers(0, 6)),
    "poll": (SLOT,),
    "rename": (PATH, PATH, RENAME_FLAGS),
    "link": (PATH, PATH, FOLLOW),
    "unlink": (PATH,),
    "mkdir": (PATH, WHOLE_MODE),
    "rmdir": (PATH,),
    "symlink": (PATH, PATH),
    "readlink": (PATH,),
    "mknod": (PATH, st.builds(int.__or__, KINDS, WHOLE_MODE), DEVICE),
    "listdir": (DIRECTORY,),
    "getdents": (SLOT, st.sampled_from([280, 300, 4096])),
    "seekdir": (SLOT, st.integers(0, 20)),
    "chmod": (PATH, WHOLE_MODE),
    "fchmod": (SLOT, WHOLE_MODE),
    "chown": (PATH, OWNER, FOLLOW),
    "fchown": (SLOT, OWNER),
    "utimens": (PATH, TIME, TIME, FOLLOW),
    "futimens": (SLOT, TIME, TIME),
    "statx": (PATH, FOLLOW),
    "statx_fd": (SLOT,),
    "access": (PATH, st.integers(0, 7)),
    "umask": (st.sampled_from([0, 0o022, 0o077, 0o137]),),
    "statfs": (PATH,),
    "getflags": (SLOT,),
    "setflags": (SLOT, st.sampled_from([0, 0x40, 0x80])),
    "ioctl": (SLOT, st.sampled_from([0x801C581F, 0x5401, 0xC0046601])),  # FSGETXATTR's number among them
    "setxattr": (PATH, XATTR, VALUE, st.integers(0, 2), FOLLOW),
    "fsetxattr": (SLOT, XATTR, VALUE),
    "getxattr": (PATH, XATTR | ACL_NAME, FOLLOW),
    "listxattr": (PATH, FOLLOW),
    "removexattr": (PATH, XATTR | ACL_NAME, FOLLOW),
    "set_acl": (PATH, ACL_NAME, acls()),
    "flock": (SLOT, st.sampled_from([fcntl.LOCK_SH, fcntl.LOCK_EX, fcntl.LOCK_UN])),
    "lock": (SLOT, LOCK_COMMAND, LOCK_KIND, LOCK_START, LOCK_SIZE),
}
"""By the name of Actor's method without `do_`: the strategies of its arguments."""

_OFTEN = {
    "open": 8,
    "write": 3,
    "pwritev2": 2,
    "read": 2,
    "set_acl": 2,
    "rename": 2,
    "chmod": 2,
    "mmap": 2,
    "lock": 2,
}
_CHOICES = [name for name in STEPS for _ in range(_OFTEN.get(name, 1))]


@st.composite
def step(draw: st.DrawFn) -> Step:
    """(process, user, name, arguments)"""
    name = draw(st.sampled_from(_CHOICES))
    args = tuple(draw(one) for one in STEPS[name])
    return draw(st.integers(0, 1)), draw(st.integers(0, len(USERS) - 1)), name, args


def programs() -> st.SearchStrategy[list[Step]]:
    """Sequences of some 50 steps, which shrink to few: hypothesis makes long lists of short ones only."""
    parts = st.lists(st.lists(step(), max_size=12), min_size=8, max_size=16)
    return parts.map(lambda lists: [one for part in lists for one in part])
