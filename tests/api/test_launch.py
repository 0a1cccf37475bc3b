"""Waiting for blockdevd to serve: one that is slow is waited for, one that hangs is not."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from blockdev.api import launch
from blockdev.errors import ToolFailed

SLOW = "import os, sys, time\nwhile time.process_time() < 1.2: pass\nos.write(int(sys.argv[1]), b'ready')\ntime.sleep(60)"
HANGING = "import time; time.sleep(60)"


@contextmanager
def started(program: str) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A process that is to write to the pipe of which the reading end comes with it."""
    reader, writer = os.pipe()
    process = subprocess.Popen([sys.executable, "-S", "-c", program, str(writer)], pass_fds=[writer])
    os.close(writer)
    try:
        yield process, reader
    finally:
        process.kill()
        process.wait()
        os.close(reader)


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "READY_SECONDS_MAX", 1.0)
    monkeypatch.setattr(launch, "READY_CPU_SECONDS", 0.01)
    monkeypatch.setattr(launch, "READY_PERIODS_MAX", 200)


def test_one_that_gets_on_is_waited_for_beyond_the_time_limit() -> None:
    with started(SLOW) as (process, reader):
        launch._wait_until_ready(process, reader, lambda: None)


def test_one_that_hangs_is_given_up_and_it_is_said_after_how_long() -> None:
    with started(HANGING) as (process, reader), pytest.raises(ToolFailed, match=r"did not become ready within \d+ s"):
        launch._wait_until_ready(process, reader, lambda: None)
