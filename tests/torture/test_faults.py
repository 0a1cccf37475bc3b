"""Whatever call to the medium fails, in whatever operation: nothing wrong is read, nothing durable is lost, and it is said.

The cases are those of tests.torture.faults, which says what is asked of each; one process of the torture build an
operation, as many at once as there are cores.  In turn, one call in five fails, beginning with
any of the first five; `make torture` has every call fail (BLOCKDEV_FAULTS_EVERY=1).
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from tests.torture.fault_operations import OPERATIONS
from tests.torture.runner import BUILD, NO_BUG, ROOT, build

EVERY = int(os.environ.get("BLOCKDEV_FAULTS_EVERY", "5"))
Runs = dict[str, "Future[subprocess.CompletedProcess[str]]"]


def fail_everything_once(operation: str, bug: str = NO_BUG, every: int = 1, first: int = 0) -> subprocess.CompletedProcess[str]:
    chosen = ["--every", str(every), "--first", str(first)]
    return subprocess.run(
        [sys.executable, "-m", "tests.torture.faults", "--operation", operation, "--bug", bug, *chosen],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(BUILD)},
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def runs(request: pytest.FixtureRequest) -> Iterator[Runs]:
    """The operations that were asked for, under way."""
    build()
    items = [item for item in request.session.items if item.path == request.path]
    names = [item.callspec.params["operation"] for item in items if hasattr(item, "callspec")]
    first = random.SystemRandom().randrange(EVERY)
    executor = ThreadPoolExecutor(os.cpu_count())
    yield {name: executor.submit(fail_everything_once, name, every=EVERY, first=first) for name in names}
    executor.shutdown(cancel_futures=True)


@pytest.mark.timeout(1800)  # the first waits for its own, among as many as there are cores
@pytest.mark.parametrize("operation", [operation.name for operation in OPERATIONS])
def test_no_call_that_fails_does_harm(runs: Runs, operation: str) -> None:
    done = runs[operation].result()
    print(done.stdout)
    assert done.returncode == 0, done.stderr[-6000:]
