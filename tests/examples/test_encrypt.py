"""The example encrypt: right under concurrency and after a crash; what was changed on the disk is refused."""

import errno
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support import CHECKOUT, MNT_DETACH, Mounted, Mounter, clients, run, umount

ENCRYPT = CHECKOUT / "examples/encrypt"
BLOCK = 4096
SIZES = [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK - 1, 3 * BLOCK, 3 * BLOCK + 1]
Mount = Callable[..., Mounted]

STORM = """
import os, random, sys, time
path, seed = sys.argv[1], int(sys.argv[2])
random.seed(seed)
end = time.monotonic() + 4
while time.monotonic() < end:
    kind = random.randrange(6)
    flags = {0: os.O_TRUNC, 1: os.O_APPEND}.get(kind, 0)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | flags, 0o644)
    try:
        if kind < 3:
            os.pwrite(fd, bytes([seed]) * random.randrange(1, 20000), random.randrange(20000))
        elif kind == 3:
            os.ftruncate(fd, random.choice([0, 1, 4095, 4096, 4097, 9000, 30000]))
        else:
            text = os.pread(fd, random.randrange(1, 30000), random.randrange(20000))
            assert set(text) <= set(range(8)), set(text)
            assert os.fstat(fd).st_size < 1000000
    finally:
        os.close(fd)
"""


@pytest.fixture
def key(directory: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh key, which servers find."""
    path = directory / "key"
    path.write_bytes(os.urandom(32))
    monkeypatch.setenv("ENCRYPT_KEY", str(path))
    return path


@pytest.fixture
def encrypted(mount: Mounter, key: Path) -> Mount:
    """Mounts with the example."""
    assert key.exists()
    return lambda **what: mount(arguments=["--daemon", f"{ENCRYPT}/encrypt.py:Encrypt"], **what)


def fsck(key: Path, root: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """What fsck.py says."""
    return run(sys.executable, ENCRYPT / "fsck.py", *options, key, root, check=False, seconds=60)


def says(path: Path) -> bytes | int:
    """What a file reads as, or the errno."""
    code = "import sys\ntry: print(open(sys.argv[1], 'rb').read().hex())\nexcept OSError as e: print(e.errno)"
    said = run(sys.executable, "-c", code, path).stdout.strip()
    return int(said) if said and len(said) < 4 and len(said) % 2 else bytes.fromhex(said)


def text_of(size: int) -> bytes:
    """Bytes that are not alike."""
    return random.Random(size).randbytes(size)  # noqa: S311 - the same each time


@pytest.mark.parametrize("size", SIZES)
def test_a_file_can_become_any_size_from_any_other(encrypted: Mount, key: Path, size: int) -> None:
    mounted = encrypted()
    code = f"""
import os, random, sys
for other in {SIZES}:
    path = f"{{sys.argv[1]}}/{{other}}"
    text = random.Random({size}).randbytes({size})
    with open(path, "wb") as file:
        file.write(text)
    os.truncate(path, other)
    assert os.stat(path).st_size == other
    assert open(path, "rb").read() == text[:other].ljust(other, b"\\0"), other
    os.truncate(path, {max(SIZES)})
    assert open(path, "rb").read() == text[:other].ljust({max(SIZES)}, b"\\0"), other
"""
    run(sys.executable, "-c", code, mounted.path)

    assert fsck(key, mounted.src).stdout == f"{len(SIZES)} files, 0 broken\n"


def test_callers_who_truncate_append_write_and_read_at_once_leave_a_sound_file(
    encrypted: Mount, key: Path
) -> None:
    mounted = encrypted()
    storms = [(sys.executable, "-c", STORM, str(mounted.path / "file"), str(seed)) for seed in range(1, 6)]

    with clients(*storms) as running:
        ends = [client.wait(60) for client in running]

    assert ends == [0] * len(storms), mounted.log
    assert "ERROR" not in mounted.log
    assert fsck(key, mounted.src).stdout == "1 files, 0 broken\n"


def test_appends_of_several_are_all_there(encrypted: Mount, key: Path) -> None:
    mounted = encrypted()
    code = (
        "import os, sys\nfd = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND)\n"
        "for i in range(200): os.write(fd, f'{sys.argv[2]} {i:96}\\n'.encode())"
    )
    writers = [(sys.executable, "-c", code, str(mounted.path / "log"), str(n)) for n in range(4)]

    with clients(*writers) as running:
        assert [client.wait(60) for client in running] == [0] * 4

    lines = (mounted.path / "log").read_text().splitlines()
    assert sorted(lines) == sorted(f"{n} {i:96}" for n in range(4) for i in range(200))
    assert fsck(key, mounted.src).returncode == 0


def test_one_file_below_two_bind_mounts_stays_sound(encrypted: Mount, key: Path, directory: Path) -> None:
    src = directory / "twice"
    for name in ("one", "two"):
        (src / name).mkdir(parents=True)
    run("mount", "--bind", src / "one", src / "two")
    try:
        mounted = encrypted(src=src)
        storms = [
            (sys.executable, "-c", STORM, str(mounted.path / name / "file"), str(seed))
            for seed, name in enumerate(("one", "two", "one", "two"), 1)
        ]
        with clients(*storms) as running:
            for client in running:
                client.wait(60)
        assert fsck(key, src / "one").stdout == "1 files, 0 broken\n"
        mounted.umount()
    finally:
        umount(src / "two", MNT_DETACH)


def change_back(path: Path, offset: int, data: bytes) -> None:
    """Write behind the mount."""
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


@pytest.fixture
def sealed(encrypted: Mount) -> Mounted:
    """A mount with two files of three blocks."""
    mounted = encrypted()
    (mounted.path / "one").write_bytes(text_of(3 * BLOCK))
    (mounted.path / "two").write_bytes(text_of(3 * BLOCK))
    return mounted


def block_at(path: Path, number: int) -> tuple[int, int]:
    """Where a block of a file of three is on the disk, and how long."""
    length = BLOCK + 28
    return path.stat().st_size - (3 - number) * length, length


def test_a_changed_a_swapped_and_a_foreign_block_do_not_read(sealed: Mounted, key: Path) -> None:
    one, two = sealed.src / "one", sealed.src / "two"
    (first, length), (second, _) = block_at(one, 0), block_at(one, 1)
    stored = one.read_bytes()

    for changed in (
        stored[:second] + b"X" + stored[second + 1 :],
        stored[:first]
        + stored[second : second + length]
        + stored[first : first + length]
        + stored[second + length :],
        stored[:first] + two.read_bytes()[first : first + length] + stored[second:],
        stored[:second] + bytes(length) + stored[second + length :],
    ):
        one.write_bytes(changed)
        assert says(sealed.path / "one") == errno.EIO
        assert "1 broken" in fsck(key, sealed.src).stdout
    one.write_bytes(stored)
    assert says(sealed.path / "one") == text_of(3 * BLOCK)


@pytest.mark.parametrize("kept", [1, 2])
def test_a_file_that_was_cut_off_between_blocks_does_not_read(sealed: Mounted, key: Path, kept: int) -> None:
    one = sealed.src / "one"
    os.truncate(one, block_at(one, kept)[0])

    assert says(sealed.path / "one") == errno.EIO
    assert "1 broken" in fsck(key, sealed.src).stdout


def test_a_broken_block_can_be_overwritten_and_a_broken_file_emptied(sealed: Mounted, key: Path) -> None:
    for name in ("one", "two"):
        change_back(sealed.src / name, block_at(sealed.src / name, 1)[0] + 100, b"X")
    code = f"import os, sys; os.pwrite(os.open(sys.argv[1], os.O_WRONLY), bytes({BLOCK}), {BLOCK})"
    run(sys.executable, "-c", code, sealed.path / "one")
    os.truncate(sealed.path / "two", 0)

    text = text_of(3 * BLOCK)
    assert says(sealed.path / "one") == text[:BLOCK] + bytes(BLOCK) + text[2 * BLOCK :]
    assert fsck(key, sealed.src).returncode == 0


def test_another_key_reads_nothing(sealed: Mounted, encrypted: Mount, key: Path) -> None:
    sealed.umount()
    key.write_bytes(bytes(32))
    mounted = encrypted(src=sealed.src)

    assert says(mounted.path / "one") == errno.EIO
    assert "2 broken" in fsck(key, sealed.src).stdout


def test_a_key_that_is_none_is_said_in_one_line(sealed: Mounted, key: Path) -> None:
    key.write_bytes(b"short")

    done = fsck(key, sealed.src)

    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr


def test_what_cannot_be_changed_can_be_read(sealed: Mounted) -> None:
    run("chattr", "+i", sealed.src / "one")
    try:
        assert says(sealed.path / "one") == text_of(3 * BLOCK)
    finally:
        run("chattr", "-i", sealed.src / "one")


def test_a_full_disk_is_said_and_leaves_a_sound_file(encrypted: Mount, key: Path, ext4: Path) -> None:
    mounted = encrypted(src=ext4)
    code = """
import sys
with open(sys.argv[1], "wb", buffering=0) as file:
    try:
        for n in range(100): file.write(bytes([n]) * (1 << 20))
    except OSError as error: print(error.errno)
"""
    done = run(sys.executable, "-c", code, mounted.path / "file", seconds=60)

    assert done.stdout == f"{errno.ENOSPC}\n"
    said = says_digest(mounted.path / "file")
    assert said == (mounted.path / "file").stat().st_size
    assert " 0 broken" in fsck(key, ext4).stdout


def says_digest(path: Path) -> int:
    """How much of a file can be read; -1: an error."""
    return int(run("sh", "-c", 'cat "$0" | wc -c', path, seconds=60).stdout)


def test_a_gap_that_would_fill_the_disk_is_refused(encrypted: Mount, key: Path) -> None:
    mounted = encrypted()
    (mounted.path / "file").write_bytes(b"here")

    for code in ("os.truncate(sys.argv[1], 1 << 40)", "os.pwrite(os.open(sys.argv[1], 1), b'x', 1 << 40)"):
        done = run(sys.executable, "-c", f"import os, sys; {code}", mounted.path / "file", check=False)
        assert "File too large" in done.stderr

    assert says(mounted.path / "file") == b"here"
    assert fsck(key, mounted.src).returncode == 0


def test_writing_and_truncating_by_a_user_takes_set_id_bits(encrypted: Mount) -> None:
    mounted = encrypted()
    for name, code in (
        ("written", "os.pwrite(os.open(sys.argv[1], os.O_WRONLY), b'x', 0)"),
        ("truncated", "os.truncate(sys.argv[1], 3)"),
        ("emptied", "os.open(sys.argv[1], os.O_WRONLY | os.O_TRUNC)"),
    ):
        path = mounted.path / name
        path.write_bytes(b"program")
        path.chmod(0o6777)
        run("/usr/bin/python3", "-c", f"import os, sys; {code}", path, user=1000)
        assert path.stat().st_mode & 0o7777 == 0o777, name


def test_a_killed_server_leaves_files_that_read_and_that_fsck_finishes(
    encrypted: Mount, key: Path, directory: Path
) -> None:
    src = directory / "killed"
    src.mkdir()
    for seed in range(5):
        mounted = encrypted(src=src)
        storms = [(sys.executable, "-c", STORM, str(mounted.path / f"file{n}"), str(n + 1)) for n in range(3)]
        with clients(*storms):
            run("sleep", str(0.5 + seed / 7))
            mounted.kill(signal.SIGKILL)
        umount(mounted.path, MNT_DETACH)
        assert " 0 broken" in fsck(key, src).stdout
        mounted = encrypted(src=src)
        for path in sorted(mounted.path.iterdir()):
            assert says(path) != errno.EIO
        mounted.umount()

    assert fsck(key, src, "--repair").returncode == 0
    assert fsck(key, src).stdout == f"{len(list(src.iterdir()))} files, 0 broken\n"


def test_a_file_that_was_renamed_over_or_removed_while_open_is_there(encrypted: Mount, key: Path) -> None:
    mounted = encrypted()
    code = """
import mmap, os
open("old", "wb").write(b"old" * 5000); open("new", "wb").write(b"new" * 5000)
old, new = os.open("old", os.O_RDWR), os.open("new", os.O_RDWR)
os.rename("new", "old")
assert os.pread(old, 15000, 0) == b"old" * 5000
os.pwrite(old, b"OLD", 4095); os.pwrite(new, b"NEW", 4095)
assert open("old", "rb").read() == b"new" * 1365 + b"NEW" + b"new" * 3634
os.unlink("old")
os.ftruncate(new, 20000)
assert os.fstat(new).st_size == 20000
assert os.pread(new, 9, 4092) == b"newNEWnew" and os.pread(old, 9, 4092) == b"oldOLDold"
os.fsync(new)
file = os.open("mapped", os.O_RDWR | os.O_CREAT); os.ftruncate(file, 10000)
shared = mmap.mmap(file, 10000); private = mmap.mmap(file, 10000, flags=mmap.MAP_PRIVATE)
private[5000:5004] = b"mine"; shared[4094:4098] = b"ours"; shared[9999:] = b"!"
shared.flush()
assert os.pread(file, 10000, 0) == bytes(4094) + b"ours" + bytes(5901) + b"!"
os.link("mapped", "second"); os.pwrite(os.open("second", os.O_WRONLY), b"link", 0)
assert os.pread(file, 4, 0) == b"link" and os.stat("mapped").st_size == 10000
done = os.copy_file_range(file, os.open("copy", os.O_RDWR | os.O_CREAT), 10000)
assert open("copy", "rb").read() == open("mapped", "rb").read()[:done]
"""
    run(sys.executable, "-c", code, cwd=mounted.path)

    assert fsck(key, mounted.src).returncode == 0


def test_sqlite_git_and_fio_work_on_it(encrypted: Mount, key: Path) -> None:
    mounted = encrypted()
    script = """
set -e
for mode in delete wal; do
  sqlite3 $mode.db "pragma journal_mode=$mode; create table t(a, b); with recursive n(i) as
    (select 1 union all select i+1 from n where i<2000) insert into t select i, hex(randomblob(50)) from n;
    delete from t where a%3=0; vacuum; pragma integrity_check;" | tail -1 | grep -qx ok
done
git init -q repo; cd repo
for i in $(seq 30); do head -c $((i * 1000)) /dev/urandom > f$i; done
git add .; git -c user.name=a -c user.email=a@b commit -qm one; git gc -q; git fsck --strict
git clone -q . ../clone; cd ..; diff -r repo/f1 clone/f1
fio --name=v --filename=fio --size=4m --rw=randwrite --bsrange=512-32k --bs_unaligned=1 \
  --verify=crc32c --do_verify=1 --verify_fatal=1 --ioengine=psync --output=/dev/null
fio --name=m --filename=fiomap --size=2m --rw=randrw --bs=4k --verify=crc32c \
  --ioengine=mmap --output=/dev/null
"""
    run("bash", "-c", script, cwd=mounted.path, seconds=100)

    assert fsck(key, mounted.src).returncode == 0
