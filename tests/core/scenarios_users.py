"""Scenarios of callers without rights: who may what, and whose is what they make."""

import ctypes
import os
import stat
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from core.table import (
    NOBODY,
    OLD,
    acl,
    attempt,
    checked,
    libc,
    mode_of,
    open_to_all,
    opened,
    owner_of,
    put,
    scenario,
    umask,
    user,
)

WHO = 1000
OTHER = 2000
RW = os.O_CREAT | os.O_RDWR


def make_all(d: Path) -> dict[str, tuple[int, int, str]]:
    """One entry of each kind; whose they are."""
    os.close(os.open(d / "file", RW, 0o666))
    os.mkdir(d / "dir", 0o777)
    os.symlink("x", d / "link")
    os.mkfifo(d / "fifo", 0o666)
    os.mknod(d / "node", stat.S_IFREG | 0o666)
    os.mknod(d / "socket", stat.S_IFSOCK | 0o666)
    return {name: owner_of(d / name) for name in ("file", "dir", "link", "fifo", "node", "socket")}


@scenario
def what_a_user_makes_is_theirs(p: Path) -> Any:
    d = open_to_all(p / "d")
    with user(WHO, 1234, [5, 6]):
        return make_all(d)


@scenario
def what_a_user_makes_in_a_setgid_directory_has_its_group(p: Path) -> Any:
    d = open_to_all(p / "d")
    os.chown(d, 0, 777)
    os.chmod(d, 0o2777)
    with user(WHO, WHO, [777, 6]):
        made = make_all(d)
        os.close(os.open(d / "sgid", RW, 0o2775))
    return made, owner_of(d / "sgid")


@scenario
def setgid_is_not_given_to_who_is_not_in_the_group(p: Path) -> Any:
    d = open_to_all(p / "d")
    os.chown(d, 0, 777)
    os.chmod(d, 0o2777)
    with user(WHO), umask(0):
        made = make_all(d)
        os.close(os.open(d / "sgid", RW, 0o2775))
        os.mkdir(d / "sgid_dir", 0o2775)
        os.mknod(d / "sgid_node", stat.S_IFREG | 0o2775)
    return made, [owner_of(d / name) for name in ("sgid", "sgid_dir", "sgid_node")]


@scenario
def umask_is_the_callers(p: Path) -> Any:
    d = open_to_all(p / "d")
    with user(WHO), umask(0o137):
        return make_all(d)


@scenario
def default_acl_stands_in_for_the_umask(p: Path) -> Any:
    d = open_to_all(p / "d")
    default = acl((1, 7, NOBODY), (2, 6, OTHER), (4, 5, NOBODY), (16, 7, NOBODY), (32, 4, NOBODY))
    os.setxattr(d, "system.posix_acl_default", default)
    with user(WHO), umask(0o077):
        made = make_all(d)
    names = ("file", "dir", "fifo")
    return made, [
        (attempt(os.getxattr, d / name, "system.posix_acl_access"), attempt(os.listxattr, d / name))
        for name in names
    ]


@scenario
def acl_lets_a_named_user_in(p: Path) -> Any:
    put(p / "f", b"secret", 0o600)
    value = acl((1, 6, NOBODY), (2, 4, WHO), (4, 0, NOBODY), (8, 6, 55), (16, 6, NOBODY), (32, 0, NOBODY))
    os.setxattr(p / "f", "system.posix_acl_access", value)
    seen = []
    for uid, groups in ((WHO, []), (OTHER, []), (OTHER, [55])):
        with user(uid, uid, groups):
            seen.append(
                [attempt(lambda f=f: os.close(os.open(p / "f", f))) for f in (os.O_RDONLY, os.O_WRONLY)]
            )
    return seen


@scenario
def acl_set_by_who_is_not_in_the_group_clears_sgid(p: Path) -> Any:
    put(p / "f", mode=0o755)
    os.chown(p / "f", WHO, 777)
    os.chmod(p / "f", 0o2755)
    with user(WHO):
        value = acl((1, 7, NOBODY), (2, 5, OTHER), (4, 5, NOBODY), (16, 5, NOBODY), (32, 5, NOBODY))
        result = attempt(os.setxattr, p / "f", "system.posix_acl_access", value)
    return result, owner_of(p / "f")


@scenario
def modes_keep_others_out(p: Path) -> Any:
    put(p / "mine", b"x", 0o600)
    put(p / "readable", b"x", 0o644)
    closed = open_to_all(p / "closed", 0o700)
    put(closed / "inner")
    blind = open_to_all(p / "blind", 0o711)
    put(blind / "inner", mode=0o644)
    listed = open_to_all(p / "listed", 0o744)
    put(listed / "inner", mode=0o644)
    with user(WHO):
        return [
            attempt(os.open, p / "mine", os.O_RDONLY),
            attempt(os.open, p / "readable", os.O_WRONLY),
            attempt(os.open, p / "new", RW),
            attempt(os.listdir, closed),
            attempt(os.stat, closed / "inner"),
            attempt(os.listdir, blind),
            attempt(lambda: os.close(os.open(blind / "inner", os.O_RDONLY))),
            attempt(os.listdir, listed),
            attempt(os.stat, listed / "inner"),
            attempt(os.mkdir, p / "d"),
            attempt(os.unlink, p / "mine"),
            attempt(os.rename, p / "mine", p / "yours"),
            attempt(os.symlink, "x", p / "link"),
            attempt(os.rmdir, closed),
            attempt(os.truncate, p / "readable", 0),
        ]


@scenario
def only_the_owner_changes_attributes(p: Path) -> Any:
    put(p / "theirs", mode=0o666)
    put(p / "own", mode=0o644)
    os.chown(p / "own", WHO, WHO)
    with user(WHO, WHO, [300]):
        return [
            attempt(os.chmod, p / "theirs", 0o600),
            attempt(os.chown, p / "theirs", WHO, -1),
            attempt(os.utime, p / "theirs", ns=(OLD, OLD)),
            attempt(os.utime, p / "theirs"),
            attempt(os.setxattr, p / "theirs", "user.a", b"x"),
            attempt(os.setxattr, p / "theirs", "trusted.a", b"x"),
            attempt(os.chmod, p / "own", 0o4711),
            attempt(os.chown, p / "own", OTHER, -1),
            attempt(os.chown, p / "own", -1, 300),
            attempt(os.chown, p / "own", -1, 301),
            attempt(os.utime, p / "own", ns=(OLD, OLD)),
            attempt(os.setxattr, p / "own", "user.a", b"x"),
            attempt(os.mknod, p / "device", stat.S_IFCHR | 0o600, os.makedev(1, 3)),
        ]


@scenario
def access_asks_for_the_caller(p: Path) -> Any:
    put(p / "f", mode=0o640)
    os.chown(p / "f", OTHER, 55)
    modes = (os.F_OK, os.R_OK, os.W_OK, os.X_OK)
    seen = []
    for uid, groups in ((WHO, []), (WHO, [55]), (OTHER, [])):
        with user(uid, uid, groups):
            seen.append([os.access(p / "f", mode, effective_ids=True) for mode in modes])
    return seen


@scenario
def sticky_directories_keep_what_others_made(p: Path) -> Any:
    d = open_to_all(p / "tmp", 0o1777)
    with user(OTHER):
        put(d / "theirs")
        os.mkdir(d / "theirdir")
    with user(WHO):
        put(d / "own")
        results = [
            attempt(os.unlink, d / "theirs"),
            attempt(os.rmdir, d / "theirdir"),
            attempt(os.rename, d / "theirs", d / "x"),
            attempt(os.rename, d / "own", d / "theirs"),
            attempt(os.rename, d / "own", d / "renamed"),
            attempt(os.unlink, d / "renamed"),
            attempt(os.link, d / "theirs", d / "linked"),
        ]
    os.chown(d, WHO, WHO)
    with user(WHO):
        return results, attempt(os.unlink, d / "theirs")


@scenario
def setgid_is_cleared_by_chmod_of_who_is_not_in_the_group(p: Path) -> Any:
    put(p / "f")
    os.chown(p / "f", WHO, 777)
    seen = []
    for groups in ([], [777]):
        with user(WHO, WHO, groups):
            os.chmod(p / "f", 0o6755)
        seen.append(mode_of(p / "f"))
    return seen


def _suid_file(path: Path, uid: int, mode: int) -> Path:
    put(path, b"0123456789")
    os.chown(path, uid, 777)
    os.chmod(path, mode)
    return path


@scenario
def suid_and_sgid_are_cleared_by_a_users_write(p: Path) -> Any:
    seen = []
    for mode in (0o6777, 0o4777, 0o2777, 0o2767):
        for uid in (OTHER, WHO):
            path = _suid_file(p / f"f{mode:o}-{uid}", WHO, mode)
            with user(uid), opened(path, os.O_WRONLY) as fd:
                os.write(fd, b"x")
            seen.append(mode_of(path))
    return seen


@scenario
def a_chown_to_nobody_new_clears_suid_and_sgid(p: Path) -> Any:
    seen = []
    os.mkdir(p / "d")
    for mode in (0o6777, 0o4755, 0o2755, 0o2767, 0o755):
        for uid in (0, WHO):
            path = _suid_file(p / f"f{mode:o}-{uid}", WHO, mode)
            with user(uid):
                os.chown(path, -1, -1)
            seen.append(mode_of(path))
        path = _suid_file(p / f"f{mode:o}-other", WHO, mode)
        with user(OTHER):
            attempt(os.chown, path, -1, -1)
        seen.append(mode_of(path))
    os.chmod(p / "d", 0o7777)
    with user(OTHER):
        os.chown(p / "d", -1, -1)
    return seen, mode_of(p / "d")


def mode_alone(path: Path) -> str:
    """The permission bits as stat(1) asks for them: by statx(2), and nothing else with them."""
    syscall_statx, statx_mode, mode_at = 332, 2, 28
    found = ctypes.create_string_buffer(256)
    checked(libc.syscall(syscall_statx, -100, os.fsencode(path), 0, statx_mode, found))
    return oct(stat.S_IMODE(struct.unpack_from("H", found.raw, mode_at)[0]))


@scenario
def suid_is_seen_to_be_gone_by_who_asks_for_the_mode_alone(p: Path) -> Any:
    path = _suid_file(p / "f", WHO, 0o6777)

    def after(change: Callable[[int], Any]) -> str:
        os.chmod(path, 0o6777)
        os.stat(path)
        with user(OTHER), opened(path, os.O_RDWR) as fd:
            change(fd)
        return mode_alone(path)

    return [
        after(lambda fd: os.write(fd, b"x")),
        after(lambda fd: os.posix_fallocate(fd, 0, 5000)),
        after(lambda fd: os.ftruncate(fd, 3)),
        after(lambda _: os.truncate(path, 2)),
        after(lambda _: os.close(os.open(path, os.O_WRONLY | os.O_TRUNC))),
    ]


@scenario
def sgid_without_execute_is_kept_when_a_member_of_the_group_writes(p: Path) -> Any:
    path = _suid_file(p / "f", WHO, 0o2767)
    with user(OTHER, OTHER, [777]), opened(path, os.O_WRONLY) as fd:
        os.write(fd, b"x")
    return mode_of(path)


@scenario
def trusted_names_are_administrators_to_see(p: Path) -> Any:
    put(p / "f")
    for name in ("trusted.a", "user.b", "trusted.c", "user.d", "security.e"):
        os.setxattr(p / "f", name, b"value")
    buffer = ctypes.create_string_buffer(100)

    def lists() -> Any:
        return [
            attempt(lambda n=n: checked(libc.listxattr(os.fsencode(p / "f"), buffer, n)))
            for n in (0, 12, 30, 100)
        ]

    with user(WHO):
        by_user = lists(), sorted(os.listxattr(p / "f")), attempt(os.getxattr, p / "f", "trusted.a")
    shown = (sys.executable, "-c", "import os, sys; print(sorted(os.listxattr(sys.argv[1])))", str(p / "f"))
    admin = ("--inh-caps=+sys_admin", "--ambient-caps=+sys_admin")
    others = (
        ("setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin"),
        ("setpriv", f"--reuid={WHO}", f"--regid={WHO}", "--clear-groups", *admin),
        ("unshare", "--user", "--map-root-user"),
    )
    by_others = [subprocess.run([*one, *shown], capture_output=True, check=True).stdout for one in others]
    return by_user, by_others, lists(), sorted(os.listxattr(p / "f"))


@scenario
def sgid_that_is_set_while_the_file_is_open_goes_as_any(p: Path) -> Any:
    seen = []
    for gid in (0, 777):
        path = put(p / f"f{gid}")
        os.chown(path, WHO, gid)
        with opened(path, os.O_RDWR) as fd:
            os.chmod(path, 0o2745)
            with user(OTHER):
                os.ftruncate(fd, 1)
            seen.append(mode_of(path))
            os.chmod(path, 0o2745)
            with user(OTHER):
                os.write(fd, b"x")
            seen.append(mode_of(path))
            os.chmod(path, 0o2745)
            with user(OTHER, OTHER, [777]):
                os.ftruncate(fd, 1)
            seen.append(mode_of(path))
    return seen


@scenario
def suid_and_sgid_are_cleared_by_a_users_truncate(p: Path) -> Any:
    seen = []
    for mode in (0o6777, 0o2767):
        for uid in (OTHER, WHO):
            path = _suid_file(p / f"p{mode:o}{uid}", WHO, mode)
            with user(uid):
                os.truncate(path, 3)
            seen.append(mode_of(path))
            os.chmod(path, mode)
            with user(uid), opened(path, os.O_RDWR) as fd:
                os.ftruncate(fd, 2)
            seen.append(mode_of(path))
            os.chmod(path, mode)
            with user(uid), opened(path, os.O_RDWR | os.O_TRUNC):
                seen.append(mode_of(path))
    return seen


@scenario
def suid_and_sgid_are_cleared_by_the_owners_chown(p: Path) -> Any:
    seen = []
    for mode in (0o6777, 0o2767):
        path = _suid_file(p / f"f{mode:o}", WHO, mode)
        with user(WHO, WHO, [300, 777]):
            os.chown(path, -1, 300)
        seen.append(owner_of(path))
    return seen


@scenario
def suid_stays_when_root_writes(p: Path) -> Any:
    path = _suid_file(p / "f", WHO, 0o6777)
    with opened(path, os.O_WRONLY) as fd:
        os.write(fd, b"x")
    written = mode_of(path)
    os.chmod(path, 0o6777)
    os.truncate(path, 3)
    return written, mode_of(path)


@scenario
def a_file_opened_as_root_is_written_as_a_user(p: Path) -> Any:
    path = _suid_file(p / "f", 0, 0o4600)
    with opened(path, os.O_RDWR) as fd:
        with user(WHO):
            os.pwrite(fd, b"U", 0)
            os.ftruncate(fd, 5)
        return os.pread(fd, 100, 0), owner_of(path)


@scenario
def links_to_what_is_not_theirs_follow_the_same_rule(p: Path) -> Any:
    d = open_to_all(p / "d")
    put(p / "secret", mode=0o600)
    put(p / "public", mode=0o666)
    with user(WHO):
        return attempt(os.link, p / "secret", d / "a"), attempt(os.link, p / "public", d / "b")


@scenario
def who_makes_things_in_turn_owns_what_each_made(p: Path) -> Any:
    d = open_to_all(p / "d")
    turns = [(0, 0, []), (WHO, WHO, []), (0, 777, []), (OTHER, 777, [5]), (WHO, 1234, [5, 6]), (0, 0, [7])]
    owners = []
    for number, (uid, gid, groups) in enumerate(turns * 4):
        with user(uid, gid, groups):
            os.mkdir(d / f"d{number}")
            owners.append((owner_of(d / f"d{number}"), make_all(d / f"d{number}")))
    return owners


@scenario
def root_makes_sgid_files_in_a_setgid_directory_of_another_group(p: Path) -> Any:
    d = open_to_all(p / "d")
    os.chown(d, 0, 777)
    os.chmod(d, 0o2777)
    with umask(0):
        os.close(os.open(d / "file", RW, 0o2775))
        os.mknod(d / "node", stat.S_IFREG | 0o2775)
        os.mkdir(d / "dir", 0o2775)
        os.close(os.open(d / "plain", RW, 0o775))
        with user(WHO):
            os.close(os.open(d / "user's", RW, 0o2775))
        os.close(os.open(d / "again", RW, 0o2775))
    return [owner_of(d / name) for name in ("file", "node", "dir", "plain", "user's", "again")]


@scenario
def an_acl_takes_the_sgid_bit_as_its_setter_is_in_the_group_or_not(p: Path) -> Any:
    seen = []
    for number, (uid, groups) in enumerate([(0, []), (WHO, []), (WHO, [777]), (0, [])]):
        for gid in (0, 777):
            path = put(p / f"f{number}-{gid}")
            os.chown(path, WHO, gid)
            os.chmod(path, 0o2755)
            with user(uid, uid, groups):
                os.setxattr(
                    path, "system.posix_acl_access", acl((1, 7, NOBODY), (4, 5, NOBODY), (32, 5, NOBODY))
                )
            seen.append(mode_of(path))
    return seen


@scenario
def bits_go_when_a_file_is_given_away(p: Path) -> Any:
    seen = []
    for mode in (0o4755, 0o2755, 0o2745, 0o6745):
        for gid in (0, 777):
            path = put(p / f"f{mode:o}-{gid}")
            os.chown(path, WHO, gid)
            os.chmod(path, mode)
            os.chown(path, 0, -1)
            seen.append(mode_of(path))
    return seen


@scenario
def bits_stay_when_root_truncates_or_opens_to_truncate(p: Path) -> Any:
    seen = []
    for mode in (0o4755, 0o2755, 0o2745):
        path = _suid_file(p / f"f{mode:o}", WHO, mode)
        os.truncate(path, 3)
        seen.append(mode_of(path))
        with opened(path, os.O_RDWR) as fd:
            os.ftruncate(fd, 2)
            os.posix_fallocate(fd, 0, 5000)
        seen.append(mode_of(path))
        os.close(os.open(path, os.O_WRONLY | os.O_TRUNC))
        seen.append(mode_of(path))
    return seen


@scenario
def bits_of_who_is_in_both_groups_stay_when_he_gives_a_file_from_one_to_the_other(p: Path) -> Any:
    seen = []
    for mode in (0o6745, 0o6755, 0o2745):
        for groups in ([777, 5], [5], []):
            path = _suid_file(p / f"f{mode:o}-{len(groups)}", WHO, mode)
            with user(WHO, WHO, groups):
                seen.append((attempt(os.chown, path, -1, 5), mode_of(path)))
    return seen


@scenario
def capabilities_stay_when_who_may_not_gives_the_file_away(p: Path) -> Any:
    put(p / "f", mode=0o755)
    os.chown(p / "f", WHO, 777)
    os.setxattr(p / "f", "security.capability", struct.pack("<5I", 0x02000000, 1 << 7, 0, 0, 0))
    with user(OTHER):
        refused = attempt(os.chown, p / "f", OTHER, -1), attempt(os.truncate, p / "f", 1)
    left = attempt(os.getxattr, p / "f", "security.capability")
    with user(WHO):
        os.chown(p / "f", -1, WHO)
    return refused, left, attempt(os.getxattr, p / "f", "security.capability")
