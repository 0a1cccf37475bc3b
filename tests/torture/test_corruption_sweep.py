"""Whatever byte of a pool at rest is damaged: it is harmless, healed, or named, and the pool goes on.

The cases are those of tests.torture.corruption, which says what is asked of each; several processes, as many at once as
there are cores.  BLOCKDEV_DAMAGES=n has more of them, `make torture` 800.
"""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.torture.runner import ROOT
from tests.torture.specimens import KINDS

CASES = int(os.environ.get("BLOCKDEV_DAMAGES", "150"))  # of each kind of pool
PART = CASES // 2  # in one process


def damage(seed: int, kind: str, first: int) -> subprocess.CompletedProcess[str]:
    chosen = ["--seed", str(seed), "--kind", kind, "--first", str(first), "--cases", str(PART)]
    return subprocess.run(
        [sys.executable, "-m", "tests.torture.corruption", *chosen], cwd=ROOT, capture_output=True, text=True
    )


@pytest.mark.timeout(1800)  # it takes seconds where nothing else runs
@pytest.mark.parametrize("kind", KINDS)
def test_no_damage_is_read_as_data_or_goes_unseen(kind: str, seed: int) -> None:
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        done = list(threads.map(lambda first: damage(seed, kind, first), (0, PART)))
    for run in done:
        print(run.stdout)
        assert run.returncode == 0, "\n".join(run.stderr.splitlines()[-30:])  # a process that died says at which case
    counted = [line.split(": ", 1)[1] for run in done for line in run.stdout.splitlines()]
    assert len(counted) == 2 and any("'unreadable'" in line for line in counted)
