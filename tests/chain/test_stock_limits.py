"""What the stock filters must not let slip by an op that one does not think of."""

import fcntl
import os
import struct

import pytest
import support

FS_IOC_GETFLAGS, FS_IOC_SETFLAGS = 0x80086601, 0x40086602
NODUMP = 0x40


@pytest.mark.parametrize("paths", ["", "kept"])
def test_readonly_keeps_inode_flags_and_nameless_files_out(mount: support.Mounter, paths: str) -> None:
    mounted = mount(filters=["readonly"], sets={"readonly.paths": paths} if paths else {})
    (mounted.src / "kept").mkdir()
    (mounted.src / "kept" / "file").write_text("text")
    kept = mounted.path / "kept"

    with (kept / "file").open() as file:
        flags = struct.unpack("i4x", fcntl.ioctl(file, FS_IOC_GETFLAGS, b"\0" * 8))[0]
        with pytest.raises(OSError, match="Read-only file system"):
            fcntl.ioctl(file, FS_IOC_SETFLAGS, struct.pack("i4x", flags | NODUMP))
    with pytest.raises(OSError, match="Read-only file system"):
        os.open(kept, os.O_TMPFILE | os.O_RDWR)


@pytest.mark.parametrize("name", ["a/b", ".", ".."])
def test_a_pattern_that_matches_no_name_is_refused(mount: support.Mounter, name: str) -> None:
    with pytest.raises(Exception, match="matches no name"):
        mount(filters=["hide"], sets={"hide.names": name})
