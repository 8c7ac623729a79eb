"""Two chained filters on a real tree: what they do to real programs. Run it with `sudo make demo`.

`hide` hides `.ssh` and `*.key`; `readonly` protects one directory. Each program below runs on the mount; then
the difference of the mount's `stats` map says what each filter did to it. SRC=DIR takes a tree of yours
(nothing is written to it but one scratch directory, removed at the end), MNT=DIR a mount point of yours.
"""

import argparse
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import ExitStack, suppress
from pathlib import Path

import sample
import story

COMMAND = Path(sys.executable).parent / "fusebpf"
PINS = Path("/sys/fs/bpf/fusebpf")
FILTERS = ("hide", "readonly")
HIDDEN = ".ssh,*.key"
SECONDS = "30"
N_LINES = 5
BOLD, PLAIN = ("\033[1m", "\033[0m") if sys.stdout.isatty() else ("", "")


def say(text: str = "") -> None:
    """Print at once, so that our lines and those of programs keep their order."""
    print(text, flush=True)


def shortened(text: str, n_lines: int) -> str:
    """The first lines, indented, and how many more there are."""
    lines = text.splitlines()
    shown = ["    " + line for line in lines[:n_lines]]
    if len(lines) > n_lines:
        n_left = len(lines) - n_lines
        shown.append(f"    … {n_left} more {'line' if n_left == 1 else 'lines'}")
    return "\n".join(shown)


class Demo:
    """A mount through both filters; `run` tells what they did to a program."""

    def __init__(self, mnt: Path, name: str) -> None:
        self.mnt = mnt
        self.pins = PINS / name

    def run(self, *argv: str, cwd: str = ".") -> None:
        """Run a program in a directory of the mount, show what it said and what the filters did."""
        say(f"\n{BOLD}$ {shlex.join(argv)}{PLAIN}")
        before = story.read_stats(self.pins)
        done = subprocess.run(
            ["timeout", "-s", "KILL", SECONDS, *argv],
            check=False,
            cwd=self.mnt / cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env={**os.environ, **sample.GIT_ENVIRONMENT, "LC_ALL": "C.UTF-8"},
        )
        did = story.read_stats(self.pins) - before
        if done.stdout:
            say(shortened(done.stdout, N_LINES))
        for name in FILTERS:
            say(f"  {name + ':':10}{story.tell(name, did)}")

    def bpftool(self, *words: str | Path, n_lines: int = 12) -> None:
        """Run bpftool, show the command and the beginning of what it says."""
        command = ["bpftool", *map(str, words)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        say(f"\n{BOLD}$ {shlex.join(command)}{PLAIN}")
        say(shortened(done.stdout, n_lines))

    def show_pins(self) -> None:
        """The same through bpftool: a program, the counts, and of the traffic the last op that failed."""
        say("\nThe same seen from outside: programs and maps are pinned as long as the mount lives.")
        self.bpftool("prog", "show", "pinned", self.pins / "hide" / "pre_name")
        self.bpftool("map", "dump", "pinned", self.pins / "stats")
        records = story.dump(self.pins / "recent")
        failed = [
            (row["value"]["sequence"], row["key"]) for row in records if row["value"]["error"] != "FB_OK"
        ]
        if failed:
            say(f"\n`recent` keeps the last {len(records)} ops that a filter saw. The last one that failed:")
            key = [str(byte) for byte in max(failed)[1].to_bytes(4, "little")]
            self.bpftool("map", "lookup", "pinned", self.pins / "recent", "key", *key, n_lines=40)
        say("\nAll of it, on a mount of yours: bpftool map dump pinned /sys/fs/bpf/fusebpf/NAME/recent")

    def run_all(self, cwd: str) -> None:
        """All programs, in a directory of the mount that has the sample tree."""
        self.run("ls", "-A", cwd=cwd)
        self.run("cat", "notes/hello.txt", cwd=cwd)
        self.run("cat", "server.key", cwd=cwd)
        self.run("find", ".", "-name", "*.key", cwd=cwd)
        self.run("mkdir", ".ssh", cwd=cwd)
        self.run("cp", "notes/hello.txt", "protected/contract.txt", cwd=cwd)
        self.run("mv", "protected", "elsewhere", cwd=cwd)
        self.run("git", "clone", "project", "clone", cwd=cwd)
        self.run("git", "-C", "clone", "status", cwd=cwd)
        self.run("tar", "-cvf", "notes.tar", "notes", cwd=cwd)
        self.run("tar", "-xf", "notes.tar", "-C", "protected", cwd=cwd)
        sql = "create table t(x); insert into t values (1), (2); select sum(x) from t;"
        self.run("sqlite3", "notes.db", sql, cwd=cwd)

    def run_readers(self, elsewhere: Path) -> None:
        """The programs that need no place to write on the mount."""
        self.run("ls", "-A")
        self.run("find", ".", "-maxdepth", "2", "-name", "*.key")
        for path in [path for path in self.mnt.iterdir() if path.is_file() and not path.is_symlink()][:1]:
            self.run("cat", path.name)
            self.run("tar", "-cvf", str(elsewhere / "archive.tar"), path.name)


def show(stack: ExitStack, src: Path | None, mnt: Path | None) -> None:
    """Prepare, mount, run; `stack` undoes everything."""
    temporary = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fusebpf-demo-")))
    cwd: str | None = "."
    if src is None:
        src = temporary / "src"
        sample.make(src)
    elif src.is_dir():
        try:
            scratch = Path(tempfile.mkdtemp(prefix="fusebpf-demo-", dir=src))
        except OSError as error:
            cwd = None
            say(f"{src} takes no files ({error.strerror}), so only programs that read are shown.")
        else:
            stack.callback(shutil.rmtree, scratch, ignore_errors=True)
            sample.make(scratch)
            cwd = scratch.name
            say(f"{scratch} is a scratch directory with a sample tree; it is removed at the end.")
    if mnt is None:
        # Not below what is removed with all its contents: it is a view of SRC as long as it is mounted.
        mnt = Path(tempfile.mkdtemp(prefix="fusebpf-demo-mnt-"))
        stack.callback(mnt.rmdir)
    name = f"demo-{os.getpid()}"
    words = ["mount", str(src), str(mnt), "--name", name, "--filter", "hide", "--set", f"hide.names={HIDDEN}"]
    words += ["--filter", "readonly"]
    if cwd is not None:
        words += ["--set", "readonly.paths=" + os.path.normpath(f"{cwd}/protected")]
    say(f"{BOLD}$ fusebpf {shlex.join(words)}{PLAIN}")
    stack.callback(unmount, mnt, name)
    mount(words)
    demo = Demo(mnt, name)
    if cwd != ".":
        demo.run_readers(temporary)
    if cwd is not None:
        demo.run_all(cwd)
    demo.show_pins()
    say(f"\n{BOLD}$ fusebpf umount {mnt}{PLAIN}")


def mount(words: list[str]) -> None:
    """Run `fusebpf mount`, which says what is wrong. Stopped meanwhile, we ask it to end: it cleans up."""
    with subprocess.Popen([COMMAND, *words]) as process:
        try:
            code = process.wait()
        except BaseException:
            process.terminate()
            raise
    if code != 0:
        raise SystemExit(code)


def unmount(mnt: Path, name: str) -> None:
    """Take the mount down, if need be without waiting for who still uses it."""
    if not (PINS / name).exists():
        return
    with suppress(OSError):
        if subprocess.run([COMMAND, "umount", name], check=False).returncode == 0:
            return
    subprocess.run(["umount", "--lazy", mnt], check=False)


def stop(number: int, _frame: object) -> None:
    """End the demo; a second ^C does not end the cleaning up."""
    for one in (signal.SIGINT, signal.SIGTERM):
        signal.signal(one, signal.SIG_IGN)
    raise SystemExit(128 + number)


def main() -> int:
    """Parse the command line, show, clean up."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--src", type=Path, metavar="DIR", help="the tree; without it, a sample")
    parser.add_argument(
        "--mnt", type=Path, metavar="DIR", help="the mount point; without it, a temporary one"
    )
    arguments = parser.parse_args()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    with ExitStack() as stack:
        try:
            show(stack, arguments.src, arguments.mnt)
        except subprocess.CalledProcessError as error:
            # The program has said what is wrong.
            print(f"demo: {shlex.join(map(str, error.cmd))} failed", file=sys.stderr)
            return 1
        except OSError as error:
            print(f"demo: {error}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
