"""Where pyfuse3 is not installed."""

import importlib.util
import sys

import pytest

from fusebpf.daemon_import import daemon_of
from fusebpf.errors import PlatformError


def test_what_a_daemon_lacks_is_told_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)

    with pytest.raises(PlatformError) as caught:
        daemon_of("./mine.py:Mine")

    assert f"{sys.executable} -m pip install 'fusebpf[daemon]'" in str(caught.value)
