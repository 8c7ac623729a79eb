"""Which ops a daemon may be asked about, and what a mount's routes say."""

from __future__ import annotations

from typing import NamedTuple

from fusebpf._core import OPS
from fusebpf.arguments import check_type
from fusebpf.daemon import HANDLERS
from fusebpf.errors import UsageError

OPCODES = {name: opcode for name, opcode, *_ in OPS}
_WHY_NO_LOOK = (
    "results are shown of what pyfuse3 can express and can be refused, so not of release and its like"
)


def _has_look(op: str) -> bool:
    return op in HANDLERS and not op.startswith("release")


def check_looks(daemon: object) -> None:
    """Refuse a daemon that wants to see results that it never would.

    Raises:
        UsageError: It does.
    """
    for op in OPCODES:
        if hasattr(daemon, f"post_{op}") and not _has_look(op):
            raise UsageError(f"{type(daemon).__name__}.post_{op} would never be called: {_WHY_NO_LOOK}")


class Route(NamedTuple):
    """One `--route`: what an op's route is, where no filter says otherwise."""

    op: str
    is_post: bool
    to_daemon: bool

    @classmethod
    def parse(cls, text: str) -> Route:
        """Read OP=daemon, OP=backing or post_OP=daemon.

        Raises:
            UsageError: There is no such op or route, or pyfuse3 cannot express the op.
        """
        check_type("route", text, str, "a text OP=daemon or OP=backing")
        op, equals, route = text.partition("=")
        is_post = op.startswith("post_")
        op = op.removeprefix("post_").removeprefix("pre_")
        if not equals or route not in {"daemon", "backing"}:
            raise UsageError(f"route {text!r}: OP=daemon or OP=backing is wanted, such as read=daemon")
        if op not in OPCODES:
            raise UsageError(f"route {text!r}: there is no op {op!r}; `fusebpf ops` lists them")
        if op not in HANDLERS:
            raise UsageError(f"route {text!r}: pyfuse3 cannot express {op}, so it cannot go to the daemon")
        if is_post and not _has_look(op):
            raise UsageError(f"route {text!r}: {_WHY_NO_LOOK}")
        return cls(op, is_post, route == "daemon")
