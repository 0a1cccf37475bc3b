"""Many VMs' targets at once: many_story.py.

BLOCKDEV_TARGETS_VMS says how many (10; `make torture`: 50).
"""

from __future__ import annotations

import pytest

from tests.lab.uml import UserModeMachine
from tests.targets import many_story
from tests.targets.facts import Outcomes, facts_of

TIME_LIMIT_S = 700


@pytest.fixture(scope="module")
def outcomes() -> Outcomes:
    return Outcomes(many_story, UserModeMachine(memory_mib=2048, time_limit_s=TIME_LIMIT_S))


@pytest.mark.timeout(TIME_LIMIT_S + 60)
@pytest.mark.parametrize("fact", facts_of(many_story))
def test_in_the_guest(outcomes: Outcomes, fact: str) -> None:
    outcomes.check(fact)
