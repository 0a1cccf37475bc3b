"""A served VM under load from every side until its engine is killed, and what must be there when the engine is back.

Lanes write stamps to the disks "a" and "b" and to clones, fio writes to the disk "fio", snapshots, clones and deletes go
through the REST API and checkpoints through the engine socket, all at once.
"""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import numpy as np

import nbd
from blockdev.engine.client import EngineClient
from blockdev.errors import Unavailable
from blockdev.findings import InspectionKind
from tests.cli.served import Home, until
from tests.engine.load import Crew
from tests.engine.model import SECTOR
from tests.nbd import fio_load
from tests.nbd.fio_load import FioLoad
from tests.nbd.lane import LOST, Lane
from tests.nbd.ledger import Ledger, Values, check_crash, check_instant, newest_seen, values_of
from tests.nbd.snapshot_load import Clone, SnapshotLoad, Taken

VM = "load"
DISKS = ("a", "b")
KEPT = f"{VM}/b"  # whose lanes ask for kept writes
LANES_PER_DISK = 2
LANE_SECTORS = (1 << 20) // SECTOR + 1  # lanes meet inside a block
DISK_SECTORS = LANES_PER_DISK * LANE_SECTORS
CLONE_WRITER, OLD_CLONE_WRITER = 101, 102
READ_BYTES = 4 << 20
SNAPSHOTS_KEPT, CLONES_KEPT = 3, 3


class World:
    """What the served home must hold, as of the last time it was looked at."""

    def __init__(self, home: Home) -> None:
        self.home = home
        self.rest = home.rest()
        self.ledgers: dict[str, Ledger] = {}  # of each disk of stamps, by export
        self.frozen: dict[str, dict[str, Values]] = {}  # snapshot -> export -> content
        self.counts: Counter[str] = Counter()
        disks = [{"name": disk, "size_bytes": DISK_SECTORS * SECTOR} for disk in DISKS]
        disks.append({"name": "fio", "size_bytes": fio_load.DISK_BYTES})
        made = self.rest.post("/vms", json={"name": VM, "disks": disks})
        assert made.status_code == 201, made.text
        for export in exports_of(VM):
            self.ledgers[export] = Ledger(DISK_SECTORS)

    def close(self) -> None:
        self.rest.close()

    def clones(self) -> list[str]:
        """Names, oldest first."""
        return sorted(
            {export.split("/")[0] for export in self.ledgers} - {VM}, key=lambda name: int(name[1:])
        )

    def read(self, export: str) -> Values:
        handle = nbd.NBD()
        handle.connect_uri(self.home.uri(export))
        size = handle.get_size()
        parts = [handle.pread(min(READ_BYTES, size - at), at) for at in range(0, size, READ_BYTES)]
        handle.shutdown()
        return values_of(b"".join(parts), 0)

    def control(self) -> EngineClient:
        return EngineClient(str(self.home.path / "run/engine.sock"))

    def agree(self) -> None:
        """Catalog and pool, by a change: what the kill interrupted is finished or undone then."""
        changed = self.rest.patch(f"/vms/{VM}", json={"description": "killed"})
        assert changed.is_success, changed.text

    def inspect(self, kind: InspectionKind) -> None:
        """A check or scrub of the pool, which is to find nothing."""
        control = self.control()
        run = control.inspect(kind)
        while (outcome := control.inspection(run, wait_s=1)).state == "running":
            pass
        control.close()
        assert outcome.report is not None and outcome.report.findings == [], outcome

    def trim(self) -> None:
        """Delete the oldest snapshots and clones."""
        for name in list(self.frozen)[:-SNAPSHOTS_KEPT]:
            assert self.rest.delete(f"/vms/{VM}/snapshots/{name}").is_success
            del self.frozen[name]
        for name in self.clones()[:-CLONES_KEPT]:
            assert self.rest.delete(f"/vms/{name}").is_success
            for export in exports_of(name):
                del self.ledgers[export]


def exports_of(vm: str, snapshot: str | None = None) -> list[str]:
    return [f"{vm}/{disk}" + (f"@{snapshot}" if snapshot else "") for disk in DISKS]


class Round:
    """One run of all the load, from start() to the end of the engine."""

    def __init__(self, world: World, seed: int, directory: Path) -> None:
        self.world = world
        self.seed = seed
        self.crew = Crew()
        self.snapshots = SnapshotLoad(world.rest, VM, seed)
        self.fio = FioLoad(world.home.uri(f"{VM}/fio"), seed, directory)
        self.lanes = [
            self._lane(export, world.ledgers[export], 1 + 2 * index + disk, index * LANE_SECTORS)
            for disk, export in enumerate(exports_of(VM))
            for index in range(LANES_PER_DISK)
        ]
        if world.clones():
            export = exports_of(world.clones()[-1])[0]
            self.lanes.append(self._lane(export, world.ledgers[export], OLD_CLONE_WRITER))
        self.clone_ledgers: dict[str, Ledger] = {}  # of the clones of this round that were written to
        self.checkpoints = 0

    def _lane(self, export: str, ledger: Ledger, number: int, first: int = 0) -> Lane:
        kept = export == KEPT
        uri = self.world.home.uri(f"kept:{export}" if kept else export)
        return Lane(uri, ledger, number, first, LANE_SECTORS, self.seed, kept)

    def start(self) -> None:
        """Returns when fio is connected and every lane has been told something."""
        stopped = self.crew.stopped
        self.fio.start()
        for lane in self.lanes:
            self.crew.start(lambda lane=lane: lane.run(stopped), repeat=False)
        self.crew.start(lambda: self.snapshots.run(stopped), repeat=False)
        self.crew.start(self._checkpoint, repeat=False)
        self.crew.start(self._write_to_clone, repeat=False)
        lanes = list(self.lanes)
        control = self.world.control()

        def running() -> bool:
            if self.crew.failures:
                raise self.crew.failures[0]
            self.fio.check_running()
            connected = sum(name == f"{VM}/fio" for _, name, _ in control.attachments())
            return connected == fio_load.CONNECTIONS and all(lane.done for lane in lanes)

        until(running, "fio and all lanes")
        control.close()

    def _checkpoint(self) -> None:
        pauses = random.Random(f"{self.seed}/checkpoints")
        control = self.world.control()
        try:
            while not self.crew.stopped.wait(pauses.choice((0, 0.02, 0.2))):
                control.checkpoint()
                self.checkpoints += 1
        except Unavailable:
            return

    def _write_to_clone(self) -> None:
        """The first clone of the round, from the moment that it was acknowledged."""
        while not self.snapshots.cloned.wait(0.05):
            if self.crew.stopped.is_set():
                return
        name = next(clone.name for clone in self.snapshots.clones.values() if clone.acknowledged)
        export = exports_of(name)[0]
        ledger = self.clone_ledgers[export] = Ledger(DISK_SECTORS)
        lane = self._lane(export, ledger, CLONE_WRITER)
        lane.know_nothing()
        self.lanes.append(lane)
        lane.run(self.crew.stopped)

    def end(self) -> None:
        """After the kill: everybody has noticed."""
        self.crew.stop()
        counts = self.world.counts
        counts["fio writes flushed"] += self.fio.finish()
        for lane in self.lanes:
            assert set(lane.errors) <= {LOST}, f"{lane.uri}: {lane.errors}"
            counts["lane writes"] += lane.done["write"] + lane.done["repeat"]
            counts["lane flushes"] += lane.done["flush"]
        counts["checkpoints"] += self.checkpoints
        counts["snapshots"] += sum(taken.acknowledged for taken in self.snapshots.taken.values())
        counts["deletes"] += len(self.snapshots.deleted)
        counts["clones"] += sum(clone.acknowledged for clone in self.snapshots.clones.values())

    # what must be there

    def verify(self) -> None:
        """The engine is back.  From here on the world holds what was found."""
        world = self.world
        world.agree()
        snapshots = self._existing_snapshots()
        clones = self._existing_clones()
        heads = {export: world.read(export) for export in world.ledgers}
        frozen = {taken.name: self._read_snapshot(taken.name) for taken in snapshots}
        fresh = {export: world.read(export) for clone in clones for export in exports_of(clone.name)}
        survived = max([newest_seen({**heads, **fresh}), *(taken.before for taken in snapshots)])
        check_crash(world.ledgers, heads, survived)
        for taken in snapshots:
            ledgers = {export: world.ledgers[export] for export in exports_of(VM)}
            check_instant(ledgers, frozen[taken.name], taken.name, taken.before, taken.after)
        for name, content in world.frozen.items():
            self._check_unchanged(name, content)
        for clone in clones:
            self._check_clone(clone, frozen[clone.snapshot.name], fresh, survived)
        for export, ledger in world.ledgers.items():
            ledger.settle(heads.get(export, ledger.base))
        world.frozen.update(frozen)
        self.fio.verify()
        world.inspect("check")
        world.counts["snapshots verified"] += len(world.frozen)

    def _existing_snapshots(self) -> list[Taken]:
        """Those of this round.  All that exist were asked for, all that were acknowledged exist."""
        answer = self.world.rest.get(f"/vms/{VM}/snapshots").json()
        existing = {snapshot["name"] for snapshot in answer["snapshots"]}
        load = self.snapshots
        asked = {**load.taken, **load.deleting}
        missing = {name for name, taken in load.taken.items() if taken.acknowledged} - existing
        assert not missing, f"acknowledged snapshots are gone: {missing}"
        missing = self.world.frozen.keys() - existing
        assert not missing, f"older snapshots are gone: {missing}"
        odd = existing - asked.keys() - self.world.frozen.keys()
        assert not odd, f"snapshots that were deleted, or never asked for, are there: {odd}"
        return [taken for name, taken in asked.items() if name in existing]

    def _existing_clones(self) -> list[Clone]:
        existing = {vm["name"] for vm in self.world.rest.get("/vms").json()["vms"]} - {VM}
        clones = self.snapshots.clones
        missing = {name for name, clone in clones.items() if clone.acknowledged} - existing
        assert not missing, f"acknowledged clones are gone: {missing}"
        assert existing - clones.keys() == set(self.world.clones()), "clones are gone, or came back"
        status = self.world.rest.get("/status").json()
        assert not status["missing"] and not status["foreign"], status
        return [clone for name, clone in clones.items() if name in existing]

    def _read_snapshot(self, name: str) -> dict[str, Values]:
        """By the export of the VM's disk."""
        pairs = zip(exports_of(VM), exports_of(VM, name), strict=True)
        return {head: self.world.read(export) for head, export in pairs}

    def _check_unchanged(self, name: str, content: dict[str, Values]) -> None:
        for head, found in self._read_snapshot(name).items():
            assert np.array_equal(found, content[head]), f"{head}@{name} is not what it was"

    def _check_clone(
        self, clone: Clone, snapshot: dict[str, Values], fresh: dict[str, Values], survived: int
    ) -> None:
        """It begins as its snapshot; what was written to it since follows the same rule as everything."""
        for export, head in zip(exports_of(clone.name), exports_of(VM), strict=True):
            ledger = self.clone_ledgers.get(export) or Ledger(DISK_SECTORS)
            ledger.base = snapshot[head]
            check_crash({export: ledger}, {export: fresh[export]}, survived)
            ledger.settle(fresh[export])
            self.world.ledgers[export] = ledger
