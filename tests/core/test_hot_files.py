"""A file that is opened again and again costs no open of the backing file; what that must not change."""

import concurrent.futures
import contextlib
import fcntl
import os
import random
import stat
import subprocess
import time
from pathlib import Path

import pytest
import serving
import support
from core.table import attempt, in_child, opened

N_KEPT = 1024


def work_on_a_reopened_file(p: Path) -> object:
    """Everything a reader can do with a descriptor, on the third open of a file."""
    (p / "f").write_bytes(b"0123456789")
    for _ in range(2):
        with opened(p / "f", os.O_RDONLY) as fd:
            os.read(fd, 3)
    with opened(p / "f", os.O_RDONLY) as fd:
        results = [
            os.read(fd, 4),
            os.lseek(fd, 0, os.SEEK_HOLE),
            os.fstat(fd).st_size,
        ]
        os.fsync(fd)
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        with opened(p / "f", os.O_RDONLY) as other:
            fcntl.flock(other, fcntl.LOCK_SH | fcntl.LOCK_NB)
        with opened(p / "copy", os.O_CREAT | os.O_WRONLY) as to:
            results.append(os.copy_file_range(fd, to, 10, 0))
        with opened(p / "f", os.O_RDWR) as writer:
            os.write(writer, b"changed")
        results.append(os.pread(fd, 20, 0))
    return results


def test_a_file_that_is_open_again_does_what_it_did(directory: Path, bare: Path) -> None:
    (directory / "src").mkdir(exist_ok=True)
    expected = in_child(work_on_a_reopened_file, bare)
    with serving.serve(directory, "hot") as served:
        assert expected == in_child(work_on_a_reopened_file, served.path)


def test_opening_what_is_open_takes_no_descriptor_of_the_server(directory: Path) -> None:
    (directory / "src").mkdir(exist_ok=True)
    (directory / "src" / "f").write_bytes(b"0123456789")
    with serving.serve(directory, "shared") as served:

        def n_taken(flags: int) -> int:
            with opened(served.path / "f", os.O_RDONLY):
                before = served.n_descriptors()
                with contextlib.ExitStack() as stack:
                    for _ in range(50):
                        assert os.read(stack.enter_context(opened(served.path / "f", flags)), 3) == b"012"
                    return served.n_descriptors() - before

        assert in_child(n_taken, os.O_RDONLY) < 10
        assert in_child(n_taken, os.O_RDONLY | os.O_NONBLOCK) < 10
        assert in_child(n_taken, os.O_RDWR) >= 50


def test_a_reopened_file_that_vanishes_behind_the_mount_works_on(directory: Path) -> None:
    (directory / "src").mkdir(exist_ok=True)
    with serving.serve(directory, "behind") as served:

        def work() -> object:
            (served.path / "f").write_bytes(b"0123456789")
            for _ in range(2):
                with opened(served.path / "f", os.O_RDONLY) as fd:
                    os.read(fd, 3)
            with opened(served.path / "f", os.O_RDONLY) as fd:
                (served.src / "f").unlink()
                os.fsync(fd)
                return os.read(fd, 20), os.fstat(fd).st_nlink

        assert in_child(work) == (b"0123456789", 0)


def test_space_of_a_removed_file_is_free_again(ext4: Path) -> None:
    size = 8 << 20
    with serving.serve(ext4, "space") as served:

        def free() -> int:
            st = os.statvfs(ext4)
            return st.f_bfree * st.f_frsize

        def make_and_read() -> None:
            (served.path / "big").write_bytes(bytes(size))
            for _ in range(3):
                (served.path / "big").read_bytes()

        in_child(make_and_read)
        before = free()
        in_child(os.unlink, served.path / "big")
        support.wait_until(lambda: free() >= before + size, 20)

        in_child(make_and_read)
        before = free()
        (served.src / "big").unlink()
        # Nobody told the mount: it lets go when it has been looked for in vain.
        support.wait_until(
            lambda: not in_child(os.path.exists, served.path / "big") and free() >= before + size, 20
        )


def test_more_files_than_ids_are_kept_can_be_opened_again(directory: Path) -> None:
    src = directory / "src"
    src.mkdir(exist_ok=True)
    for index in range(2 * N_KEPT):
        (src / f"f{index}").write_bytes(b"%d" % index)
    with serving.serve(directory, "many") as served:

        def read_all() -> int:
            right = 0
            for _ in range(2):
                for index in range(2 * N_KEPT):
                    right += (served.path / f"f{index}").read_bytes() == b"%d" % index
            return right

        assert in_child(read_all, seconds=60) == 4 * N_KEPT

        def remove_half() -> int:
            for index in range(N_KEPT):
                (served.path / f"f{index}").unlink()
            return len(os.listdir(served.path))

        assert in_child(remove_half, seconds=60) == N_KEPT


def test_a_name_that_changes_hands_behind_the_mount_is_one_object_or_the_other(directory: Path) -> None:
    with serving.serve(directory, "swaps", options="cache=none") as served:
        behind, seen = served.src / "x", served.path / "x"

        def swap(pipe: int) -> None:
            for _ in range(3000):
                behind.write_bytes(b"1")
                behind.chmod(0o640)
                behind.unlink()
                behind.mkdir(mode=0o711)
                behind.rmdir()
            os.write(pipe, b".")

        def look(pipe: int) -> set[tuple[bool, int]]:
            os.set_blocking(pipe, False)
            kinds = set()
            while True:
                with contextlib.suppress(FileNotFoundError):
                    st = seen.lstat()
                    kinds.add((stat.S_ISDIR(st.st_mode), stat.S_IMODE(st.st_mode)))
                with contextlib.suppress(BlockingIOError):
                    os.read(pipe, 1)
                    return kinds

        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            swap(writer)
            os._exit(0)
        kinds = in_child(look, reader, seconds=60)
        os.waitpid(pid, 0)
        os.close(reader)
        os.close(writer)
        umask_mode = 0o666 & ~own_umask()
        assert kinds <= {(False, umask_mode), (False, 0o640), (True, 0o711 & ~own_umask())}


def own_umask() -> int:
    """This process's umask."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def open_twice(stack: contextlib.ExitStack, path: Path) -> None:
    """Keep two descriptors of a file open until the stack ends; the server may have none for the second."""
    for _ in range(2):
        stack.enter_context(opened(path, os.O_RDONLY))


def test_files_that_are_open_hold_no_more_descriptors_than_they_need(directory: Path) -> None:
    n_open, n_others, limit = 100, 500, 32
    (directory / "src").mkdir(exist_ok=True)
    for index in range(n_open + n_others):
        (directory / "src" / f"f{index}").touch()
    with serving.serve(directory, "held", options=f"max_descriptors={limit}") as served:

        def work() -> list[int]:
            n_descriptors = []
            with contextlib.ExitStack() as stack:
                for index in range(n_open):
                    open_twice(stack, served.path / f"f{index}")
                n_descriptors.append(served.counters()["descriptors"])
                for index in range(n_open, n_open + n_others):
                    (served.path / f"f{index}").stat()
                n_descriptors.append(served.counters()["descriptors"])
            (served.path / "f0").read_bytes()
            return n_descriptors

        held, beside = in_child(work, seconds=30)
        assert held >= n_open  # else this shows nothing
        assert beside <= n_open + limit
        support.wait_until(lambda: served.counters()["descriptors"] <= limit + 1)


@pytest.mark.parametrize("flags", [os.O_CREAT | os.O_WRONLY, os.O_RDWR], ids=["made", "rewritten"])
def test_a_program_that_was_written_through_the_mount_runs_behind_it(directory: Path, flags: int) -> None:
    (directory / "src").mkdir(exist_ok=True)
    program = Path("/bin/true").read_bytes()
    with serving.serve(directory, "programs") as served:
        if not flags & os.O_CREAT:
            (served.src / "p").write_bytes(program)
            (served.src / "p").chmod(0o755)

        def write_and_run() -> list[int]:
            fd = os.open(served.path / "p", flags, 0o755)
            os.write(fd, program)
            os.close(fd)
            (served.path / "p").read_bytes()
            support.wait_until(lambda: served.counters()["handles"] == 0)
            return [
                subprocess.run([place / "p"], check=False).returncode for place in (served.src, served.path)
            ]

        assert in_child(write_and_run, seconds=30) == [0, 0]


def test_an_append_only_file_that_was_read_before_is_only_appended_to(ext4: Path) -> None:
    with serving.serve(ext4, "grows") as served:

        def work() -> object:
            (served.path / "f").write_bytes(b"0123456789")
            (served.path / "f").read_bytes()  # its backing id is kept from here on
            support.run("chattr", "+a", served.src / "f")
            with opened(served.path / "f", os.O_WRONLY | os.O_APPEND) as fd:
                os.write(fd, b"A")
            support.wait_until(lambda: served.counters()["handles"] == 0)
            with (
                opened(served.path / "f", os.O_RDONLY),
                opened(served.path / "f", os.O_WRONLY | os.O_APPEND) as fd,
            ):
                fcntl.fcntl(fd, fcntl.F_SETFL, 0)  # the kernel knows nothing of the attribute
                return attempt(os.pwrite, fd, b"B", 0)

        try:
            assert in_child(work) == "EPERM"
            assert (served.src / "f").read_bytes() == b"0123456789A"
        finally:
            support.run("chattr", "-a", served.src / "f")


def test_asking_for_an_xattr_flushes_nothing_of_a_network_file_system(directory: Path) -> None:
    """A close there may wait for the server, and take the error of an earlier write from close(2)."""
    (directory / "upper").mkdir()
    with serving.serve(directory, "lower", filters=["audit"]) as lower:
        (directory / "upper" / "src").symlink_to(lower.path)
        with serving.serve(directory / "upper", "upper") as upper:

            def work() -> int:
                with opened(upper.path / "f", os.O_CREAT | os.O_RDWR) as fd:
                    for _ in range(10):
                        attempt(os.getxattr, fd, "user.x")
                    return lower.stats().get(("audit", "pre", "flush", "continue"), 0)

            assert in_child(work) == 0


def test_a_file_whose_number_goes_to_another_one_is_absent_and_nothing_else(directory: Path) -> None:
    (directory / "src").mkdir(exist_ok=True)
    with serving.serve(directory, "numbers") as served:
        names = [f"f{index}" for index in range(6)]

        def churn(seed: int, seconds: float) -> set[str]:
            chance, errors, end = random.Random(seed), set(), time.monotonic() + seconds  # noqa: S311 - no secret

            def open_one(flags: int) -> None:
                fd = attempt(os.open, served.path / chance.choice(names), flags)
                if isinstance(fd, int):
                    os.close(fd)
                else:
                    errors.add(fd)

            while time.monotonic() < end:
                for flags in (os.O_RDONLY, os.O_RDWR | os.O_CREAT, os.O_RDONLY, os.O_RDONLY):
                    open_one(flags)
                attempt(os.unlink, chance.choice((served.path, served.src)) / chance.choice(names))
            return errors

        def churn_all() -> set[str]:
            with concurrent.futures.ThreadPoolExecutor() as threads:
                return set().union(*threads.map(lambda seed: churn(seed, 6), range(4)))

        assert in_child(churn_all, seconds=60) <= {"ENOENT"}


def test_where_the_server_has_no_descriptor_left_each_op_says_so(directory: Path) -> None:
    (directory / "src").mkdir(exist_ok=True)
    (directory / "src" / "f").write_bytes(b"x")
    n_most = 128
    with serving.serve(directory, "few", n_files=n_most) as served:

        def work() -> set[object]:
            with contextlib.ExitStack() as stack:
                fds = [stack.enter_context(opened(served.path / "f", os.O_RDONLY)) for _ in range(2 * n_most)]
                assert {os.pread(fd, 1, 0) for fd in fds} == {b"x"}
                return {attempt(call, fd) for fd in fds for call in (os.fsync, lock)} - {None}

        def lock(fd: int) -> None:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)

        assert in_child(work) == {"EMFILE"}
        assert in_child(work) == {"EMFILE"}  # and all of them are free again
