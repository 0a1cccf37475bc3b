"""The supervisor looks after the engine also while the control plane is being started, which may take long."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable

import pytest

from blockdev.api.supervisor import Supervisor
from blockdev.errors import Unavailable

SECONDS_MAX = 60.0
Process = subprocess.Popen[bytes]


class Children:
    """Processes that do nothing; each engine dies `deaths` times while the control plane is being started."""

    def __init__(self, deaths: int) -> None:
        self.engines: list[Process] = []
        self._deaths = deaths

    def start_engine(self) -> Process:
        self.engines.append(subprocess.Popen(["sleep", "1000"]))
        return self.engines[-1]

    def start_control(self, meanwhile: Callable[[], None]) -> Process:
        for count in range(1, self._deaths + 1):
            self.engines[-1].kill()
            self.engines[-1].wait()
            deadline = time.monotonic() + SECONDS_MAX
            while len(self.engines) == count:
                assert time.monotonic() < deadline
                meanwhile()
                time.sleep(0.01)
        return subprocess.Popen(["sleep", "1000"])

    def run(self) -> None:
        """Until both serve, or the engine is hopeless."""

        def stop() -> None:
            assert self.engines[-1].poll() is None
            os.kill(os.getpid(), signal.SIGTERM)

        Supervisor(self.start_engine, self.start_control, stop).run()


def test_an_engine_that_dies_while_the_control_plane_starts_is_started_again() -> None:
    children = Children(deaths=2)
    children.run()
    assert len(children.engines) == 3
    assert all(engine.poll() is not None for engine in children.engines), "the last one was left running"


def test_an_engine_that_dies_too_often_meanwhile_ends_all_and_it_is_said() -> None:
    children = Children(deaths=100)
    with pytest.raises(Unavailable, match="the engine died 5 times in 60 s"):
        children.run()
    assert len(children.engines) == 5
