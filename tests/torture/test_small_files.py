"""What was found and the secrets of targets outlast a power cut once they are saved, and are never half written."""

from __future__ import annotations

import pytest

from tests.torture import runner
from tests.torture.runner import Job
from tests.torture.small_files import SMALL_FILES

CASES = 100  # of each file


@pytest.mark.timeout(300)  # it takes a second or two where nothing else runs
def test_a_power_cut_leaves_a_small_file_old_or_new() -> None:
    totals = runner.run([Job(name, 0, 0, CASES) for name in SMALL_FILES], worker_count=2, told=print)
    print(totals)
    assert totals.failures == []
    assert totals.states == CASES * len(SMALL_FILES)
