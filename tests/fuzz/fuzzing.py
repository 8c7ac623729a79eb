"""What the fuzz tests share: many examples, the same in every run."""

import os

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

N_TIMES = int(os.environ.get("FUZZ_TIMES", "1"))
"""FUZZ_TIMES=100 looks longer."""


def examples(number: int) -> settings:
    """So many inputs; hypothesis prints the one that fails."""
    return settings(
        max_examples=number * N_TIMES,
        derandomize=N_TIMES == 1,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


def garbage(*words: str, separators: str = ",:= \\\"'@.*?/\n\t\0") -> st.SearchStrategy[str]:
    """Texts of these words, separators, numbers at their limits, and anything else."""
    numbers = [-1, 0, 1, 255, 256, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**63, 2**64 - 1, 2**64, 10**40]
    odd = ["é", "\udcff", "\U0001f600", "x" * 300, "0x", "0x1f", "1e3", "NaN", "-", "--", "٣"]
    part = st.one_of(
        st.sampled_from([*words, *words, *words, *separators]),
        st.sampled_from([*map(str, numbers), *odd]),
        st.text(max_size=5),
    )
    return st.lists(part, max_size=12).map("".join)


def assert_clear(error: Exception) -> None:
    """One line that says something, as the command prints it."""
    text = str(error)
    assert text.strip()
    assert "\n" not in text
    assert len(text) < 2000
