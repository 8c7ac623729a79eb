"""A daemon in a loop that computes: `busy_daemon.py SRC MNT`.

It answers statfs alone, and takes 100 ms for it.
"""

import sys
import time
from typing import Any

import trio

from fusebpf import Continue, Daemon, Stack

BUSY_SECONDS = 0.1


class Busy(Daemon):
    """Computes without awaiting, as a handler should not."""

    async def statfs(self, ctx: Any) -> Any:
        """The backing root's, late."""
        end = time.perf_counter() + BUSY_SECONDS
        while time.perf_counter() < end:
            pass
        raise Continue


async def main() -> None:
    """Mount and serve until it is unmounted."""
    async with Stack(sys.argv[1], sys.argv[2], options="ttl=0", daemon=Busy()) as stack:
        await stack.wait()


if __name__ == "__main__":
    trio.run(main)
