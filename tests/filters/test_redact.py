"""The stock filter `redact`: content that only some users see; and all stock filters in one chain."""

import errno
import mmap
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import support

from fusebpf import loader, loops
from fusebpf.testing import Chain

TEXT = b"name=Ann pin=1234 " * 8000
SETS = {"redact.names": "*.sec", "redact.range": "5:8", "redact.bytes": "0x30:0x39", "redact.allowed": "0"}
MAPPED = "import mmap, sys; f = open(sys.argv[1]); print(mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ)[:])"


def redacted(content: bytes) -> bytes:
    shown = bytes(0 if 0x30 <= byte <= 0x39 else byte for byte in content)
    return shown[:5] + bytes(3) + shown[8:]


def test_only_those_who_are_allowed_see_everything(mount: support.Mounter) -> None:
    mounted = mount(filters=["redact"], sets=SETS)
    (mounted.src / "a.sec").write_bytes(TEXT)
    (mounted.src / "plain").write_bytes(TEXT)
    seen = redacted(TEXT).decode()
    reader = ("sh", "-c", f"cat {mounted.path}/a.sec; dd if={mounted.path}/a.sec bs=7 count=4 status=none")

    for _ in range(2):
        assert (mounted.path / "a.sec").read_bytes() == TEXT
        assert support.run(*reader, user=1000).stdout == seen + seen[:28]
        mapped = support.run(sys.executable, "-c", MAPPED, mounted.path / "a.sec", user=1000).stdout
        assert mapped.strip() == repr(redacted(TEXT))
    with (mounted.path / "a.sec").open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as own:
        assert own[:] == TEXT
    assert support.run("cat", mounted.path / "plain", user=1000).stdout == TEXT.decode()


def test_who_does_not_see_the_content_cannot_write_it(mount: support.Mounter) -> None:
    mounted = mount(filters=["redact"], sets=SETS)
    (mounted.src / "a.sec").write_bytes(TEXT)
    (mounted.src / "a.sec").chmod(0o666)

    done = support.run("sh", "-c", f"echo x >> {mounted.path}/a.sec", check=False, user=1000)

    assert "Permission denied" in done.stderr
    (mounted.path / "a.sec").write_bytes(b"by root 12")
    assert (mounted.src / "a.sec").read_bytes() == b"by root 12"


WAYS = """
import os, sys
def told(call, *arguments, **more):
    try:
        call(*arguments, **more)
        return 0
    except OSError as error:
        return error.errno
def exchange(a, b):
    libc = __import__("ctypes").CDLL(None, use_errno=True)
    if libc.renameat2(-100, a.encode(), -100, b.encode(), 2):
        raise OSError(__import__("ctypes").get_errno(), "renameat2")
def link_of_open(a, b):
    with open(a) as file:
        os.link(f"/proc/self/fd/{file.fileno()}", b, src_dir_fd=0, follow_symlinks=True)
os.chdir(sys.argv[1])
for case in (
    (os.link, "a.sec", "plain1"), (os.link, "p/f", "plain2"), (link_of_open, "a.sec", "plain3"),
    (os.rename, "a.sec", "plain4"), (os.rename, "p/f", "plain5"), (os.rename, "p/sub", "sub"),
    (os.rename, "p", "q"), (os.rename, "p/sub", "sub.sec"), (exchange, "a.sec", "own"),
    (exchange, "own", "p/f"), (exchange, "own", "p/sub"), (os.link, "own", "own.sec"),
    (os.link, "own", "p/own"), (os.rename, "own", "own.sec"), (os.rename, "own", "p/own"),
    (os.rename, "r", "p/r"),
    (os.link, "a.sec", "b.sec"), (os.link, "p/f", "p/g"), (os.rename, "b.sec", "c.sec"),
    (os.rename, "p/g", "p/h"), (os.rename, "own", "own2"),
    (os.link, "own2", "own3"), (os.rename, "r", "s"), (os.rename, "p/h", "p/sub/h"),
):
    print(told(*case), end=" ")
"""


def test_no_other_name_shows_what_is_redacted(mount: support.Mounter) -> None:
    mounted = mount(filters=["redact"], sets={**SETS, "redact.paths": "p"})
    (mounted.src / "p" / "sub").mkdir(parents=True)
    (mounted.src / "r").mkdir()
    for name in ("a.sec", "p/f", "p/sub/f", "own"):
        (mounted.src / name).write_bytes(TEXT)
    for path in [mounted.src, *mounted.src.rglob("*")]:
        os.chown(path, 1000, 1000)

    done = support.run(sys.executable, "-c", WAYS, mounted.path, user=1000)

    codes = [int(word) for word in done.stdout.split()]
    assert codes == [errno.EACCES] * 16 + [0] * 8
    (mounted.path / "a.sec").rename(mounted.path / "plain")
    assert (mounted.path / "plain").read_bytes() == TEXT, "who sees everything may"


def test_with_empty_maps_files_keep_being_redacted_under_any_name(mount: support.Mounter) -> None:
    mounted = mount(filters=["redact"], sets={"redact.bytes": "0x30:0x39", "redact.allowed": "0"})
    (mounted.src / "a").write_bytes(b"12ab")
    for path in (mounted.src, mounted.src / "a"):
        os.chown(path, 1000, 1000)

    done = support.run("sh", "-c", "ln a b && mv a c && cat b c", cwd=mounted.path, user=1000)

    assert done.stdout == "\0\0ab" * 2


def test_redact_in_windows() -> None:
    content = bytes(range(256)) * 600
    with Chain("redact", maps={"redact.range": "100:140000"}) as chain:
        said = chain.run("read", view=1, data=content, args={"size": len(content)})
        assert said.data == content[:100] + bytes(139900) + content[140000:]
        said = chain.run("read", view=1, data=content[:50], args={"size": 50, "offset": 139990})
        assert said.data == bytes(10) + content[10:50]
        assert chain.run("read", data=content, args={"size": len(content)}).data == content
        assert chain.run("open", view=1, args={"flags": os.O_RDWR}).error == errno.EACCES
        assert chain.run("open", view=1, args={"flags": os.O_RDONLY}).error == 0


def test_all_stock_filters_fit_into_one_chain() -> None:
    with Chain(loader.stock_names()) as chain:
        ran = {one.filter for one in chain.run("getattr", path="a").verdicts}
        assert {"audit", "deny", "fault", "idshift", "limit"} <= ran


def test_every_stock_filter_is_documented() -> None:
    text = (support.CHECKOUT / "docs/filters.md").read_text()
    readme = (support.CHECKOUT / "README.md").read_text()

    assert [name for name in loader.stock_names() if f"\n## {name}\n" not in text] == []
    assert [name for name in loader.stock_names() if f"| `{name}` @" not in readme] == []
    for name in loader.stock_names():
        section = text.partition(f"\n## {name}\n")[2].partition("\n## ")[0]
        maps = [line.split("`")[1] for line in section.splitlines() if line.startswith("| `")]
        source = Path(loader.stock(name)).read_text()
        assert [one for one in maps if f"{name}__{one}" not in source] == []


@pytest.mark.parametrize(("n_patterns", "length"), [(1, 504), (3, 304), (3, 20)])
def test_nothing_moves_to_or_from_where_it_cannot_be_judged(
    monkeypatch: pytest.MonkeyPatch, n_patterns: int, length: int
) -> None:
    """With as few rounds as older kernels have for a match."""
    monkeypatch.setattr(loops, "has_may_goto", lambda: False)
    patterns = ",".join(f"*.k{number}" for number in range(n_patterns))
    maps = {"redact.paths": f"secret,{patterns}", "redact.allowed": "0"}
    file: dict[str, Any] = {
        "name": b"f",
        "name2": b"f",
        "uid": 1234,
        "phase": "pre",
        "args": {"type": 0o100000},
    }
    near, far = b"secret/f", b"u/" + b"d" * length + b"/f"

    with Chain("redact", maps=maps) as chain:
        assert chain.run("rename", path=near, path2=far, **file).error == errno.EACCES
        assert chain.run("rename", path=far, path2=near, **file).error == errno.EACCES
