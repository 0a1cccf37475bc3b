"""What one start had to pass over does no harm when a later one finds it.

`make torture` has the same scenarios.
"""

from __future__ import annotations

import pytest

from tests.torture import runner
from tests.torture.later_starts import LATER_STARTS
from tests.torture.runner import Job

CASES = 40  # of each scenario


@pytest.mark.timeout(900)  # it takes ten seconds where nothing else runs
def test_a_start_is_not_led_astray_by_what_an_earlier_one_passed_over() -> None:
    totals = runner.run([Job(scenario, 0, 0, CASES) for scenario in LATER_STARTS], worker_count=2, told=print)
    print(totals)
    assert totals.failures == []
    assert totals.cases == CASES * len(LATER_STARTS)
