"""trace, top, stats and Stack.events: what they show, that losses are said, that they end with the mount."""

import itertools
import json
import os
from pathlib import Path
from typing import Any

import pytest
import support
import trio
from cli_support import assert_refused
from live.live_support import fusebpf, gatekeeper, may_mkdir, start

from fusebpf import Event, Stack

N_RECENT = 1024


def events_of(directory: Path, work: Any, filters: list[Any], *, is_late: bool = False) -> list[Event]:
    """The events of some work in a Stack, read when it is done."""
    for name in ("src", "mnt"):
        (directory / name).mkdir()

    async def main() -> list[Event]:
        async with Stack(directory / "src", directory / "mnt", filters=[] if is_late else filters) as stack:
            events = stack.events()
            if is_late:
                await stack.attach(*filters)
            await trio.to_thread.run_sync(work, directory / "mnt")
            found = []
            with trio.move_on_after(30):
                async for event in events:
                    found.append(event)
                    if event.op == "rmdir":
                        break
            await events.aclose()
            return found

    return trio.run(main)


def test_events_say_what_became_of_each_op(directory: Path) -> None:
    def work(mnt: Path) -> None:
        os.mkdir(mnt / "made")
        os.rmdir(mnt / "made")

    path = gatekeeper(directory, verdict="FB_CONTINUE")
    found = events_of(directory, work, [path, "audit"])

    mkdir = next(event for event in found if event.op == "mkdir")
    assert (mkdir.name, mkdir.error, mkdir.verdict, mkdir.route) == ("made", "", "continue", "backing")
    assert sorted(mkdir.pre_ran) == ["audit", "keeper"]
    assert mkdir.post_ran == ("audit",)
    assert mkdir.seen_by == {"keeper", "audit"}
    assert (mkdir.uid, mkdir.missed) == (0, 0)
    assert [event.sequence for event in found] == list(range(1, len(found) + 1))


def test_events_begin_where_they_were_asked_for_though_there_was_no_filter(directory: Path) -> None:
    def work(mnt: Path) -> None:
        os.mkdir(mnt / "made")
        os.rmdir(mnt / "made")

    found = events_of(directory, work, ["audit"], is_late=True)

    assert found[0].sequence == 1
    assert {"mkdir", "rmdir"} <= {event.op for event in found}


def test_what_is_overwritten_unread_is_counted(directory: Path) -> None:
    def work(mnt: Path) -> None:
        for _ in range(3 * N_RECENT):
            os.access(mnt / "nothing", os.F_OK)
        os.mkdir(mnt / "made")
        os.rmdir(mnt / "made")

    found = events_of(directory, work, ["audit"])

    assert sum(event.missed for event in found) > N_RECENT
    assert sum(event.missed for event in found) + len(found) == found[-1].sequence
    for earlier, later in itertools.pairwise(found):
        assert later.sequence == earlier.sequence + 1 + later.missed


def test_events_end_with_the_mount(directory: Path) -> None:
    for name in ("src", "mnt"):
        (directory / name).mkdir()

    async def main() -> int:
        n = 0
        with trio.fail_after(30):
            async with Stack(directory / "src", directory / "mnt", filters=["audit"]) as stack:
                events = stack.events()
                await trio.to_thread.run_sync(os.listdir, directory / "mnt")
            async for _ in events:
                n += 1
        return n

    assert trio.run(main) > 0


def test_trace_shows_ops_from_its_start_to_the_end_of_the_mount(
    mount: support.Mounter, directory: Path
) -> None:
    mounted = mount()
    traces = [
        start(support.COMMAND, "trace", mounted.path),
        start(support.COMMAND, "trace", mounted.name, "--json", "--op", "mkdir", "--op", "rmdir"),
        start(support.COMMAND, "trace", mounted.name, "--json", "--filter", "keeper", "--verdict", "reply"),
        start(support.COMMAND, "trace", mounted.name, "--op", "mkdir", "--count", "1"),
    ]
    # They wait for the first filter; each has opened a descriptor of the server's process by then.
    support.wait_until(lambda: all(_watches(trace.pid) for trace in traces), 30)
    fusebpf("attach", mounted.name, "audit", gatekeeper(directory, altitude=950))
    assert not may_mkdir(mounted.path / "refused")
    fusebpf("detach", mounted.name, "keeper")
    assert may_mkdir(mounted.path / "made")
    assert traces[3].wait(20) == 0
    mounted.umount()

    text, ops, refused, first = [trace.communicate(timeout=30)[0] for trace in traces]

    assert [trace.returncode for trace in traces] == [0, 0, 0, 0]
    shown = [line for line in text.splitlines() if " mkdir " in line]
    assert '"refused" (uid 0 pid ' in shown[0]
    assert shown[0].endswith("EPERM reply by keeper")
    assert shown[1].endswith(" ok")
    found = [json.loads(line) for line in ops.splitlines()]
    assert [(one["op"], one["name"], one["error"]) for one in found if "op" in one] == [
        ("mkdir", "refused", "EPERM"),
        ("mkdir", "made", ""),
        ("rmdir", "made", ""),
    ]
    assert [json.loads(line)["name"] for line in refused.splitlines()] == ["refused"]
    assert len(first.splitlines()) == 1


def _watches(pid: int) -> bool:
    """Whether `timeout`'s child has opened a pidfd: it has found the mount."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    for child in children:
        try:
            links = [os.readlink(link) for link in Path(f"/proc/{child}/fd").iterdir()]
        except OSError:
            continue
        if any("pidfd" in link for link in links):
            return True
    return False


def test_stats_and_top_show_the_counts(mount: support.Mounter) -> None:
    mounted = mount(filters=["audit"])
    for number in range(5):
        os.mkdir(mounted.path / f"d{number}")

    rows = json.loads(fusebpf("stats", mounted.name, "--json").stdout)
    stats = fusebpf("stats", mounted.path).stdout.splitlines()
    top = fusebpf("top", mounted.name, "--count", "1", "--interval", "0.1").stdout.splitlines()
    live = support.run(
        *("script", "-qec", f"{support.COMMAND} top {mounted.name} --count 1 --interval 0.1", "/dev/null"),
        env={"TERM": "xterm"},
    ).stdout

    assert {"filter": "audit", "phase": "pre", "op": "mkdir", "verdict": "continue", "count": 5} in rows
    assert stats[0].split() == ["filter", "phase", "op", "verdict", "count"]
    assert ["audit", "pre", "mkdir", "continue", "5"] in [line.split() for line in stats]
    assert top[0].split() == ["filter", "phase", "op", "verdict", "count", "per", "second"]
    assert ["audit", "post", "mkdir", "continue", "5", "0"] in [line.split() for line in top]
    assert "mkdir" in live


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["trace", "--filter", "nosuch"], "the mount has no filter 'nosuch', it has: audit"),
        (["trace", "--op", "nosuch"], "there is no op 'nosuch', there are: lookup"),
        (["trace", "--op", "dirent"], "'dirent' is about entries of listings, which have no records"),
        (["trace", "--verdict", "nosuch"], "there is no verdict 'nosuch', there are: continue"),
        (["trace", "--verdict", "drop"], "'drop' is about entries of listings, which have no records"),
        (["top", "--interval", "0"], "'--interval': '0' is not a number from 0.05 to 86400"),
        (["top", "--interval", "x"], "'--interval': 'x' is not a number from 0.05 to 86400"),
        (["top", "--interval", "nan"], "'--interval': 'nan' is not a number from 0.05 to 86400"),
        (["top", "--interval", "1e300"], "'--interval': '1e300' is not a number from 0.05 to 86400"),
        (["detach", "audit", "--revision", "x"], "'--revision': 'x' is not a whole number from 0 on"),
        (["stats", "--nosuch"], "--nosuch"),
    ],
)
def test_words_that_are_not_known_are_named(mount: support.Mounter, words: list[str], part: str) -> None:
    mounted = mount(filters=["audit"])

    assert_refused(fusebpf(words[0], mounted.name, *words[1:], check=False), 2, part)


@pytest.mark.parametrize(("option", "unrecorded"), [("--op", "dirent"), ("--verdict", "drop")])
def test_what_has_no_records_is_not_offered_to_be_traced(
    mount: support.Mounter, option: str, unrecorded: str
) -> None:
    mounted = mount(filters=["audit"])

    done = fusebpf("trace", mounted.name, option, "nosuch", check=False)

    assert unrecorded not in done.stderr
