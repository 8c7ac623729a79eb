"""What stands behind -o."""

from typing import Any

import pytest

from fusebpf import mounts
from fusebpf.errors import UsageError
from fusebpf.options import MountOptions, check_agree, combined, parse, split

SECURE = mounts.MS_NOSUID | mounts.MS_NODEV


def _combined(options: MountOptions) -> MountOptions:
    return combined(options, name=None, cache=None, roots=[])


def test_without_options_a_mount_is_secure_and_for_all_users() -> None:
    options = parse("")

    assert options == MountOptions()
    assert options.flags == SECURE
    assert options.allow_other
    assert options.default_permissions


@pytest.mark.parametrize(
    ("text", "flags"),
    [
        ("ro", SECURE | mounts.MS_RDONLY),
        ("ro,rw", SECURE),
        ("suid", mounts.MS_NODEV),
        ("dev,suid", 0),
        ("dev,nodev", SECURE),
        ("noexec,sync,dirsync", SECURE | mounts.MS_NOEXEC | mounts.MS_SYNCHRONOUS | mounts.MS_DIRSYNC),
        ("noatime", SECURE | mounts.MS_NOATIME),
        ("noatime,relatime", SECURE | mounts.MS_RELATIME),
        ("strictatime,noatime", SECURE | mounts.MS_NOATIME),
        ("noatime,atime", SECURE),
        ("nodiratime,lazytime,nosymfollow", SECURE | mounts.MS_NODIRATIME | mounts.MS_LAZYTIME | 256),
        ("defaults,rw", SECURE),
        ("suid,dev,user", SECURE | mounts.MS_NOEXEC),
        ("user,exec", SECURE),
    ],
)
def test_generic_options_become_mount_flags_and_the_last_one_wins(text: str, flags: int) -> None:
    assert parse(text).flags == flags


def test_options_of_other_programs_are_passed_over() -> None:
    text = "auto,noauto,nouser,_netdev,nofail,x-systemd.automount,X-y=z,comment=hi there,nonempty,mand,nomand"

    assert parse(text) == MountOptions()


def test_fuse_options_are_taken() -> None:
    options = parse("noallow_other,nodefault_permissions,fsname=my disk,max_read=8192,subtype=fusebpf")

    assert not options.allow_other
    assert not options.default_permissions
    assert (options.fsname, options.max_read) == ("my disk", 8192)


@pytest.mark.parametrize(("said", "meant"), [(0, 0), (1, 4096), (4096, 4096), (4097, 4097)])
def test_the_largest_read_is_as_the_kernel_takes_it(said: int, meant: int) -> None:
    assert parse(f"max_read={said}").max_read == meant


def test_cache_and_locks_are_chosen() -> None:
    assert (parse("").cache, parse("").locks) == ("normal", "backing")
    assert parse("cache=watch,ttl=2").cache == "watch"
    options = parse("locks=local,cache=none")
    assert (options.cache, options.locks) == ("none", "local")
    assert parse("cache=none,cache=normal,ttl=3").ttl == 3


def test_a_remount_passes_over_cache_and_locks() -> None:
    assert parse("remount,ro,locks=local,cache=none").flags == SECURE | mounts.MS_RDONLY


def test_our_options_are_taken_and_filters_add_up() -> None:
    options = parse(["filter=hide,filter=./a.c:b@500", "set=hide.names=a\\,b,name=n_1,nopassthrough,ttl=0.5"])

    assert options.filters == ("hide", "./a.c:b@500")
    assert options.sets == ("hide.names=a,b",)
    assert (options.name, options.passthrough, options.ttl) == ("n_1", False, 0.5)


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("a,b", ["a", "b"]),
        (",a,,b,", ["a", "b"]),
        (r"a\,b,c", ["a,b", "c"]),
        (r"a\\,b", ["a\\", "b"]),
        ('x="a,b",c', ["x=a,b", "c"]),
        (r"x=\"a", ['x="a']),
        (r"fsname=a\040b", ["fsname=a b"]),
        (r"fsname=\303\244", ["fsname=ä"]),
        ("a\\", ["a\\"]),
    ],
)
def test_commas_are_escaped_as_in_libfuse_or_quoted_as_in_mount(text: str, options: list[str]) -> None:
    assert split(text) == options


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("rw,frobnicate", "unknown mount option 'frobnicate'"),
        ("frobnicate=1", "unknown mount option 'frobnicate=1'"),
        ("ro=1", "unknown mount option 'ro=1'"),
        ("allow_other=1", "unknown mount option 'allow_other=1'"),
        ("max_read=lots", "'max_read=lots': not a number"),
        ("max_read=-1", "'max_read=-1': not a number"),
        ("max_read", "'max_read' needs a value"),
        ("fsname=", "'fsname=' needs a value"),
        ("subtype=other", "'subtype=other'"),
        ("user_id=0", "'user_id=0' cannot be set"),
        ("rootmode=40000", "'rootmode=40000' cannot be set"),
        ("fd=3", "'fd=3' cannot be set"),
        ("context=system_u:object_r:tmp_t", "'context=system_u:object_r:tmp_t' is not supported"),
        ("ttl=soon", "'ttl=soon'"),
        ("cache=some", "'cache=some': normal, none or watch"),
        ("cache", "'cache' needs a value"),
        ("locks=remote", "'locks=remote': backing or local"),
        ("ttl=3,cache=none", "'ttl=3' has no meaning"),
        ("cache=none,ttl=0", "'ttl=0' has no meaning"),
        ("name=a,name=b", "'name=b'"),
        ('set="a', "double quote"),
    ],
)
def test_unknown_options_and_useless_values_are_named(text: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(text)

    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("option", ["cache", "locks", "profile", "transport", "idle"])
def test_options_that_python_makes_are_checked_as_texts_are(option: str) -> None:
    with pytest.raises(UsageError, match=f"mount option '{option}=some'"):
        _combined(MountOptions(**{option: "some"}))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "options",
    [
        {"ttl": "1"}, {"ttl": None}, {"ttl": float("nan")}, {"ttl": float("inf")}, {"ttl": -1},
        {"max_workers": 1.5}, {"max_workers": "4"}, {"max_workers": 65}, {"max_descriptors": 1},
        {"max_descriptors": 1 << 70}, {"max_read": -1}, {"flags": "ro"}, {"fsname": 5}, {"fsname": ""},
        {"filters": ["hide"]}, {"passthrough": "no"}, {"is_remount": True},
        {"idmap": True, "default_permissions": False}, {"profile": "small", "default_permissions": False},
    ],
)  # fmt: skip
def test_options_that_python_makes_are_of_their_types_and_go_together(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        _combined(MountOptions(**options))


def test_options_that_python_makes_have_all_values_that_texts_have() -> None:
    options = MountOptions(ttl=2, max_workers=1, max_read=8192, fsname="a", cache="watch", filters=("hide",))
    assert _combined(options) == options
    with pytest.raises(UsageError, match="MountOptions is wanted"):
        combined(None, name=None, cache=None, roots=[])  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="cache=none,ro"):
        combined("", name=None, cache="none,ro", roots=[])
    with pytest.raises(UsageError, match="contradicts cache=none"):
        combined(MountOptions(cache="watch"), name=None, cache="none", roots=[])


def test_options_that_python_makes_bring_what_their_profile_does() -> None:
    assert _combined(MountOptions(profile="small")) == parse("profile=small")


def test_what_is_said_twice_has_one_value() -> None:
    check_agree(["ro,cache=watch", "ttl=2"], ["cache=watch", "locks=local"])
    with pytest.raises(UsageError, match="-o cache=none contradicts cache=watch"):
        check_agree(["ro,cache=none"], ["cache=watch"])
    check_agree(["cache=none,cache=watch", "ttl=1.0"], ["cache=watch", "ttl=1"])
    with pytest.raises(UsageError, match="-o ttl=1 contradicts ttl=2"):
        check_agree(["ttl=2", "ttl=1"], ["ttl=2"])
    with pytest.raises(UsageError, match="-o cache=none contradicts cache=watch"):
        combined("cache=none", name=None, cache="watch", roots=[])


def test_a_sloppy_mount_passes_over_unknown_options_only() -> None:
    assert parse("frobnicate,ro", is_sloppy=True).flags == SECURE | mounts.MS_RDONLY
    with pytest.raises(UsageError):
        parse("max_read=lots", is_sloppy=True)


def test_a_remount_accepts_what_the_kernel_shows() -> None:
    options = parse("rw,nosuid,nodev,relatime,user_id=0,group_id=0,default_permissions,allow_other,remount")

    assert options.is_remount
    assert options.flags == SECURE | mounts.MS_RELATIME
