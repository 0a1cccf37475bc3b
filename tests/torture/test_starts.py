"""A start builds on nothing that the power may still take back, though it is there: only the process died before.

`make torture` has the same scenarios.
"""

from __future__ import annotations

import pytest

from tests.torture import runner
from tests.torture.restarts import RESTARTS
from tests.torture.runner import Job

CASES = 60  # of each scenario


@pytest.mark.timeout(900)  # it takes ten seconds where nothing else runs
def test_a_power_cut_in_the_start_after_a_kill_loses_nothing_durable() -> None:
    totals = runner.run([Job(scenario, 0, 0, CASES) for scenario in RESTARTS], worker_count=2, told=print)
    print(totals)
    assert totals.failures == []
    assert totals.cases == CASES * len(RESTARTS)
