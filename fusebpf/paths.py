"""Where the files that fusebpf reads at run time are: beside the package or, installed, in it."""

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def bpf_dir() -> Path:
    """The directory with fusebpf.h, fusebpf_filter.h and filters/.

    Raises:
        FileNotFoundError: The installation is incomplete.
    """
    for directory in (_PACKAGE / "bpf", _PACKAGE.parent / "bpf"):
        if (directory / "fusebpf.h").is_file():
            return directory
    raise FileNotFoundError(f"no BPF sources in {_PACKAGE / 'bpf'}: install fusebpf again")
