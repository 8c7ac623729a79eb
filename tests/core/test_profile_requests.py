"""profile=small: which requests are spared, and that nothing stays open, is missed or grows stale for it."""

import mmap
import os
import stat
import subprocess
from functools import partial
from pathlib import Path

import pytest
import serving
import support

SMALL = "profile=small"
WATCHED = f"{SMALL},cache=watch"


def leads_to(link: Path, target: str) -> bool:
    return os.readlink(link) == target


def test_what_is_created_stays_open_no_longer_than_its_caller_has_it(directory: Path) -> None:
    with serving.serve(directory, "created", options=SMALL) as served:
        (served.path / "first").write_text("before any open")
        (served.path / "first").read_text()
        n_before = served.n_descriptors()

        for number in range(100):
            (served.path / f"f{number}").write_text("x")
            (served.path / f"f{number}").unlink()

        assert served.counters()["handles"] == 0
        # What is unlinked is forgotten in the background.
        support.wait_until(lambda: served.n_descriptors() <= n_before + 4)


def test_the_space_of_a_file_that_was_created_and_removed_is_free(mount: support.Mounter, ext4: Path) -> None:
    mounted = mount(src=ext4, options=SMALL)
    (mounted.path / "known").write_text("")
    (mounted.path / "known").read_text()
    n_free = os.statvfs(ext4).f_bfree

    (mounted.path / "big").write_bytes(bytes(4 << 20))
    os.sync()
    (mounted.path / "big").unlink()

    support.wait_until(lambda: os.statvfs(ext4).f_bfree >= n_free - 16)


def test_programs_that_look_at_a_known_tree_cost_no_request(directory: Path) -> None:
    with serving.serve(directory, "tree", options=WATCHED) as served:
        for name in ("a", "b", "b/c"):
            (served.src / name).mkdir()
            for number in range(5):
                (served.src / name / f"f{number}").write_text("text")

        def n_requests(*words: str) -> int:
            before = served.counters()["requests"]
            subprocess.run(["timeout", "-s", "KILL", "20", *words], check=True, stdout=subprocess.DEVNULL)
            return served.counters()["requests"] - before

        support.wait_until(lambda: n_requests("cat", f"{served.path}/a/f1") == 0)
        support.wait_until(lambda: n_requests("ls", f"{served.path}/b") == 0)
        # Of statfs they ask once, whatever the tree's size.
        support.wait_until(lambda: n_requests("grep", "-r", "text", str(served.path)) <= 1)
        support.wait_until(lambda: n_requests("find", str(served.path)) <= 1)


@pytest.mark.parametrize("options", ["cache=none", "ttl=0.05", "cache=watch"])
def test_a_name_that_comes_or_goes_behind_the_mount_is_seen_in_kept_listings(
    mount: support.Mounter, options: str
) -> None:
    mounted = mount(options=f"{SMALL},{options}")
    (mounted.src / "d").mkdir()
    (mounted.src / "d" / "old").touch()
    assert os.listdir(mounted.path / "d") == os.listdir(mounted.path / "d") == ["old"]

    (mounted.src / "d" / "new").touch()
    (mounted.src / "d" / "old").unlink()

    support.wait_until(lambda: os.listdir(mounted.path / "d") == ["new"])


@pytest.mark.parametrize("options", [SMALL, WATCHED])
def test_a_long_listing_has_each_name_once_and_goes_on_where_it_was_left(
    mount: support.Mounter, options: str
) -> None:
    mounted = mount(options=options)
    names = {f"a-rather-long-name-of-a-file-{number}" for number in range(3000)}
    for name in names:
        (mounted.src / name).touch()

    with os.scandir(mounted.path) as first, os.scandir(mounted.path) as second:
        pairs = [(one.name, other.name) for one, other in zip(first, second, strict=True)]

    assert len(pairs) == len(names)
    assert {one for one, _ in pairs} == {other for _, other in pairs} == names
    assert set(os.listdir(mounted.path)) == names


def test_a_filter_on_listings_that_came_with_the_mount_goes_on_judging_them(mount: support.Mounter) -> None:
    mounted = mount(filters=["hide"], sets={"hide.names": "secret"}, options=WATCHED)
    for name in ("secret", "other", "plain"):
        (mounted.src / name).touch()
    support.wait_until(lambda: set(os.listdir(mounted.path)) == {"other", "plain"})

    support.run(support.COMMAND, "map", mounted.path, "hide", "names", "set", "other")

    assert "other" not in os.listdir(mounted.path)


def test_a_filter_on_listings_that_comes_later_is_refused_where_the_kernel_keeps_them(
    mount: support.Mounter,
) -> None:
    mounted = mount(options=WATCHED)

    said = support.run(support.COMMAND, "attach", mounted.path, "hide", check=False)

    assert said.returncode == 2
    assert "filter 'hide' hooks dirent" in said.stderr
    assert "mount anew with --filter hide" in said.stderr
    assert said.stderr.count("\n") == 1


def test_a_filter_on_listings_may_come_later_where_the_kernel_does_not_keep_them(
    mount: support.Mounter,
) -> None:
    mounted = mount(options=SMALL)
    (mounted.src / "secret").touch()
    assert os.listdir(mounted.path) == ["secret"]

    support.run(support.COMMAND, "attach", mounted.path, "hide", "--set", "hide.names=secret")

    assert os.listdir(mounted.path) == []


def test_a_filter_that_hooks_locks_is_refused_by_their_names(mount: support.Mounter, tmp_path: Path) -> None:
    mounted = mount(options=SMALL)
    source = tmp_path / "locks.c"
    source.write_text(
        '#include "fusebpf.h"\nFILTER(locks, .altitude = 700, .doc = "Refuses locks")\n'
        "PRE(locks, flock) { return -EPERM; }\n"
    )

    said = support.run(support.COMMAND, "attach", mounted.path, source, check=False)

    assert said.returncode == 2
    assert "filter 'locks' hooks flock" in said.stderr


def test_a_program_that_was_just_written_can_be_run_on_both_sides(mount: support.Mounter) -> None:
    mounted = mount(options=f"{SMALL},exec")
    for number in range(30):
        path = mounted.path / f"program{number}"

        path.write_text("#!/bin/sh\nexit 7\n")
        path.chmod(0o755)

        assert subprocess.run([mounted.src / path.name], check=False, timeout=10).returncode == 7
        assert subprocess.run([path], check=False, timeout=10).returncode == 7


@pytest.mark.parametrize("options", [SMALL, WATCHED, f"{SMALL},cache=none", f"{SMALL},transport=dev"])
def test_crowds_that_append_lose_no_line(mount: support.Mounter, options: str) -> None:
    mounted = mount(options=options)
    script = (
        "import os, sys\n"
        "for number in range(100):\n"
        "    fd = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT)\n"
        "    os.write(fd, f'{sys.argv[2]} {number}\\n'.encode())\n"
        "    os.close(fd)\n"
    )
    words = ["timeout", "-s", "KILL", "60", "/usr/bin/python3", "-c", script, str(mounted.path / "log")]

    crowd = [subprocess.Popen([*words, str(number)]) for number in range(6)]

    assert [one.wait(60) for one in crowd] == [0] * 6
    expected = sorted(f"{one} {number}" for one in range(6) for number in range(100))
    assert expected == sorted((mounted.src / "log").read_text().splitlines())
    assert expected == sorted((mounted.path / "log").read_text().splitlines())


@pytest.mark.parametrize("options", [SMALL, WATCHED])
def test_mapped_and_plain_writes_and_truncates_are_of_one_file(mount: support.Mounter, options: str) -> None:
    mounted = mount(options=options)
    path = mounted.path / "f"
    path.write_bytes(bytes(3 * 4096))
    fd = os.open(path, os.O_RDWR)
    with mmap.mmap(fd, 3 * 4096) as mapped:
        mapped[4096:4100] = b"mmap"
        os.pwrite(fd, b"plain", 10)
        assert mapped[10:15] == b"plain"
        mapped.flush()
        assert (mounted.src / "f").read_bytes()[4096:4100] == b"mmap"
        os.ftruncate(fd, 4096)
        os.ftruncate(fd, 3 * 4096)
        assert mapped[4096:4100] == bytes(4)
        mapped[8192:8196] = b"tail"
    os.close(fd)

    expected = bytearray(3 * 4096)
    expected[10:15], expected[8192:8196] = b"plain", b"tail"
    support.wait_until(lambda: (mounted.src / "f").read_bytes() == bytes(expected))
    assert path.read_bytes() == bytes(expected)


def test_unaligned_data_may_follow_direct_writes(mount: support.Mounter) -> None:
    mounted = mount(options=SMALL)
    block = mmap.mmap(-1, 8192)
    block[:] = b"d" * 8192
    fd = os.open(mounted.path / "f", os.O_RDWR | os.O_CREAT | os.O_DIRECT)
    assert os.write(fd, block) == 8192
    os.close(fd)

    with (mounted.path / "f").open("ab") as file:
        file.write(b"end")

    assert (mounted.path / "f").read_bytes() == b"d" * 8192 + b"end"
    assert (mounted.src / "f").read_bytes() == b"d" * 8192 + b"end"


def test_a_file_that_is_renamed_over_is_read_by_who_has_it_open(mount: support.Mounter) -> None:
    mounted = mount(options=SMALL)
    (mounted.src / "f").write_text("old")
    (mounted.src / "g").write_text("new")
    fd = os.open(mounted.path / "f", os.O_RDONLY)

    (mounted.path / "g").rename(mounted.path / "f")

    assert os.pread(fd, 10, 0) == b"old"
    assert (mounted.path / "f").read_text() == "new"
    os.close(fd)


def test_a_write_by_another_takes_suid_and_sgid_bits_away(mount: support.Mounter) -> None:
    mounted = mount(options=SMALL)
    path = mounted.path / "f"
    path.write_text("x")
    path.chmod(0o6777)
    script = "import sys; open(sys.argv[1], 'a').write('y')"

    subprocess.run(["/usr/bin/python3", "-c", script, path], check=True, user=65534, group=65534, timeout=20)

    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE((mounted.src / "f").stat().st_mode) == 0o777


# ------------------------------------------------------------------------------- symbolic links


@pytest.mark.parametrize("options", [WATCHED, f"{SMALL},ttl=60"])
def test_where_a_link_leads_is_asked_for_once(directory: Path, options: str) -> None:
    targets = {"short": "f", "long": "x/" * 2000 + "y"}
    (directory / "src").mkdir()
    for name, target in targets.items():
        (directory / "src" / name).symlink_to(target)
    with serving.serve(directory, "links", options=options) as served:
        for name, target in targets.items():
            assert os.readlink(served.path / name) == target
        before = served.counters()["requests"]

        for name, target in targets.items():
            assert os.readlink(served.path / name) == target

        assert served.counters()["requests"] == before


@pytest.mark.parametrize("options", ["cache=watch", f"{SMALL},cache=none"])
def test_elsewhere_it_is_asked_for_each_time(directory: Path, options: str) -> None:
    (directory / "src").mkdir()
    (directory / "src" / "link").symlink_to("f")
    with serving.serve(directory, "links", options=options) as served:
        os.readlink(served.path / "link")
        before = served.counters()["requests"]

        os.readlink(served.path / "link")

        assert served.counters()["requests"] > before


@pytest.mark.parametrize("options", [WATCHED, f"{SMALL},ttl=0.05"])
def test_another_link_of_that_name_leads_where_it_leads(mount: support.Mounter, options: str) -> None:
    mounted = mount(options=options)
    (mounted.src / "link").symlink_to("old")
    assert os.readlink(mounted.path / "link") == "old"

    (mounted.src / "link").unlink()
    (mounted.src / "link").symlink_to("new")

    support.wait_until(lambda: os.readlink(mounted.path / "link") == "new")
    (mounted.path / "link").unlink()
    (mounted.path / "link").symlink_to("newer")
    assert os.readlink(mounted.path / "link") == "newer"


def test_a_link_that_the_kernel_makes_up_leads_where_it_leads_now(directory: Path) -> None:
    (directory / "src" / "proc").mkdir(parents=True)
    support.run("mount", "-t", "proc", "proc", directory / "src" / "proc")
    try:
        with (
            serving.serve(directory, "proc", options=f"{SMALL},ttl=60") as served,
            subprocess.Popen(
                ["bash", "-c", "while read -r d; do cd $d; echo; done"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            ) as child,
        ):
            assert child.stdin
            assert child.stdout
            link = served.path / "proc" / str(child.pid) / "cwd"
            for place in ("/usr", "/etc", "/usr"):
                print(place, file=child.stdin, flush=True)
                child.stdout.readline()
                support.wait_until(partial(leads_to, link, place))
            child.stdin.close()
    finally:
        support.umount(directory / "src" / "proc", support.MNT_DETACH)


READS = """
#include "fusebpf.h"
FILTER(reads, .altitude = 500)
POST(reads, readlink)
{
	if (ctx->error)
		return FB_CONTINUE;
	__builtin_memcpy(ctx->text, "elsewhere", 10);
	ctx->text_len = 9;
	ctx->edits = FB_EDIT_TEXT;
	return FB_REWRITE;
}
"""


def test_a_filter_on_readlink_that_came_with_the_mount_is_asked_each_time(
    mount: support.Mounter, tmp_path: Path
) -> None:
    (tmp_path / "reads.c").write_text(READS)
    mounted = mount(filters=[tmp_path / "reads.c"], options=WATCHED)
    (mounted.src / "link").symlink_to("there")

    for _ in range(2):
        assert os.readlink(mounted.path / "link") == "elsewhere"
    support.run(support.COMMAND, "detach", mounted.path, "reads")

    assert os.readlink(mounted.path / "link") == "there"


def test_a_filter_on_readlink_that_comes_later_is_refused_where_the_kernel_keeps_targets(
    mount: support.Mounter, tmp_path: Path
) -> None:
    (tmp_path / "reads.c").write_text(READS)
    mounted = mount(options=SMALL)

    said = support.run(support.COMMAND, "attach", mounted.path, tmp_path / "reads.c", check=False)

    assert said.returncode == 2
    assert "filter 'reads' hooks readlink" in said.stderr
    assert "mount anew with --filter reads" in said.stderr
    assert said.stderr.count("\n") == 1
