"""Files that are open and passed through to the kernel when a filter comes that hooks their data."""

import mmap
import os
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import support
import trio
from live.live_support import fusebpf

from fusebpf import Stack

READER = """
#include "fusebpf.h"
FILTER(reader, .altitude = 300)
BPF_ARRAY(reader__seen, u64, 1);
PRE(reader, read)
{
	u32 first = 0;
	u64 *seen = reader__seen.lookup(&first);

	if (seen)
		__sync_fetch_and_add(seen, 1);
	return FB_CONTINUE;
}
"""


def prepare(directory: Path) -> Path:
    """A tree of two files, and the filter; its source."""
    for name in ("src", "mnt"):
        (directory / name).mkdir()
    for name in ("open", "shut"):
        (directory / "src" / name).write_text("text\n")
    source = directory / "reader.c"
    source.write_text(READER)
    return source


def read(path: Path) -> str:
    """What a client reads, or the error that it gets."""
    done = support.run("cat", path, check=False)
    return done.stdout or done.stderr.rpartition(": ")[2]


def in_stack(directory: Path, work: Any) -> None:
    async def main() -> None:
        with trio.fail_after(90):
            async with Stack(directory / "src", directory / "mnt") as stack:
                if not stack.counters()["passthrough"]:
                    pytest.skip("the kernel has no FUSE passthrough")
                await work(stack)

    trio.run(main)


@pytest.mark.parametrize("holds", ["descriptor", "mapping"])
def test_new_opens_of_what_is_passed_through_fail_until_the_last_is_closed(
    directory: Path, holds: str
) -> None:
    source = prepare(directory)
    path = directory / "mnt" / "open"

    async def work(stack: Stack) -> None:
        fd = await trio.to_thread.run_sync(os.open, path, os.O_RDONLY)
        mapping = mmap.mmap(fd, 0, prot=mmap.PROT_READ) if holds == "mapping" else None
        if mapping:
            os.close(fd)
        assert stack.counters()["passthrough_opens"] == 1
        events = stack.events()

        change = await stack.attach(source)

        assert [(one.path, one.opens) for one in change.passed_through] == [("open", 1)]
        seen = stack.map("reader", "seen")
        assert await trio.to_thread.run_sync(read, directory / "mnt" / "shut") == "text\n"
        n_seen = seen[0]
        assert n_seen > 0
        assert await trio.to_thread.run_sync(read, path) == "Device or resource busy\n"
        event = await anext(events)
        while not event.error:
            event = await anext(events)
        assert (event.op, event.error, event.filter) == ("open", "EBUSY", "reader")
        # Who had it open goes on, unseen.
        assert (mapping[:5] if mapping else await trio.to_thread.run_sync(os.pread, fd, 5, 0)) == b"text\n"
        assert seen[0] == n_seen
        if mapping:
            mapping.close()
        else:
            os.close(fd)

        while await trio.to_thread.run_sync(read, path) != "text\n":
            pass  # the close is told to the mount a moment later
        assert seen[0] > n_seen

    in_stack(directory, work)


def test_an_open_that_comes_while_the_last_one_is_being_closed_waits_for_that(directory: Path) -> None:
    source = prepare(directory)
    path = directory / "mnt" / "open"

    async def work(stack: Stack) -> None:
        fd = await trio.to_thread.run_sync(os.open, path, os.O_RDONLY)
        await stack.attach(source)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: trio.to_thread.run_sync(path.read_text))
            await trio.sleep(0.02)  # so that the open has come and waits, which it does for 250 ms at most
            os.close(fd)

    in_stack(directory, work)


def test_with_keep_new_opens_go_on_unseen_until_the_last_is_closed(directory: Path) -> None:
    source = prepare(directory)
    path = directory / "mnt" / "open"

    async def work(stack: Stack) -> None:
        fd = await trio.to_thread.run_sync(os.open, path, os.O_RDONLY)

        change = await stack.attach(source, open_files="keep")

        assert [one.path for one in change.passed_through] == ["open"]
        seen = stack.map("reader", "seen")
        assert await trio.to_thread.run_sync(read, path) == "text\n"
        assert seen[0] == 0
        os.close(fd)
        while not seen[0]:
            assert await trio.to_thread.run_sync(read, path) == "text\n"

    in_stack(directory, work)


def test_the_command_names_the_files(mount: support.Mounter, directory: Path) -> None:
    mounted = mount()
    source = directory / "reader.c"
    source.write_text(READER)
    (mounted.src / "dir").mkdir()
    (mounted.src / "dir" / "file").write_text("text\n")
    with (mounted.path / "dir" / "file").open():
        done = fusebpf("attach", mounted.name, source)
        assert "passed through" in done.stderr
        assert done.stderr.endswith("fail with EBUSY: dir/file\n")
        fusebpf("detach", mounted.name, "reader")
        assert read(mounted.path / "dir" / "file") == "text\n"
        done = fusebpf("attach", mounted.name, source, "--open-files", "keep")
        assert done.stderr.endswith("go on unseen: dir/file\n")


def test_an_open_that_fails_truncates_nothing(directory: Path) -> None:
    source = prepare(directory)
    path = directory / "mnt" / "open"

    async def work(stack: Stack) -> None:
        fd = await trio.to_thread.run_sync(os.open, path, os.O_RDONLY)
        await stack.attach(source)
        done = await trio.to_thread.run_sync(partial(support.run, "sh", "-c", f": > {path}", check=False))
        assert "Device or resource busy" in done.stderr
        assert (directory / "src" / "open").read_text() == "text\n"
        os.close(fd)

    in_stack(directory, work)
