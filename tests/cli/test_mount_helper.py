"""`mount -t fuse.fusebpf`, by mount(8), with its helper installed in a mount namespace of the test's own."""

import os
import shlex
import subprocess
from pathlib import Path

import pytest
import support
from cli_support import assert_refused, fusebpf, left_behind

HELPER = support.CHECKOUT / "scripts" / "mount.fuse.fusebpf.in"


@pytest.fixture
def helper(tree: Path) -> Path:
    """The helper as `make install` would write it."""
    path = tree / "mount.fuse.fusebpf"
    path.write_text(HELPER.read_text().replace("@FUSEBPF@", os.fspath(support.COMMAND)))
    path.chmod(0o755)
    return path


def in_namespace(tree: Path, helper: Path, *commands: str) -> subprocess.CompletedProcess[str]:
    """Run shell commands where the helper stands in /sbin; the machine's own /sbin stays as it is.

    They run below the test's directory and see `fusebpf`; the last one's exit code counts.
    """
    layers = tree / "layers"
    layers.mkdir()
    script = [
        "set -e",
        f"mount -t tmpfs none {layers}",
        f"mkdir {layers}/upper {layers}/work",
        f"cd {layers}",
        "mount -t overlay -o lowerdir=/usr/sbin,upperdir=upper,workdir=work none /usr/sbin",
        f"cp {helper} /sbin/mount.fuse.fusebpf",
        f'fusebpf() {{ {shlex.quote(os.fspath(support.COMMAND))} "$@"; }}',
        f"cd {tree}",
        "set +e",
        *commands,
    ]
    return support.run("unshare", "-m", "sh", "-c", "\n".join(script), check=False, seconds=60)


def test_mount_makes_a_mount_with_filters_and_umount_ends_it(tree: Path, helper: Path) -> None:
    before = set(Path("/usr/sbin").iterdir())

    done = in_namespace(
        tree,
        helper,
        "mount -t fuse.fusebpf src mnt -o ro,nosuid,nodev,filter=hide@333,set=hide.names=f* || exit",
        "ls mnt",
        "findmnt -no FSTYPE,OPTIONS mnt",
        "fusebpf list",
        "umount mnt",
    )

    assert (done.returncode, done.stderr) == (0, "")
    kind, options = done.stdout.splitlines()[0].split()
    assert kind == "fuse.fusebpf"
    assert {"ro", "nosuid", "nodev"} <= set(options.split(","))
    assert "hide@333" in done.stdout
    support.wait_until(lambda: left_behind(tree) == [])
    assert set(Path("/usr/sbin").iterdir()) == before


@pytest.mark.parametrize("value", [r"set=hide.names=file\,other", 'set="hide.names=file,other"'])
def test_a_comma_in_a_value_reaches_the_filter_through_mount(tree: Path, helper: Path, value: str) -> None:
    (tree / "src" / "other").touch()
    (tree / "src" / "third").touch()

    done = in_namespace(
        tree,
        helper,
        f"mount -t fuse.fusebpf src mnt -o {shlex.quote('filter=hide,' + value)} || exit",
        "ls mnt",
        "umount mnt",
    )

    assert (done.returncode, done.stderr, done.stdout) == (0, "", "third\n")
    support.wait_until(lambda: left_behind(tree) == [])


def test_a_remount_changes_flags_and_nothing_else(tree: Path, helper: Path) -> None:
    done = in_namespace(
        tree,
        helper,
        "mount -t fuse.fusebpf src mnt -o nosuid,nodev,filter=hide || exit",
        "mount -o remount,ro mnt || exit",
        "touch mnt/new; findmnt -no OPTIONS mnt",
        "mount -o remount,rw,noexec mnt || exit",
        "touch mnt/new || exit; findmnt -no OPTIONS mnt",
        "umount mnt",
    )

    assert done.returncode == 0
    first, second = (set(line.split(",")) for line in done.stdout.splitlines())
    assert "ro" in first
    assert {"rw", "noexec", "nosuid", "nodev"} <= second
    assert done.stderr.count("\n") == 1
    assert "Read-only file system" in done.stderr
    assert (tree / "src" / "new").exists()
    support.wait_until(lambda: left_behind(tree) == [])


def test_a_remount_accepts_the_running_filters_and_refuses_others(tree: Path, helper: Path) -> None:
    done = in_namespace(
        tree,
        helper,
        "mount -t fuse.fusebpf src mnt -o filter=hide || exit",
        "mount -o remount,ro,filter=hide mnt && echo same is fine",
        "mount -o remount,ro,filter=audit mnt; echo others: $?",
        "fusebpf list",
        "umount mnt",
    )

    assert "same is fine" in done.stdout
    assert "others: 2" in done.stdout
    assert "hide@710" in done.stdout
    assert "does not attach, detach or set filters" in done.stderr
    support.wait_until(lambda: left_behind(tree) == [])


def test_suid_and_dev_which_mount_does_not_hand_on_hold_unless_told_otherwise(
    tree: Path, helper: Path
) -> None:
    done = in_namespace(
        tree,
        helper,
        "mount -t fuse.fusebpf src mnt -o suid,dev || exit",
        "findmnt -no VFS-OPTIONS mnt",
        "mount -o remount,nosuid,nodev,noexec mnt || exit",
        "findmnt -no VFS-OPTIONS mnt",
        "mount -o remount,suid mnt || exit",
        "findmnt -no VFS-OPTIONS mnt",
        "umount mnt",
    )

    assert (done.returncode, done.stderr) == (0, "")
    flags = [set(line.split(",")) & {"nosuid", "nodev", "noexec"} for line in done.stdout.splitlines()]
    assert flags == [set(), {"nosuid", "nodev", "noexec"}, {"nodev", "noexec"}]
    support.wait_until(lambda: left_behind(tree) == [])


@pytest.mark.parametrize(
    ("option", "word"),
    [
        ("ttl=9", "ttl (1.0 now, 9.0 asked for)"),
        ("noallow_other", "allow_other"),
        ("max_read=65536", "max_read"),
        ("nopassthrough", "passthrough"),
        ("fsname=other", "fsname"),
        ("cache=none", "cache"),
    ],
)
def test_a_remount_refuses_what_it_could_not_change(tree: Path, helper: Path, option: str, word: str) -> None:
    done = in_namespace(
        tree,
        helper,
        "mount -t fuse.fusebpf src mnt -o max_read=1,locks=local || exit",
        "mount -o remount,ro,max_read=4096,locks=local,ttl=1 mnt || exit",
        f"mount -o remount,rw,{option} mnt; echo $?",
        "findmnt -no VFS-OPTIONS mnt",
        "umount mnt",
    )

    exit_code, flags = done.stdout.split()
    assert exit_code == "2"
    assert "ro" in flags.split(",")
    assert done.stderr.startswith("fusebpf: a remount changes flags such as ro")
    assert word in done.stderr
    assert done.stderr.count("\n") == 1
    support.wait_until(lambda: left_behind(tree) == [])


def test_mount_mounts_and_remounts_in_another_namespace(tree: Path, helper: Path) -> None:
    done = in_namespace(
        tree,
        helper,
        f"unshare -m --propagation private sh -c 'echo $$ >{tree}/pid; exec sleep 50' &",
        f"until [ -s {tree}/pid ]; do :; done; other=$(cat {tree}/pid)",
        f"mount -N $other -t fuse.fusebpf {tree}/src {tree}/mnt -o filter=hide || exit",
        f"ls {tree}/mnt",
        f"nsenter -m -t $other ls {tree}/mnt",
        f"mount -N $other -o remount,ro {tree}/mnt || exit",
        f"nsenter -m -t $other touch {tree}/mnt/new",
        f"umount -N $other {tree}/mnt; kill $other",
    )

    assert (done.returncode, done.stdout) == (0, "file\n")
    assert "Read-only file system" in done.stderr
    assert done.stderr.count("\n") == 1
    support.wait_until(lambda: left_behind(tree) == [])


def test_a_namespace_that_is_none_is_told(tree: Path) -> None:
    done = fusebpf("mount-helper", "src", "mnt", "-N", "src/file", cwd=tree)

    assert_refused(done, 1, "mount namespace 'src/file' cannot be entered", "Invalid argument")


def test_an_fstab_line_mounts_at_boot_and_remounts(tree: Path, helper: Path) -> None:
    fstab = tree / "fstab"
    fstab.write_text(
        f"{tree}/src {tree}/mnt fuse.fusebpf noauto,nofail,x-systemd.automount,filter=hide,fsname=disk 0 0\n"
    )

    done = in_namespace(
        tree,
        helper,
        f"mount -T {fstab} mnt || mount --fstab {fstab} {tree}/mnt || exit",
        "findmnt -no SOURCE mnt",
        f"mount --fstab {fstab} -o remount,ro {tree}/mnt || exit",
        "findmnt -no OPTIONS mnt",
        "umount mnt",
    )

    assert (done.returncode, done.stderr) == (0, "")
    source, options = done.stdout.splitlines()
    assert source == "disk"
    assert "ro" in options.split(",")
    support.wait_until(lambda: left_behind(tree) == [])


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("mount -t fuse.fusebpf src mnt -o frobnicate", "unknown mount option 'frobnicate'"),
        ("mount -t fuse.fusebpf nosuch mnt", "source 'nosuch'"),
        ("mount -t fuse.fusebpf src mnt -o filter=nosuch", "no stock filter 'nosuch'"),
    ],
)
def test_what_is_wrong_is_told_through_mount(tree: Path, helper: Path, command: str, words: str) -> None:
    done = in_namespace(tree, helper, command)

    assert done.returncode != 0
    assert done.stderr.startswith("fusebpf: ")
    assert words in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_fake_mount_checks_only_and_a_sloppy_one_passes_over_what_it_does_not_know(tree: Path) -> None:
    done = fusebpf("mount-helper", "src", "mnt", "-f", "-s", "-n", "-o", "frobnicate", cwd=tree)

    assert (done.returncode, done.stderr) == (0, "")
    assert left_behind(tree) == []
    assert_refused(fusebpf("mount-helper", "nosuch", "mnt", "-f", cwd=tree), 1, "'nosuch'")


def test_a_remount_of_what_is_no_fusebpf_mount_is_refused(tree: Path) -> None:
    assert_refused(
        fusebpf("mount-helper", "src", "mnt", "-o", "remount,ro", cwd=tree), 1, "nothing to remount"
    )
