"""What every operation on VMs is made of: the step-by-step journal, finding what was named, and the parts they share.

Threads: every method may be called from any thread.  Operations that change something run one at a time; reads
and diffs wait for no operation.  Durable: whatever a method returned.  Order of steps and what a crash between any
two leaves: docs/agreement.md.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from functools import wraps
from typing import Concatenate, NamedTuple, ParamSpec, TypeVar

from blockdev.clock import now_seconds
from blockdev.engine.client import EngineClient, EngineRestarted
from blockdev.errors import InvalidArgument, Locked, ReadOnly
from blockdev.vmmap import intents
from blockdev.vmmap.catalog import Catalog, SnapshotRow, VMRow
from blockdev.vmmap.clock import Clock, to_name
from blockdev.vmmap.events import Events, nowhere
from blockdev.vmmap.journal import Journal
from blockdev.vmmap.lookup import Lookup, present
from blockdev.vmmap.model import Snapshot, Terms
from blockdev.vmmap.names import object_name
from blockdev.vmmap.offers import Offers
from blockdev.vmmap.tags import Tag, encode_tag
from blockdev.vmmap.views import Clients, view_snapshot

P = ParamSpec("P")
T = TypeVar("T")
S = TypeVar("S", bound="Operations")
Label = tuple[int, str | None, bytes]  # object id, new name, new tag


class Replacement(NamedTuple):
    """A vdisk that takes the place of another, or a place that is free."""

    disk: str
    new_id: int
    old_id: int | None
    created: str  # of the disk, whichever vdisk is behind it


def change(operation: Callable[Concatenate[S, P], T]) -> Callable[Concatenate[S, P], T]:
    """An operation that changes something: alone, on agreed ground, again if the engine turns out to be a new one."""

    @wraps(operation)
    def run(self: S, *args: P.args, **kwargs: P.kwargs) -> T:
        with self._journal.lock:
            self._journal.ensure_agreed()
            try:
                try:
                    return operation(self, *args, **kwargs)
                except EngineRestarted:
                    self._journal.agree()
                return operation(self, *args, **kwargs)
            finally:
                self.offers.changed()

    return run


def refreshing(operation: Callable[Concatenate[S, str, P], T]) -> Callable[Concatenate[S, str, P], T]:
    """An operation on a VM that may take a snapshot of it: its configuration is brought up to date before, while nothing is locked."""

    @wraps(operation)
    def run(self: S, vm: str, *args: P.args, **kwargs: P.kwargs) -> T:
        self.refresh_config(vm)
        return operation(self, vm, *args, **kwargs)

    return run


def refreshing_unless_named(operation: Callable[Concatenate[S, str, str | None, P], T]) -> Callable[Concatenate[S, str, str | None, P], T]:
    """As `refreshing`, when no snapshot is named, so that one is taken: else nobody waits for a hypervisor."""

    @wraps(operation)
    def run(self: S, vm: str, snapshot: str | None, *args: P.args, **kwargs: P.kwargs) -> T:
        if snapshot is None:
            self.refresh_config(vm)
        return operation(self, vm, snapshot, *args, **kwargs)

    return run


class Operations:
    """One catalog and one engine, changed in step."""

    def __init__(
        self,
        catalog: Catalog,
        engine: EngineClient,
        *,
        clock: Clock = now_seconds,
        at_step: Callable[[str], None] | None = None,
        events: Events | None = None,
    ) -> None:
        """Nothing is asked of the engine yet; `at_step` is called with each named step (crash tests).

        events: where to note what is noteworthy; nowhere, unless told.
        """
        self.events = events or Events(nowhere, clock)
        self._catalog = catalog
        self._engine = engine
        self._clock = clock
        self._journal = Journal(catalog, engine, clock, at_step or (lambda step: None), self.events)
        self._lookup = Lookup(catalog, engine)
        # takes a VM's configuration from where it runs; never raises
        self.refresh_config: Callable[[str], str | None] = lambda vm: None
        # is told that the VM of an id has a new snapshot, under the journal's lock; never raises, never waits
        self.on_snapshot: Callable[[int], None] = lambda vm_id: None
        self.offers = Offers()  # what else than NBD clients has disks
        self._labelling: Counter[int] = Counter()  # ids of VMs, under _labelling_lock: SnapshotOperations.labelling
        self._labelling_lock = threading.Lock()

    def _delete(self, intent: intents.Intent, ids: list[int], force: bool) -> None:
        """Runs an operation whose engine step deletes objects; what the pool lacks anyway is no error."""
        if ids:
            with self.offers.letting_go(ids, force):
                self._journal.run(intent, lambda: self._engine.delete(ids, force=force, missing_ok=True))
        else:
            self._journal.finish(intent)

    def _take_snapshot(
        self, vm: VMRow, name: str, description: str, terms: Terms, skip_missing: bool = False
    ) -> SnapshotRow:
        disks = [
            (disk.name, present(disk, f"disk {vm.name}/{disk.name}"))
            for disk in self._catalog.disks(vm.id)
            if not (skip_missing and disk.object_id is None)
        ]
        if not disks:
            raise InvalidArgument(f"VM {vm.name} has no disks: there is nothing to take a snapshot of")
        now = self._journal.now()
        tag = encode_tag(Tag(vm.uuid, now, terms.origin, terms.consistency))
        names = [object_name(vm.name, disk, name) for disk, _ in disks]
        ids = [object_id for _, object_id in disks]
        intent = intents.CreateSnapshot(
            vm.id, vm.uuid, vm.name, name, description, now, list(terms), [disk for disk, _ in disks]
        )
        self._journal.run(intent, lambda: self._engine.snapshot(ids, names, [tag] * len(ids)))
        self.on_snapshot(vm.id)
        return self._lookup.snapshot(vm, name)

    def _refuse_locked(self, vm: VMRow, snapshot: SnapshotRow | None) -> None:
        if snapshot is not None and (snapshot.locked_until or "") > self._journal.now():
            raise Locked(
                f"snapshot {vm.name}@{snapshot.name} is locked until {snapshot.locked_until}: wait, or release it with "
                f"blockdevctl snapshot lock {vm.name}@{snapshot.name} --release"
            )

    def _refuse_received(self, vm: VMRow) -> None:
        """Nobody but its peer changes it."""
        received = self._catalog.receiving_vm(vm.id)
        if received is not None:
            raise ReadOnly(
                f"VM {vm.name} is received from {self._peer_name(received.peer_id)}: it cannot be changed before "
                f"blockdevctl replicate promote {vm.name}"
            )

    def _peer_name(self, peer_id: int) -> str:
        peer = self._catalog.peer_by_id(peer_id)
        return "a peer that is gone" if peer is None else f"peer {peer.name}"

    def _time_name(self, vm: VMRow, prefix: str = "") -> str:
        """A snapshot name that says when, and is free."""
        first = name = prefix + to_name(self._clock())
        number = 2
        while self._catalog.snapshot(vm.id, name) is not None:
            name = f"{first}-{number}"
            number += 1
        return name

    def _replacing_labels(self, vm: VMRow, replacements: list[Replacement]) -> list[Label]:
        """What puts new vdisks in their places and marks the old ones as temporary."""
        temporary = encode_tag(Tag(vm.uuid, self._journal.now(), temporary=True))
        labels: list[Label] = []
        for one in replacements:
            name = object_name(vm.name, one.disk)
            if one.old_id is not None:
                labels.append((one.old_id, f"{name}~old", temporary))
            labels.append((one.new_id, name, encode_tag(Tag(vm.uuid, one.created))))
        return labels

    def _view_snapshot(self, vm: VMRow, row: SnapshotRow, clients: Clients | None = None) -> Snapshot:
        disks = self._catalog.snapshot_disks(row.id)
        config, guards = self._catalog.config_text(row.config_id), self._catalog.guards_of([vm.id])
        return view_snapshot(vm, row, disks, config, clients, guards)
