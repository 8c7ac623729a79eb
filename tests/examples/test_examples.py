"""The examples with daemons do what their texts say."""

import json
import os
import shlex
import socket
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from docs_support import Transcript, transcripts
from support import CHECKOUT, COMMAND, Mounted, Mounter, run

EXAMPLES = CHECKOUT / "examples"
STORIES = [f"examples/{name}/README.md" for name in ("virtual", "encrypt", "ask")]
MARK = "\x01"

AskedMount = tuple[Mounted, socket.socket]


def play(transcript: Transcript, directory: Path) -> list[list[str]]:
    """Run the commands of a text in a directory; the lines that each said."""
    name = f"examples-{os.getpid()}"
    script = [
        "exec 2>&1",
        'sudo() { [ "$1" = -E ] && shift; "$@"; }',
        f'fusebpf() {{ timeout -s KILL 30 {shlex.quote(str(COMMAND))} "$@"; }}',
    ]
    for command, _ in transcript.commands:
        named = command.replace("mount src mnt", f"mount src mnt --name {name}").replace(
            "umount mnt", "umount ./mnt"
        )
        script += [f"echo {MARK}", named]
    variables = {"LC_ALL": "C", "EXAMPLES": str(EXAMPLES), "PYTHON": sys.executable}
    done = run("bash", "-c", "\n".join(script), check=False, cwd=directory, seconds=90, env=variables)
    return [said.splitlines()[1:] for said in done.stdout.split(MARK)[1:]]


@pytest.mark.parametrize("document", STORIES)
def test_its_text_is_right(document: str, directory: Path) -> None:
    [[transcript]] = transcripts(document)

    said = play(transcript, directory)

    for (command, expected), lines in zip(transcript.commands, said, strict=True):
        assert lines == expected, command


def photo(order: str) -> bytes:
    """A JPEG file as far as metadata goes: a camera's name, a place, an XMP packet with the place."""
    mark = {"<": b"II", ">": b"MM"}[order]
    make, latitude = b"Camera\0\0", struct.pack(order + "6I", 48, 1, 51, 1, 1234, 100)
    gps_at = 8 + 2 + 2 * 12 + 4 + len(make)
    tiff = mark + struct.pack(order + "HI", 42, 8) + struct.pack(order + "H", 2)
    tiff += struct.pack(order + "HHII", 0x010F, 2, 7, 8 + 2 + 24 + 4)
    tiff += struct.pack(order + "HHII", 0x8825, 4, 1, gps_at) + bytes(4) + make
    tiff += struct.pack(order + "H", 1) + struct.pack(order + "HHII", 2, 5, 3, gps_at + 2 + 12 + 4) + bytes(4)
    tiff += latitude
    xmp = b'http://ns.adobe.com/xap/1.0/\0<x exif:GPSLatitude="48,51.1234N"/>'
    segments = b"".join(
        b"\xff\xe1" + struct.pack(">H", len(content) + 2) + content for content in (b"Exif\0\0" + tiff, xmp)
    )
    return b"\xff\xd8" + segments + b"\xff\xda" + b"pixels" * 5000 + b"\xff\xd9"


def test_exif_redact_hides_the_place_from_who_is_not_trusted(mount: Mounter) -> None:
    example = EXAMPLES / "exif_redact"
    mounted = mount(
        filters=[example / "exif_redact.c"],
        sets={"exif_redact.trusted": "0"},
        arguments=["--daemon", f"{example}/exif_redact.py:ExifRedact"],
    )
    plain = {
        "one.jpg": photo("<"),
        "two.JPG": photo(">"),
        "bad.jpeg": b"\xff\xd8\xff\xe1\0\x10Exif\0\0nonsense",
    }
    for name, data in plain.items():
        (mounted.src / name).write_bytes(data)
    (mounted.src / "copy.txt").write_bytes(photo("<"))

    def seen(name: str, user: int | None) -> bytes:
        code = f"import os, sys; print(open({str(mounted.path / name)!r}, 'rb').read().hex())"
        return bytes.fromhex(run("/usr/bin/python3", "-c", code, user=user).stdout)

    for name, data in plain.items():
        assert seen(name, None) == data
        redacted = seen(name, 1000)
        assert len(redacted) == len(data)
        assert redacted != data
        assert b"GPS" not in redacted
        assert struct.pack("<I", 1234) not in redacted
        assert struct.pack(">I", 1234) not in redacted
        assert seen(name, None) == data
    assert b"Camera" in seen("one.jpg", 1000)
    assert seen("one.jpg", 1000).endswith(plain["one.jpg"][-30000:])
    assert b"nonsense" not in seen("bad.jpeg", 1000)
    assert seen("copy.txt", 1000) == photo("<")


def test_exif_redact_knows_directories_links_and_other_names(mount: Mounter) -> None:
    example = EXAMPLES / "exif_redact"
    mounted = mount(
        filters=[example / "exif_redact.c"],
        sets={"exif_redact.trusted": "0"},
        arguments=["--daemon", f"{example}/exif_redact.py:ExifRedact"],
    )
    mounted.src.chmod(0o777)
    (mounted.src / "trip.jpg").mkdir()
    (mounted.src / "trip.jpg/in.JpEg").write_bytes(photo("<"))
    (mounted.src / "padded.jpg").write_bytes(photo("<").replace(b"\xff\xe1", b"\xff\xff\xff\xe1"))
    (mounted.src / "text").touch()
    (mounted.src / "link.jpg").symlink_to("trip.jpg/in.JpEg")

    def says(*words: str) -> str:
        return run(*words, user=1000, cwd=mounted.path, check=False).stdout.strip()

    for name in ("trip.jpg/in.JpEg", "padded.jpg", "link.jpg"):
        assert says("grep", "-c", "GPSLatitude", name) == "0", name
        assert run("grep", "-c", "GPSLatitude", mounted.path / name).stdout == "1\n"
    assert says("ls", "trip.jpg") == "in.JpEg"
    assert says("readlink", "link.jpg") == "trip.jpg/in.JpEg"
    assert run("mv", "padded.jpg", "padded", user=1000, cwd=mounted.path, check=False).returncode
    exchange = (
        "import ctypes, sys; sys.exit(-ctypes.CDLL(None).renameat2(-100, b'text', -100, b'padded.jpg', 2))"
    )
    assert run("python3", "-c", exchange, user=1000, cwd=mounted.path, check=False).returncode
    says("mv", "text", "new.jpg")
    assert sorted(path.name for path in mounted.src.iterdir()) == [
        "link.jpg",
        "new.jpg",
        "padded.jpg",
        "trip.jpg",
    ]


def test_encrypt_reads_and_writes_anywhere(
    mount: Mounter, monkeypatch: pytest.MonkeyPatch, directory: Path
) -> None:
    key = directory / "key"
    key.write_bytes(os.urandom(32))
    monkeypatch.setenv("ENCRYPT_KEY", str(key))
    mounted = mount(arguments=["--daemon", f"{EXAMPLES}/encrypt/encrypt.py:Encrypt"])
    code = """
import os, random, sys
random.seed(1)
fd, model = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT), bytearray()
for _ in range(60):
    at, n = random.randrange(20000), random.randrange(1, 9000)
    kind = random.randrange(3)
    if kind == 0:
        data = random.randbytes(n)
        os.pwrite(fd, data, at)
        model[len(model):] = bytes(max(0, at - len(model)))
        model[at:at + n] = data
    elif kind == 1:
        os.ftruncate(fd, at)
        model[at:] = bytes(max(0, at - len(model)))
    assert os.pread(fd, n, at) == model[at:at + n]
    assert os.fstat(fd).st_size == len(model)
os.fsync(fd)
assert open(sys.argv[1], "rb").read() == model
"""
    run(sys.executable, "-c", code, mounted.path / "file", seconds=60)

    assert (mounted.src / "file").stat().st_size > (mounted.path / "file").stat().st_size
    done = run(sys.executable, EXAMPLES / "encrypt/fsck.py", key, mounted.src)
    assert done.stdout == "1 files, 0 broken\n"
    os.truncate(mounted.src / "file", (mounted.src / "file").stat().st_size - 1)
    assert (
        "1 broken" in run(sys.executable, EXAMPLES / "encrypt/fsck.py", key, mounted.src, check=False).stdout
    )


@pytest.fixture
def asked(mount: Mounter, monkeypatch: pytest.MonkeyPatch, directory: Path) -> Iterator[AskedMount]:
    """A mount with `ask` for what is below `private`, and the socket at which it asks; nobody answers."""
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(directory / "socket"))
    listening.listen()
    listening.settimeout(10)
    monkeypatch.setenv("ASK_SOCKET", str(directory / "socket"))
    monkeypatch.setenv("ASK_SECONDS", "0.5")
    mounted = mount(
        filters=[EXAMPLES / "ask/ask.c"],
        sets={"ask.paths": "private"},
        arguments=["--daemon", f"{EXAMPLES}/ask/ask.py:Ask"],
    )
    (mounted.src / "private").mkdir()
    with listening:
        yield mounted, listening


def question(listening: socket.socket) -> dict[str, Any]:
    """The next open that was asked about."""
    stream, _ = listening.accept()
    with stream:
        asked: dict[str, Any] = json.loads(stream.recv(65536))
        return asked


def test_ask_says_no_when_nobody_answers_in_time(asked: AskedMount) -> None:
    mounted, listening = asked
    (mounted.src / "private/diary").write_text("hush\n")

    done = run("cat", mounted.path / "private/diary", check=False)

    assert "Permission denied" in done.stderr
    assert question(listening)["path"] == "private/diary"


def test_ask_asks_too_where_a_path_is_too_long_to_be_known(asked: AskedMount) -> None:
    mounted, listening = asked
    way = 'cd "$0" && for i in $(seq 20); do mkdir -p $1 && cd $1; done && '
    run("bash", "-c", way + "echo hush > diary", mounted.src / "private", "d" * 250)

    done = run("bash", "-c", way + "cat diary", mounted.path / "private", "d" * 250, check=False)

    assert (done.stdout, "Permission denied" in done.stderr) == ("", True)
    assert question(listening)["path"] is None
