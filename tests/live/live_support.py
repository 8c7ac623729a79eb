"""What the tests of a chain that changes while it works share."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import support

VERDICTS = """
#include "fusebpf.h"
FILTER({name}, .altitude = {altitude}, .doc = "refuses to make directories")
BPF_ARRAY({name}__count, u64, {size});
BPF_HASH({name}__seen, u32, u64, 64);
PRE({name}, mkdir)
{{
	u32 first = 0;
	u64 *count = {name}__count.lookup(&first), one = 1;

	if (count)
		__sync_fetch_and_add(count, 1);
	{name}__seen.update(&first, &one);
	return {verdict};
}}
"""


def gatekeeper(
    directory: Path,
    name: str = "keeper",
    *,
    verdict: str = "-EPERM",
    altitude: int = 500,
    size: int = 2,
    file: str = "",
) -> Path:
    """A file with a filter that says this to each mkdir and counts in its map `count`."""
    path = directory / f"{file or name}.c"
    path.write_text(VERDICTS.format(name=name, verdict=verdict, altitude=altitude, size=size))
    return path


def fusebpf(*words: str | os.PathLike[str], check: bool = True) -> subprocess.CompletedProcess[str]:
    """The command, on a mount that works."""
    return support.run(support.COMMAND, *words, check=check, seconds=60)


def start(*words: str | os.PathLike[str]) -> "subprocess.Popen[str]":
    """A client that goes on beside the test, and is killed after a while."""
    pipe = subprocess.PIPE
    client = ["timeout", "-s", "KILL", "60", *(os.fspath(word) for word in words)]
    return subprocess.Popen(client, stdin=pipe, stdout=pipe, text=True)


def chain_of(mounted: support.Mounted) -> dict[str, Any]:
    """What `fusebpf filters --json` says."""
    told: dict[str, Any] = json.loads(fusebpf("filters", mounted.name, "--json").stdout)
    return told


def names_of(mounted: support.Mounted) -> list[str]:
    """NAME@ALTITUDE of each filter, top first."""
    return [f"{one['name']}@{one['altitude']}" for one in chain_of(mounted)["filters"]]


def may_mkdir(path: Path) -> bool:
    """Whether a directory can be made there now; it is gone again after that."""
    done = support.run("mkdir", path, check=False)
    if done.returncode == 0:
        path.rmdir()
    return done.returncode == 0
