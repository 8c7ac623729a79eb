"""A chain that changes under full load: no op fails that should not, none sees half a chain."""

import sys
from pathlib import Path

import support
import trio
from live.live_support import gatekeeper

from fusebpf import Stack

N_ROUNDS = 2
# Two filters of one file that come in one step; the lower one must never run without the upper one.
PAIR = """
#include "fusebpf.h"
FILTER(upper, .altitude = 600)
PRE(upper, mkdir)
{
	if (!fb_name_starts(ctx, "pair"))
		return FB_CONTINUE;
	ctx->name.text[0] = 'q';
	ctx->edits |= FB_EDIT_NAME;
	return FB_REWRITE;
}
FILTER(lower, .altitude = 400)
PRE(lower, mkdir)
{
	/* Without the upper one this name cannot come: the chain would be a half one. */
	if (fb_name_starts(ctx, "pair"))
		return -EXDEV;
	if (!fb_name_starts(ctx, "qair"))
		return FB_CONTINUE;
	ctx->name.text[0] = 'r';
	ctx->edits |= FB_EDIT_NAME;
	return FB_REWRITE;
}
"""

HAMMER = """
import errno, os, sys
top, source, stop, number = sys.argv[1:]
os.nice(10)  # the compiler shall have its turn
n, seen = 0, set()
while not os.path.exists(stop):
    n += 1
    path = f"{top}/w{number}-{n}"
    with open(path, "w") as file:
        file.write(path)
    assert os.stat(path).st_size == len(path), path
    with open(path) as file:
        assert file.read() == path, path
    os.rename(path, path + "x")
    assert not os.path.exists(path), path
    assert f"w{number}-{n}x" in os.listdir(top)
    os.unlink(path + "x")
    for name in (f"pair{number}-{n}", f"gate{number}-{n}"):
        try:
            os.mkdir(f"{top}/{name}")
            if name.startswith("gate"):
                os.rmdir(f"{source}/{name}")
        except OSError as error:
            assert name.startswith("gate") and error.errno == errno.EPERM, (name, error)
    there = [first for first in "pqr" if os.path.isdir(f"{source}/{first}air{number}-{n}")]
    assert len(there) == 1, there
    os.rmdir(f"{source}/{there[0]}air{number}-{n}")
    seen.add(there[0])
print(n, *sorted(seen))
"""


def test_ops_go_on_while_filters_come_and_go(directory: Path) -> None:
    for name in ("src", "mnt"):
        (directory / name).mkdir()
    pair = directory / "pair.c"
    pair.write_text(PAIR)
    gates = [
        gatekeeper(directory, "gate", verdict=one, file=f"gate{one}") for one in ("-EPERM", "FB_CONTINUE")
    ]
    for gate in gates:
        gate.write_text(
            gate.read_text().replace("return ", 'return !fb_name_starts(ctx, "gate") ? FB_CONTINUE : ')
        )
    stop = directory / "stop"
    words = [sys.executable, "-c", HAMMER, *(str(directory / name) for name in ("mnt", "src", "stop"))]
    said: list[list[str]] = []

    async def change(stack: Stack) -> None:
        try:
            await stack.attach(gates[0])
            for round_ in range(N_ROUNDS):
                await stack.attach(pair, "audit")
                await stack.replace("gate", gates[(round_ + 1) % 2])
                for name in ("audit", "lower", "upper"):
                    await stack.detach(name)
        finally:
            stop.touch()

    async def main() -> None:
        async with Stack(directory / "src", directory / "mnt") as stack:

            async def hammer(number: int) -> None:
                done = await trio.to_thread.run_sync(lambda: support.run(*words, str(number), seconds=90))
                said.append(done.stdout.split())

            async with trio.open_nursery() as nursery:
                for number in range(2):
                    nursery.start_soon(hammer, number)
                nursery.start_soon(change, stack)
            assert [link.filter.name for link in stack.links] == ["gate"]
            assert stack.revision == 1 + 5 * N_ROUNDS
            assert {key: stack.counters()[key] for key in ("failed_closed", "slots_in_use")} == {
                "failed_closed": 0,
                "slots_in_use": 0,
            }

    trio.run(main)

    assert all(int(n) > 10 for n, *_ in said)
    assert {first for _, *seen in said for first in seen} >= {"p", "r"}
