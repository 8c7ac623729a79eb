"""The stock filter `deny` on real mounts: an op on a file has its name; its ladder is in tests/loader."""

import errno
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import support


@pytest.fixture
def denied(mount: support.Mounter) -> Callable[[str], support.Mounted]:
    """A mount with such rules, a file `secret` and a file `free` in its directory `d`."""

    def make(rules: str) -> support.Mounted:
        mounted = mount(filters=["deny"], sets={"deny.rules": rules})
        (mounted.src / "d").mkdir()
        for name in ("secret", "free"):
            (mounted.src / "d" / name).write_text(name)
        return mounted

    return make


CALLS: dict[str, Callable[[Path], object]] = {
    "open": Path.read_bytes,
    "read": Path.read_bytes,
    "write": lambda path: path.write_bytes(b"more"),
    "getattr": os.stat,
    "setattr": lambda path: path.chmod(0o600),
    "unlink": Path.unlink,
    "lookup": os.stat,
}


def test_a_rule_with_a_name_fits_every_op_on_that_file(mount: support.Mounter) -> None:
    rules = ",".join(f"{op}:*:{op}:EDQUOT" for op in CALLS)
    mounted = mount(filters=["deny"], sets={"deny.rules": rules})
    (mounted.src / "d").mkdir()
    for op in CALLS:
        for name in (op, f"free-{op}"):
            (mounted.src / "d" / name).write_text(name)

    said = {op: support.refused(call, mounted.path / "d" / op) for op, call in CALLS.items()}
    free = {op: support.refused(call, mounted.path / "d" / f"free-{op}") for op, call in CALLS.items()}

    assert said == dict.fromkeys(CALLS, errno.EDQUOT)
    assert free == dict.fromkeys(CALLS)


def test_the_name_of_an_op_on_an_attribute_is_the_attributes(
    denied: Callable[[str], support.Mounted],
) -> None:
    mounted = denied("setxattr:*:user.a:EDQUOT,setxattr:*:secret:EIO")

    assert support.refused(os.setxattr, mounted.path / "d/secret", "user.a", b"x") == errno.EDQUOT
    assert support.refused(os.setxattr, mounted.path / "d/secret", "user.b", b"x") is None


def test_a_name_is_that_of_the_file_as_it_is_called_now(denied: Callable[[str], support.Mounted]) -> None:
    mounted = denied("open:*:secret:EACCES")
    secret, other = mounted.path / "d/secret", mounted.path / "d/other"
    secret.rename(other)

    assert support.refused(other.read_bytes) is None
    other.rename(secret)
    assert support.refused(secret.read_bytes) == errno.EACCES


@pytest.mark.parametrize(
    ("rules", "is_refused"),
    [
        ("getattr:*:secret:EPERM", True),
        ("statx:*:secret:EPERM", True),
        ("statx:*:secret:OK,getattr:*:secret:EPERM", False),
        ("*:*:*:OK,getattr:*:secret:EPERM", True),
    ],
)
def test_a_rule_for_getattr_is_one_for_statx_where_that_has_none(
    denied: Callable[[str], support.Mounted], rules: str, is_refused: bool
) -> None:
    secret = denied(rules).path / "d/secret"

    # The birth time alone is what the kernel asks by STATX.
    words = ["timeout", "-s", "KILL", "20", "stat", "-c", "%W", str(secret)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)

    assert ("Operation not permitted" in done.stderr) == is_refused
    assert (done.returncode != 0) == is_refused
