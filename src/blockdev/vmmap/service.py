"""The operations on VMs, for the REST layer: checks, then catalog and engine in step.

Threads: every method may be called from any thread.  Operations that change something run one at a time; reads
and diffs wait for no operation.  Durable: whatever a method returned.  Order of steps and what a crash between any
two leaves: docs/agreement.md.
"""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, Concatenate, NamedTuple, ParamSpec, TypeVar

from blockdev.clock import now_seconds
from blockdev.engine.client import EngineClient, EngineRestarted
from blockdev.engine.protocol import EngineObject
from blockdev.errors import AlreadyExists, BlockdevError, Busy, InvalidArgument, Locked, NotFound
from blockdev.policies import AS_POOL, DiskPolicy, check_disk_policy, check_pool_policy
from blockdev.vmmap import intents
from blockdev.vmmap.catalog import Catalog, SnapshotRow, VMRow
from blockdev.vmmap.clock import Clock, to_name, to_text
from blockdev.vmmap.journal import Journal, was_refused
from blockdev.vmmap.lookup import Lookup, object_ids, present, refuse_importing
from blockdev.vmmap.model import (
    MANUAL,
    VM,
    Agreement,
    Diff,
    Disk,
    DiskDiff,
    Import,
    Restored,
    Snapshot,
    Space,
    Status,
    Terms,
    VMSpace,
)
from blockdev.vmmap.names import (
    CONFIG_BYTES_MAX,
    DESCRIPTION_BYTES_MAX,
    check_name,
    check_size,
    check_text,
    object_name,
)
from blockdev.vmmap.space import space_of_vms
from blockdev.vmmap.tags import Tag, encode_tag
from blockdev.vmmap.views import (
    Clients,
    import_name,
    view_all_vms,
    view_disk,
    view_import,
    view_snapshot,
    view_snapshots_of,
    view_vm,
)

SCHEDULED_SNAPSHOTS_MAX = 256  # of one VM, unless the catalog says another cap
SOCKET_PATH_BYTES_MAX = 107
SCHEDULED_CAP = "scheduled_snapshots_max"
CLONES_MAX = 1000  # in one operation, which is one record of the pool

P = ParamSpec("P")
T = TypeVar("T")
Label = tuple[int, str | None, bytes]  # object id, new name, new tag


class _Replacement(NamedTuple):
    """A vdisk that takes the place of another, or a place that is free."""

    disk: str
    new_id: int
    old_id: int | None
    created: str  # of the disk, whichever vdisk is behind it


def _change(operation: Callable[Concatenate[VMs, P], T]) -> Callable[Concatenate[VMs, P], T]:
    """An operation that changes something: alone, on agreed ground, again if the engine turns out to be a new one."""

    @wraps(operation)
    def run(self: VMs, *args: P.args, **kwargs: P.kwargs) -> T:
        with self._journal.lock:
            self._journal.ensure_agreed()
            try:
                return operation(self, *args, **kwargs)
            except EngineRestarted:
                self._journal.agree()
            return operation(self, *args, **kwargs)

    return run


class VMs:
    """The VMs of one home: a catalog and an engine."""

    def __init__(
        self,
        catalog: Catalog,
        engine: EngineClient,
        *,
        clock: Clock = now_seconds,
        at_step: Callable[[str], None] | None = None,
    ) -> None:
        """Nothing is asked of the engine yet; `at_step` is called with each named step (crash tests)."""
        self._catalog = catalog
        self._engine = engine
        self._clock = clock
        self._journal = Journal(catalog, engine, clock, at_step or (lambda step: None))
        self._lookup = Lookup(catalog, engine)

    def reconcile(self) -> Agreement:
        """Bring catalog and engine into agreement; also done by the first change after either was started."""
        return self._journal.agree()

    def status(self) -> Status:
        """Both planes; never raises because the engine is away."""
        engine: dict[str, Any] = {}
        engine_error = None
        try:
            engine = self._engine.status()
        except BlockdevError as error:
            engine_error = error.message
        with self._catalog.transaction():
            imports = [self._lookup.image_import(row.id) for row in self._catalog.imports()]
            return Status(
                engine_running=engine_error is None,
                engine_error=engine_error,
                engine=engine,
                agreed=self._journal.agreed,
                vm_count=self._catalog.vm_count(),
                disk_count=self._catalog.disk_count(),
                snapshot_count=self._catalog.snapshot_count(),
                missing=self._catalog.missing_exports(),
                foreign=list(self._journal.foreign),
                imports=[view_import(vm, row) for row, vm in imports],
            )

    @_change
    def set_pool_capacity(self, capacity_bytes: int) -> Status:
        """How much the pool may hold; it goes on meanwhile.  InvalidArgument: it holds more already."""
        self._engine.set_capacity(capacity_bytes)
        return self.status()

    @_change
    def set_pool_policy(self, change: Mapping[str, Any]) -> Status:
        """Set the fields of the pool's PoolPolicy that `change` names; the others stay.  InvalidArgument."""
        policy = self._engine.policy()._replace(**change)
        check_pool_policy(policy)
        self._engine.set_policy(policy)
        return self.status()

    def usage(self) -> Space:
        """What takes the pool's space, and which VM how much of it.  It takes seconds on a large pool; nothing waits."""
        return space_of_vms(self._catalog, self._engine)

    def vm_usage(self, name: str) -> VMSpace:
        """What one VM takes; as long as `usage`.  NotFound."""
        return space_of_vms(self._catalog, self._engine, name).vms[0]

    # VMs

    @_change
    def create_vm(
        self,
        name: str,
        disks: list[tuple[str, int]],
        config: str = "",
        description: str = "",
        policy: DiskPolicy = AS_POOL,
    ) -> VM:
        """A new VM with empty disks of (name, size in bytes); it may have none yet.

        InvalidArgument: name, size or text that cannot be used; AlreadyExists; PoolFull; Unavailable.
        """
        self._lookup.check_new_vm(name)
        check_text("configuration", config, CONFIG_BYTES_MAX)
        check_text("description", description, DESCRIPTION_BYTES_MAX)
        check_disk_policy(policy)
        for disk, size_bytes in disks:
            check_name("disk", disk)
            check_size(f"disk {disk}", size_bytes)
        twice = [disk for disk, count in Counter(disk for disk, _ in disks).items() if count > 1]
        if twice:
            raise AlreadyExists(f"disk {twice[0]} is named twice: a VM's disks need different names")
        vm_uuid, now = str(uuid.uuid4()), self._journal.now()
        rows: list[list[Any]] = [list(disk) for disk in disks]
        intent = intents.CreateVM(vm_uuid, name, description, config, now, rows, *policy)
        if disks:
            tag = encode_tag(Tag(vm_uuid, now))
            specs = [(size_bytes, object_name(name, disk), tag) for disk, size_bytes in disks]
            self._journal.run(intent, lambda: self._engine.create(specs))
        else:
            self._journal.finish(intent)
        return view_vm(self._catalog, self._lookup.vm(name), {})

    def list_vms(self) -> list[VM]:
        """All VMs by name; `clients` of their disks are not asked for."""
        return view_all_vms(self._catalog)

    def show_vm(self, name: str) -> VM:
        """One VM, with the clients attached to its disks when the engine answers.  NotFound."""
        self._lookup.vm(name)
        clients = self._lookup.clients()
        with self._catalog.transaction():
            return view_vm(self._catalog, self._lookup.vm(name), clients)

    @_change
    def rename_vm(self, name: str, new_name: str, force: bool = False) -> VM:
        """All exports of the VM are renamed at once.  Busy names the attached clients; forced, they stay attached.

        Busy also while a disk of it is being imported, forced or not.
        """
        vm = self._lookup.vm(name)
        self._lookup.check_new_vm(new_name)
        refuse_importing(vm, self._catalog.imports(vm.id))
        labels = self._labels(vm, new_name)
        if labels:
            intent = intents.RenameVM(vm.id, vm.uuid, name, new_name, labels[0][0])
            self._journal.run(intent, lambda: self._engine.relabel(labels, force))
        else:
            with self._catalog.transaction(grows=True):
                self._catalog.rename_vm(vm.id, new_name)
        return view_vm(self._catalog, self._lookup.vm(new_name), self._lookup.clients())

    @_change
    def delete_vm(self, name: str, force: bool = False) -> VM:
        """Delete the VM with its disks and snapshots; what it was is returned.  Busy; forced, clients are cut off."""
        vm = self._lookup.vm(name)
        imports = self._catalog.imports(vm.id)
        self._refuse_locked(vm, self._catalog.locked_snapshot(vm.id, self._journal.now()))
        if not force:
            refuse_importing(vm, imports)
        was = view_vm(self._catalog, vm)
        things = [*self._catalog.disks(vm.id), *self._catalog.snapshot_disks_of_vm(vm.id), *imports]
        intent = intents.DeleteVM(vm.id, name, object_ids(things))
        self._delete(intent, intent.object_ids, force)
        return was

    def get_config(self, name: str) -> str:
        """The VM's configuration text.  NotFound."""
        with self._catalog.transaction():
            return self._catalog.config_text(self._lookup.vm(name).config_id)

    @_change
    def set_config(self, name: str, config: str) -> VM:
        """Replace the VM's configuration text (at most 1 MiB)."""
        check_text("configuration", config, CONFIG_BYTES_MAX)
        with self._catalog.transaction(grows=True):
            self._catalog.set_config(self._lookup.vm(name).id, config)
        return view_vm(self._catalog, self._lookup.vm(name))

    @_change
    def set_description(self, name: str, description: str) -> VM:
        """Replace the VM's description (at most 4 KiB)."""
        check_text("description", description, DESCRIPTION_BYTES_MAX)
        with self._catalog.transaction(grows=True):
            self._catalog.set_description(self._lookup.vm(name).id, description)
        return view_vm(self._catalog, self._lookup.vm(name))

    @_change
    def set_policy(self, name: str, change: Mapping[str, Any]) -> VM:
        """Set the fields of the VM's DiskPolicy that `change` names (None: as the pool's); the others stay.

        It holds for all its disks, those being imported too, and for those it gets later.  InvalidArgument.
        """
        vm = self._lookup.vm(name)
        policy = vm.policy._replace(**change)
        check_disk_policy(policy)
        ids = object_ids([*self._catalog.disks(vm.id), *self._catalog.imports(vm.id)])
        intent = intents.SetPolicy(vm.id, name, ids, *policy)
        if ids:
            policies = [(id, policy) for id in ids]
            self._journal.run(intent, lambda: self._engine.set_disk_policies(policies))
        else:
            self._journal.finish(intent)
        return view_vm(self._catalog, self._lookup.vm(name), self._lookup.clients())

    @_change
    def set_agent(self, name: str, path: str | None) -> VM:
        """Where the VM's guest agent listens: the absolute path of a Unix socket on this machine; None: nowhere."""
        if path is not None and not (path.startswith("/") and path.isprintable() and len(path.encode()) <= SOCKET_PATH_BYTES_MAX):
            raise InvalidArgument(
                f"{path!r} cannot be a guest agent's socket: give an absolute path of at most {SOCKET_PATH_BYTES_MAX} bytes"
            )
        with self._catalog.transaction(grows=True):
            self._catalog.set_agent(self._lookup.vm(name).id, path)
        return view_vm(self._catalog, self._lookup.vm(name))

    def agent(self, name: str) -> str | None:
        """The socket of the VM's guest agent.  NotFound."""
        return self._lookup.vm(name).agent

    # disks

    @_change
    def add_disk(self, vm: str, disk: str, size_bytes: int) -> Disk:
        """A new, empty disk.  AlreadyExists, also while a disk of that name is being imported."""
        row = self._lookup.vm(vm)
        self._lookup.check_new_disk(row, disk)
        check_size(f"disk {disk}", size_bytes)
        now = self._journal.now()
        specs = [(size_bytes, object_name(vm, disk), encode_tag(Tag(row.uuid, now)))]
        intent = intents.AddDisk(row.id, row.uuid, vm, disk, size_bytes, now)
        self._journal.run(intent, lambda: self._engine.create(specs))
        return view_disk(row, self._lookup.disk(row, disk), {})

    @_change
    def remove_disk(self, vm: str, disk: str, force: bool = False) -> Disk:
        """Delete a disk; what snapshots hold of it stays.  Busy; forced, clients are cut off."""
        row = self._lookup.vm(vm)
        was = self._lookup.disk(row, disk)
        imports = self._lookup.imports_into(row, disk)
        if not force:
            refuse_importing(row, imports)
        intent = intents.RemoveDisk(
            vm, disk, was.id, object_ids([was, *imports]), [one.id for one in imports]
        )
        self._delete(intent, intent.object_ids, force)
        return view_disk(row, was)

    @_change
    def resize_disk(self, vm: str, disk: str, size_bytes: int, force_shrink: bool = False) -> Disk:
        """Grow a disk (attached clients see it when they attach again), or shrink it when told twice.

        InvalidArgument: shrinking without `force_shrink`; Busy: shrinking while attached.
        """
        row = self._lookup.vm(vm)
        was = self._lookup.disk(row, disk)
        check_size(f"disk {disk}", size_bytes)
        object_id = present(was, f"disk {vm}/{disk}")
        if size_bytes < was.size_bytes and not force_shrink:
            raise InvalidArgument(
                f"disk {vm}/{disk} has {was.size_bytes} bytes: shrinking it to {size_bytes} loses what is beyond; "
                "take a snapshot first and force it, if that is meant"
            )
        if size_bytes != was.size_bytes:
            intent = intents.ResizeDisk(vm, disk, was.id, object_id, size_bytes)
            self._journal.run(intent, lambda: self._engine.resize(object_id, size_bytes, force_shrink))
        return view_disk(row, self._lookup.disk(row, disk), self._lookup.clients())

    # snapshots

    @_change
    def create_snapshot(
        self,
        vm: str,
        name: str | None = None,
        description: str = "",
        terms: Terms = MANUAL,
        keep_seconds: float | None = None,
    ) -> Snapshot:
        """All disks of the VM at one LSN, and its configuration.  Without a name, the time is the name.

        keep_seconds: it expires so long from now; else as `terms` say.
        """
        row = self._lookup.vm(vm)
        check_text("description", description, DESCRIPTION_BYTES_MAX)
        if name is not None:
            self._lookup.check_new_snapshot(row, name)
        if keep_seconds is not None:
            terms = terms._replace(expires=to_text(self._clock() + keep_seconds))
        if terms.schedule is not None:
            self._refuse_over_cap(row)
        taken = self._take_snapshot(row, name or self._time_name(row), description, terms)
        return self._view_snapshot(row, taken, {})

    @_change
    def change_snapshot(self, vm: str, snapshot: str, change: Mapping[str, Any]) -> Snapshot:
        """Set what `change` names: description, expires, locked_until (ISO 8601 UTC, None: never, not locked)."""
        row = self._lookup.vm(vm)
        found = self._lookup.snapshot(row, snapshot)
        check_text("description", change.get("description", ""), DESCRIPTION_BYTES_MAX)
        wanted = {
            "description": found.description,
            "expires": found.expires,
            "locked_until": found.locked_until,
            **change,
        }
        with self._catalog.transaction(grows=True):
            self._catalog.set_snapshot_terms(found.id, **wanted)
        return self._view_snapshot(row, self._lookup.snapshot(row, snapshot))

    @_change
    def note_consistency(self, vm: str, snapshot: str, frozen_ms: int) -> Snapshot:
        """The guest was frozen, whole, while the snapshot was taken: say so, and for how long."""
        row = self._lookup.vm(vm)
        found = self._lookup.snapshot(row, snapshot)
        with self._catalog.transaction():
            self._catalog.set_snapshot_consistency(found.id, "vm", frozen_ms)
        return self._view_snapshot(row, self._lookup.snapshot(row, snapshot), {})

    @_change
    def expire_snapshots(self, snapshot_ids: list[int]) -> list[str]:
        """Delete snapshots whose time is over, all by one record; those that are locked or attached stay.

        Returns VM@SNAPSHOT of those that went.
        """
        attached = set(self._lookup.clients() or {})
        now = self._journal.now()
        going: list[tuple[SnapshotRow, list[int]]] = []
        for row in (self._catalog.snapshot_by_id(id) for id in snapshot_ids):
            if row is None or (row.locked_until or "") > now:
                continue
            ids = object_ids(self._catalog.snapshot_disks(row.id))
            if not attached.intersection(ids):
                going.append((row, ids))
        names = [f"{self._catalog.vm_name(row.vm_id)}@{row.name}" for row, _ids in going]
        all_ids = [id for _row, ids in going for id in ids]
        self._delete(intents.ExpireSnapshots([row.id for row, _ids in going], all_ids), all_ids, force=False)
        return names

    def _refuse_over_cap(self, vm: VMRow) -> None:
        cap = int(self._catalog.setting(SCHEDULED_CAP) or SCHEDULED_SNAPSHOTS_MAX)
        count = self._catalog.scheduled_count(vm.id)
        if count >= cap:
            raise Busy(
                f"VM {vm.name} has {count} snapshots of schedules, and the cap is {cap}: keep them for a shorter time, "
                "or raise it with blockdevctl schedule cap"
            )

    def list_snapshots(self, vm: str) -> list[Snapshot]:
        """Oldest first; without configuration texts and clients."""
        return view_snapshots_of(self._catalog, self._lookup.vm(vm))

    def show_snapshot(self, vm: str, snapshot: str) -> Snapshot:
        """One snapshot with its configuration text and clients."""
        self._lookup.snapshot(self._lookup.vm(vm), snapshot)
        clients = self._lookup.clients()
        with self._catalog.transaction():
            row = self._lookup.vm(vm)
            return self._view_snapshot(row, self._lookup.snapshot(row, snapshot), clients)

    @_change
    def delete_snapshot(self, vm: str, snapshot: str, force: bool = False) -> Snapshot:
        """Delete a snapshot; clones made of it are not touched.  Busy; forced, clients are cut off."""
        row = self._lookup.vm(vm)
        found = self._lookup.snapshot(row, snapshot)
        self._refuse_locked(row, found)
        was = self._view_snapshot(row, found)
        disks = self._catalog.snapshot_disks(found.id)
        intent = intents.DeleteSnapshot(vm, snapshot, found.id, object_ids(disks))
        self._delete(intent, intent.object_ids, force)
        return was

    def diff(self, vm: str, older: str | None, newer: str, disk: str | None = None) -> Diff:
        """What changed from `older` (None: from nothing) to `newer`, on all disks of `newer` or on one."""
        with self._catalog.transaction():
            row = self._lookup.vm(vm)
            after = self._lookup.snapshot_disks(row, newer, disk)
            before = (
                {} if older is None else {one.name: one for one in self._lookup.snapshot_disks(row, older)}
            )
        pairs: list[tuple[str, int | None, int]] = []
        for one in after:
            old = before.get(one.name)
            old_id = None if old is None else present(old, object_name(vm, one.name, older))
            pairs.append((one.name, old_id, present(one, object_name(vm, one.name, newer))))
        disks = []
        for name, old_id, new_id in pairs:
            extents = self._engine.diff(old_id, new_id)
            disks.append(DiskDiff(name, sum(extent.length for extent in extents), extents))
        return Diff(vm, older, newer, sum(one.changed_bytes for one in disks), disks)

    # clones and restores

    @_change
    def clone(self, vm: str, snapshot: str | None, new_name: str) -> VM:
        """A new VM from a snapshot's disks and configuration; without one, a snapshot is taken first."""
        return self._clone(vm, snapshot, [new_name])[0]

    @_change
    def clone_many(self, vm: str, snapshot: str | None, count: int, prefix: str) -> list[VM]:
        """VMs `PREFIX-1` to `PREFIX-COUNT`, all or none."""
        if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= CLONES_MAX:
            raise InvalidArgument(f"{count!r} clones cannot be made at once: take 1 to {CLONES_MAX}")
        check_name("VM", f"{prefix}-{count}")
        return self._clone(vm, snapshot, [f"{prefix}-{number}" for number in range(1, count + 1)])

    def _clone(self, vm: str, snapshot: str | None, names: list[str]) -> list[VM]:
        row = self._lookup.vm(vm)
        for name in names:
            self._lookup.check_new_vm(name)
        if snapshot is None:
            name = self._time_name(row, "clone-")
            taken = self._take_snapshot(row, name, f"for clone {names[0]}", Terms("clone"))
        else:
            taken = self._lookup.snapshot(row, snapshot)
        sources = [
            (disk.name, present(disk, object_name(vm, disk.name, taken.name)))
            for disk in self._catalog.snapshot_disks(taken.id)
        ]
        now = self._journal.now()
        vms = [[str(uuid.uuid4()), name] for name in names]
        specs = [
            (object_id, object_name(name, disk), encode_tag(Tag(vm_uuid, now)))
            for vm_uuid, name in vms
            for disk, object_id in sources
        ]
        disks = [disk for disk, _ in sources]
        intent = intents.Clone(f"{vm}@{taken.name}", taken.id, disks, now, vms, *row.policy)
        self._journal.run(intent, lambda: self._engine.clone(specs))
        return [view_vm(self._catalog, self._lookup.vm(name), {}) for name in names]

    @_change
    def restore(self, vm: str, snapshot: str, disk: str | None = None, force: bool = False) -> Restored:
        """Put the VM's disks and configuration, or one disk alone, back to a snapshot, all or none.

        The state before is kept in a snapshot of origin `restore`.  Disks that the snapshot lacks stay as they
        are; disks removed since come back.  Busy; forced, attached clients are cut off (errors, not other data
        under a running guest).
        """
        row = self._lookup.vm(vm)
        wanted = self._lookup.snapshot(row, snapshot)
        sources = {
            one.name: present(one, object_name(vm, one.name, snapshot))
            for one in self._lookup.snapshot_disks(row, snapshot, disk)
        }
        refuse_importing(row, [one for one in self._catalog.imports(row.id) if one.disk in sources])
        replaced = {one.name: one for one in self._catalog.disks(row.id) if one.name in sources}
        if not force:
            self._lookup.refuse_attached(object_ids(list(replaced.values())))
        safety = self._take_safety_snapshot(row, snapshot)
        now = self._journal.now()
        places = [
            (name, replaced[name].object_id, replaced[name].created)
            if name in replaced
            else (name, None, now)
            for name in sources
        ]
        intent = intents.Restore(
            *(row.id, row.uuid, vm, snapshot, wanted.id, disk is None),
            [[name, old_id] for name, old_id, _ in places],
            now,
        )
        self._journal.run(intent, lambda: self._put_back(row, list(sources.values()), places, force))
        self._journal.drop([old_id for _, old_id, _ in places if old_id is not None])
        shown = view_vm(self._catalog, self._lookup.vm(vm), self._lookup.clients())
        return Restored(shown, snapshot, list(sources), safety.name if safety else None)

    def _put_back(
        self, vm: VMRow, sources: list[int], places: list[tuple[str, int | None, str]], force: bool
    ) -> list[EngineObject]:
        """The engine step of a restore: clones beside the disks, then in their places, by one record."""
        temporary = encode_tag(Tag(vm.uuid, self._journal.now(), temporary=True))
        names = [f"{object_name(vm.name, name)}~new" for name, _, _ in places]
        made = self._engine.clone([(id, name, temporary) for id, name in zip(sources, names, strict=True)])
        self._journal.at_step("restore:cloned")
        replacements = [
            _Replacement(name, thing.id, old_id, created)
            for (name, old_id, created), thing in zip(places, made, strict=True)
        ]
        try:
            self._engine.relabel(self._replacing_labels(vm, replacements), force)
        except BlockdevError as error:
            if was_refused(error):
                self._journal.drop([thing.id for thing in made])
            raise
        return made

    # imports

    @_change
    def begin_import(self, vm: str, disk: str, size_bytes: int, create: bool) -> Import:
        """Make a vdisk of its own for an image's data; the VM's disk changes only by `finish_import`.

        With `create` the disk must not exist yet; without, it must, keeps its size if that is larger, and must
        not be attached.  An import that is not finished when either process ends is dropped.
        """
        row = self._lookup.vm(vm)
        check_size(f"disk {disk}", size_bytes)
        if create:
            self._lookup.check_new_disk(row, disk)
        else:
            found = self._lookup.disk(row, disk)
            refuse_importing(row, self._lookup.imports_into(row, disk))
            self._lookup.refuse_attached(object_ids([found]))
            size_bytes = max(size_bytes, found.size_bytes)
        now = self._journal.now()
        tag = encode_tag(Tag(row.uuid, now, temporary=True))
        intent = intents.BeginImport(row.id, vm, disk, size_bytes, create, now)
        self._journal.run(intent, lambda: self._engine.create([(size_bytes, import_name(vm, disk), tag)]))
        [begun] = self._lookup.imports_into(row, disk)
        self._journal.keep_import(begun.id)
        return view_import(row, begun)

    @_change
    def finish_import(self, import_id: int, force: bool = False) -> Disk:
        """The imported data becomes the disk, at once.  Busy: the disk to be replaced is attached."""
        begun, row = self._lookup.image_import(import_id)
        old = self._catalog.disk(row.id, begun.disk)
        replacement = _Replacement(
            begun.disk,
            begun.object_id,
            None if old is None else old.object_id,
            self._journal.now() if old is None else old.created,
        )
        old_ids = [] if replacement.old_id is None else [replacement.old_id]
        if not force:
            self._lookup.refuse_attached(old_ids)
        labels = self._replacing_labels(row, [replacement])
        intent = intents.FinishImport(
            begun.id, row.id, row.name, begun.disk, begun.object_id, begun.size_bytes, replacement.created
        )
        # by force: whoever wrote the image may not have left quite yet
        self._journal.run(intent, lambda: self._engine.relabel(labels, force=True))
        self._journal.forget_import(begun.id)
        if old_ids:
            self._journal.drop(old_ids)
        return view_disk(row, self._lookup.disk(row, begun.disk), {})

    @_change
    def abort_import(self, import_id: int) -> None:
        """Drop what was imported; the VM is as before.  An import that is no more is no error."""
        try:
            begun, row = self._lookup.image_import(import_id)
        except NotFound:
            return
        intent = intents.AbortImport(begun.id, row.name, begun.disk, begun.object_id)
        self._journal.forget_import(begun.id)  # it goes, if not now, then with the next agreement
        try:
            self._delete(intent, [begun.object_id], force=True)
        except BlockdevError:
            self._journal.agreed = False
            raise

    # parts of operations

    def _delete(self, intent: intents.Intent, ids: list[int], force: bool) -> None:
        """Runs an operation whose engine step deletes objects; what the pool lacks anyway is no error."""
        if ids:
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
        return self._lookup.snapshot(vm, name)

    def _take_safety_snapshot(self, vm: VMRow, snapshot: str) -> SnapshotRow | None:
        """What a restore can be taken back with; None when there is nothing left to lose."""
        if not object_ids(self._catalog.disks(vm.id)):
            return None
        name = self._time_name(vm, "restore-")
        return self._take_snapshot(vm, name, f"before restore of {snapshot}", Terms("restore"), skip_missing=True)

    def _refuse_locked(self, vm: VMRow, snapshot: SnapshotRow | None) -> None:
        if snapshot is not None and (snapshot.locked_until or "") > self._journal.now():
            raise Locked(
                f"snapshot {vm.name}@{snapshot.name} is locked until {snapshot.locked_until}: wait, or release it with "
                f"blockdevctl snapshot lock {vm.name}@{snapshot.name} --release"
            )

    def _time_name(self, vm: VMRow, prefix: str = "") -> str:
        """A snapshot name that says when, and is free."""
        first = name = prefix + to_name(self._clock())
        number = 2
        while self._catalog.snapshot(vm.id, name) is not None:
            name = f"{first}-{number}"
            number += 1
        return name

    def _labels(self, vm: VMRow, new_name: str) -> list[Label]:
        """What relabels all of a VM's objects for a new name."""
        labels: list[Label] = []
        for disk in self._catalog.disks(vm.id):
            if disk.object_id is not None:
                tag = encode_tag(Tag(vm.uuid, disk.created))
                labels.append((disk.object_id, object_name(new_name, disk.name), tag))
        snapshots = {snapshot.id: snapshot for snapshot in self._catalog.snapshots(vm.id)}
        for one in self._catalog.snapshot_disks_of_vm(vm.id):
            if one.object_id is not None:
                of = snapshots[one.snapshot_id]
                tag = encode_tag(Tag(vm.uuid, of.created, of.origin, of.consistency))
                labels.append((one.object_id, object_name(new_name, one.name, of.name), tag))
        return labels

    def _replacing_labels(self, vm: VMRow, replacements: list[_Replacement]) -> list[Label]:
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
        return view_snapshot(vm, row, disks, self._catalog.config_text(row.config_id), clients)
