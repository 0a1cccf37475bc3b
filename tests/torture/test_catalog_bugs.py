"""The power cuts between catalog and pool find what they are for: each planted bug of the control plane is caught."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

import pytest

from tests.torture import runner
from tests.torture.catalog_bugs import CATALOG_BUGS
from tests.torture.catalog_scenarios import CATALOG_SCENARIOS
from tests.torture.runner import Job

CASES_MAX = 2000
STATES = 4  # of a scenario, before the next one's


def hunting_ground() -> Iterator[Job]:
    given = 0
    for seed in count():
        for scenario in CATALOG_SCENARIOS:
            if given == CASES_MAX:
                return
            given += STATES
            yield Job(scenario, seed, 0, STATES)


@pytest.mark.parametrize("bug", CATALOG_BUGS)
def test_a_planted_bug_is_caught(bug: str) -> None:
    totals = runner.run(hunting_ground(), bug=bug, worker_count=2, only_one_failure=True)
    assert totals.failures, f"{bug} was not caught in {totals}"
    print(f"{bug}: caught by case {totals.failures[0].case_number}, {totals.failures[0].why[-500:]}")
