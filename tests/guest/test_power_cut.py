"""The power of a whole machine is cut under load: what it had acknowledged is there after the next start, nothing is odd.

The machine is a QEMU guest that serves a home from a disk with a volatile write cache; its clients are outside.  QEMU is killed
at a random time, a random part of the disk's cache is lost or torn, and the machine boots again on that disk.
BLOCKDEV_POWER_CUTS=n cuts more often (from 20 on, it looks for a planted bug, too), `make torture` 20 times.
"""

from __future__ import annotations

import os
import random
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from blockdev._medium import PlantedBug
from tests.guest.power_cut_load import DISK_BYTES, DISKS, VM, Load, Oracle
from tests.guest.power_cut_machine import ServerMachine, VolatileDisk, boot
from tests.lab.cache import LabError

CUTS = int(os.environ.get("BLOCKDEV_POWER_CUTS", "2"))
AT_LENGTH = CUTS >= 20
SHARE_CUT_IN_START = 0.2  # of the lives, one more that ends before the machine serves
SHARE_CUT_IN_FLUSH = 0.7  # of the cuts: the disk's cache is never empty then
STEPS = (20, 1000)  # of the load, before the cut
LOAD_LIMIT_S = 100
START_LIMIT_S = 100  # of the engine; under TCG, loading its code takes most of it
SECONDS_PER_CUT = 150


@dataclass
class Bench:
    """A disk, what its machine must hold, and the figures of the run."""

    disk: VolatileDisk
    source: random.Random
    oracle: Oracle = field(default_factory=Oracle)
    cuts: int = 0
    start_s: float = 10.0  # from the mount to an answering engine, the last time

    @contextmanager
    def started(
        self, *, planted_bug: int | None = None, keep: float | None = None
    ) -> Iterator[ServerMachine]:
        """A machine that has booted and holds what it must; leaving is the power cut."""
        found = self.disk.copy_found()
        with self.disk.powered(self.seed(), keep), boot(self.disk, planted_bug) as machine:
            try:
                self.check(machine)
            except BaseException:
                print(f"what the last power cut left is in {found}")
                raise
            found.unlink()
            yield machine

    def live(self, *, planted_bug: int | None = None, keep: float | None = None, deaf: bool = False) -> None:
        """One life: boot, check what the one before left, load, power cut."""
        with self.started(planted_bug=planted_bug, keep=keep) as machine:
            if deaf:
                self.disk.swallow_flushes()
            load = self.load_for_a_while(machine)
            self.disk.freeze(at_flush=self.source.random() < SHARE_CUT_IN_FLUSH)
        load.join()
        self.cuts += 1
        print(f"cut {self.cuts}: {load.describe()}; the disk: {self.disk.report}", flush=True)

    def check(self, machine: ServerMachine) -> None:
        """Everything acknowledged is there, and nothing else."""
        machine.guest.await_file("mounting")
        began = time.monotonic()
        machine.await_ready()
        self.start_s = time.monotonic() - began
        print(f"started: {machine.started}", flush=True)
        assert machine.started["engine_s"] < START_LIMIT_S
        control = machine.control()
        exports = control.call("exports")
        if not self.cuts:
            control.call("create_vm", VM, [[disk, DISK_BYTES] for disk in DISKS])
            return
        assert exports["odd"] == [], "acknowledged by catalog or pool alone"
        assert exports["catalog"] == exports["pool"], "acknowledged by catalog or pool alone"
        self.oracle.accept(exports["pool"])
        self.oracle.settle_all(machine.read)
        for kind in ("check", "scrub"):
            assert control.call("inspect", kind) == []

    def load_for_a_while(self, machine: ServerMachine) -> Load:
        load = Load(machine, self.oracle, self.seed())
        load.start()
        load.await_steps(self.source.randrange(*STEPS), LOAD_LIMIT_S)
        load.expect_cut()
        return load

    def cut_while_starting(self) -> None:
        """Boot, and cut the power somewhere between the mount and the end of the engine's recovery."""
        with self.disk.powered(self.seed()), boot(self.disk) as machine:
            machine.guest.await_file("mounting")
            time.sleep(self.source.uniform(0, self.start_s))  # the instant of the cut, not a synchronisation
            self.disk.freeze(at_flush=self.source.random() < SHARE_CUT_IN_FLUSH)
        print(f"cut while starting; the disk: {self.disk.report}", flush=True)

    def seed(self) -> int:
        return self.source.randrange(1 << 32)


@pytest.fixture
def bench(request: pytest.FixtureRequest, seed: int) -> Iterator[Bench]:
    disk = VolatileDisk(Path(tempfile.mkdtemp(prefix="blockdev-power-")), request.param)
    yield Bench(disk, random.Random(seed))
    disk.image.unlink()
    if not disk.found.exists():
        shutil.rmtree(disk.directory)


@pytest.mark.timeout(300 + SECONDS_PER_CUT * CUTS)
@pytest.mark.parametrize(("bench", "cuts"), [("ext4", CUTS - CUTS // 2), ("xfs", CUTS // 2)], indirect=["bench"])
def test_what_was_acknowledged_survives_power_cuts(bench: Bench, cuts: int) -> None:
    for _ in range(cuts):
        bench.live()
        if bench.source.random() < SHARE_CUT_IN_START:
            bench.cut_while_starting()
    with bench.started():
        pass


BROKEN = {"a disk that swallows flushes": {"deaf": True}}
if AT_LENGTH:
    BROKEN["an engine that does not sync"] = {"planted_bug": PlantedBug.BUG_FLUSH_WITHOUT_SYNC}


@pytest.mark.parametrize("bench", ["ext4"], indirect=True)
@pytest.mark.parametrize("broken", BROKEN)
def test_the_loss_is_noticed_with(broken: str, bench: Bench) -> None:
    bench.live(keep=0.0, **BROKEN[broken])
    with pytest.raises((AssertionError, LabError), match="acknowledged|damaged"), bench.started():
        pass
    bench.disk.found.unlink()
