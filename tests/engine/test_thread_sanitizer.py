"""The thread sanitizer has nothing to say of the engine's concurrent tests: every access that two threads share is ordered
or atomic.  They run once more, in the build of BLOCKDEV_VARIANT=threads."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build" / "threads"
LIBRARY = "libtsan.so"
SUPPRESSIONS = Path(__file__).with_name("thread_sanitizer.supp")  # what it says wrongly, and why
FOUND_STATUS = 66
TESTS = [
    "tests/engine/test_concurrency.py",
    "tests/engine/test_map_cache.py",
    "tests/engine/test_compaction.py::test_guests_go_on",
]


def run_sanitized(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    found = subprocess.run(["gcc", f"-print-file-name={LIBRARY}"], capture_output=True, text=True, check=True)
    environment = {
        **os.environ,
        "LD_PRELOAD": os.path.realpath(found.stdout.strip()),
        "PYTHONPATH": str(BUILD),
        "TSAN_OPTIONS": f"exitcode={FOUND_STATUS} log_path={tmp_path}/found suppressions={SUPPRESSIONS}",
    }
    command = [sys.executable, *arguments]
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900, check=False
    )


@pytest.mark.timeout(900)
def test_concurrent_requests_do_not_race(tmp_path: Path) -> None:
    options = ["-q", "-p", "no:cacheprovider"]
    done = run_sanitized(tmp_path, "-m", "pytest", *options, *TESTS)
    found = "\n".join(path.read_text()[:4000] for path in tmp_path.glob("found.*"))
    assert not found and done.returncode == 0, f"{found}\n{done.stdout[-3000:]}{done.stderr[-1000:]}"
