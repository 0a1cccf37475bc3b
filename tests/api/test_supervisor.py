"""The supervisor looks after the engine also while the control plane is being started, which may take long."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

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


def test_what_thaws_a_guest_for_a_control_plane_that_ends_is_waited_for_before_the_engine_ends(tmp_path: Path) -> None:
    """A service's manager kills what is there when the supervisor has ended, and a guest's thaw may need its disks."""
    end, seen = tmp_path / "end", tmp_path / "seen"
    children = Children(deaths=0)
    controls: list[int] = []  # pidfds

    def start_control(meanwhile: Callable[[], None]) -> Process:
        engine = children.engines[-1].pid
        thaws = f"timeout 60 sh -c \"while [ ! -e {end} ]; do sleep 0.02; done\"; kill -0 {engine} && : >{seen}"
        started = subprocess.Popen(["sh", "-c", f"setsid sh -c '{thaws}' & echo; exec sleep 1000"], stdout=subprocess.PIPE)
        assert started.stdout and started.stdout.read(1)
        controls.append(os.pidfd_open(started.pid))
        ending.start()
        return started

    def end_behind_the_control_plane() -> None:
        select.select(controls, [], [])
        end.touch()

    ending = threading.Thread(target=end_behind_the_control_plane)
    Supervisor(children.start_engine, start_control, lambda: os.kill(os.getpid(), signal.SIGTERM)).run()
    ending.join()
    os.close(controls[0])
    assert seen.exists(), "the engine ended first"


def test_an_engine_that_dies_too_often_meanwhile_ends_all_and_it_is_said() -> None:
    children = Children(deaths=100)
    with pytest.raises(Unavailable, match="the engine died 5 times in 60 s"):
        children.run()
    assert len(children.engines) == 5
