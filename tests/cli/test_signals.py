"""How servers end by signals, under load, and how starts are interrupted; nothing may be left behind."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import support
from cli_support import assert_refused, fusebpf, left_behind, mount, processes, umount

pytestmark = pytest.mark.alone

WORK = (
    'cd "$0" && while :; do echo x >f$$; cat f$$ file >/dev/null; ls -la >/dev/null; mv f$$ g$$; rm g$$; done'
)


@contextmanager
def load(mnt: Path) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Four shells that work on a mount, and one that holds a file open in it."""
    words: list[str | os.PathLike[str]] = ["timeout", "-s", "KILL", "60", "sh", "-c", WORK, os.fspath(mnt)]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    clients = [subprocess.Popen(words, start_new_session=True, **quiet) for _ in range(4)]  # type: ignore[call-overload]
    try:
        support.wait_until(lambda: any(path.name[0] == "f" and path.name != "file" for path in mnt.iterdir()))
        yield clients
    finally:
        for client in clients:
            os.killpg(client.pid, signal.SIGKILL)
            client.wait(10)


def server_of(tree: Path) -> int:
    """The pid of the one server of this test."""
    ((_, pid),) = support.servers_below(tree)
    return pid


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("filters", [[], ["--filter", "hide", "--filter", "audit"]])
def test_a_signal_under_load_unmounts_cleanly(tree: Path, number: signal.Signals, filters: list[str]) -> None:
    mount("src", "mnt", *filters, cwd=tree)
    pid = server_of(tree)

    held = os.open(tree / "mnt" / "file", os.O_RDONLY)
    with load(tree / "mnt"):
        os.kill(pid, number)
        support.wait_until(lambda: left_behind(tree) == [], 30)
    with suppress(OSError):  # nobody answers its FLUSH any more
        os.close(held)

    mount("src", "mnt", cwd=tree)
    umount("./mnt", cwd=tree)


def test_an_op_that_waits_when_the_server_ends_is_not_answered_by_what_lies_below(tree: Path) -> None:
    mount("src", "mnt", "--filter", "fault", "--set", "fault.delays=create:*:*:20000", cwd=tree)
    (tree / "mnt" / "file").read_text()
    code = "try: open('mnt/letter', 'w').write('private')\nexcept OSError as error: print(error.strerror)"
    words = [sys.executable, "-c", code]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, cwd=tree) as client:
        try:
            wchan = Path(f"/proc/{client.pid}/wchan")
            support.wait_until(lambda: "wait_answer" in wchan.read_text())
            os.kill(server_of(tree), signal.SIGTERM)
            told, _ = client.communicate(timeout=30)
        finally:
            client.kill()

    support.wait_until(lambda: left_behind(tree) == [])
    assert told.strip() == os.strerror(errno.ENOTCONN)
    assert list((tree / "mnt").iterdir()) == []


def test_a_hangup_does_not_end_a_background_server(tree: Path) -> None:
    mount("src", "mnt", cwd=tree)

    os.kill(server_of(tree), signal.SIGHUP)

    assert (tree / "mnt" / "file").read_text() == "text\n"
    umount("./mnt", cwd=tree)


@pytest.mark.parametrize("command", ["mount", "umount", "umount by name", "list"])
def test_what_a_killed_server_left_goes_with_the_next_command(tree: Path, command: str) -> None:
    mount("src", "mnt", "--filter", "hide", cwd=tree)
    ((name, pid),) = support.servers_below(tree)
    with load(tree / "mnt"):
        os.kill(pid, signal.SIGKILL)
        support.wait_until(lambda: not support.is_alive(pid))
    assert support.mountpoints(tree) == [tree / "mnt"]

    if command == "mount":
        mount("src", "mnt", "--name", name, cwd=tree)
        assert (tree / "mnt" / "file").read_text() == "text\n"
        umount("./mnt", cwd=tree)
    elif command == "list":
        (row,) = (line for line in fusebpf("list").stdout.splitlines() if str(tree) in line)
        assert row.endswith("dead")
        assert f"`fusebpf umount {name}`" in fusebpf("list").stderr
        assert support.mountpoints(tree) == [tree / "mnt"]  # who only looks removes no protection
        umount(name, cwd=tree)
    else:
        umount(name if "name" in command else "./mnt", cwd=tree)

    assert left_behind(tree) == []
    assert not (support.PINS / name).exists()


def test_a_mount_whose_server_was_killed_is_said_to_be_dead(tree: Path) -> None:
    mount("src", "mnt", "--filter", "hide", cwd=tree)
    ((name, pid),) = support.servers_below(tree)
    os.kill(pid, signal.SIGKILL)
    support.wait_until(lambda: not support.is_alive(pid))

    for words in (
        ("stats", "mnt"),
        ("filters", name),
        ("map", name, "hide", "names"),
        ("attach", "mnt", "audit"),
    ):
        done = fusebpf(*words, cwd=tree)
        assert_refused(done, 1, f"the server of '{name}' is dead", f"`fusebpf umount {name}`")

    umount(name, cwd=tree)


def test_a_killed_servers_mount_in_place_goes_too(tree: Path) -> None:
    mount("src", "src", cwd=tree)
    pid = server_of(tree)
    os.kill(pid, signal.SIGKILL)
    support.wait_until(lambda: not support.is_alive(pid))

    mount("src", "src", cwd=tree)
    assert (tree / "src" / "file").read_text() == "text\n"
    umount("./src", cwd=tree)


def states_of(pid: int) -> str:
    """The states of a process's threads, as in ps(1); first that of the one with its number."""
    states = []
    for task in sorted(Path(f"/proc/{pid}/task").iterdir(), key=lambda task: int(task.name) != pid):
        with suppress(OSError):  # it has ended meanwhile
            states.append((task / "stat").read_text().rpartition(")")[2].split()[0])
    return "".join(states)


@pytest.mark.parametrize("command", ["mount", "umount"])
def test_a_killed_server_that_takes_its_time_is_waited_for(tree: Path, ext4: Path, command: str) -> None:
    """A thread of it is in the kernel, where nothing ends it, while the others have gone."""
    mount(ext4, "mnt", cwd=tree)
    pid = server_of(tree)
    support.run("fsfreeze", "--freeze", ext4)
    with support.clients(("touch", tree / "mnt" / "made")):
        try:
            support.wait_until(lambda: "D" in states_of(pid))
            os.kill(pid, signal.SIGKILL)
            support.wait_until(lambda: states_of(pid)[0] == "Z")
            where = [tree / "src", tree / "mnt"] if command == "mount" else [tree / "mnt"]
            with subprocess.Popen([support.COMMAND, command, *where], stderr=subprocess.PIPE) as next_one:
                with suppress(subprocess.TimeoutExpired):
                    next_one.wait(2)
                support.run("fsfreeze", "--unfreeze", ext4)
                assert next_one.communicate(timeout=20)[1] == b""
        finally:
            support.run("fsfreeze", "--unfreeze", ext4, check=False)

    if command == "mount":
        assert (tree / "mnt" / "file").read_text() == "text\n"
        umount("./mnt", cwd=tree)
    assert left_behind(tree) == []


@pytest.mark.parametrize("known", ["mount_id", "unique_id", "neither"])
def test_a_living_mount_with_the_numbers_of_a_dead_servers_is_not_touched(tree: Path, known: str) -> None:
    """The numbers of mounts that are gone are used again; here a dead entry gets a living mount's."""
    mount("src", "mnt", cwd=tree)
    ((name, _),) = support.servers_below(tree)
    state = json.loads((support.STATE / f"{name}.json").read_text())
    dead = {**state, "name": f"{name}-dead", "lock": 1}
    if known == "unique_id":
        dead["unique_id"] -= 1
    if known != "unique_id":
        dead["unique_id"] = 0
    if known == "neither":
        dead["mount_id"] = None
    (support.STATE / f"{name}-dead.json").write_text(json.dumps(dead))

    (tree / "other").mkdir()
    mount("src", "other", cwd=tree)
    umount("./other", cwd=tree)

    assert not (support.STATE / f"{name}-dead.json").exists()
    assert support.mountpoints(tree) == [tree / "mnt"]
    assert (tree / "mnt" / "file").read_text() == "text\n"
    umount("./mnt", cwd=tree)


def test_a_stopped_server_does_not_stop_umount(tree: Path) -> None:
    mount("src", "mnt", cwd=tree)
    pid = server_of(tree)
    os.kill(pid, signal.SIGSTOP)
    try:
        done = fusebpf("umount", "./mnt", "--lazy", cwd=tree)
    finally:
        os.kill(pid, signal.SIGCONT)

    assert done.returncode == 0
    assert f"pid {pid}" in done.stderr
    support.wait_until(lambda: left_behind(tree) == [])


def test_who_asks_a_stopped_server_is_told_so_and_nothing_is_done_later(tree: Path) -> None:
    mount("src", "mnt", "--filter", "hide", cwd=tree)
    pid = server_of(tree)
    os.kill(pid, signal.SIGSTOP)
    try:
        for words in (
            ("attach", "mnt", "audit"),
            ("detach", "mnt", "hide"),
            ("replace", "mnt", "hide", "audit"),
        ):
            assert_refused(fusebpf(*words, cwd=tree), 1, f"pid {pid}", "is stopped", f"`kill -CONT {pid}`")
        (listed,) = (one for one in json.loads(fusebpf("list", "--json").stdout) if one["pid"] == pid)
        assert listed["state"] == "stopped"
    finally:
        os.kill(pid, signal.SIGCONT)

    chain = json.loads(fusebpf("filters", "mnt", "--json", cwd=tree).stdout)
    assert [one["name"] for one in chain["filters"]] == ["hide"]
    umount("./mnt", cwd=tree)


@pytest.fixture
def slow(tree: Path) -> Path:
    """A filter whose compilation takes seconds: a start that can be interrupted."""
    text = '#include "fusebpf.h"\n'
    for number in range(20):
        name = f"f{number}"
        text += f"FILTER({name}, .altitude = {100 + number})\nPRE({name}, any) {{ return FB_CONTINUE; }}\n"
        text += f'POST({name}, any) {{ return fb_name_glob(ctx, "*a*b*c*{number}") ? FB_REWRITE : 0; }}\n'
    (tree / "slow.c").write_text(text)
    return tree / "slow.c"


def start(tree: Path, slow: Path) -> subprocess.Popen[str]:
    """A mount that is on its way: its name is reserved, its filters are being compiled."""
    words: list[str | os.PathLike[str]] = [
        support.COMMAND,
        "mount",
        tree / "src",
        tree / "mnt",
        "--filter",
        slow,
    ]
    command = subprocess.Popen(words, stderr=subprocess.PIPE, text=True, start_new_session=True)
    support.wait_until(lambda: list(support.servers_below(tree)) or command.poll() is not None)
    assert command.poll() is None
    return command


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_start_that_is_interrupted_leaves_nothing(tree: Path, slow: Path, number: signal.Signals) -> None:
    with start(tree, slow) as command:
        os.killpg(command.pid, number)
        _, said = command.communicate(timeout=60)

    assert (command.returncode, said) == (128 + number, "")
    assert left_behind(tree) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_at_the_end_of_a_start_comes_in_time_or_too_late(tree: Path, number: signal.Signals) -> None:
    words: list[str | os.PathLike[str]] = [support.COMMAND, "mount", tree / "src", tree / "mnt"]
    begun = time.monotonic()
    subprocess.run(words, check=True)
    took = time.monotonic() - begun
    umount("./mnt", cwd=tree)

    for step in range(20):
        with subprocess.Popen(words, stderr=subprocess.DEVNULL) as command:
            time.sleep(took * (0.75 + step * 0.015))
            command.send_signal(number)

        assert (command.returncode == 0) == (tree / "mnt").is_mount(), command.returncode
        if command.returncode == 0:
            umount("./mnt", cwd=tree)
    assert left_behind(tree) == []


def test_a_start_whose_command_is_killed_leaves_nothing(tree: Path, slow: Path) -> None:
    with start(tree, slow) as command:
        command.kill()
        command.wait(10)

    support.wait_until(lambda: left_behind(tree) == [], 60)


def test_a_server_that_is_killed_while_it_starts_is_reported_and_cleaned_up(tree: Path, slow: Path) -> None:
    with start(tree, slow) as command:
        os.kill(server_of(tree), signal.SIGKILL)
        _, said = command.communicate(timeout=60)

    assert command.returncode == 1
    assert said == "fusebpf: the server died before the mount was usable (exit status -9)\n"
    assert left_behind(tree) == []


def test_a_mount_that_is_on_its_way_is_not_mounted_twice(tree: Path, slow: Path) -> None:
    with start(tree, slow) as command:
        assert_refused(fusebpf("mount", "src", "mnt", cwd=tree), 1, "is being mounted by another")
        os.killpg(command.pid, signal.SIGINT)
        command.communicate(timeout=60)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_a_server_in_the_foreground(tree: Path, number: signal.Signals) -> None:
    words: list[str | os.PathLike[str]] = [
        support.COMMAND,
        "mount",
        "-f",
        tree / "src",
        tree / "mnt",
        "--filter",
        "audit",
    ]
    with (
        subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as server,
        load_when_ready(server, tree / "mnt"),
    ):
        server.send_signal(number)

        assert server.wait(30) == 0

    assert left_behind(tree) == []


@contextmanager
def load_when_ready(server: subprocess.Popen[str], mnt: Path) -> Iterator[None]:
    assert server.stderr is not None
    assert "is mounted on" in server.stderr.readline()
    with load(mnt):
        yield


def test_twenty_mounts_at_once_all_come_and_go(tree: Path) -> None:
    points = [tree / f"mnt{number}" for number in range(20)]
    for point in points:
        point.mkdir()
    words: list[str | os.PathLike[str]] = ["timeout", "-s", "KILL", "60", support.COMMAND]

    starts = [subprocess.Popen([*words, "mount", tree / "src", point]) for point in points]
    assert [one.wait(60) for one in starts] == [0] * 20
    assert all((point / "file").read_text() == "text\n" for point in points)
    ends = [subprocess.Popen([*words, "umount", point]) for point in points]

    assert [one.wait(60) for one in ends] == [0] * 20


def test_the_log_of_a_quiet_mount_goes_with_it(tree: Path) -> None:
    mount("src", "mnt", cwd=tree)
    ((name, _),) = support.servers_below(tree)
    assert (support.STATE / f"{name}.log").exists()

    umount("./mnt", cwd=tree)

    assert not (support.STATE / f"{name}.log").exists()
    assert processes(tree) == []
    shutil.rmtree(tree / "mnt")
