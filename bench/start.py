"""How long a mount with two stock filters takes to be ready, and what its server weighs."""

import re
import statistics
import time
from pathlib import Path
from typing import Any

from bed import Bed
from filter_cost import JOIN_SECONDS, verdict
from yardstick import FILTERS, SETS

LINE = "a mount with two stock filters"
ROUNDS = 7
READY_SECONDS, RESIDENT_MB = 0.5, 40.0


def measure(bed: Bed, *, is_quick: bool, wanted: re.Pattern[str]) -> list[dict[str, Any]]:
    """Mount and unmount some times, compiled filters kept from the first; print and return the medians."""
    if not wanted.search(LINE):
        return []
    seconds, megabytes = [], []
    for _ in range(2 if is_quick else ROUNDS + 1):
        start = time.monotonic()
        with bed.mounted("start", FILTERS, SETS) as target:
            seconds.append(time.monotonic() - start)
            time.sleep(JOIN_SECONDS)
            status = Path(f"/proc/{target.pid}/status").read_text()
            found = re.search(r"VmHWM:\s+(\d+)", status)
            megabytes.append(int(found[1]) / 1024 if found else 0.0)
    ready, resident = statistics.median(seconds[1:]), max(megabytes)
    print(f"\n{LINE}, their compiled form kept")
    print(f"  ready after {ready:.2f} s ≤ {READY_SECONDS} s" + verdict(ready <= READY_SECONDS))
    print(f"  its server at most {resident:.0f} MB ≤ {RESIDENT_MB:.0f} MB" + verdict(resident <= RESIDENT_MB))
    return [{"op": "start", "seconds": seconds[1:], "megabytes": megabytes}]
