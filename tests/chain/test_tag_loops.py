"""Tags of directories that seem to lie in one another, since they changed places behind the mount."""

import errno
import os
from pathlib import Path

import support
from core.table import in_child

TAGGED, REFUSED_IF_MIXED = 0o700, 0o755
# It hooks no lookup, so that the kernel goes by the entries that it has.
FILTER = """
#include "fusebpf.h"
FILTER(loops, .altitude = FB_POLICY);
PRE(loops, setattr)
{
	if ((ctx->args.setattr.mode & 0777) == 0700) {
		ctx->tag = 7;
		ctx->edits = FB_EDIT_TAG;
		return FB_REWRITE;
	}
	if (ctx->flags & FB_TAG_MIXED)
		return -FB_EDQUOT;
	return ctx->tag == 7 ? FB_CONTINUE : -FB_ENODATA;
}
"""


def test_what_is_below_them_is_mixed_until_they_are_looked_up(
    mount: support.Mounter, directory: Path
) -> None:
    source = directory / "loops.c"
    source.write_text(FILTER)
    mounted = mount(filters=[source], options="ttl=60")
    (mounted.src / "a/b/c").mkdir(parents=True)
    in_child(os.chmod, mounted.path, TAGGED)

    def judged(path: Path | str, dir_fd: int | None = None) -> int | None:
        said: int | None = in_child(support.refused, lambda: os.chmod(path, REFUSED_IF_MIXED, dir_fd=dir_fd))
        return said

    a = os.open(mounted.path / "a", os.O_RDONLY | os.O_DIRECTORY)
    try:
        assert judged("b/c", a) is None
        (mounted.src / "a/b").rename(mounted.src / "b")
        (mounted.src / "a").rename(mounted.src / "b/a")
        # The kernel has b in a still. We learn that a is in b, and it that a would be in itself.
        assert judged("b/a/b", a) is not None

        assert judged("b/c", a) == errno.EDQUOT
        assert judged(mounted.path / "b/a") is None
        assert judged(mounted.path / "b/c") is None
    finally:
        os.close(a)
