"""Some lives of two homes that replicate; `python -m tests.replicate.simulate --seeds 10000` has more."""

from __future__ import annotations

import pytest

from tests.replicate.bugs import BUGS
from tests.replicate.simulate import again, run_seed

SEEDS_AT_ONCE = 30
BUG_SEEDS_MAX = 120
# one life in 100, or in 30, meets it; test_transfer.py has it in one, test_store.py the other
RARE = {"positions run ahead", "positions are those of when they are kept"}


@pytest.mark.parametrize("first", range(0, 90, SEEDS_AT_ONCE))
def test_what_is_received_is_what_was_taken_whatever_goes_wrong(first: int) -> None:
    for seed in range(first, first + SEEDS_AT_ONCE):
        print(f"again: {again(seed)}")
        run_seed(seed)


@pytest.mark.parametrize("bug", sorted(BUGS.keys() - RARE))
def test_the_simulation_finds_planted_bugs(bug: str) -> None:
    with BUGS[bug]():
        for seed in range(BUG_SEEDS_MAX):
            try:
                run_seed(seed)
            except AssertionError:  # whatever else is raised has no business here
                return
    pytest.fail(f"{bug}: {BUG_SEEDS_MAX} lives, and nobody noticed")
