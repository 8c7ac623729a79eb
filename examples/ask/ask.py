r"""An open waits until somebody says yes: a person at a terminal, or a policy server.

ASK_SOCKET=PATH fusebpf mount SRC MNT --filter examples/ask/ask.c --set ask.paths=private \
    --daemon examples/ask/ask.py:Ask
python examples/ask/ask.py PATH        # asks the person at this terminal

Who answers listens at the socket, gets a line of JSON for each open, and says yes or no in a line. No answer
within ASK_SECONDS (20) is a no; so is nobody who listens. The path is null where it is too long to be known.
"""

import errno
import json
import os
import socket
import sys
from functools import partial
from pathlib import Path
from typing import Any

import trio
from pyfuse3 import FUSEError

import fusebpf


class Ask(fusebpf.Daemon):
    """Asks at a socket. While it waits, all other ops go on: it is an await."""

    def __init__(self) -> None:
        self.socket = os.environ["ASK_SOCKET"]
        self.seconds = float(os.environ.get("ASK_SECONDS", "20"))

    async def open(self, inode: int, flags: int, ctx: Any) -> Any:
        """Yes: the backing root opens it, and its data is the kernel's alone. No: EACCES."""
        path, writes = self.path(inode), bool(flags & os.O_ACCMODE)
        question = {"path": path, "uid": ctx.uid, "pid": ctx.pid, "writes": writes}
        if not await self.is_allowed(question):
            raise FUSEError(errno.EACCES)
        raise fusebpf.Continue

    def path(self, inode: int) -> str | None:
        """Where the file lies below the source; None: the kernel tells no path that is longer than a page."""
        with self.stack.backing(inode) as backing:
            try:
                return backing.path.removeprefix(self.stack.src + "/")
            except OSError as error:
                if error.errno != errno.ENAMETOOLONG:
                    raise
        return None

    async def is_allowed(self, question: dict[str, Any]) -> bool:
        """Ask, and wait for the answer."""
        answer = b""
        with trio.move_on_after(self.seconds):
            try:
                async with await trio.open_unix_socket(self.socket) as stream:
                    await stream.send_all(json.dumps(question).encode() + b"\n")
                    answer = await stream.receive_some(100)
            except (OSError, trio.BrokenResourceError):
                return False
        return answer.strip() == b"yes"


async def ask_person(stream: Any, turn: trio.Lock) -> None:
    """Ask the person at the terminal, one question at a time."""
    async with turn:
        question = json.loads(await stream.receive_some(65536))
        question["path"] = question["path"] or "a file whose path is too long to be known"
        text = "uid {uid} (pid {pid}) opens {path}, writes: {writes}. Allow? [y/N] ".format(**question)
        said = await trio.to_thread.run_sync(partial(input, text), abandon_on_cancel=True)
        await stream.send_all(b"yes\n" if said.strip().lower() in {"y", "yes"} else b"no\n")


async def serve(listening: socket.socket) -> None:
    """Ask whatever comes."""
    turn = trio.Lock()
    listener = trio.SocketListener(trio.socket.from_stdlib_socket(listening))
    await trio.serve_listeners(lambda stream: ask_person(stream, turn), [listener])


def main() -> None:
    """Listen at the path, for root alone."""
    path = Path(sys.argv[1])
    path.unlink(missing_ok=True)
    os.umask(0o077)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(os.fspath(path))
        listening.listen()
        trio.run(serve, listening)


if __name__ == "__main__":
    main()
