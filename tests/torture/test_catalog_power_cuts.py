"""After any legal power cut catalog and pool agree, and a user finds what he was told (docs/agreement.md).

`make torture` has the same scenarios.
"""

from __future__ import annotations

import pytest

from tests.torture import runner
from tests.torture.catalog_scenarios import CATALOG_SCENARIOS
from tests.torture.runner import Job

CASES = 15  # of each scenario
WORKERS = 2


@pytest.mark.timeout(900)  # it takes half a minute where nothing else runs
def test_nothing_a_user_was_told_is_lost_between_catalog_and_pool() -> None:
    jobs = [Job(scenario, 0, 0, CASES) for scenario in CATALOG_SCENARIOS]
    totals = runner.run(jobs, worker_count=WORKERS, told=print)
    print(totals)
    assert totals.failures == []
    assert len(totals.scenarios) == len(CATALOG_SCENARIOS) >= 10
    assert totals.states >= 500
