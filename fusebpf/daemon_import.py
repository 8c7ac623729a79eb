"""A daemon by its name, MODULE:CLASS or FILE.py:CLASS as `--daemon` has it, and its leg."""

from __future__ import annotations

import importlib
import importlib.util
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from fusebpf.chain import wants_daemon
from fusebpf.errors import MountError, PlatformError, UsageError

if TYPE_CHECKING:
    import contextlib
    from collections.abc import Sequence
    from types import ModuleType

    from fusebpf._core import Mount
    from fusebpf.daemon_leg import Leg
    from fusebpf.options import MountOptions
    from fusebpf.stack import Stack


def daemon_of(text: str) -> object:
    """Import a daemon's class and make one, without arguments. Modules of the working directory are found.

    Raises:
        UsageError: There is no such class, or importing or making it failed.
        PlatformError: pyfuse3 is not installed.
    """
    name, colon, class_name = text.rpartition(":")
    if not colon or not name or not class_name:
        raise UsageError(f"daemon {text!r}: MODULE:CLASS is wanted, such as mine:Mine or ./mine.py:Mine")
    if importlib.util.find_spec("pyfuse3") is None:
        raise PlatformError(
            "a daemon needs pyfuse3, which is not installed: "
            f"{shlex.quote(sys.executable)} -m pip install 'fusebpf[daemon]'"
        )
    try:
        module = _module(name)
        return getattr(module, class_name)()
    except (Exception, SystemExit) as error:  # a module that ends the program makes no daemon either
        why = " ".join(f"{type(error).__name__}: {error}".split())
        raise UsageError(f"daemon {text!r} cannot be made: {why}") from error


def _module(name: str) -> ModuleType:
    if "/" not in name and not name.endswith(".py"):
        sys.path.insert(0, os.getcwd())  # noqa: PTH109 - a path is what sys.path has
        return importlib.import_module(name)
    path = Path(name).resolve()
    sys.path.insert(0, str(path.parent))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise FileNotFoundError(f"no such file: {name}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def leg_of(
    daemon: object, routes: Sequence[str], timeout: float, on_failure: str, options: MountOptions
) -> Leg | None:
    """The daemon's leg; a mount without a daemon does not even import it."""
    if daemon is None and routes:
        raise UsageError(f"route {routes[0]!r}: the mount has no daemon")
    if daemon is None:
        return None
    if options.profile == "small":
        raise UsageError(
            "a daemon and '-o profile=small' exclude one another, since it would not be asked of opens"
        )
    from fusebpf.daemon_leg import Leg  # noqa: PLC0415 - see above

    return Leg(daemon, routes=routes, timeout=timeout, on_failure=on_failure)


def present(leg: Leg | None) -> Leg:
    """The leg, of a mount that has one."""
    if leg is None:
        raise MountError("the mount has no daemon")
    return leg


def claim(leg: Leg | None, name: str, undo: contextlib.ExitStack) -> None:
    """Take this process's one session for a mount with a daemon.

    Raises:
        MountError: Another mount of this process has it.
    """
    if leg is not None:
        leg.claim(name)
        undo.callback(leg.disclaim)


def begin(leg: Leg | None, core: Mount, stack: Stack) -> None:
    """Connect the daemon, where there is one."""
    if leg is not None:
        leg.begin(core, stack, filters_decide=wants_daemon(stack.links))


async def end(leg: Leg | None) -> None:
    """End its session."""
    if leg is not None:
        await leg.end()
