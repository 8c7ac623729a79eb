"""The file system that files are made on: an ext4 of the benchmark's own, in a file.

Where the machine's own ext4 has no journal, it goes past every inode that was deleted within the last
minutes, one by one, when a file is made: 20 to 700 µs for the same creat(2), as chance has it (Linux,
fs/ext4/ialloc.c: recently_deleted). With a journal it need not, and nothing else lies on this one.
"""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bed import call

SIZE_BYTES = 16 << 30  # the file has holes, and takes what is written
# As many as the longest listing needs; one inode for 4 KiB.
BYTES_PER_INODE = 4096
UNMOUNT_SECONDS = 10


@contextmanager
def fresh_ext4(directory: Path) -> Iterator[Path]:
    """A new ext4 in DIRECTORY, mounted for the time of a block; where none can be, DIRECTORY itself."""
    image, mounted = directory / "ext4", directory / "disk"
    with image.open("xb") as file:
        os.truncate(file.fileno(), SIZE_BYTES)
    mounted.mkdir()
    try:
        call("mkfs.ext4", "-q", "-i", str(BYTES_PER_INODE), image)
        # No thread beside us that fills inode tables in.
        call("mount", "-o", "loop,noinit_itable", image, mounted)
    except RuntimeError as error:
        print(f"  no ext4 of our own, so creating files may take any time: {error}", file=sys.stderr)
        image.unlink()
        yield directory
        return
    try:
        yield mounted
    finally:
        _unmount(mounted)
        image.unlink()


def _unmount(mounted: Path) -> None:
    """Unmount it as soon as the servers of the last mounts have gone, which have it open."""
    end = time.monotonic() + UNMOUNT_SECONDS
    while True:
        try:
            call("umount", mounted)
        except RuntimeError:
            if time.monotonic() > end:
                raise
            time.sleep(0.1)
        else:
            return
