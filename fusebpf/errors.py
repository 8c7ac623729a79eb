"""One class per kind of error: what the user is told, and the command's exit code.

Every message says what was wanted, what was found (quoted) and what to do, in one line; `str(error)` is that
line.
"""

import errno

SHORTAGES = {
    errno.EMFILE: " (ulimit -n says how many there may be)",
    errno.ENOMEM: " (ulimit -v says how much memory there may be)",
    **dict.fromkeys((errno.ENFILE, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS), ""),
}
"""What this machine lacks, and is no mistake of ours wherever it comes up; with what helps."""


def reason(error: OSError) -> str:
    """Why a system call failed, and what helps if the machine lacks something."""
    return f"{error.strerror or error}{SHORTAGES.get(error.errno or 0, '')}"


class FusebpfError(Exception):
    """Something that the user can put right; the command ends with exit code 1."""

    exit_code = 1


class UsageError(FusebpfError):
    """The command or a call was put wrongly: an option, a value, a combination; exit code 2."""

    exit_code = 2


class PlatformError(FusebpfError):
    """The machine lacks something: root, /dev/fuse, BPF, bcc."""


class FilterError(FusebpfError):
    """A filter's source is wrong. `detail` holds further lines (compiler messages, the verifier's log)."""

    def __init__(self, message: str, detail: str = "") -> None:
        super().__init__(message)
        self.detail = detail


class CompileError(FilterError):
    """The C compiler refused a filter; the message names file and line."""


class VerifierError(FilterError):
    """The kernel's verifier refused a hook; the message names file and function."""


class UnknownHook(FilterError):  # noqa: N818 - it names what is wrong
    """A hook on an op that does not exist; the message lists the ops."""


class MapValueError(UsageError):
    """A value for a policy map does not fit the map's type."""


class NoSuchElement(FusebpfError, KeyError):  # noqa: N818 - it names what is wrong
    """A map has no such key."""

    def __str__(self) -> str:
        return Exception.__str__(self)


class ChainError(FusebpfError):
    """The filters do not form a chain: two of one name or altitude, too many, a daemon that is not there."""


class NoSuchFilter(ChainError):  # noqa: N818 - it names what is wrong
    """The chain has no filter of that name; exit code 2."""

    exit_code = UsageError.exit_code


class RevisionError(ChainError):
    """The chain was changed by somebody else since it was looked at."""


class MountError(FusebpfError):
    """The mount could not be made or taken down."""
