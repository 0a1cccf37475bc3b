"""Whichever of SQLite's calls to its files fails: a user hears of it, and the next change finds nothing half done."""

from __future__ import annotations

import pytest

from tests.torture import runner
from tests.torture.catalog_faults import CATALOG_FAULTS
from tests.torture.runner import Job

CASES = 8  # of each operation


@pytest.mark.timeout(900)  # it takes a few seconds where nothing else runs
def test_a_failed_call_of_sqlite_leaves_nothing_half_done() -> None:
    totals = runner.run([Job(fault, 0, 0, CASES) for fault in CATALOG_FAULTS], worker_count=2, told=print)
    print(totals)
    assert totals.failures == []
    assert totals.states == CASES * len(CATALOG_FAULTS)
