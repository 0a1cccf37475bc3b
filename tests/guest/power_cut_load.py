"""The load of a machine until its power fails, and what must be found afterwards.

Four lanes write to the two disks of VM `web`, each over an NBD connection of its own; one more thread takes, reads and deletes
snapshots, makes, writes, renames and deletes clones, and takes checkpoints.  An answer that arrived here is an acknowledgement:
it left the machine before its power failed.
"""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

import nbd
from tests.engine.content import stamped
from tests.engine.model import SECTOR
from tests.guest.power_cut_machine import Control, Refused, ServerMachine
from tests.guest.power_cut_model import Holding, Lane, Step, check_together

VM = "web"
DISKS = ("root", "data")
LANE_BYTES = 512 * 1024 + SECTOR  # lanes meet inside a block
DISK_BYTES = 2 * LANE_BYTES
CLONE_WRITER = 100  # the first of them; lanes come before
FLUSH_SHARES = (0.2, 0.05, 0.02)  # of a life's steps that a flush follows; as many are written with FUA
SNAPSHOTS_MAX = 3
CLONES_MAX = 2
JOIN_LIMIT_S = 60


@dataclass
class Instant:
    """When a snapshot was taken: steps of each lane that were replied to before, and begun by its end."""

    replied: list[int]
    begun: list[int] = field(default_factory=list)


@dataclass
class Export:
    """What an export holds: `known` bytes, and on top what `lanes` did, up to an instant if it is a snapshot."""

    known: bytes
    lanes: list[Lane] = field(default_factory=list)
    instant: Instant | None = None

    def snapshot(self) -> Export:
        """A snapshot of this disk that is about to be taken."""
        return Export(self.known, self.lanes, Instant([lane.replied for lane in self.lanes]))

    def end_instant(self) -> None:
        """The snapshot was taken before now."""
        if self.instant is not None:
            self.instant.begun = [len(lane.steps) for lane in self.lanes]

    def holdings(self, found: bytes) -> list[Holding]:
        """What is to be checked when `found` was read."""
        if self.instant is None:
            return [
                Holding(lane, found, self.known, len(lane.steps), lane.durable, lane.certain) for lane in self.lanes
            ]
        bounds = zip(self.lanes, self.instant.begun, self.instant.replied, strict=True)
        return [Holding(lane, found, self.known, begun, replied) for lane, begun, replied in bounds]

    def settle(self, found: bytes) -> None:
        """Exactly that is known from now on."""
        self.known = found
        if self.instant is not None:
            self.lanes, self.instant = [], None


@dataclass
class Change:
    """An operation under way: exports that it makes, and exports that it takes away."""

    made: dict[str, Export] = field(default_factory=dict)
    gone: frozenset[str] = frozenset()


class Oracle:
    """All exports of the machine, over its power cuts."""

    def __init__(self) -> None:
        self.lock = threading.Lock()  # of `exports` and of the lanes' `durable`
        self.exports: dict[str, Export] = {}
        self.change: Change | None = None  # not acknowledged
        self.changes = 0  # acknowledged since the last start
        self._numbers = itertools.count(1)
        for at, disk in enumerate(DISKS):
            name = f"{VM}/{disk}"
            lanes = [Lane(1 + 2 * at + half, name, half * LANE_BYTES, LANE_BYTES) for half in (0, 1)]
            self.exports[name] = Export(bytes(DISK_BYTES), lanes)

    def lanes(self) -> list[Lane]:
        with self.lock:
            return [lane for export in self.exports.values() if not export.instant for lane in export.lanes]

    def next_number(self) -> int:
        """For names and writers; never the same twice."""
        return next(self._numbers)

    def snapshots(self) -> list[str]:
        return sorted({name.partition("@")[2] for name in self.exports if "@" in name})

    def clones(self) -> list[str]:
        return sorted({name.partition("/")[0] for name in self.exports} - {VM})

    def finish_change(self) -> None:
        assert self.change is not None
        with self.lock:
            for name in self.change.gone:
                del self.exports[name]
            self.exports |= self.change.made
        self.change = None
        self.changes += 1

    def accept(self, listed: Collection[str]) -> None:
        """After a start: all that was acknowledged is there; what was under way was done as a whole or not at all."""
        there = set(listed)
        if self.change is not None and there == (set(self.exports) - self.change.gone) | set(self.change.made):
            self.finish_change()
        self.change = None
        expected = set(self.exports)
        assert there == expected, (
            f"acknowledged but not there: {sorted(expected - there)}; there but not asked for: {sorted(there - expected)}"
        )

    def settle(self, names: Collection[str], read: Callable[[str], bytes]) -> None:
        """Check and learn the content of exports of one instant."""
        found = {name: read(name) for name in names}
        for name in names:
            if not self.exports[name].lanes:
                assert found[name] == self.exports[name].known, f"{name} is acknowledged, and has changed"
        check_together([holding for name in names for holding in self.exports[name].holdings(found[name])])
        for name in names:
            self.exports[name].settle(found[name])

    def settle_all(self, read: Callable[[str], bytes]) -> None:
        """After a start: check and learn the content of every export."""
        for snapshot in self.snapshots():
            self.settle([f"{VM}/{disk}@{snapshot}" for disk in DISKS], read)
        self.settle([name for name in self.exports if "@" not in name], read)
        for lane in self.lanes():
            lane.forget()
        self.changes = 0


class Load:
    """The threads that ask.  Announce the power cut by `expect_cut` before it comes."""

    def __init__(self, machine: ServerMachine, oracle: Oracle, seed: int) -> None:
        self.machine = machine
        self.oracle = oracle
        self.failures: list[str] = []
        self._seed = seed
        self._flush_share = random.Random(seed).choice(FLUSH_SHARES)
        self._cut = False
        self._clock = itertools.count()
        tasks: list[tuple[Callable[..., None], tuple[Lane, ...]]] = [(self._operate, ())]
        tasks += [(self._write, (lane,)) for name in DISKS for lane in oracle.exports[f"{VM}/{name}"].lanes]
        self._threads = [threading.Thread(target=self._until_cut, args=task, daemon=True) for task in tasks]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def await_steps(self, count: int, limit_s: float) -> None:
        """Wait until so many steps are done, and some are certain to survive."""
        deadline = time.monotonic() + limit_s
        while True:
            lanes = self.oracle.lanes()
            if sum(lane.replied for lane in lanes) >= count and any(lane.durable for lane in lanes):
                return
            assert not self.failures, self.failures
            assert time.monotonic() < deadline, f"{count} steps were not done in {limit_s} s: {self.describe()}"
            time.sleep(0.005)

    def expect_cut(self) -> None:
        assert not self.failures, self.failures
        self._cut = True

    def join(self) -> None:
        """After the cut."""
        for thread in self._threads:
            thread.join(JOIN_LIMIT_S)
            assert not thread.is_alive(), "a client does not notice that its server is gone"
        assert not self.failures, self.failures
        change = self.oracle.change
        for export in change.made.values() if change else ():
            export.end_instant()  # it may have been taken as late as the cut

    def describe(self) -> str:
        lanes = self.oracle.lanes()
        replied, durable = sum(lane.replied for lane in lanes), sum(lane.durable for lane in lanes)
        return f"{replied} steps, {durable} of them flushed, {self.oracle.changes} changes"

    def _until_cut(self, task: Callable[..., None], lanes: tuple[Lane, ...]) -> None:
        try:
            task(*lanes)
        except (nbd.Error, OSError) as error:
            if not self._cut:
                self.failures.append(f"without a power cut: {error}")
        except (Refused, AssertionError) as error:
            self.failures.append(str(error))

    # --- disks

    def _write(self, lane: Lane) -> None:
        source = random.Random(f"{self._seed}/{lane.writer}")
        disk = self.machine.connect(lane.export)
        while not self._cut:
            self._step(disk, lane, source)
            if source.random() < self._flush_share:
                self._flush(disk)

    def _step(self, disk: nbd.NBD, lane: Lane, source: random.Random) -> None:
        sectors = source.choice((1, 3, 8, 8, 8, 16, 33, 128))
        first = source.randrange(lane.length // SECTOR - sectors + 1)
        kind = source.choice(("write", "write", "write", "write", "zero", "trim"))
        if kind == "write" and source.random() < self._flush_share:
            kind = "certain"
        step = lane.begin(first * SECTOR, sectors * SECTOR, kind in ("zero", "trim"), next(self._clock))
        self._ask(disk, lane, step, kind)
        lane.end(step, next(self._clock))
        if kind == "certain":
            lane.certain.add(step.number)

    def _ask(self, disk: nbd.NBD, lane: Lane, step: Step, kind: str) -> None:
        if kind == "zero":
            disk.zero(step.length, step.offset)
        elif kind == "trim":
            disk.trim(step.length, step.offset)
        else:
            data = stamped(lane.writer, step.number, step.offset, step.length)
            disk.pwrite(data, step.offset, nbd.CMD_FLAG_FUA if kind == "certain" else 0)

    def _flush(self, disk: nbd.NBD) -> None:
        """It covers whatever was replied to before, on any connection."""
        covered = [(lane, lane.replied) for lane in self.oracle.lanes()]
        disk.flush()
        with self.oracle.lock:
            for lane, replied in covered:
                lane.durable = max(lane.durable, replied)

    # --- virtual machines

    def _operate(self) -> None:
        source = random.Random(f"{self._seed}/operations")
        control = self.machine.control()
        operations = [self._take_snapshot] * 3 + [self._clone, self._write_to_clone] * 2
        operations += [self._read_snapshot, self._delete_snapshot, self._delete_clone, self._rename_clone]
        while not self._cut:
            if source.random() < 0.2:
                control.call(source.choice(("checkpoint", "checkpoint", "begin_scrub")))
            source.choice(operations)(control, source)

    def _change(self, control: Control, change: Change, name: str, *arguments: str) -> None:
        self.oracle.change = change
        control.call(name, *arguments)
        for export in change.made.values():
            export.end_instant()
        self.oracle.finish_change()

    def _take_snapshot(self, control: Control, source: random.Random) -> None:
        if len(self.oracle.snapshots()) >= SNAPSHOTS_MAX:
            self._delete_snapshot(control, source)
        name = f"s{self.oracle.next_number()}"
        heads = {disk: self.oracle.exports[f"{VM}/{disk}"] for disk in DISKS}
        made = {f"{VM}/{disk}@{name}": head.snapshot() for disk, head in heads.items()}
        self._change(control, Change(made), "take_snapshot", VM, name)

    def _read_snapshot(self, control: Control, source: random.Random) -> str | None:
        """Its content is exactly known from then on."""
        names = self.oracle.snapshots()
        if not names:
            return None
        chosen = source.choice(names)
        self.oracle.settle([f"{VM}/{disk}@{chosen}" for disk in DISKS], self.machine.read)
        return chosen

    def _clone(self, control: Control, source: random.Random) -> None:
        if len(self.oracle.clones()) >= CLONES_MAX:
            self._delete_clone(control, source)
        snapshot = self._read_snapshot(control, source)
        if snapshot is None:
            return
        number = self.oracle.next_number()
        made = {}
        for at, disk in enumerate(DISKS):
            lane = Lane(CLONE_WRITER + 2 * number + at, f"c{number}/{disk}", 0, DISK_BYTES)
            made[lane.export] = Export(self.oracle.exports[f"{VM}/{disk}@{snapshot}"].known, [lane])
        self._change(control, Change(made), "clone", VM, snapshot, f"c{number}")

    def _write_to_clone(self, control: Control, source: random.Random) -> None:
        for clone in self.oracle.clones()[:1]:
            name = f"{clone}/{source.choice(DISKS)}"
            disk = self.machine.connect(name)
            for _ in range(source.randrange(1, 6)):
                self._step(disk, self.oracle.exports[name].lanes[0], source)
            if source.random() < 0.7:
                self._flush(disk)
            disk.shutdown()

    def _rename_clone(self, control: Control, source: random.Random) -> None:
        for old in self.oracle.clones()[:1]:
            new = f"c{self.oracle.next_number()}"
            made = {f"{new}/{disk}": self.oracle.exports[f"{old}/{disk}"] for disk in DISKS}
            self._change(control, Change(made, frozenset(f"{old}/{disk}" for disk in DISKS)), "rename", old, new)

    def _delete_snapshot(self, control: Control, source: random.Random) -> None:
        for name in self.oracle.snapshots()[:1]:
            gone = frozenset(f"{VM}/{disk}@{name}" for disk in DISKS)
            self._change(control, Change(gone=gone), "delete_snapshot", VM, name)

    def _delete_clone(self, control: Control, source: random.Random) -> None:
        for name in self.oracle.clones()[:1]:
            self._change(control, Change(gone=frozenset(f"{name}/{disk}" for disk in DISKS)), "delete_vm", name)
