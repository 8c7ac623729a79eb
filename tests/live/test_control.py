"""The control socket: who may use it, and what it does with what it does not understand."""

import json
import os
import signal
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import support
from live.live_support import chain_of, fusebpf, names_of

NOBODY = 65534


@pytest.fixture(scope="module")
def mounted(run_directory: Path) -> Iterator[support.Mounted]:
    directory = run_directory / "control"
    directory.mkdir(mode=0o755)
    mounter = support.Mounter(directory, "control-")
    yield mounter(filters=["audit"])
    assert mounter.take_down() == []


def path_of(mounted: support.Mounted) -> Path:
    return support.STATE / f"{mounted.name}.sock"


def ask(mounted: support.Mounted, *lines: bytes) -> list[dict[str, Any]]:
    """What the server answers to raw lines, as long as it does."""
    with socket.socket(socket.AF_UNIX) as channel:
        channel.settimeout(30)
        channel.connect(str(path_of(mounted)))
        try:
            channel.sendall(b"".join(lines))
            channel.shutdown(socket.SHUT_WR)
        except BrokenPipeError:
            pass
        answer = b""
        try:
            while block := channel.recv(65536):
                answer += block
        except ConnectionResetError:
            pass
    return [json.loads(line) for line in answer.splitlines()]


def test_only_root_may_reach_it(mounted: support.Mounted) -> None:
    status = path_of(mounted).stat()

    assert stat.S_ISSOCK(status.st_mode)
    assert (stat.S_IMODE(status.st_mode), status.st_uid) == (0o600, 0)


def test_a_peer_that_is_not_root_is_refused_though_it_got_in(mounted: support.Mounted) -> None:
    """With modes that let everybody in, the kernel's word on who it is still counts."""
    link = Path(f"/run/{mounted.name}.test.sock")
    link.hardlink_to(path_of(mounted))
    link.chmod(0o666)
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
            with socket.socket(socket.AF_UNIX) as channel:
                channel.settimeout(20)
                channel.connect(str(link))
                theirs.sendall(channel.recv(65536) or b"nothing")
        except OSError as error:
            theirs.sendall(str(error).encode())
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    link.chmod(0o600)
    link.unlink()

    told = json.loads(ours.recv(65536))
    ours.close()
    theirs.close()

    assert (told["ok"], told["error"]["message"]) == (False, "only root may ask")
    assert names_of(mounted) == ["audit@900"]


@pytest.mark.parametrize(
    ("line", "part"),
    [
        (b"", "one line of JSON"),
        (b"\xff\xfe\x00", "one line of JSON"),
        (b"[" * 100_000, "one line of JSON"),
        (b"[]", "a JSON object, not list"),
        (b"null", "a JSON object"),
        (b"{}", "version None"),
        (b'{"version": 2, "request": "filters"}', "version 2 of the protocol is not spoken here, 1 is"),
        (b'{"version": true, "request": "filters"}', "'version' in a request is int"),
        (b'{"version": 1}', "'request' is missing"),
        (b'{"version": 1, "request": "nosuch"}', "no request 'nosuch', there are: attach, detach"),
        (b'{"version": 1, "request": 7}', "'request' in a request is str, not 7"),
        (b'{"version": 1, "request": "filters", "more": 1}', "'more' is not known"),
        (b'{"version": 1, "request": "detach"}', "'name' is missing"),
        (b'{"version": 1, "request": "detach", "name": "x\\u0000"}', "zero byte"),
        (b'{"version": 1, "request": "detach", "name": "audit", "revision": "1"}', "'revision'"),
        (b'{"version": 1, "request": "attach"}', "no filter is to be attached"),
        (b'{"version": 1, "request": "attach", "filters": "hide"}', "'filters' in a request is list"),
        (b'{"version": 1, "request": "attach", "filters": [7]}', "a list of texts"),
        (b'{"version": 1, "request": "attach", "filters": ["hide"], "sets": ["x"]}', "'x' sets nothing"),
        (b'{"version": 1, "request": "attach", "filters": ["hide"], "open_files": "x"}', "'x' is neither"),
        (b'{"version": 1, "request": "attach", "filters": ["\\ud800.c"]}', "half a character"),
        (b'{"version": 1, "request": "replace", "name": "audit", "filter": ""}', "has no name"),
        (b'{"version": 1, "request": "filters", "x": ' + b"9" * 5000 + b"}", "JSON"),
    ],
    ids=lambda value: repr(value[:60]) if isinstance(value, bytes) else "",
)
def test_what_is_not_understood_is_answered_and_does_no_harm(
    mounted: support.Mounted, line: bytes, part: str
) -> None:
    (told,) = ask(mounted, line + b"\n")

    assert (told["version"], told["ok"]) == (1, False)
    assert part in told["error"]["message"]
    assert told["error"]["exit_code"] in {1, 2}
    assert "a bug" not in told["error"]["message"]
    assert names_of(mounted) == ["audit@900"]


def test_a_line_without_end_is_cut_off(mounted: support.Mounted) -> None:
    (told,) = ask(mounted, b"x" * (3 << 20))

    assert told["error"]["message"] == "a request is a line of 1 MiB at most"
    assert names_of(mounted) == ["audit@900"]


def test_several_requests_go_over_one_connection_and_a_half_one_does_nothing(
    mounted: support.Mounted,
) -> None:
    line = b'{"version": 1, "request": "filters"}\n'

    told = ask(mounted, line, b"nonsense\n", line, b'{"version": 1, "request": "detach", "name": "audit"}')

    assert [one["ok"] for one in told] == [True, False, True]
    assert told[0]["result"]["filters"][0]["name"] == "audit"
    assert names_of(mounted) == ["audit@900"]


def test_peers_that_go_away_or_say_nothing_hold_nobody_up(mounted: support.Mounted) -> None:
    silent = [socket.socket(socket.AF_UNIX) for _ in range(40)]
    for channel in silent:
        channel.connect(str(path_of(mounted)))
    gone = socket.socket(socket.AF_UNIX)
    gone.connect(str(path_of(mounted)))
    gone.sendall(b'{"version": 1, "request": "filters"}\n' * 100)
    gone.close()

    assert chain_of(mounted)["revision"] == 1
    for channel in silent:
        channel.close()


@pytest.mark.alone
def test_it_goes_with_its_mount_and_a_dead_servers_is_cleaned_up(mount: support.Mounter) -> None:
    ended, killed = mount(), mount()
    ended.umount()
    assert not path_of(ended).exists()

    killed.kill(signal.SIGKILL)
    assert path_of(killed).exists()
    done = fusebpf("filters", killed.name, check=False)
    assert (done.returncode, "is dead" in done.stderr) == (1, True)
    fusebpf("umount", killed.name, check=False)  # anybody's mount or umount may have been quicker

    assert not path_of(killed).exists()
