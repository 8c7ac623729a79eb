"""Real mounts by the command: ways to say what is mounted, and ways to unmount it."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import support
from cli_support import assert_refused, fusebpf, left_behind, mount, processes, umount, write_filter
from core.table import link_fd, opened


def entry_of(mnt: Path) -> dict[str, object]:
    """What `fusebpf list --json` says of the mount at a path."""
    rows = json.loads(support.run(support.COMMAND, "list", "--json").stdout)
    found: dict[str, object] = next(row for row in rows if row["mnt"] == str(mnt))
    return found


def options_of(mnt: Path) -> set[str]:
    """The options of a mount and of its file system, as the kernel shows them."""
    shown = support.run("findmnt", "-no", "OPTIONS", mnt).stdout.strip()
    return set(shown.split(","))


def test_a_mount_is_usable_when_the_command_returns_and_says_nothing(tree: Path) -> None:
    done = fusebpf("mount", tree / "src", tree / "mnt")

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (tree / "mnt" / "file").read_text() == "text\n"
    assert entry_of(tree / "mnt")["state"] == "running"

    done = fusebpf("umount", tree / "mnt")

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert left_behind(tree) == []


def test_the_backing_file_system_can_be_unmounted_as_soon_as_the_mount_is(tree: Path, tmpfs: Path) -> None:
    (tmpfs / "file").write_text("text")
    mount(tmpfs, tree / "mnt")
    (tree / "mnt" / "file").read_text()  # passed through: it is kept open for the next one

    umount(tree / "mnt")

    assert support.umount(tmpfs, 0)


def test_relative_paths_and_symlinks_are_followed_when_the_command_runs(tree: Path) -> None:
    (tree / "link").symlink_to("mnt")

    mount("src/.", "link", cwd=tree)

    assert support.mountpoints(tree) == [tree / "mnt"]
    umount("./link", cwd=tree)


def test_a_source_can_be_mounted_in_place(tree: Path) -> None:
    src = tree / "src"

    mount(src, src, "--filter", "hide", "--set", "hide.names=f*")
    assert list(src.iterdir()) == []
    assert_refused(fusebpf("mount", src, src), 1, "is a fusebpf mount already")

    umount(src)
    assert [path.name for path in src.iterdir()] == ["file"]


def test_a_root_descriptor_stands_for_the_source_and_may_be_closed(tree: Path) -> None:
    script = 'exec 7<"$1" && "$2" mount --root-fd 7 "$3" && exec 7<&-; cat "$3"/file'

    done = support.run("sh", "-c", script, "sh", tree / "src", support.COMMAND, tree / "mnt")

    assert done.stdout == "text\n"
    assert entry_of(tree / "mnt")["source"] == str(tree / "src")
    umount(tree / "mnt")


def test_a_filter_is_taken_from_a_file_with_its_altitude(tree: Path) -> None:
    write_filter(tree / "two.c", "first", "second", altitude=300)

    mount("src", "mnt", "--filter", "./two.c:second@77", "--filter", "hide", "--filter", "audit", cwd=tree)

    row = entry_of(tree / "mnt")
    assert [(one["name"], one["altitude"]) for one in row["filters"]] == [  # type: ignore[attr-defined]
        ("audit", 900),
        ("hide", 710),
        ("second", 77),
    ]
    pins = support.PINS / str(row["name"])
    assert {path.name for path in pins.iterdir()} >= {
        "audit",
        "hide",
        "second",
        "stats",
        "recent",
        "filters",
        "slots",
    }
    umount("./mnt", cwd=tree)
    assert not pins.exists()


def test_the_source_of_a_filter_is_told_by_its_whole_path(tree: Path) -> None:
    write_filter(tree / "own.c", "own")
    mount("../src", "../mnt", "--filter", "../own.c", cwd=tree / "src")

    listed: Any = entry_of(tree / "mnt")
    told = json.loads(fusebpf("filters", "--json", tree / "mnt").stdout)

    for rows in (listed["filters"], told["filters"]):
        assert [one["source"] for one in rows] == [str(tree / "own.c")]
    umount(tree / "mnt")


def test_all_filters_of_a_file_are_taken_where_none_is_picked(tree: Path) -> None:
    write_filter(tree / "two.c", "first", "second")

    mount("src", "mnt", "--filter", "./two.c", cwd=tree)

    assert "second@501 first@500" in support.run(support.COMMAND, "list").stdout
    umount("./mnt", cwd=tree)


def test_filters_of_one_file_that_are_picked_one_by_one_share_its_maps(tree: Path) -> None:
    (tree / "two.c").write_text(
        '#include "fusebpf.h"\nBPF_ARRAY(both, u64, 1);\n'
        "FILTER(writes, .altitude = 600)\n"
        "PRE(writes, lookup) { u32 k = 0; u64 v = 1; both.update(&k, &v); return FB_CONTINUE; }\n"
        "FILTER(judges, .altitude = 500)\n"
        "PRE(judges, lookup) { u32 k = 0; u64 *v = both.lookup(&k);\n"
        " return v && *v ? -FB_EPERM : FB_CONTINUE; }\n"
    )

    mount("src", "mnt", "--filter", "./two.c:writes", "--filter", "./two.c:judges@7", cwd=tree)
    done = support.run("cat", "mnt/file", cwd=tree, check=False)

    assert "Operation not permitted" in done.stderr
    umount("./mnt", cwd=tree)


def test_options_reach_the_kernel(tree: Path) -> None:
    mount("src", "mnt", "-o", "ro,noexec,noatime", "-o", "fsname=my disk,max_read=8192", cwd=tree)

    assert options_of(tree / "mnt") >= {
        "ro",
        "nosuid",
        "nodev",
        "noexec",
        "noatime",
        "allow_other",
        "default_permissions",
        "max_read=8192",
    }
    assert support.run("findmnt", "-no", "SOURCE", tree / "mnt").stdout.strip() in {"my disk", "my\\x20disk"}
    assert "Read-only" in support.run("touch", "mnt/new", cwd=tree, check=False).stderr
    umount("./mnt", cwd=tree)


def test_options_can_lift_the_defaults(tree: Path) -> None:
    mount("src", "mnt", "-o", "suid,dev,noallow_other,nodefault_permissions", cwd=tree)

    assert not options_of(tree / "mnt") & {"nosuid", "nodev", "allow_other", "default_permissions"}
    umount("./mnt", cwd=tree)


def test_filters_can_be_said_among_the_options(tree: Path) -> None:
    (tree / "src" / "key").touch()

    mount("src", "mnt", "-o", r"ro,filter=hide@333,set=hide.names=f*\,key", cwd=tree)

    assert list((tree / "mnt").iterdir()) == []
    assert "hide@333" in support.run(support.COMMAND, "list").stdout
    umount("./mnt", cwd=tree)


def test_a_map_that_is_set_several_times_holds_all_of_it(tree: Path) -> None:
    for name in ("a", "b\\", "c", "d"):
        (tree / "src" / name).touch()
    sets = (
        "--set",
        "hide.names=a",
        "--set",
        "hide.names=b\\",
        "--set",
        "hide.names=",
        "--set",
        "hide.names=c",
    )

    mount("src", "mnt", "-o", "filter=hide,filter=deny,set=deny.rules=unlink:*:*:EPERM", *sets, "--set",
          "deny.rules=mkdir:*:*:EROFS", cwd=tree)  # fmt: skip

    assert {path.name for path in (tree / "mnt").iterdir()} & {"a", "b\\", "c", "d"} == {"d"}
    with pytest.raises(PermissionError):
        (tree / "mnt/d").unlink()
    with pytest.raises(OSError, match="Read-only"):
        (tree / "mnt/new").mkdir()
    umount("./mnt", cwd=tree)


def test_one_value_that_is_said_twice_is_refused(tree: Path) -> None:
    sets = ("--set", "hide.ttl=1000", "--set", "hide.ttl=2000")

    refused = support.run(
        support.COMMAND, "mount", "src", "mnt", "--filter", "hide", *sets, cwd=tree, check=False
    )

    assert refused.returncode == 2
    assert "hide.ttl" in refused.stderr
    assert not os.path.ismount(tree / "mnt")


def test_paths_may_hold_any_bytes(tree: Path) -> None:
    src, mnt = tree / "so urce\n\\040", tree / "mö,unt\t\udcff"
    src.mkdir()
    mnt.mkdir()
    (src / "file").write_text("text\n")

    mount(src, mnt)
    assert (mnt / "file").read_text() == "text\n"
    shown = support.run(support.COMMAND, "list").stdout
    assert f"{ascii(str(mnt))[1:-1]}" in shown
    umount(mnt)
    assert left_behind(tree) == []


def test_a_mount_is_made_where_no_standard_stream_is_open(tree: Path) -> None:
    script = '"$0" mount "$1" "$2" --filter hide <&- >&- 2>&- || exit; exec "$0" mount "$1" "$2" <&- >&-'

    done = support.run("sh", "-c", script, support.COMMAND, tree / "src", tree / "mnt", check=False)

    assert_refused(done, 1, "is a fusebpf mount already")
    assert (tree / "mnt" / "file").read_text() == "text\n"
    umount(tree / "mnt")


def test_the_limit_of_whoever_mounts_is_not_the_one_of_all_who_write(tree: Path) -> None:
    words = ("prlimit", "--fsize=1000:", support.COMMAND, "mount", tree / "src", tree / "mnt")
    support.run(*words, "--filter", "audit")  # so that its server writes

    (tree / "mnt" / "big").write_bytes(bytes(5000))
    os.truncate(tree / "mnt" / "file", 5000)

    assert (tree / "src" / "big").stat().st_size == (tree / "src" / "file").stat().st_size == 5000
    umount(tree / "mnt")


def test_a_name_is_taken_and_unmounts(tree: Path) -> None:
    name = f"named-{os.getpid()}"

    mount(tree / "src", tree / "mnt", "--name", name)

    assert entry_of(tree / "mnt")["name"] == name
    umount(name)
    assert left_behind(tree) == []


def test_a_mount_without_a_name_gets_one_that_is_free(tree: Path) -> None:
    for outer in ("a", "b"):
        (tree / outer / "point").mkdir(parents=True)
        mount(tree / "src", tree / outer / "point")

    names = {str(entry_of(tree / outer / "point")["name"]) for outer in ("a", "b")}

    assert len(names) == 2
    assert all(name.startswith("point") for name in names)
    for outer in ("a", "b"):
        umount(tree / outer / "point")


def test_a_mount_can_be_stacked_on_a_mount(tree: Path) -> None:
    (tree / "mnt2").mkdir()
    mount("src", "mnt", cwd=tree)

    mount("mnt", "mnt2", cwd=tree)
    assert (tree / "mnt2" / "file").read_text() == "text\n"

    assert_refused(fusebpf("umount", "./mnt", cwd=tree), 1, "is busy", "--lazy")
    umount("./mnt2", cwd=tree)
    umount("./mnt", cwd=tree)


def test_a_file_without_a_name_is_made_on_a_mount_that_is_stacked_on_a_mount(tree: Path) -> None:
    (tree / "mnt2").mkdir()
    mount("src", "mnt", cwd=tree)
    mount("mnt", "mnt2", cwd=tree)

    with opened(tree / "mnt2", os.O_TMPFILE | os.O_RDWR) as fd:
        os.write(fd, b"nameless")
        assert os.pread(fd, 100, 0) == b"nameless"
        link_fd(fd, tree / "mnt2" / "made")

    assert (tree / "src" / "made").read_text() == "nameless"
    umount("./mnt2", cwd=tree)
    umount("./mnt", cwd=tree)


def test_a_busy_mount_is_not_unmounted_but_detached_when_lazy(tree: Path) -> None:
    mount("src", "mnt", cwd=tree)
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, cwd=tree / "mnt") as user:
        assert_refused(fusebpf("umount", "./mnt", cwd=tree), 1, "is busy", "--lazy")
        assert support.mountpoints(tree) == [tree / "mnt"]

        done = fusebpf("umount", "./mnt", "--lazy", cwd=tree)

        assert done.returncode == 0
        assert "ends when nothing uses it" in done.stderr
        assert entry_of(tree / "mnt")["state"] == "detached"
        assert_refused(fusebpf("umount", "./mnt", cwd=tree), 1, "still in use")
        assert [path.name for path in Path(f"/proc/{user.pid}/cwd/").iterdir()] == ["file"]

    support.wait_until(lambda: left_behind(tree) == [])


def test_a_lazy_unmount_of_an_idle_mount_waits_for_its_end(tree: Path) -> None:
    mount("src", "mnt", cwd=tree)

    done = fusebpf("umount", "./mnt", "-l", cwd=tree)

    assert (done.returncode, done.stderr) == (0, "")
    assert left_behind(tree) == []


def test_a_mount_that_is_covered_is_left_alone_until_it_is_uncovered(tree: Path) -> None:
    mount("src", "mnt", cwd=tree)
    support.run("mount", "-t", "tmpfs", "cover", tree / "mnt")
    try:
        assert_refused(fusebpf("umount", "./mnt", cwd=tree), 1, "covered by another mount")
        assert (
            support.run("findmnt", "-no", "FSTYPE", "--mountpoint", tree / "mnt").stdout.split()[-1]
            == "tmpfs"
        )
    finally:
        support.run("umount", tree / "mnt")
    umount("./mnt", cwd=tree)


def test_somebody_elses_umount_ends_the_server(tree: Path) -> None:
    mount("src", "mnt", "--filter", "audit", cwd=tree)

    support.run("umount", tree / "mnt")

    support.wait_until(lambda: left_behind(tree) == [])


def test_somebody_elses_lazy_umount_ends_the_server_when_nothing_uses_it(tree: Path) -> None:
    mount("src", "mnt", "--filter", "audit", cwd=tree)
    with (tree / "mnt" / "file").open() as file:
        support.run("umount", "-l", tree / "mnt")
        assert processes(tree) != []
        assert file.read() == "text\n"

    support.wait_until(lambda: left_behind(tree) == [])


def test_a_mount_in_the_foreground_serves_in_its_own_process(tree: Path) -> None:
    words: list[str | os.PathLike[str]] = [
        "timeout",
        "-s",
        "KILL",
        "60",
        support.COMMAND,
        "mount",
        "--foreground",
        tree / "src",
        tree / "mnt",
    ]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        line = server.stderr.readline()

        assert "is mounted on" in line
        assert (tree / "mnt" / "file").read_text() == "text\n"
        umount(tree / "mnt")
        assert server.wait(20) == 0


def test_the_list_is_a_table(tree: Path) -> None:
    mount("src", "mnt", "--filter", "hide", cwd=tree)

    lines = support.run(support.COMMAND, "list").stdout.splitlines()

    assert lines[0].split() == ["name", "source", "mount", "point", "pid", "filters", "state"]
    row = next(line for line in lines if str(tree / "mnt") in line).split()
    assert row[1:] == [str(tree / "src"), str(tree / "mnt"), row[3], "hide@710", "running"]
    umount("./mnt", cwd=tree)
