"""One process of a crowd: `python crowd.py DIRECTORY SEED SECONDS` prints the errors that nobody expects."""

import errno
import os
import random
import sys
import time
from collections import Counter
from typing import Any

N_NAMES = 12
N_DIRECTORIES = 3

# What each call may answer while others make, move and remove the same names.
GONE = {errno.ENOENT}
EXPECTED = {
    "create": {errno.EEXIST, errno.ENOENT},
    "write": {errno.ENOENT, errno.EISDIR},
    "rename": {errno.ENOENT, errno.ENOTEMPTY, errno.EEXIST, errno.EISDIR, errno.ENOTDIR},
    "link": {errno.ENOENT, errno.EEXIST, errno.EPERM},
    "unlink": {errno.ENOENT, errno.EISDIR},
    "mkdir": {errno.EEXIST, errno.ENOENT},
    "rmdir": {errno.ENOENT, errno.ENOTDIR, errno.ENOTEMPTY},
    "stat": GONE,
    "list": GONE,
    "read": {errno.ENOENT, errno.EISDIR},
}


def _write(path: str) -> None:
    with open(path, "r+b") as file:
        file.write(path.encode())
        file.truncate(100)


def _read(path: str) -> None:
    with open(path, "rb") as file:
        file.read()


def act(top: str, dice: random.Random) -> tuple[str, int]:
    """One random call; its name and errno."""

    def path() -> str:
        return f"{top}/{dice.randrange(N_DIRECTORIES)}/{dice.randrange(N_NAMES)}"

    calls: dict[str, Any] = {
        "create": lambda: os.close(os.open(path(), os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)),
        "write": lambda: _write(path()),
        "rename": lambda: os.rename(path(), path()),
        "link": lambda: os.link(path(), path()),
        "unlink": lambda: os.unlink(path()),
        "mkdir": lambda: os.mkdir(path()),
        "rmdir": lambda: os.rmdir(path()),
        "stat": lambda: os.stat(path()),
        "list": lambda: os.listdir(f"{top}/{dice.randrange(N_DIRECTORIES)}"),
        "read": lambda: _read(path()),
    }
    name = dice.choice(list(calls))
    try:
        calls[name]()
    except OSError as error:
        return name, error.errno or 0
    return name, 0


def main() -> int:
    """Run for the time that was asked for."""
    top, seed, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
    dice = random.Random(seed)  # noqa: S311 - the same in every run
    unexpected: Counter[tuple[str, str]] = Counter()
    end = time.monotonic() + seconds
    n_done = 0
    while time.monotonic() < end:
        name, number = act(top, dice)
        n_done += number == 0
        if number and number not in EXPECTED[name]:
            unexpected[name, errno.errorcode[number]] += 1
    for (name, code), times in unexpected.items():
        print(f"{name}: {code}, {times} times")
    if n_done == 0:
        print("nothing was done at all")
    return len(unexpected)


if __name__ == "__main__":
    sys.exit(main())
