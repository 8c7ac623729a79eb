"""A small tree with something to hide, something to protect, and a git repository."""

import os
import subprocess
from pathlib import Path

FILES = {
    ".ssh/id_ed25519": "a private key\n",
    "server.key": "another private key\n",
    "notes/hello.txt": "hello from below\n",
    "notes/todo.txt": "write a filter\n",
    "notes/backup.key": "a forgotten private key\n",
    "protected/contract.txt": "signed\n",
    "protected/2023/invoice.txt": "paid\n",
    "project/README": "a project\n",
    "project/src/main.c": "int main(void) { return 0; }\n",
    "project/src/other.c": "int other(void) { return 1; }\n",
}

# The user's own git configuration could sign, run hooks, or rename the branch.
GIT_ENVIRONMENT = {
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_CONFIG_SYSTEM": "/dev/null",
    "GIT_AUTHOR_NAME": "demo",
    "GIT_AUTHOR_EMAIL": "demo@example.org",
    "GIT_COMMITTER_NAME": "demo",
    "GIT_COMMITTER_EMAIL": "demo@example.org",
}


def make(directory: Path) -> None:
    """Fill an empty directory with the tree.

    Raises:
        OSError: It cannot be written to.
        subprocess.CalledProcessError: git failed.
    """
    for name, text in FILES.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    for words in (
        ("init", "--quiet", "--initial-branch=main"),
        ("add", "--all"),
        ("commit", "--quiet", "--message=begin"),
    ):
        environment = {**os.environ, **GIT_ENVIRONMENT}
        subprocess.run(["git", "-C", directory / "project", *words], check=True, env=environment)
