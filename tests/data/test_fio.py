"""fio writes, reads back and verifies: buffered, direct, mapped and mixed, with and without passthrough."""

import json
from pathlib import Path

import pytest
import support
from core.variants import Variant

COMMON = [
    "--verify=crc32c",
    "--verify_fatal=1",
    "--verify_state_save=0",
    "--do_verify=1",
    "--output-format=json",
]

# Patterns: each is one or more jobs that run at once, on files of their own unless they say so.
PATTERNS = {
    "buffered": ["--name=a", "--rw=randwrite", "--bs=512-64k", "--ioengine=psync"],
    "appended": ["--name=a", "--rw=write", "--bs=100-9000", "--bs_unaligned=1", "--ioengine=psync"],
    "direct": ["--name=a", "--rw=randwrite", "--bs=16k", "--direct=1", "--ioengine=psync"],
    "direct_async": [
        *("--name=a", "--rw=randwrite", "--bs=4k", "--direct=1", "--ioengine=libaio", "--iodepth=16"),
        "--verify_backlog=64",
    ],
    "mapped": ["--name=a", "--rw=randwrite", "--bs=4k", "--ioengine=mmap"],
    "vectors": ["--name=a", "--rw=randwrite", "--bs=1k-16k", "--ioengine=pvsync2"],
    "synced": ["--name=a", "--rw=randwrite", "--bs=8k", "--ioengine=psync", "--fdatasync=8", "--size=1m"],
    "spliced": ["--name=a", "--rw=write", "--bs=64k", "--ioengine=splice"],
    "mixed": [
        *("--name=a", "--rw=randrw", "--rwmixread=40", "--bs=4k", "--ioengine=psync", "--verify_backlog=128"),
        *("--name=b", "--rw=randwrite", "--bs=4k", "--ioengine=mmap"),
        *("--name=c", "--rw=randwrite", "--bs=4k", "--direct=1", "--ioengine=psync"),
    ],
}


def run(directory: Path, pattern: str, size: str) -> None:
    """Run fio in a directory; it fails where what it reads is not what it wrote."""
    jobs = [word.replace("--size=1m", f"--size={size}") for word in PATTERNS[pattern]]
    words = ["fio", f"--directory={directory}", f"--size={size}", "--randseed=7", *COMMON, *jobs]
    said = support.run(*words, seconds=240)

    report = json.loads(said.stdout[said.stdout.index("{") :])
    assert [job["error"] for job in report["jobs"]] == [0] * len(report["jobs"])
    written = sum(job["write"]["io_bytes"] for job in report["jobs"])
    read = sum(job["read"]["io_bytes"] for job in report["jobs"])
    assert 0 < written <= read, "it did not read back what it wrote"


def check(variant: Variant, pattern: str, size: str) -> None:
    """Verify through the mount, and then once more behind it what is there now."""
    mounted = variant.mounted
    place = f"{pattern}-{size}"
    (mounted.path / place).mkdir()

    run(mounted.path / place, pattern, size)

    for file in (mounted.path / place).iterdir():
        assert file.read_bytes() == (mounted.src / place / file.name).read_bytes()


@pytest.mark.parametrize("pattern", list(PATTERNS))
def test_what_is_read_is_what_was_written(variant: Variant, pattern: str) -> None:
    check(variant, pattern, "1m")


@pytest.mark.soak
@pytest.mark.timeout(600)
@pytest.mark.parametrize("pattern", list(PATTERNS))
def test_much_that_is_read_is_what_was_written(variant: Variant, pattern: str) -> None:
    check(variant, pattern, "256m")
