"""Random programs of system calls on a mount and on a bare directory: results, errnos and trees are the same.

`make soak` does at least 200,000 steps. A failure names its seed: MODEL_SEED=… repeats it.
"""

import os
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import hypothesis
import pytest
from core.variants import Variant
from model.side import Side, Step
from model.steps import STEPS, programs

SEED = int(os.environ.get("MODEL_SEED", "0"))
N_STEPS = int(os.environ.get("MODEL_STEPS", "4000"))
N_SOAK_STEPS = int(os.environ.get("MODEL_STEPS", "80000"))
ROUND = 150
"""Programs for one seed."""


@dataclass
class Sides:
    """The same programs on both."""

    bare: Side
    mounted: Side
    keeps_bits: bool
    n_steps: int = 0

    def compare(self, program: list[Step]) -> None:
        """Run a program on both sides; what differs fails."""
        self.n_steps += len(program)
        self.bare.start(program, keeps_bits=self.keeps_bits)
        self.mounted.start(program, keeps_bits=self.keeps_bits)
        expected, expected_tree, trouble = self.bare.finish()
        assert trouble is None, f"on the bare directory: {trouble}"
        seen, tree, trouble = self.mounted.finish()
        assert trouble is None, trouble
        for number, (step, one, other) in enumerate(zip(program, expected, seen, strict=True)):
            assert one == other, f"step {number}, {step}: bare {one}, mount {other}"
        assert expected_tree == tree, "the trees differ"


@pytest.fixture
def sides(variant: Variant, run_directory: Path) -> Iterator[Sides]:
    """A bare directory, and a mount on the same file system."""
    bare = run_directory / f"model-{variant.name}-{random.getrandbits(32)}"
    bare.mkdir(mode=0o755)
    made = Sides(Side(bare), Side(variant.mounted.path), variant.name != "passed_through")
    yield made
    made.bare.stop()
    made.mounted.stop()


def explore(sides: Sides, seed: int, n_steps: int) -> None:
    """Run programs until so many steps are done."""
    while sides.n_steps < n_steps:
        check = hypothesis.seed(seed)(
            hypothesis.settings(
                max_examples=ROUND,
                deadline=None,
                database=None,
                suppress_health_check=list(hypothesis.HealthCheck),
                phases=[hypothesis.Phase.generate, hypothesis.Phase.shrink],
            )(hypothesis.given(programs())(sides.compare))
        )
        try:
            check()
        except BaseException as error:
            error.add_note(f"MODEL_SEED={seed} repeats it")
            raise
        seed += 1


@pytest.mark.timeout(600)  # where it fails, making the program short takes minutes
def test_programs_do_the_same_as_on_the_bare_directory(sides: Sides) -> None:
    explore(sides, SEED, N_STEPS)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_many_programs_do_the_same_as_on_the_bare_directory(sides: Sides) -> None:
    explore(sides, SEED + 1000, N_SOAK_STEPS)


def test_some_forty_system_calls_are_tried() -> None:
    assert len(STEPS) >= 40
