"""Operations on VMs whose disks are LUNs: operations_story.py, in the lab guest."""

from __future__ import annotations

import pytest

from tests.lab.uml import UserModeMachine
from tests.targets import operations_story
from tests.targets.facts import Outcomes, facts_of


@pytest.fixture(scope="module")
def played() -> Outcomes:
    return Outcomes(operations_story, UserModeMachine(memory_mib=2048, time_limit_s=560))


@pytest.mark.timeout(900)
@pytest.mark.parametrize("fact", facts_of(operations_story))
def test_in_the_guest(played: Outcomes, fact: str) -> None:
    played.check(fact)
