"""Whether the kernel counts the rounds of loops, so that its verifier need not go through them.

The macros for loops in bpf/fusebpf_filter.h (FB_ROUNDS) are one thing or the other by what is said here.
"""

import functools
import os

from fusebpf import bpf


def has_may_goto() -> bool:
    """Whether it has the instruction, in the form that came with Linux 6.14.

    Verifiers of kernels from 6.9 on know it too, and have not been tried: they refuse one that leads nowhere.

    Source: kernel/bpf/verifier.c: BPF_MAY_GOTO; its code stands in bpf/fusebpf_filter.h (fb_is_over) too.
    """
    try:
        return _takes_may_goto()
    except OSError:
        return False


def loop_flags() -> tuple[str, ...]:
    """What the compiler is told of it."""
    return ("-DFB_HAS_MAY_GOTO",) if has_may_goto() else ()


@functools.cache
def _takes_may_goto() -> bool:
    """The same; OSError, which is not kept: it cannot be said now."""
    loop = bytes.fromhex("b700000000000000 e500000000000000 9500000000000000")  # r0 = 0; may_goto +0; exit
    try:
        os.close(bpf.prog_load(loop, "fusebpf_probe"))
    except bpf.ProgramRefusedError:
        return False
    return True
