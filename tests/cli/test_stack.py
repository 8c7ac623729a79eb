"""The mount as an async context manager, from Python."""

import asyncio
import logging
import os
import re
import subprocess
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import support
import trio
from cli_support import left_behind, write_filter

import fusebpf
from fusebpf import FilterSpec, Stack, registry

SECONDS = 60


def run(main: Callable[[], Awaitable[Any]]) -> Any:
    """Run a trio program with a deadline."""

    async def bounded() -> Any:
        with trio.fail_after(SECONDS):
            return await main()

    return trio.run(bounded)


async def client(*words: str | os.PathLike[str]) -> str:
    """What a client says, run beside the loop."""
    done = await trio.to_thread.run_sync(lambda: support.run(*words, check=False))
    return done.stdout + done.stderr


def descriptors() -> dict[int, str]:
    """Our open descriptors; not those of a trio thread's cache, which are none."""
    found = {}
    for link in Path("/proc/self/fd").iterdir():
        try:
            found[int(link.name)] = os.readlink(link)  # noqa: PTH115 - as text
        except FileNotFoundError:
            continue
    return found


def test_a_stack_is_a_mount_for_the_time_of_its_block(tree: Path) -> None:
    (tree / "src" / ".ssh").mkdir()
    before = descriptors()

    async def main() -> None:
        hide = FilterSpec("hide", altitude=333, sets={"names": ".ssh,*.key"})
        async with Stack(tree / "src", tree / "mnt", filters=[hide, "audit"]) as stack:
            assert await client("ls", "-A", tree / "mnt") == "file\n"
            assert [link.label for link in stack.links] == ["audit@900", "hide@333"]
            assert [one.name for one in stack.filters] == ["audit", "hide"]
            assert (stack.src, stack.mnt) == (str(tree / "src"), str(tree / "mnt"))
            assert (registry.pins(stack.name) / "hide" / "names").exists()
            said = {(one.filter, one.phase, one.op, one.verdict): one.times for one in stack.stats()}
            assert said["hide", "post", "dirent", "drop"] == 1
            assert stack.counters()["requests"] > 0

    run(main)

    assert left_behind(tree) == []
    assert descriptors() == before


def test_a_stack_without_filters_has_no_statistics_and_no_pins(tree: Path) -> None:
    async def main() -> None:
        async with Stack(tree / "src", tree / "mnt", name="plain", options="ro") as stack:
            assert stack.stats() == []
            assert not registry.pins("plain").exists()
            assert "Read-only" in await client("touch", tree / "mnt" / "new")

    run(main)


def test_an_exception_in_the_block_unmounts_and_comes_out_as_it_is(tree: Path) -> None:
    async def main() -> None:
        async with Stack(tree / "src", tree / "mnt"):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(main)

    assert left_behind(tree) == []


def test_a_cancelled_block_unmounts(tree: Path) -> None:
    async def main() -> None:
        with trio.move_on_after(SECONDS) as scope:
            async with Stack(tree / "src", tree / "mnt"):
                scope.cancel()
                await trio.sleep_forever()

    run(main)

    assert left_behind(tree) == []


@pytest.mark.parametrize("n_steps", range(1, 8))
def test_a_start_that_is_cancelled_leaves_nothing(
    tree: Path, n_steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cancelled when the start asks for its next thread, for each of its steps."""
    before = descriptors()
    steps = 0
    in_thread = trio.to_thread.run_sync

    async def main() -> bool:
        with trio.CancelScope() as scope:

            async def counted(*words: Any, **more: Any) -> Any:
                nonlocal steps
                steps += 1
                if steps == n_steps:
                    scope.cancel()
                return await in_thread(*words, **more)

            monkeypatch.setattr(trio.to_thread, "run_sync", counted)
            async with Stack(tree / "src", tree / "mnt", filters=["hide"]):
                monkeypatch.setattr(trio.to_thread, "run_sync", in_thread)
        return scope.cancelled_caught

    run(main)

    assert left_behind(tree) == []
    assert descriptors() == before


def test_somebody_elses_unmount_ends_the_wait(tree: Path) -> None:
    async def main() -> None:
        async with (
            Stack(tree / "src", tree / "mnt", filters=["audit"]) as stack,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(client, "umount", tree / "mnt")
            await stack.wait()

    run(main)

    assert left_behind(tree) == []


def test_several_stacks_live_in_one_process(tree: Path) -> None:
    (tree / "mnt2").mkdir()

    async def main() -> None:
        async with Stack(tree / "src", tree / "mnt"), Stack(tree / "mnt", tree / "mnt2", filters=["audit"]):
            assert await client("cat", tree / "mnt2" / "file") == "text\n"

    run(main)


def test_a_root_descriptor_stays_its_owners(tree: Path) -> None:
    fd = os.open(tree / "src", os.O_RDONLY)

    async def main() -> None:
        async with Stack(fd, tree / "mnt"):
            assert await client("cat", tree / "mnt" / "file") == "text\n"

    run(main)

    assert os.listdir(fd) == ["file"]  # noqa: PTH208 - by descriptor
    os.close(fd)


def test_errors_name_what_is_wrong_and_leave_nothing(tree: Path) -> None:
    (tree / "bad.c").write_text("int x")
    write_filter(tree / "asks.c", "asks", more=", .wants = FB_WANTS_DAEMON")
    before = descriptors()
    for filters, error in (
        ([tree / "bad.c"], fusebpf.FilterError),
        ([tree / "asks.c"], fusebpf.ChainError),
        (["nosuch"], fusebpf.UsageError),
        ([FilterSpec("hide", sets={"nosuch": "1"})], fusebpf.UsageError),
        (["a\0b.c"], fusebpf.UsageError),
        ([Path("a\0b.c")], fusebpf.UsageError),
    ):

        async def main(filters: Any = filters) -> None:
            async with Stack(tree / "src", tree / "mnt", filters=filters):
                pytest.fail("it mounted")

        with pytest.raises(error):
            run(main)

    assert left_behind(tree) == []
    assert descriptors() == before


def test_a_value_that_no_map_can_hold_is_an_error_of_usage() -> None:
    with pytest.raises(fusebpf.UsageError, match="NUL"):
        FilterSpec("hide", sets={"names": "a\0b"})


@pytest.mark.parametrize(("src", "mnt"), [("src\0", "mnt"), ("src", "mnt\0"), (1 << 40, "mnt")])
def test_a_path_or_a_descriptor_that_there_cannot_be_is_an_error_of_usage(
    tree: Path, src: str | int, mnt: str
) -> None:
    async def main() -> None:
        async with Stack(tree / src if isinstance(src, str) else src, tree / mnt):
            pytest.fail("it mounted")

    with pytest.raises(fusebpf.UsageError):
        run(main)


def test_the_cores_log_lines_come_as_logging(tree: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tree / "broken.c").write_text(
        '#include "fusebpf.h"\nFILTER(broken, .altitude = 5)\n'
        "int broken__pre__lookup(void *none) { return 0; }\n"
    )

    async def main() -> None:
        async with Stack(tree / "src", tree / "mnt", filters=[tree / "broken.c"]) as stack:
            assert "Input/output error" in await client("cat", tree / "mnt" / "file")
            assert stack.counters()["failed_closed"] > 0

    with caplog.at_level(logging.WARNING):
        run(main)

    assert any("broken" in record.getMessage() for record in caplog.records)


def test_the_command_unmounts_a_stack_of_a_program_and_its_program_goes_on(tree: Path) -> None:
    async def main() -> None:
        async with Stack(tree / "src", tree / "mnt") as stack:
            async with trio.open_nursery() as nursery:
                command: list[str | os.PathLike[str]] = [support.COMMAND, "umount", tree / "mnt"]
                process = await trio.lowlevel.open_process(command, stderr=subprocess.PIPE)
                nursery.start_soon(stack.wait)
            assert support.mountpoints(tree) == []
        assert await process.wait() == 0
        if process.stderr is not None:
            await process.stderr.aclose()

    run(main)


def test_a_stack_under_asyncio_is_refused_in_one_line(tree: Path) -> None:
    async def main() -> None:
        async with Stack(tree / "src", tree / "mnt"):
            pass

    with pytest.raises(fusebpf.FusebpfError, match=r"fusebpf\.Stack needs trio"):
        asyncio.run(main())


@pytest.mark.parametrize("what", ["filters", "sets", "roots", "routes"])
def test_one_text_where_several_may_stand_is_refused(tree: Path, what: str) -> None:
    with pytest.raises(fusebpf.UsageError, match=rf"{what}='hide': a list is wanted, {what}=\['hide'\]"):
        Stack(tree / "src", tree / "mnt", **{what: "hide"})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"src": None}, "src=None: a path or a descriptor is wanted"),
        ({"mnt": 3}, "mnt=3: a path is wanted"),
        ({"filters": [3]}, "filter=3: a stock filter's name, a path or a FilterSpec is wanted"),
        ({"sets": [("hide.names", "x")]}, "set=('hide.names', 'x'): a text FILTER.MAP=VALUE is wanted"),
        ({"roots": [3]}, "root=3: a path is wanted"),
        ({"name": 3}, "name=3: a text is wanted"),
        ({"daemon": fusebpf.Daemon(), "routes": [3]}, "route=3: a text OP=daemon or OP=backing is wanted"),
        ({"daemon": fusebpf.Daemon(), "daemon_timeout": None}, "daemon timeout None: a number of seconds"),
        ({"options": fusebpf.MountOptions(sets=(3,))}, "mount option 'sets=(3,)'"),  # type: ignore[arg-type]
    ],
)
def test_an_argument_of_another_type_is_refused_with_what_is_wanted(
    tree: Path, arguments: dict[str, Any], said: str
) -> None:
    with pytest.raises(fusebpf.UsageError, match=re.escape(said)):
        Stack(**{"src": tree / "src", "mnt": tree / "mnt"} | arguments)


@pytest.mark.parametrize(
    "fields",
    [
        {"source": 3},
        {"altitude": "5"},
        {"altitude": 5000},
        {"pick": 3},
        {"sets": ["names=x"]},
        {"sets": {"names": 3}},
        {"beside": "above"},
    ],
)
def test_a_filter_spec_of_another_type_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(fusebpf.UsageError, match="wanted"):
        FilterSpec(**{"source": "hide"} | fields)


def test_paths_may_be_bytes(tree: Path) -> None:
    source = write_filter(tree / "own.c", "own")
    (tree / "more").mkdir()

    async def main() -> None:
        src, mnt, more = (os.fsencode(tree / name) for name in ("src", "mnt", "more"))
        async with Stack(src, mnt, filters=[os.fsencode(source)], roots=[more]) as stack:
            assert await client("ls", tree / "mnt") == "file\n"
            assert stack.mnt == str(tree / "mnt")

    run(main)


def test_the_package_lists_what_it_has() -> None:
    assert set(fusebpf.__all__) <= set(dir(fusebpf))


def test_a_stack_that_is_not_entered_has_nothing_to_say(tree: Path) -> None:
    stack = Stack(tree / "src", tree / "mnt")

    with pytest.raises(fusebpf.MountError, match="has not begun"):
        _ = stack.name
    with pytest.raises(fusebpf.MountError, match="is not there"):
        stack.counters()


def test_a_stack_is_one_mount_and_no_second(tree: Path) -> None:
    async def main() -> None:
        stack = Stack(tree / "src", tree / "mnt")
        async with stack:
            with pytest.raises(fusebpf.UsageError, match="make another"):
                await stack.__aenter__()
            assert (tree / "mnt").is_mount()
        with pytest.raises(fusebpf.UsageError, match="make another"):
            await stack.__aenter__()

    run(main)

    assert left_behind(tree) == []
