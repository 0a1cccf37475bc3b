"""After any legal power cut a pool opens, holds what was acknowledged and nothing else, and goes on working.

`make torture` is the same at length.
"""

from __future__ import annotations

import pytest

from tests.torture import runner
from tests.torture.runner import Job
from tests.torture.scenarios import SCENARIOS

CASES = 20  # of each scenario; a case cuts the power once to three times
WORKERS = 2


@pytest.mark.timeout(900)  # it takes half a minute where nothing else runs
def test_nothing_acknowledged_is_lost_by_a_power_cut() -> None:
    jobs = [Job(scenario, 0, 0, CASES) for scenario in SCENARIOS]
    totals = runner.run(jobs, worker_count=WORKERS, told=print)
    print(totals)
    assert totals.failures == []
    assert len(totals.scenarios) >= 40
    assert totals.states >= 1500
