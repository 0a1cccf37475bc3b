"""libiscsi's whole test suite against a LUN of ours, and beside LIO over RAM disks in the same guest (conformance_story.py).

What is on the list of known failures LIO fails over RAM disks, too, and the list only becomes shorter: so each run looks at ours
alone. BLOCKDEV_TARGETS_LONG=1 (`make torture`) runs the suite against LIO over brd and over a loop device in memory, which can
discard, as ours and unlike brd.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.lab.uml import UserModeMachine
from tests.targets import conformance_story
from tests.targets.conformance import FAILED, PASSED, parse
from tests.targets.facts import Outcomes, facts_of

KNOWN_FAILURES = Path(__file__).with_name("known_failures.txt")
TESTS, TESTS_PASSED_MIN = 230, 130
TIME_LIMIT_S = 900
pytestmark = pytest.mark.timeout(TIME_LIMIT_S + 60)
IS_LONG = bool(os.environ.get("BLOCKDEV_TARGETS_LONG"))
FACTS = facts_of(conformance_story)[: None if IS_LONG else 1]


@pytest.fixture(scope="module")
def outcomes() -> Outcomes:
    return Outcomes(conformance_story, UserModeMachine(memory_mib=2048, time_limit_s=TIME_LIMIT_S), *FACTS)


@pytest.fixture(scope="module")
def verdicts(outcomes: Outcomes) -> dict[str, dict[str, str]]:
    """What became of each test, by who was tried: ours, plain, and perhaps thin."""
    for name in FACTS:
        outcomes.check(name)
    found: dict[str, dict[str, str]] = json.loads(outcomes.files[conformance_story.VERDICTS])
    return found


def names(verdicts: dict[str, str], *wanted: str) -> set[str]:
    return {name for name, verdict in verdicts.items() if verdict in wanted}


@pytest.mark.parametrize("fact", FACTS)
def test_in_the_guest(outcomes: Outcomes, fact: str) -> None:
    outcomes.check(fact)


def test_a_lun_of_ours_fails_what_is_known_and_nothing_else(verdicts: dict[str, dict[str, str]]) -> None:
    lines = [line for line in KNOWN_FAILURES.read_text().splitlines() if not line.startswith("#")]
    known = {line.split()[0] for line in lines}
    assert all(len(line.split()) > 1 for line in lines), "a known failure says why"
    failed = names(verdicts["ours"], FAILED)
    assert failed - known == set(), "these fail, and are not on the list"
    assert known - failed == set(), f"these do not fail any more: take them off {KNOWN_FAILURES.name}"


def test_the_suite_ran_in_full(verdicts: dict[str, dict[str, str]]) -> None:
    assert all(len(tests) == TESTS for tests in verdicts.values())
    assert len(names(verdicts["ours"], PASSED)) >= TESTS_PASSED_MIN


if IS_LONG:

    @pytest.mark.parametrize("other", ["plain", "thin"])
    def test_a_lun_of_ours_fails_and_skips_nothing_that_lio_over_a_ram_disk_passes(
        verdicts: dict[str, dict[str, str]], other: str
    ) -> None:
        assert names(verdicts["ours"], FAILED) <= names(verdicts[other], FAILED)
        assert names(verdicts[other], PASSED) <= names(verdicts["ours"], PASSED)


def test_a_verdict_is_read_as_the_suite_means_it() -> None:
    said = (
        "Suite: Read10\n  Test: Simple ...passed\n  Test: Zero ...    [FAILED] READ10 was passed to\nFAILED\n"
        "    1. test.c:71  - CU_ASSERT\n  Test: Late ...    [SKIPPED] not there\npassed\nRun Summary:"
    )
    assert parse(said) == {"Read10.Simple": "passed", "Read10.Zero": "failed", "Read10.Late": "skipped"}
