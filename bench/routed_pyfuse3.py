"""The handlers of plain_pyfuse3.py behind a stack: `routed_pyfuse3.py SRC MNT [SECONDS]`."""

import os
import sys

import trio
from plain_pyfuse3 import arguments

from fusebpf import Stack


async def main() -> None:
    """Mount and serve until it is unmounted."""
    os.umask(0)
    mnt, handlers = arguments()
    async with Stack(sys.argv[1], mnt, daemon=handlers) as stack:
        await stack.wait()


if __name__ == "__main__":
    trio.run(main)
