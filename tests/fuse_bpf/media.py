"""Who judges what media.c leaves open: user 1001 may, others may not; a file says who it was asked for."""

import errno
import os
from pathlib import Path
from typing import Any

import pyfuse3

import fusebpf


class Media(fusebpf.Daemon):
    """Judges opens."""

    async def open(self, inode: int, flags: int, ctx: Any) -> Any:  # noqa: ARG002 - pyfuse3's arguments
        """Let user 1001 go on."""
        asked = Path(os.environ["MEDIA_ASKED"])
        asked.write_text((asked.read_text() if asked.exists() else "") + f"{ctx.uid}\n")  # noqa: ASYNC240
        if ctx.uid == 1001:
            raise fusebpf.Continue
        raise pyfuse3.FUSEError(errno.EACCES)
