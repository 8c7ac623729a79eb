"""Whatever a hook leaves in its ring and its slot, each op ends, with a result or an errno."""

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import support
from chain.chained import Chained, chained
from core.table import attempt, in_child, opened
from fuzz.fuzzing import examples
from hypothesis import given
from hypothesis import strategies as st

from fusebpf import bpf

RECORD_WORDS, SLOT_WORDS = 15, 64
FORMAT = f"<{RECORD_WORDS}Q{SLOT_WORDS}QIIII"
WORD = st.sampled_from([0, 0, 0, 0, 1, 2, 255, 1 << 31, 1 << 32, 3 << 32, 1 << 63, (1 << 64) - 1])
# The words of a record: verdict and phase, flags and error are where decisions are.
RECORD = st.lists(WORD | st.integers(0, 8) | st.integers(0, 8).map(lambda n: n << 32), max_size=RECORD_WORDS)
SLOT = st.lists(WORD | st.integers(0, (1 << 64) - 1), max_size=SLOT_WORDS)


def _padded(words: list[int], size: int) -> list[int]:
    return [*words, *[0] * (size - len(words))]


@st.composite
def noises(draw: st.DrawFn) -> bytes:
    """struct noise"""
    words = _padded(draw(RECORD), RECORD_WORDS) + _padded(draw(SLOT), SLOT_WORDS)
    size = draw(st.sampled_from([0, 0, 0, 8, 56, 64, 120]))
    times = draw(st.sampled_from([1, 1, 1, 1, 0, 2, 3]))
    return struct.pack(FORMAT, *words, size, draw(st.integers(0, 128)), times, draw(st.integers(1, 3)))


@pytest.fixture(scope="module")
def noisy(run_directory: Path) -> Iterator[Chained]:
    """A mount with the filter, and one beside it that watches."""
    with chained(run_directory, [Path(__file__).parent / "noise.c", "audit"]) as made:
        yield made


def use(p: Path) -> Any:
    """A bit of everything; an errno is a result too."""
    said = [
        attempt(os.mkdir, p / "d"),
        attempt(os.rename, p / "d", p / "e"),
        attempt(os.symlink, "x", p / "s"),
    ]

    def change() -> Any:
        with opened(p / "f", os.O_RDWR | os.O_CREAT) as fd:
            return [attempt(call, fd) for call in (lambda fd: os.write(fd, b"data"), os.fstat, os.fsync)]

    said += [
        attempt(change),
        attempt(os.listdir, p),
        attempt(os.stat, p / "f"),
        attempt(os.readlink, p / "s"),
    ]
    said += [attempt(os.setxattr, p, "user.a", b"x"), attempt(os.listxattr, p), attempt(os.chmod, p, 0o755)]
    return [*said, attempt(os.unlink, p / "f"), attempt(os.unlink, p / "s"), attempt(os.rmdir, p / "e")]


@examples(60)
@given(noises())
def test_noise_fails_ops_and_nothing_else(noisy: Chained, noise: bytes) -> None:
    through, _ = noisy.fresh()
    what = bpf.obj_get(noisy.mounted.pins / "noise" / "what")
    try:
        bpf.map_update(what, bytes(4), noise)
        in_child(use, through, seconds=30)
        bpf.map_update(what, bytes(4), bytes(len(noise)))
    finally:
        os.close(what)

    assert support.is_alive(noisy.mounted.pid)
    after, _ = noisy.fresh()
    assert in_child(attempt, os.mkdir, after / "sound") is None
