"""The benchmark: what a mount costs beside the bare directory and its peers, and what a filter adds to an op.

Run it with `make bench` (ARGS='--quick', ARGS='--json FILE', …). Every figure is the median of rounds in
which the targets take turns; a ratio is the median of the rounds' own ratios.
"""

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import compare
import daemon_cost
import plot
import scale
import start
import yardstick
from bed import Bed, clean_up_on_signals, run_on
from disk import fresh_ext4
from filter_cost import ONE_CORE, calibrate, measure_pairs
from workloads import DATA, FULL, FURTHER, METADATA, QUICK, SHARED, WORK, Size

from fusebpf import FusebpfError

DISK = "/var/tmp"  # noqa: S108 - a directory of random name is made there
PARTS = ("yardstick", "filters", "daemon", "start", "scale")


def _regex(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no regular expression: {error}") from error


def _count(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1 on")
    return int(text)


def _directory(text: str) -> Path:
    if not Path(text).is_dir() or not os.access(text, os.W_OK):
        raise argparse.ArgumentTypeError(f"{text!r} is no directory that can be written to")
    return Path(text)


def _new_file(text: str) -> Path:
    _directory(os.path.dirname(text) or ".")  # now, and not when all has been measured
    if Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} is a directory")
    return Path(text)


def _new_directory(text: str) -> Path:
    try:
        Path(text).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{text!r} cannot be made: {error.strerror}") from error
    return _directory(text)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="less of it: under two minutes, rough figures")
    parser.add_argument("--json", metavar="FILE", type=_new_file, help="write all samples there")
    parser.add_argument("--plot", metavar="DIR", type=_new_directory, help="write the plots there")
    parser.add_argument(
        "--dir", metavar="DIR", type=_directory, help="measure there, and not on an ext4 in a file"
    )
    parser.add_argument("--only", choices=PARTS, action="append", help="of the parts; may be repeated")
    parser.add_argument(
        "--match", metavar="REGEX", type=_regex, default="", help="only the lines whose name it matches"
    )
    parser.add_argument(
        "--peers", metavar="REGEX", type=_regex, default="", help="only the peers whose name it matches"
    )
    parser.add_argument("--one-core", action="store_true", help="the yardstick with all on one core, too")
    parser.add_argument("--rounds", type=_count, metavar="N", help="instead of the size's own")
    parser.add_argument(
        "--compare",
        nargs=2,
        metavar=("COMMIT", "COMMIT"),
        help="the yardstick for two commits, and their ratio; beside it --quick, --match, --rounds",
    )
    arguments = parser.parse_args()
    if arguments.compare:
        for name in ("json", "plot", "dir", "only", "one_core"):
            if getattr(arguments, name):
                parser.error(f"--{name.replace('_', '-')} does not go with --compare")
    return arguments


def measure(arguments: argparse.Namespace, bed: Bed, disk: Bed, size: Size) -> list[dict[str, Any]]:
    """The parts that are wanted, each printed when it is done."""
    wanted, parts = arguments.match, arguments.only or PARTS
    all_cores = os.sched_getaffinity(0)
    results: list[dict[str, Any]] = []
    print("what this machine takes on one core, the best of ten runs:")
    run_on({min(all_cores)}, ())
    results += calibrate(bed)
    n_calibrated = len(results)
    run_on(all_cores, ())  # what is started from here on may run on all of them
    modes = {"free": all_cores} | ({ONE_CORE: {min(all_cores)}} if arguments.one_core else {})
    if "yardstick" in parts:
        beds = {METADATA: bed, WORK: bed, FURTHER: bed, DATA: disk, SHARED: disk}
        found = yardstick.measure_all(beds, size, modes, wanted, arguments.peers)
        for mode in modes:
            yardstick.print_tables([one for one in found if one["mode"] == mode], mode)
        results += found
    if "filters" in parts:
        both = {ONE_CORE: {min(all_cores)}} | ({} if arguments.quick else {"free": all_cores})
        results += measure_pairs(bed, size, both, wanted)
    if "daemon" in parts:
        run_on(all_cores, ())
        results += daemon_cost.measure(bed, size, wanted)
    if "start" in parts:
        run_on(all_cores, ())
        results += start.measure(bed, is_quick=arguments.quick, wanted=wanted)
    if "scale" in parts:
        run_on(all_cores, ())
        results += scale.measure(bed, is_quick=arguments.quick, wanted=wanted)
    if len(results) == n_calibrated:
        raise RuntimeError(f"no line of {', '.join(parts)} matches {wanted.pattern!r}")
    return results


def _remove(directory: Path) -> None:
    """Remove it, also where what an interrupted program started still writes there for a moment."""
    for _ in range(20):
        shutil.rmtree(directory, ignore_errors=True)
        if not directory.exists():
            return
        time.sleep(0.1)


def main() -> None:
    """Parse the command line, measure, print."""
    arguments = parse()
    clean_up_on_signals()
    if arguments.compare:
        words = ["--quick"] if arguments.quick else []
        words += ["--rounds", str(arguments.rounds)] if arguments.rounds else []
        words += ["--match", arguments.match.pattern] if arguments.match.pattern else []
        before, after = arguments.compare
        sys.exit(compare.run(before, after, words))
    size = QUICK if arguments.quick else FULL
    if arguments.rounds:
        size = size.with_rounds(arguments.rounds)
    directory = Path(tempfile.mkdtemp(prefix="fusebpf-bench-", dir=arguments.dir or DISK))
    subprocess.run(["chattr", "+T", directory], check=False, capture_output=True)
    n_cores = len(os.sched_getaffinity(0))
    print(f"Linux {platform.release()}, {n_cores} cores, {directory}")
    try:
        with nullcontext(directory) if arguments.dir else fresh_ext4(directory) as place:
            disk = bed = Bed(place)
            if place != directory:
                disk = Bed(directory)
                disk.fill_big(size.big_bytes)
            bed.fill(
                n_files=size.n_files,
                n_listed=size.n_listed,
                n_small=size.n_small,
                big_bytes=size.big_bytes,
                labels=yardstick.LABELS,
            )
            results = measure(arguments, bed, disk, size)
    except (RuntimeError, FusebpfError) as error:
        sys.exit(f"\nbench: {error}")
    finally:
        _remove(directory)
    if arguments.json:
        arguments.json.write_text(json.dumps({"kernel": platform.release(), "results": results}, indent=1))
    if arguments.plot:
        plot.draw(results, arguments.plot)


if __name__ == "__main__":
    main()
