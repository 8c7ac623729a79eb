"""Each bad input: one clear line, its exit code, and nothing left behind (the fixture `tree` looks)."""

import ctypes
import os
import struct
import subprocess
from pathlib import Path

import pytest
import support
from cli_support import assert_refused, fusebpf, left_behind, mount, umount, write_filter

from fusebpf.tables import shown

NOBODY = 65534
EVERYBODYS_MODE = 0o777


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ([], ["Missing argument 'SRC'", "usage: fusebpf mount [OPTIONS] SRC MNT"]),
        (["src"], ["MNT"]),
        (["src", "mnt", "more"], ["more", "usage: fusebpf mount [OPTIONS] SRC MNT"]),
        (["src", "mnt", "--frobnicate"], ["--frobnicate"]),
        (["src", "mnt", "-o", "frobnicate"], ["unknown mount option 'frobnicate'"]),
        (["src", "mnt", "-o", "max_read=x"], ["max_read=x"]),
        (["src", "mnt", "--name", "a/b"], ["'a/b' cannot be a mount's name"]),
        (["src", "mnt", "--name", "-a"], ["'-a' cannot be a mount's name"]),
        (["src", "mnt", "--name", ""], ["'' cannot be a mount's name"]),
        (["src", "mnt", "--daemon-timeout", "5"], ["--daemon-timeout", "has no daemon"]),
        (["src", "mnt", "--daemon-timeout", "x"], ["'--daemon-timeout': 'x' is not a number from 0.001 to"]),
        (["src", "mnt", "--on-daemon-failure", "fail"], ["--on-daemon-failure", "has no daemon"]),
        (["src", "mnt", "--filter", "nosuch"], ["no stock filter 'nosuch'", "hide"]),
        (["src", "mnt", "--filter", "hide@0"], ["'0' is not a number from 1 to 999"]),
        (["src", "mnt", "--filter", "hide@top"], ["'top' is not a number"]),
        (["src", "mnt", "--filter", "hide", "--set", "hide.names"], ["FILTER.MAP=VALUE"]),
        (["src", "mnt", "--filter", "hide", "--set", "hide=x"], ["FILTER.MAP=VALUE"]),
        (
            ["src", "mnt", "--filter", "hide", "--set", "deny.rules=x"],
            ["'deny' is no filter of this mount", "hide"],
        ),
        (
            ["src", "mnt", "--filter", "deny", "--set", "deny.rules=dirent:*:*:EPERM"],
            ["deny.rules: op in 'dirent:*:*:EPERM': its filter has no hook on 'dirent'"],
        ),
        (["src", "mnt", "--set", "hide.names=x"], ["'hide' is no filter of this mount", "no filter"]),
        (["src", "mnt", "--filter", "hide", "--set", "hide.nosuch=x"], ["hide", "nosuch", "names"]),
        (["src", "mnt", "--root-fd", "7"], ["leave 'src' out"]),
        (["mnt", "--root-fd", "1"], ["--root-fd", "'1' is not a whole number from 3 on"]),
        (["mnt", "--root-fd", "77"], ["root descriptor 77 is not open"]),
        (["mnt", "--root-fd", "-1"], ["--root-fd"]),
        (["mnt", "--root-fd", "99999999999"], ["root descriptor 99999999999 is not open"]),
        (["src", "mnt", "-o", f"fsname={'a' * 4096}"], ["'fsname': at most 4095 bytes"]),
        (["src", "mnt", "-o", r"fsname=a\000b"], ["a NUL byte cannot be in an option"]),
        (["src", "mnt", "-o", r"filter=./a\000b.c"], ["a NUL byte cannot be in an option"]),
        (["src", "mnt", "--name", "a", "-o", "name=b"], ["two names"]),
        (["src", "mnt", "--cache", "watch", "-o", "cache=none"], ["-o cache=none contradicts cache=watch"]),
        (["src", "mnt", "-o", "remount,ro"], ["mount -o remount"]),
    ],
)
def test_a_command_put_wrongly_ends_with_2_and_names_the_word(
    tree: Path, words: list[str], parts: list[str]
) -> None:
    done = fusebpf("mount", *words, cwd=tree)

    assert_refused(done, 2, *parts)


def test_no_command_is_a_command_put_wrongly(tree: Path) -> None:
    assert_refused(fusebpf(cwd=tree), 2, "a command is missing: attach, check", "umount", "--help")


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["nosuch", "mnt"], ["source 'nosuch'", "No such file or directory"]),
        (["src/file", "mnt"], ["source 'src/file' is not a directory"]),
        (["src", "nosuch"], ["mount point 'nosuch'", "No such file or directory"]),
        (["src", "src/file"], ["mount point 'src/file' is not a directory"]),
        (["src", "src/inside"], ["inside the source"]),
        (["src", "loop/inside"], ["inside the source"]),
        (["src/inside", "src"], ["around the source"]),
        (["src", "."], ["around the source"]),
        (["src", "mnt", "--filter", "./nosuch.c"], ["nosuch.c", "no such file"]),
        (["src", "mnt", "--filter", "hide", "--filter", "hide@5"], ["two filters are named 'hide'"]),
        (
            ["src", "mnt", "--filter", "hide@5", "--filter", "audit@5"],
            ["'hide' and 'audit' both stand at altitude 5", "4 and 6"],
        ),
    ],
)
def test_what_cannot_be_mounted_ends_with_1_and_says_why(
    tree: Path, words: list[str], parts: list[str]
) -> None:
    (tree / "src" / "inside").mkdir()
    (tree / "loop").symlink_to("src")

    done = fusebpf("mount", *words, cwd=tree)

    assert_refused(done, 1, *parts)


@pytest.mark.parametrize("src", ["/", "src"])
def test_the_root_directory_is_no_mount_point(tree: Path, src: str) -> None:
    """Whoever runs has it as its root already and would go on below the mount, where nobody reaches it."""
    script = '"$0" mount "$1" /; code=$?; grep " / / .*fuse.fusebpf" /proc/self/mountinfo; exit $code'

    words = ("unshare", "-m", "sh", "-c", script, support.COMMAND, src)
    done = support.run(*words, cwd=tree, check=False)

    assert_refused(done, 1, "mount point '/' is the root directory")


def test_a_source_whose_path_is_too_long_to_be_told_is_refused(tree: Path) -> None:
    script = 'cd "$1" && for i in $(seq 20); do mkdir $2 && cd $2; done; exec "$0" mount . "$1"/mnt'

    done = support.run("bash", "-c", script, support.COMMAND, tree, "d" * 250, check=False)

    assert_refused(done, 1, "source '.' cannot be opened: File name too long")


def test_a_mount_point_in_a_bind_mount_of_the_source_is_inside_it(tree: Path) -> None:
    """By the directory itself where the source is bound, by propagation where a part of it is."""
    (tree / "src" / "sub" / "point").mkdir(parents=True)
    script = (
        'mount --bind "$1" "$1" && mount --make-shared "$1" && mount --bind "$1"/src/sub "$1"/mnt &&'
        ' cd "$1" && exec "$2" mount src mnt/point'
    )

    done = support.run("unshare", "-m", "sh", "-c", script, "sh", tree, support.COMMAND, check=False)

    assert_refused(done, 1, "inside the source")


def test_a_mount_point_in_what_a_mounted_source_shows_is_inside_it(tree: Path) -> None:
    """Each would ask the other for what lies below, until all threads of both wait for one another."""
    (tree / "src" / "sub" / "deep").mkdir(parents=True)
    (tree / "mnt2").mkdir()
    mount("src", "mnt", cwd=tree)
    mount("mnt/sub", "mnt2", cwd=tree)

    assert_refused(fusebpf("mount", "mnt", "src/sub", cwd=tree), 1, "inside", "/src', which the source")
    assert_refused(fusebpf("mount", "mnt2", "src/sub/deep", cwd=tree), 1, "inside", "/sub', which the source")
    mount("mnt2", "src/sub", cwd=tree)  # in place, by a detour
    assert (tree / "mnt" / "file").read_text() == "text\n"

    for path in ("src/sub", "mnt2", "mnt"):
        umount(tree / path)


def test_a_bad_filter_is_told_with_file_and_line_and_its_details_indented(tree: Path) -> None:
    (tree / "bad.c").write_text(
        '#include "fusebpf.h"\nFILTER(bad, .altitude = 5, .doc = "")\nPRE(bad, lookup) { return oops; }\n'
    )

    done = fusebpf("mount", "src", "mnt", "--filter", "./bad.c", cwd=tree)

    assert_refused(done, 1, "bad.c:3", n_lines=None)
    assert all(line.startswith("  ") for line in done.stderr.splitlines()[1:])


def test_an_unknown_hook_lists_the_ops(tree: Path) -> None:
    (tree / "bad.c").write_text(
        '#include "fusebpf.h"\nFILTER(bad, .altitude = 5)\nPRE(bad, lokup) { return FB_CONTINUE; }\n'
    )

    done = fusebpf("mount", "src", "mnt", "--filter", "bad.c", cwd=tree)

    assert_refused(done, 1, "lokup", "lookup", "rename", n_lines=None)


def test_a_hook_that_the_verifier_refuses_is_told_with_its_function(tree: Path) -> None:
    (tree / "bad.c").write_text(
        '#include "fusebpf.h"\nFILTER(bad, .altitude = 5)\n'
        "PRE(bad, lookup) { return ctx->name.text[ctx->name_len + 100000]; }\n"
    )

    done = fusebpf("mount", "src", "mnt", "--filter", "./bad.c", cwd=tree)

    assert_refused(done, 1, "bad.c", "lookup", n_lines=None)


def test_a_filter_that_uses_the_daemon_is_refused(tree: Path) -> None:
    write_filter(tree / "asks.c", "asks", more=", .wants = FB_WANTS_DAEMON")

    done = fusebpf("mount", "src", "mnt", "--filter", "./asks.c", cwd=tree)

    assert_refused(done, 1, "'asks' uses the daemon, and this mount has none: mount with --daemon")


def test_one_altitude_for_a_file_of_several_filters_is_a_usage_error(tree: Path) -> None:
    write_filter(tree / "two.c", "first", "second")

    done = fusebpf("mount", "src", "mnt", "--filter", "./two.c@77", cwd=tree)

    assert_refused(done, 2, "one altitude, 77, for the 2 filters", "first@77")


def test_a_filter_that_a_file_does_not_have_is_named(tree: Path) -> None:
    write_filter(tree / "two.c", "first", "second")

    done = fusebpf("mount", "src", "mnt", "--filter", "two.c:third", cwd=tree)

    assert_refused(done, 1, "'third'", "first")


def test_more_filters_than_a_chain_holds_are_refused(tree: Path) -> None:
    write_filter(tree / "many.c", *(f"f{number}" for number in range(33)), altitude=100)

    done = fusebpf("mount", "src", "mnt", "--filter", "./many.c", cwd=tree, seconds=60)

    assert_refused(done, 1, "33 filters are too many", "at most 32")


@pytest.mark.parametrize(
    "words", [["mount", "src", "mnt"], ["umount", "./mnt"], ["list"], ["check", "x.c"], ["stock"]]
)
def test_others_than_root_are_told_so(tree: Path, words: list[str]) -> None:
    for path in (tree, tree / "src", tree / "mnt"):
        path.chmod(EVERYBODYS_MODE)

    done = fusebpf(*words, cwd=tree, user=NOBODY)

    assert_refused(done, 1, "only root", "sudo")


@pytest.mark.parametrize("capability", ["sys_admin", "setuid", "setgid"])
def test_root_without_the_capability_is_told_so(tree: Path, capability: str) -> None:
    lacking = f"--bounding-set=-{capability}"
    done = support.run("setpriv", lacking, support.COMMAND, "mount", "src", "mnt", cwd=tree, check=False)

    assert_refused(done, 1, f"CAP_{capability.upper()}")


@pytest.mark.parametrize(
    ("script", "parts"),
    [
        ("mount -t tmpfs none /dev", ["/dev/fuse' is missing", "modprobe fuse"]),
        ("mount --bind /dev/null /dev/fuse", ["/dev/fuse' is not the FUSE device", "modprobe fuse"]),
    ],
)
def test_a_machine_without_fuse_is_told_what_to_load(tree: Path, script: str, parts: list[str]) -> None:
    words: list[str | os.PathLike[str]] = [
        "unshare",
        "-m",
        "sh",
        "-c",
        f'{script} && exec "$0" "$@"',
        support.COMMAND,
        "mount",
        "src",
        "mnt",
    ]

    done = support.run(*words, cwd=tree, check=False)

    assert_refused(done, 1, *parts)


@pytest.mark.parametrize("n_inodes", [2, 3, 4])
def test_a_machine_without_room_for_a_mounts_state_is_told_so(tree: Path, n_inodes: int) -> None:
    """The state, its log, the state again: whichever finds no room, nothing is left."""
    script = (
        f'mount -t tmpfs -o nr_inodes={n_inodes} none /run && "$0" mount src mnt; code=$?;'
        " find /run /sys/fs/bpf -name '*mnt*'; findmnt mnt; exit $code"
    )

    done = support.run("unshare", "-m", "sh", "-c", script, support.COMMAND, cwd=tree, check=False)

    assert_refused(done, 1, "'/run/fusebpf", "cannot be written: No space left on device")


def refuse_bpf() -> None:
    """In a child: let bpf(2) fail with EPERM, as in a container that has none (seccomp(2))."""
    code = b"".join(
        struct.pack("=HBBI", *instruction)
        for instruction in (
            (0x20, 0, 0, 0),  # the number of the call
            (0x15, 0, 1, {"x86_64": 321}.get(os.uname().machine, 280)),
            (0x06, 0, 0, 0x00050001),  # EPERM
            (0x06, 0, 0, 0x7FFF0000),  # allowed
        )
    )
    buffer = ctypes.create_string_buffer(code)
    program = struct.pack("HxxxxxxQ", 4, ctypes.addressof(buffer))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(22, 2, program, 0, 0) != 0:
        os._exit(99)


def without_bpf(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["timeout", "-s", "KILL", "30", support.COMMAND, *words],
        check=False,
        cwd=cwd,
        preexec_fn=refuse_bpf,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_a_machine_without_bpf_is_told_so_where_filters_are_asked_for(tree: Path) -> None:
    done = without_bpf("mount", "src", "mnt", "--filter", "hide", cwd=tree)

    assert_refused(done, 1, "BPF", "Operation not permitted")


def test_a_machine_without_bpf_still_mounts_without_filters(tree: Path) -> None:
    assert without_bpf("mount", "src", "mnt", cwd=tree).returncode == 0

    assert (tree / "mnt" / "file").read_text() == "text\n"
    umount("./mnt", cwd=tree)


def test_a_mount_point_that_is_mounted_already_is_refused(tree: Path) -> None:
    mount("src", "mnt", cwd=tree)

    assert_refused(fusebpf("mount", "src", "mnt", cwd=tree), 1, "is a fusebpf mount already")
    umount("./mnt", cwd=tree)


def test_a_name_in_use_is_refused(tree: Path) -> None:
    (tree / "other").mkdir()
    name = f"t{os.getpid()}"
    mount("src", "mnt", "--name", name, cwd=tree)

    assert_refused(fusebpf("mount", "src", "other", "--name", name, cwd=tree), 1, f"'{name}' is in use")
    umount(name, cwd=tree)


@pytest.mark.parametrize(
    ("target", "parts"),
    [
        ("nosuch", ["no mount named 'nosuch'"]),
        ("./nosuch", ["'./nosuch' does not exist"]),
        ("./mnt", ["'./mnt' is not a fusebpf mount"]),
        ("/proc", ["'/proc' is not a fusebpf mount"]),
        ("src/file", ["'src/file' is not a fusebpf mount"]),
    ],
)
def test_what_is_no_fusebpf_mount_is_not_unmounted(tree: Path, target: str, parts: list[str]) -> None:
    assert_refused(fusebpf("umount", target, cwd=tree), 1, *parts)


def test_an_unexpected_error_is_one_line_that_says_that_it_is_a_bug(tree: Path) -> None:
    program = (
        "import sys, fusebpf.checks, fusebpf.cli\n"
        "def broken(*_): raise ZeroDivisionError('two\\nlines')\n"
        "fusebpf.checks.check_root = broken\nfusebpf.cli.main()\n"
    )
    words: list[str | os.PathLike[str]] = [support.COMMAND.with_name("python"), "-c", program, "list"]

    done = support.run(*words, cwd=tree, check=False)
    told = support.run(*words, cwd=tree, check=False, env={"FUSEBPF_DEBUG": "1"})

    assert_refused(done, 1, "ZeroDivisionError: two lines", "this is a bug")
    assert "line 2, in broken" in told.stderr


def test_a_source_that_has_been_removed_is_said_to_be_so(tree: Path) -> None:
    script = 'mkdir gone && exec 7<gone && rmdir gone && exec "$0" mount --root-fd 7 "$1"'

    done = support.run("sh", "-c", script, support.COMMAND, tree / "mnt", cwd=tree, check=False)

    assert_refused(done, 1, "root descriptor 7 has been removed")
    assert left_behind(tree) == []


@pytest.mark.parametrize("limit", [8, 16, 24, 40, 63])
def test_too_few_descriptors_are_said_before_anything_is_made(tree: Path, limit: int) -> None:
    words = ("prlimit", f"--nofile={limit}:{limit}", support.COMMAND, "mount", tree / "src", tree / "mnt")

    done = support.run(*words, "--name", "few", check=False)

    assert_refused(done, 1, f"at least 64 descriptors, and {limit} are the limit: raise `ulimit -n`")
    assert left_behind(tree) == []
    assert not list(Path("/run/fusebpf").glob("few.*"))


@pytest.mark.parametrize("words", ["ops", "--help"])
def test_a_full_disk_is_no_bug(words: str) -> None:
    done = support.run("sh", "-c", f'exec "$0" {words} >/dev/full', support.COMMAND, check=False)

    assert_refused(done, 1, "cannot write: No space left on device")


def test_a_current_directory_that_has_been_removed_is_said_to_be_so(tree: Path) -> None:
    script = 'mkdir gone && cd gone && rmdir ../gone && exec "$0" mount "$1" "$2" --root below'

    done = support.run("sh", "-c", script, support.COMMAND, tree / "src", tree / "mnt", cwd=tree, check=False)

    assert_refused(done, 1, "the current directory has been removed")


@pytest.mark.parametrize("code", ["0", "7", "'no way'"])
def test_a_daemon_whose_module_ends_the_program_is_no_mount(tree: Path, code: str) -> None:
    (tree / "ends.py").write_text(f"raise SystemExit({code})\n")

    done = fusebpf("mount", "src", "mnt", "--daemon", "./ends.py:Ends", cwd=tree)

    assert_refused(done, 2, "'./ends.py:Ends' cannot be made: SystemExit")


@pytest.mark.parametrize("name", [b"\xff.c", b"\x1b[31m.c", b"two\nlines.c", b"a:7.c", b"a\\b.c"])
def test_a_filter_whose_file_has_an_odd_name_is_checked_and_a_mistake_in_it_named(
    tree: Path, name: bytes
) -> None:
    path = write_filter(tree / os.fsdecode(name), "odd")
    good = fusebpf("check", os.fsdecode(name), cwd=tree)
    path.write_text(path.read_text().replace("return", "return nosuch +"))
    bad = fusebpf("check", os.fsdecode(name), cwd=tree)
    path.write_text(path.read_text().replace("return nosuch +", "\n return ctx->name.text[ctx->name_len] +"))
    outside = fusebpf("check", os.fsdecode(name), cwd=tree)

    assert (good.returncode, good.stderr) == (0, "")
    assert_refused(bad, 1, f"fusebpf: {shown(os.fsdecode(name))}:", "identifier 'nosuch'", n_lines=None)
    assert_refused(outside, 1, f"fusebpf: {shown(os.fsdecode(name))}:7: the kernel's verifier", n_lines=None)


def test_umount_says_how_to_reach_a_mount_in_its_server_s_own_mount_namespace(tree: Path) -> None:
    words = ("unshare", "-m", "--propagation", "private", support.COMMAND, "mount", "src", "mnt")
    name = f"t{os.getpid()}"
    support.run(*words, "--name", name, cwd=tree)
    ((_, pid),) = support.servers_below(tree)

    assert_refused(fusebpf("umount", name, cwd=tree), 1, f"nsenter -t {pid} -m fusebpf umount {name}")
    support.run("nsenter", "-t", str(pid), "-m", support.COMMAND, "umount", name)

    assert left_behind(tree) == []


@pytest.mark.parametrize("file", ["./mine.c:one", "./mine.c@600", "./mine.c:one@600"])
def test_check_is_for_whole_files(tree: Path, file: str) -> None:
    assert_refused(
        fusebpf("check", file, cwd=tree),
        2,
        f"'{file}': `check` is for all that is in a file, so say './mine.c'",
    )
