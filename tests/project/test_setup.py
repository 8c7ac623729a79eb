"""The set-up of a checkout, as on a machine where nothing is kept from an earlier one."""

from pathlib import Path

import pytest
import support

MINUTES = 10


@pytest.mark.soak
@pytest.mark.timeout(MINUTES * 60)
def test_a_checkout_is_set_up_without_anything_that_pip_has_kept(directory: Path) -> None:
    checkout = directory / "checkout"
    support.run("git", "clone", "--quiet", support.CHECKOUT, checkout)
    environment = {"PIP_NO_CACHE_DIR": "1"}

    done = support.run("make", "setup", cwd=checkout, env=environment, seconds=MINUTES * 60, check=False)

    assert done.returncode == 0, done.stderr
    assert support.run(checkout / ".venv" / "bin" / "fusebpf", "--version").stdout.startswith("fusebpf ")
    pythons = support.run(checkout / ".venv" / "bin" / "python", "-c", "import bcc, pyfuse3, trio")
    assert pythons.returncode == 0
