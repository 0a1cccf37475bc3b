"""Bugs that an engineer could make are found by the torture tests: what they do not find proves nothing.

Each bug of _medium.PlantedBug is switched on in turn.  Those that show when the power is cut are hunted by the power-cut
harness, those that show when a call fails, or in the page cache only, by the fault harness.
"""

from __future__ import annotations

import re

import pytest

from blockdev._medium import PlantedBug
from tests.torture.runner import hunt
from tests.torture.test_faults import fail_everything_once

CASES_MAX = 2000
# the operation that the bug is in; the others would find nothing and take their time
SHOWN_BY_FAULTS = {
    PlantedBug.BUG_TAIL_NOT_CUT: "open_torn",
    PlantedBug.BUG_SYNC_FAILURE_IGNORED: "flush",
    PlantedBug.BUG_NODES_FORGOTTEN: "checkpoint",
    PlantedBug.BUG_REPLAYED_NOT_SYNCED: "open",
    PlantedBug.BUG_NOT_WRITTEN_AGAIN: "flush",
}
# scenarios that do what the bug is in, by the beginning of their names; for the others all are asked
AMONG = {
    PlantedBug.BUG_WRITTEN_COUNTS_AS_DURABLE: "segments_roll_unflushed",
    PlantedBug.BUG_FUA_IGNORED: "fua",
    PlantedBug.BUG_LOG_BEHIND_CHECKPOINT: "fua",
    PlantedBug.BUG_NEWEST_SEGMENT_ONLY: "kept",
    PlantedBug.BUG_SLOTS_REUSED_EARLY: "checkpoints",
    PlantedBug.BUG_GAP_PASSED_OVER: "segments",
    PlantedBug.BUG_REWRITE_NOT_SYNCED: "compaction",
    PlantedBug.BUG_SWAP_NOT_SYNCED: "compaction_revives",
    PlantedBug.BUG_MARKED_TOO_NEW: "compaction",
    PlantedBug.BUG_REVIVED_LOST: "compaction_revives",
    PlantedBug.BUG_OPEN_BATCH_NOT_KEPT: "kept",
    PlantedBug.BUG_HEADER_BEFORE_PAYLOAD: "kept_writes",
    PlantedBug.BUG_NEWER_SUPERBLOCK_KEPT: "unreadable",
    PlantedBug.BUG_SPARE_NOT_EMPTIED: "spare",
    PlantedBug.BUG_EMPTIED_SPARE_NOT_SYNCED: "spare",
}
SHOWN_BY_POWER_CUTS = [bug for bug in PlantedBug if bug != PlantedBug.BUG_NONE and bug not in SHOWN_BY_FAULTS]


@pytest.mark.timeout(1800)  # the longest hunts take half a minute where nothing else runs
@pytest.mark.parametrize("bug", SHOWN_BY_POWER_CUTS, ids=lambda bug: bug.name)
def test_a_power_cut_shows_the_bug(bug: PlantedBug) -> None:
    caught_at = hunt(bug.name, CASES_MAX, among=AMONG.get(bug, ""))
    print(f"{bug.name} was caught by case {caught_at}")
    assert caught_at is not None


@pytest.mark.parametrize("bug", SHOWN_BY_FAULTS, ids=lambda bug: bug.name)
def test_a_call_that_fails_shows_the_bug(bug: PlantedBug) -> None:
    done = fail_everything_once(SHOWN_BY_FAULTS[bug], bug.name)
    caught = re.search(r"failed at case (\d+)", done.stdout)
    assert caught, f"{bug.name} was not found: {done.stdout} {done.stderr[-2000:]}"
    print(f"{bug.name} was caught by case {caught[1]}")
    assert int(caught[1]) <= CASES_MAX
