"""Check every seal of an encrypted tree, without a mount: python fsck.py KEYFILE DIRECTORY."""

import os
import sys
from pathlib import Path

from sealed import BrokenError, Sealed


def main() -> int:
    """Say what is broken; 0: nothing is."""
    key, root = Path(sys.argv[1]).read_bytes(), Path(sys.argv[2])
    n_files = n_broken = 0
    for path in sorted(path for path in root.rglob("*") if path.is_file() and not path.is_symlink()):
        n_files += 1
        fd = os.open(path, os.O_RDONLY)
        try:
            Sealed(fd, key).check()
        except BrokenError as error:
            n_broken += 1
            print(f"{path.relative_to(root)}: {error}")
        finally:
            os.close(fd)
    print(f"{n_files} files, {n_broken} broken")
    return 1 if n_broken else 0


if __name__ == "__main__":
    sys.exit(main())
