"""Check every seal of an encrypted tree, without a mount: python fsck.py [--repair] KEYFILE DIRECTORY.

--repair ends changes of a size that a killed server had begun. What a broken block held is lost.
"""

import os
import sys
from pathlib import Path

from sealed import BrokenError, Sealed


def verdict(path: Path, key: bytes, *, repairs: bool) -> str:
    """What is to be said of a file; "": nothing.

    Raises:
        BrokenError: It is broken.
        OSError: It cannot be read.
    """
    fd = os.open(path, os.O_RDWR if repairs else os.O_RDONLY)
    try:
        file = Sealed(fd, key)
        if not file.check():
            return ""
        if repairs:
            file.finish()
        return "finished" if repairs else "unfinished: the server was killed while its size changed"
    finally:
        os.close(fd)


def main() -> int:
    """Say what is broken; 0: nothing is."""
    words = [word for word in sys.argv[1:] if word != "--repair"]
    if len(words) != 2 or not Path(words[1]).is_dir():
        sys.exit("python fsck.py [--repair] KEYFILE DIRECTORY")
    key, root = Path(words[0]).read_bytes(), Path(words[1])
    if len(key) != 32:
        sys.stderr.write(f"{words[0]} has {len(key)} bytes; a key has 32\n")
        return 2
    n_files = n_broken = 0
    for path in sorted(path for path in root.rglob("*") if path.is_file() and not path.is_symlink()):
        n_files += 1
        try:
            said = verdict(path, key, repairs="--repair" in sys.argv)
        except (BrokenError, OSError) as error:
            n_broken += 1
            said = str(error)
        if said:
            print(f"{path.relative_to(root)}: {said}")
    print(f"{n_files} files, {n_broken} broken")
    return 1 if n_broken else 0


if __name__ == "__main__":
    sys.exit(main())
