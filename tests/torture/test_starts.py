"""A start builds on nothing that the power may still take back, and what it had to pass over does no harm when a later one finds it.

`make torture` has the same scenarios.
"""

from __future__ import annotations

import pytest

from tests.torture import runner
from tests.torture.later_starts import LATER_STARTS
from tests.torture.restarts import RESTARTS
from tests.torture.runner import Job


@pytest.mark.timeout(900)  # each takes ten seconds where nothing else runs
@pytest.mark.parametrize(
    ("scenarios", "cases"),
    [
        pytest.param(RESTARTS, 60, id="a_power_cut_in_the_start_after_a_kill_loses_nothing_durable"),
        pytest.param(LATER_STARTS, 40, id="a_start_is_not_led_astray_by_what_an_earlier_one_passed_over"),
    ],
)
def test_starts_are_sound(scenarios: list[str], cases: int) -> None:
    """cases: of each scenario."""
    totals = runner.run([Job(scenario, 0, 0, cases) for scenario in scenarios], worker_count=2, told=print)
    print(totals)
    assert totals.failures == []
    assert totals.cases == cases * len(scenarios)
