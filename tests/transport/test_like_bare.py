"""A selection of the scenarios of tests/core over each transport: however a request comes, it is the same."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from core import table, test_like_bare
from core.variants import Variant
from transport.conftest import TRANSPORTS

# Each shape of request and reply: with and without names, data each way, an entry, a body of the reply.
SCENARIOS = (
    "acl_lets_a_named_user_in",
    "appends_of_many_processes_do_not_mix",
    "copy_file_range",
    "fallocate",
    "ioctl_of_flags",
    "large_files_come_back_as_they_were_written",
    "link_makes_one_file_of_many_names",
    "listing_of_5000_entries_is_complete",
    "lock_ends_with_its_descriptor",
    "lookup_of_a_missing_name",
    "mknod_of_each_type",
    "mmap_shares_what_is_written",
    "names_of_255_bytes",
    "posix_lock",
    "rename_exchange",
    "seek_hole_and_data",
    "statfs_of_a_path_and_a_descriptor",
    "symlink_and_readlink",
    "times_are_kept_to_the_nanosecond",
    "tmpfile",
    "umask_is_the_callers",
    "what_a_user_makes_in_a_setgid_directory_has_its_group",
    "xattr_sizes",
)
_numbers = itertools.count()


@pytest.fixture(scope="module", params=TRANSPORTS)
def over(run_directory: Path, request: pytest.FixtureRequest) -> Iterator[Variant]:
    """A mount without passthrough, so that data comes too."""
    made = Variant(run_directory, "served", options=f"transport={request.param}")
    yield made
    made.take_down()


@pytest.mark.parametrize("name", SCENARIOS)
def test_an_op_does_the_same_over_each_transport(over: Variant, bare: Path, name: str) -> None:
    through = over.mounted.path / f"{name[:40]}-{next(_numbers)}"
    through.mkdir()

    expected: Any = test_like_bare.run(name, bare)

    assert test_like_bare.run(name, through) == expected
    assert table.in_child(table.tree, over.mounted.src / through.name).keys() == expected[1].keys()
