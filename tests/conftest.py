"""What every test may use: pools in directories of their own, printed seeds, and the list of the skips that are allowed.

A random test takes `seed`: it is printed with the line that runs the same case again (BLOCKDEV_SEED).
A skip whose reason matches no line of allowed_skips.txt fails the run: a machine that lost a tool must not look green.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

MEBIBYTE = 1 << 20
LONGEST_FIRST = (  # below tests/, by what they took
    "targets/test_attach.py",
    "guest/test_power_cut.py",
    "targets/test_conformance.py",
    "api/test_schemathesis.py",
    "replicate/test_cli.py",
    "vmmap/test_crash.py",
    "torture/test_planted_bugs.py",
    "targets/test_operations.py",
    "nbd/test_full_pool.py",
    "browser/test_pages.py",
    "replicate/test_simulation.py",
    "targets/test_paths.py",
    "targets/test_many.py",
    "cli/test_pool.py",
    "engine/test_thread_sanitizer.py",
    "guest/test_quiesce.py",
    "fuzz/test_fuzz.py",
    "cli/test_bad_input.py",
    "browser/test_tabs.py",
    "browser/test_keyboard.py",
    "nbd/test_kill_under_load.py",
    "targets/test_lockstep.py",
    "torture/test_power_cuts.py",
    "torture/test_faults.py",
    "torture/test_corruption_sweep.py",
    "engine/test_scale.py",
    "api/test_access.py",
    "guest/test_virtio_guest.py",
    "bench/test_bench.py",
    "browser/test_fleet.py",
    "browser/test_walk.py",
)
# A shell's `&` has SIGINT ignored, which children inherit: those that a test interrupts would go on for ever.
signal.signal(signal.SIGINT, signal.default_int_handler)

UNLISTED_SKIP_STATUS = 7  # none of pytest's own: failed tests are run again (scripts/test), which would hide it
ALLOWED_SKIPS = Path(__file__).with_name("allowed_skips.txt")

for _name, _examples, _steps in (("quick", 150, 40), ("long", 3000, 80)):
    settings.register_profile(
        _name,
        max_examples=int(os.environ.get("BLOCKDEV_EXAMPLES", _examples)),
        stateful_step_count=int(os.environ.get("BLOCKDEV_STEPS", _steps)),
        deadline=None,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
    )
settings.load_profile(os.environ.get("BLOCKDEV_PROFILE", "quick"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that take half a minute come first, so that no worker is left alone with one at the end (`make test` has three for two cores)."""
    rank = {path: place for place, path in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: rank.get(item.nodeid.partition("::")[0].removeprefix("tests/"), len(rank)))


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """A random number, or the one in BLOCKDEV_SEED; shown when the test fails."""
    value = int(os.environ.get("BLOCKDEV_SEED") or random.SystemRandom().randrange(1 << 32))
    print(f"seed {value}; again: BLOCKDEV_SEED={value} .venv/bin/python -m pytest '{request.node.nodeid}'")
    return value


@pytest.fixture
def pool_path() -> Iterator[str]:
    """Where a pool may be created on the disk; removed after the test, because pytest would keep three of them."""
    directory = tempfile.mkdtemp(prefix="blockdev-test-")
    yield os.path.join(directory, "pool")
    shutil.rmtree(directory)


@pytest.fixture
def pool(pool_path: str) -> Iterator[object]:
    """An open pool of 1 GiB with small segments, so that a test meets more than one."""
    from blockdev import Pool

    opened = Pool.create(pool_path, 1024 * MEBIBYTE, segment_bytes=4 * MEBIBYTE)
    yield opened
    opened.close()


def _allowed_skips() -> list[re.Pattern[str]]:
    lines = ALLOWED_SKIPS.read_text().splitlines()
    return [re.compile(line) for line in lines if line.strip() and not line.startswith("#")]


class _SkipGuard:
    """Collects the skips of a run and fails it for those that are not on the list."""

    def __init__(self) -> None:
        self.unlisted: list[str] = []
        self.allowed = _allowed_skips()

    def _look_at(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        if not report.skipped or hasattr(report, "wasxfail"):
            return
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        if not any(pattern.search(reason) for pattern in self.allowed):
            self.unlisted.append(f"{report.nodeid}: {reason}")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._look_at(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self._look_at(report)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self.unlisted:
            session.exitstatus = UNLISTED_SKIP_STATUS

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        for line in self.unlisted:
            terminalreporter.write_line(f"SKIP NOT ALLOWED {line} (see tests/{ALLOWED_SKIPS.name})", red=True)


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(_SkipGuard(), "blockdev-skip-guard")
