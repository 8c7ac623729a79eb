"""Any text behind -o is understood, or refused in one line."""

from fuzz.fuzzing import assert_clear, examples, garbage
from hypothesis import given

from fusebpf import options
from fusebpf.errors import UsageError

WORDS = (
    *("ro", "rw", "remount", "nodev", "dev", "allow_other", "noallow_other", "passthrough", "nopassthrough"),
    *("max_read=", "max_workers=", "ttl=", "cache=", "none", "normal", "locks=", "local", "name=", "filter="),
    *("set=", "fsname=", "subtype=", "fd=", "x-", "context=", "uid=", "default_permissions", "hide", "names"),
)


@examples(600)
@given(garbage(*WORDS))
def test_options_are_read_or_refused(text: str) -> None:
    try:
        made = options.parse(text)
    except UsageError as error:
        assert_clear(error)
        return
    assert made.max_read >= 0
    assert made.max_workers >= 1
    assert 0 <= made.ttl < float("inf")
    assert "\0" not in (made.fsname or "")
    assert "/" not in (made.name or "")


@examples(200)
@given(garbage(*WORDS))
def test_sloppy_options_are_read_or_refused(text: str) -> None:
    try:
        options.parse(text, is_sloppy=True)
    except UsageError as error:
        assert_clear(error)
