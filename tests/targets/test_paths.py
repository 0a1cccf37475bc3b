"""Two portals of a target under multipathd, of which one path goes: path_story.py, in the lab guest."""

from __future__ import annotations

import pytest

from tests.lab.uml import UserModeMachine
from tests.targets import path_story
from tests.targets.facts import Outcomes, facts_of

TIME_LIMIT_S = 840


@pytest.fixture(scope="module")
def outcomes() -> Outcomes:
    return Outcomes(path_story, UserModeMachine(time_limit_s=TIME_LIMIT_S))


@pytest.mark.timeout(TIME_LIMIT_S + 60)
@pytest.mark.parametrize("fact", facts_of(path_story))
def test_in_the_guest(outcomes: Outcomes, fact: str) -> None:
    outcomes.check(fact)
