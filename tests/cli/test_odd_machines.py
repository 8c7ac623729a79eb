"""Machines, and places on them, not as expected: one clear line, or a mount that works."""

import os
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import support
from cli_support import assert_refused, fusebpf, mount, umount

MOUNT = ("mount", "src", "mnt", "--filter", "hide")


def in_namespace(tree: Path, script: str, *words: str, flags: str = "-m") -> subprocess.CompletedProcess[str]:
    """Run the command in namespaces of its own, after a script has changed what is there."""
    wrapper = ["unshare", flags, "--propagation", "private", "sh", "-c", f'{script} && exec "$0" "$@"']
    return support.run(*wrapper, support.COMMAND, *words, cwd=tree, check=False)


@pytest.mark.parametrize("words", [MOUNT, ("umount", "mnt"), ("list",), ("check", "hide")])
def test_a_machine_without_proc_is_told_so(tree: Path, words: tuple[str, ...]) -> None:
    done = in_namespace(tree, "umount -l /proc", *words)

    assert_refused(done, 1, "/proc", "mount -t proc proc /proc")


@pytest.mark.parametrize("place", ["/run/fusebpf", "/sys/fs/bpf"])
def test_a_place_of_ours_that_is_read_only_is_named(tree: Path, place: str) -> None:
    fusebpf("list")  # makes the directory of the registry

    done = in_namespace(
        tree, f"mount -o remount,ro,bind {place} 2>/dev/null || mount --bind -o ro {place} {place}", *MOUNT
    )

    assert_refused(done, 1, f"'{place}/", "Read-only file system")
    assert "bug" not in done.stderr


def test_a_bpf_file_system_that_another_mount_hides_is_not_taken_for_one_that_is_there(tree: Path) -> None:
    done = in_namespace(tree, "mount -t tmpfs -o ro none /sys/fs", *MOUNT)

    assert_refused(done, 1, "the BPF file system cannot be mounted at /sys/fs/bpf: No such file or directory")


@pytest.mark.parametrize("n", [64, 100])
def test_a_process_that_may_have_few_descriptors_is_told_so(tree: Path, n: int) -> None:
    """With 64 of them it gets as far as the maps of the mount, with 100 to the core."""
    words = (support.COMMAND, *MOUNT, "--filter", "audit")
    done = support.run("sh", "-c", f'ulimit -n {n}; exec "$0" "$@"', *words, cwd=tree, check=False)

    assert_refused(done, 1, "Too many open files", "ulimit -n")
    assert "bug" not in done.stderr


@pytest.mark.parametrize("n", [104, 124, 225, 245, 275, 300, 340, 420])
@pytest.mark.parametrize("filters", [(), ("limit", "quota")])
def test_a_mount_works_or_is_refused_for_want_of_descriptors(
    tree: Path, n: int, filters: tuple[str, ...]
) -> None:
    words = [*MOUNT, *(word for name in filters for word in ("--filter", name))]
    limited = ("sh", "-c", f'ulimit -n {n}; exec "$0" "$@"', support.COMMAND)
    done = support.run(*limited, *words, cwd=tree, check=False, seconds=60)

    if done.returncode:
        assert_refused(done, 1, "Too many open files (ulimit -n says how many there may be)")
        assert "verifier" not in done.stderr
        assert "bug" not in done.stderr
        return
    try:
        (tree / "mnt" / "new").write_text("content")
        assert (tree / "mnt" / "new").read_text() == "content"
        assert tree / "mnt" / "new" in (tree / "mnt").iterdir()
        assert "hide" in support.run(support.COMMAND, "filters", "mnt", cwd=tree).stdout
        support.run(support.COMMAND, "detach", "mnt", "hide", cwd=tree)
    finally:
        support.run(support.COMMAND, "umount", "mnt", cwd=tree)


def test_filters_that_find_no_descriptors_take_none_from_the_ops_of_the_mount(tree: Path) -> None:
    limited = ("sh", "-c", 'ulimit -n 280; exec "$0" "$@"', support.COMMAND)
    support.run(*limited, *MOUNT, "-o", "max_descriptors=40", cwd=tree)
    (tree / "mnt" / "a").write_text("content")
    done = threading.Event()

    def use() -> int:
        n = 0
        while not done.is_set():
            assert (tree / "mnt" / "a").read_text() == "content"
            assert tree / "mnt" / "a" in (tree / "mnt").iterdir()
            n += 1
        return n

    try:
        with ThreadPoolExecutor() as pool:
            users = [pool.submit(use) for _ in range(4)]
            try:
                for _ in range(5):
                    refused = support.run(support.COMMAND, "attach", "mnt", "limit", check=False, cwd=tree)
                    assert_refused(refused, 1, "Too many open files", "of the 280 that it was started with")
            finally:
                done.set()
            assert all(user.result() for user in users)
    finally:
        support.run(support.COMMAND, "umount", "mnt", cwd=tree)


@pytest.mark.parametrize("is_compiled", [True, False])
@pytest.mark.parametrize("kib", [150000, 200000])
def test_a_process_that_may_have_little_memory_is_told_so(tree: Path, kib: int, is_compiled: bool) -> None:
    (tree / "own.c").write_text(
        f'#include "fusebpf.h"\nFILTER(own, .altitude = 5, .doc = "{tree}{kib}{is_compiled}.")\n'
        "PRE(own, rmdir) { return FB_CONTINUE; }\n"
    )
    if is_compiled:
        fusebpf("check", tree / "own.c")
    words = (support.COMMAND, "mount", "src", "mnt", "--filter", "./own.c")
    done = support.run("sh", "-c", f'ulimit -v {kib}; exec "$0" "$@"', *words, cwd=tree, check=False)

    assert_refused(done, 1, "ulimit ", "-v say")
    assert "missing" not in done.stderr
    assert "bug" not in done.stderr


def test_output_that_finds_no_room_is_told_so(tree: Path) -> None:
    done = support.run("sh", "-c", '"$0" ops >/dev/full', support.COMMAND, check=False, cwd=tree)

    assert_refused(done, 1, "No space left on device")
    assert "bug" not in done.stderr


def test_threads_that_cannot_act_as_their_callers_are_no_mount(tree: Path) -> None:
    """In a user namespace that denies setgroups(2) no worker could serve."""
    done = in_namespace(tree, "true", *MOUNT[:3], flags="-Urm")

    assert_refused(done, 1, "cannot be mounted", "act as its callers", "Operation not permitted")


@pytest.mark.parametrize("place", ["/run", "/run/fusebpf", "/sys/fs/bpf", "/dev", "/proc"])
def test_what_fusebpf_itself_works_with_is_not_hidden(tree: Path, place: str) -> None:
    for src in ("src", place):
        done = in_namespace(tree, "true", "mount", src, place)

        assert_refused(done, 1, f"mount point '{place}' would hide")
    assert sorted(path.name for path in (tree / "src").iterdir()) == ["file"]


def test_texts_of_ours_are_read_in_a_locale_of_any_kind(tree: Path) -> None:
    env = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}

    support.run(support.COMMAND, *MOUNT, "--set", "hide.names=é*", cwd=tree, env=env)

    umount("./mnt", cwd=tree)


def test_pins_are_roots_alone_whatever_the_umask_is(tree: Path) -> None:
    name = f"masked-{os.getpid()}"
    mine = support.PINS / name
    script = f'umask 0; "$0" {" ".join(MOUNT)} --name {name}'
    is_first = not support.PINS.exists()

    support.run("sh", "-c", script, support.COMMAND, cwd=tree)

    assert mine.stat().st_mode & 0o777 == 0o700
    assert not is_first or support.PINS.stat().st_mode & 0o022 == 0
    umount(name)


def test_a_mount_whose_directory_was_renamed_is_listed_where_it_is(tree: Path) -> None:
    (tree / "old" / "mnt").mkdir(parents=True)
    mount("src", "old/mnt", "--name", f"moved-{os.getpid()}", cwd=tree)
    (tree / "old").rename(tree / "new")

    listed = fusebpf("list").stdout

    assert str(tree / "new" / "mnt") in listed
    assert str(tree / "old") not in listed
    umount("new/mnt", cwd=tree)


def test_an_empty_name_is_none(tree: Path) -> None:
    for words in (["--name", ""], ["-o", "name="]):
        assert_refused(fusebpf("mount", "src", "mnt", *words, cwd=tree), 2, "''", "cannot be a mount's name")


LATENCY = "/dev/cpu_dma_latency"
NO_LATENCY = f"touch f && mount --bind f {LATENCY} && mount -o remount,ro,bind {LATENCY}"


@pytest.mark.skipif(not Path(LATENCY).exists(), reason="the kernel has no PM QoS for cores")
def test_a_machine_that_does_not_let_cores_be_kept_awake_is_told_so(tree: Path) -> None:
    done = in_namespace(tree, NO_LATENCY, *MOUNT, "-o", "idle=poll")

    assert_refused(done, 1, f"idle=poll: opening {LATENCY}", "Read-only file system")


@pytest.mark.skipif(not Path(LATENCY).exists(), reason="the kernel has no PM QoS for cores")
def test_nobody_has_to_let_cores_be_kept_awake(tree: Path) -> None:
    in_namespace(tree, f"{NO_LATENCY} && {support.COMMAND} mount src mnt", "umount", "mnt").check_returncode()
