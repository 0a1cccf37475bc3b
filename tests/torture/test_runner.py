"""The runner of the power-cut tests ends when it is told to, and tells of no failure that was its own end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from time import monotonic, sleep

import pytest

from tests.torture.runner import ROOT, build
from tests.torture.scenarios import SCENARIOS

WAIT_SECONDS = 120.0


def await_workers(running: subprocess.Popen[str], count: int) -> list[int]:
    tasks = Path(f"/proc/{running.pid}/task")
    deadline = monotonic() + WAIT_SECONDS
    while True:
        found = [int(pid) for task in tasks.glob("*/children") for pid in task.read_text().split()]
        if len(found) == count:
            return found
        assert running.poll() is None and monotonic() < deadline, "the workers do not start"
        sleep(0.02)


@pytest.mark.parametrize("to_group", [False, True], ids=["to_it_alone", "to_its_group_as_timeout_sends_it"])
def test_sigterm_ends_runner_and_workers_without_a_failure(to_group: bool) -> None:
    build()  # here, so that the processes that it starts are not taken for workers
    command = [sys.executable, "-m", "tests.torture", "--scenario", next(iter(SCENARIOS)), "--states", "100000", "--jobs", "2"]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    ) as running:
        try:
            workers = await_workers(running, 2)
            (os.killpg if to_group else os.kill)(running.pid, signal.SIGTERM)
            told = running.communicate(timeout=WAIT_SECONDS)[0]
        finally:
            running.kill()
    assert running.returncode != 0
    assert "FAILED" not in told, told
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)
