"""`fusebpf new NAME`: a filter to begin with, and its unit tests, into the current directory."""

from pathlib import Path
from string import Template

from fusebpf.compiler import check_filter_name, stock_names
from fusebpf.errors import FilterError, FusebpfError, UsageError

_SOURCE = Template("""\
/*
 * fusebpf mount SRC MNT --filter ./$name.c --set $name.names='*.bak,core'
 */
#include "fusebpf.h"

FILTER($name, .altitude = FB_POLICY + 50, .doc = "The names and globs in its map `names` cannot be made.")

BPF_ARRAY(${name}__names, struct fb_patterns, 1);

FB_ALWAYS_INLINE int ${name}_judge(const struct fb_slot *ctx)
{
	u32 first = 0;

	return fb_match_name(ctx, ${name}__names.lookup(&first)) ? -EPERM : FB_CONTINUE;
}

PRE($name, create) { return ${name}_judge(ctx); }
PRE($name, mkdir) { return ${name}_judge(ctx); }
""")

_TESTS = Template('''\
"""Unit tests of $name.c, without a mount; as root, with the Python that has fusebpf: python -m pytest"""

import errno
from pathlib import Path

from fusebpf.testing import Chain

FILTER = Path(__file__).with_name("$name.c")


def test_a_name_in_the_map_cannot_be_made() -> None:
    with Chain(FILTER, maps={"$name.names": "*.bak"}) as chain:
        assert chain.run("create", name=b"a.bak").error == errno.EPERM
        assert chain.run("mkdir", name=b"a.bak").verdict == "FB_REPLY"


def test_other_names_can() -> None:
    with Chain(FILTER, maps={"$name.names": "*.bak"}) as chain:
        assert chain.run("create", name=b"a").verdict == "FB_CONTINUE"
''')


def write(name: str, directory: Path | None = None) -> tuple[Path, Path]:
    """Write NAME.c and test_NAME.py.

    Returns:
        The two paths.

    Raises:
        UsageError: No filter can be called so.
        FusebpfError: One of the files is there already, or cannot be written; then neither is written.
    """
    try:
        check_filter_name(name)
    except FilterError as error:
        raise UsageError(str(error)) from None
    if name in stock_names():
        raise UsageError(f"{name!r} is a stock filter; choose another name")
    where = directory or Path()
    files = {where / f"{name}.c": _SOURCE, where / f"test_{name}.py": _TESTS}
    for path in files:
        if path.is_symlink() or path.exists():
            raise FusebpfError(f"{str(path)!r} is there already, and is left as it is: choose another name")
    made: list[Path] = []
    try:
        for path, template in files.items():
            with path.open("x", encoding="utf-8") as file:
                made.append(path)
                file.write(template.substitute(name=name))
    except OSError as error:
        for path in made:
            path.unlink(missing_ok=True)
        raise FusebpfError(f"{str(path)!r} cannot be written: {error.strerror}") from None
    source, tests = files
    return source, tests
