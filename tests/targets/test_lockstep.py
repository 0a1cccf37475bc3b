"""Snapshots of two VMs at once, one over iSCSI and one over NBD: lockstep_story.py.

BLOCKDEV_TARGETS_SNAPSHOTS says how many snapshots of each are taken (12; `make torture`: 200).
"""

from __future__ import annotations

import pytest

from tests.lab.uml import UserModeMachine
from tests.targets import lockstep_story
from tests.targets.facts import Outcomes, facts_of

TIME_LIMIT_S = 900


@pytest.fixture(scope="module")
def outcomes() -> Outcomes:
    return Outcomes(lockstep_story, UserModeMachine(memory_mib=1536, time_limit_s=TIME_LIMIT_S))


@pytest.mark.timeout(TIME_LIMIT_S + 60)
@pytest.mark.parametrize("fact", facts_of(lockstep_story))
def test_in_the_guest(outcomes: Outcomes, fact: str) -> None:
    outcomes.check(fact)
