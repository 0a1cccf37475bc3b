"""The operations on VMs, for the REST layer: checks, then catalog and engine in step.

Threads: every method may be called from any thread.  Operations that change something run one at a time; reads
and diffs wait for no operation.  Durable: whatever a method returned.  Order of steps and what a crash between any
two leaves: docs/agreement.md.
"""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Mapping
from typing import Any

from blockdev.errors import AlreadyExists, BlockdevError, Busy, InvalidArgument
from blockdev.policies import AS_POOL, DiskPolicy, check_disk_policy, check_pool_policy
from blockdev.vmmap import intents
from blockdev.vmmap.catalog import VMRow
from blockdev.vmmap.diffs import DiffOperations
from blockdev.vmmap.domains import DomainOperations
from blockdev.vmmap.imports import ImportOperations
from blockdev.vmmap.lookup import object_ids, present, refuse_importing
from blockdev.vmmap.machine import check_config
from blockdev.vmmap.model import (
    VM,
    Agreement,
    Disk,
    Space,
    Status,
    VMSpace,
)
from blockdev.vmmap.names import (
    DESCRIPTION_BYTES_MAX,
    check_name,
    check_size,
    check_text,
    object_name,
)
from blockdev.vmmap.operation import Label, change
from blockdev.vmmap.received import ReceivedOperations
from blockdev.vmmap.sending import SendingOperations
from blockdev.vmmap.snapshots import SnapshotOperations
from blockdev.vmmap.space import space_of_vms
from blockdev.vmmap.tags import Tag, encode_tag
from blockdev.vmmap.views import (
    view_disk,
    view_import,
    view_vm,
    view_vms,
)

SOCKET_PATH_BYTES_MAX = 107


class VMs(
    SnapshotOperations,
    ReceivedOperations,  # and so those on clones, copies, receipts and digests
    DiffOperations,
    SendingOperations,
    ImportOperations,
    DomainOperations,
):
    """The VMs of one home: a catalog and an engine."""

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

    @change
    def set_pool_capacity(self, capacity_bytes: int) -> Status:
        """How much the pool may hold; it goes on meanwhile.  InvalidArgument: it holds more already."""
        self._engine.set_capacity(capacity_bytes)
        return self.status()

    @change
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

    @change
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
        config = check_config(config)
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
        with self._catalog.transaction():
            return view_vms(self._catalog, self._catalog.vms())

    def page_of_vms(self, after: str, glob: str | None, cloned_from: str | None, count: int) -> list[VM]:
        """As list_vms, those after the name `after` whose name matches `glob` (`*`, `?`, `[a-c]`), and that are clones of a VM or VM@SNAPSHOT."""
        with self._catalog.transaction():
            return view_vms(self._catalog, self._catalog.vms_page(after, glob, cloned_from, count))

    def show_vm(self, name: str) -> VM:
        """One VM, with the clients attached to its disks when the engine answers.  NotFound."""
        self._lookup.vm(name)
        clients = self._lookup.clients()
        with self._catalog.transaction():
            return view_vm(self._catalog, self._lookup.vm(name), clients)

    @change
    def rename_vm(self, name: str, new_name: str, force: bool = False) -> VM:
        """All exports of the VM are renamed at once.  Busy names the attached clients; forced, they stay attached.

        Busy also while a disk of it is being imported, forced or not.
        """
        vm = self._lookup.vm(name)
        self._lookup.check_new_vm(new_name)
        refuse_importing(vm, self._catalog.imports(vm.id))
        if not force:
            self._refuse_linked(vm)
        labels = self._labels(vm, new_name)
        if labels:
            intent = intents.RenameVM(vm.id, vm.uuid, name, new_name, labels[0][0])
            keep = force or self.offers.has_only_devices([id for id, _name, _tag in labels])
            self._journal.run(intent, lambda: self._engine.relabel(labels, keep))
        else:
            with self._catalog.transaction(grows=True):
                self._catalog.rename_vm(vm.id, new_name)
        return view_vm(self._catalog, self._lookup.vm(new_name), self._lookup.clients())

    @change
    def delete_vm(self, name: str, force: bool = False) -> VM:
        """Delete the VM with its disks and snapshots; what it was is returned.  Busy; forced, clients are cut off.

        Busy also while a peer sends it.
        """
        vm = self._lookup.vm(name)
        imports = self._catalog.imports(vm.id)
        self._refuse_locked(vm, self._catalog.locked_snapshot(vm.id, self._journal.now()))
        self._refuse_registered(vm)
        if not force:
            refuse_importing(vm, imports)
            self._refuse_sent(vm)
        was = view_vm(self._catalog, vm)
        things = [*self._catalog.disks(vm.id), *self._catalog.snapshot_disks_of_vm(vm.id), *imports]
        half_received = self._vdisk_ids(self._catalog.receipts_into(vm.id))
        intent = intents.DeleteVM(vm.id, name, [*object_ids(things), *half_received])
        self._delete(intent, intent.object_ids, force)
        self.events.end("quiesce", name)  # another VM of that name has troubles of its own
        return was

    def _refuse_registered(self, vm: VMRow) -> None:
        """Not even forced: that cuts clients off, and asks nothing of another system, which may not answer."""
        link = self._catalog.link(vm.id)
        if link is not None and link.made:
            raise Busy(
                f"VM {vm.name} is registered with hypervisor {link.hypervisor}, as domain {link.name}: "
                f"blockdevctl vm unregister {vm.name} first"
            )

    def _refuse_sent(self, vm: VMRow) -> None:
        received = self._catalog.receiving_vm(vm.id)
        if received is not None:
            peer = self._peer_name(received.peer_id)
            raise Busy(f"VM {vm.name} is received from {peer}, which sends it again: end that there first, or force it (--force)")

    def _refuse_linked(self, vm: VMRow) -> None:
        link = self._catalog.link(vm.id)
        if link is not None:
            forced = "use force and then change the domain's disks"
            raise Busy(
                f"domain {link.name} of hypervisor {link.hypervisor} has the exports of VM {vm.name} by their names: "
                + (f"blockdevctl vm unregister {vm.name} first, or {forced}" if link.made else forced)
            )

    def get_config(self, name: str) -> str:
        """The VM's configuration text.  NotFound."""
        with self._catalog.transaction():
            return self._catalog.config_text(self._lookup.vm(name).config_id)

    @change
    def set_config(self, name: str, config: str) -> VM:
        """Replace the VM's configuration text (at most 1 MiB); passwords in it are not kept."""
        config = check_config(config)
        vm = self._lookup.vm(name)
        self._refuse_received(vm)
        with self._catalog.transaction(grows=True):
            self._catalog.set_config(vm.id, config)
        return view_vm(self._catalog, self._lookup.vm(name))

    @change
    def set_description(self, name: str, description: str) -> VM:
        """Replace the VM's description (at most 4 KiB)."""
        check_text("description", description, DESCRIPTION_BYTES_MAX)
        with self._catalog.transaction(grows=True):
            self._catalog.set_description(self._lookup.vm(name).id, description)
        return view_vm(self._catalog, self._lookup.vm(name))

    @change
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

    @change
    def set_agent(self, name: str, path: str | None) -> VM:
        """Where the VM's guest agent listens: the absolute path of a Unix socket on this machine; None: nowhere."""
        if path is not None and not (path.startswith("/") and path.isprintable() and len(path.encode()) <= SOCKET_PATH_BYTES_MAX):
            raise InvalidArgument(
                f"{path!r} cannot be a guest agent's socket: give an absolute path of at most {SOCKET_PATH_BYTES_MAX} bytes"
            )
        with self._catalog.transaction(grows=True):
            self._catalog.set_agent(self._lookup.vm(name).id, path)
        return view_vm(self._catalog, self._lookup.vm(name))

    # disks

    @change
    def add_disk(self, vm: str, disk: str, size_bytes: int) -> Disk:
        """A new, empty disk.  AlreadyExists, also while a disk of that name is being imported."""
        row = self._lookup.vm(vm)
        self._refuse_received(row)
        self._lookup.check_new_disk(row, disk)
        check_size(f"disk {disk}", size_bytes)
        now = self._journal.now()
        specs = [(size_bytes, object_name(vm, disk), encode_tag(Tag(row.uuid, now)))]
        intent = intents.AddDisk(row.id, row.uuid, vm, disk, size_bytes, now)
        self._journal.run(intent, lambda: self._engine.create(specs))
        return view_disk(row, self._lookup.disk(row, disk), {})

    @change
    def remove_disk(self, vm: str, disk: str, force: bool = False) -> Disk:
        """Delete a disk; what snapshots hold of it stays.  Busy; forced, clients are cut off."""
        row = self._lookup.vm(vm)
        self._refuse_received(row)
        was = self._lookup.disk(row, disk)
        imports = self._lookup.imports_into(row, disk)
        if not force:
            refuse_importing(row, imports)
        intent = intents.RemoveDisk(
            vm, disk, was.id, object_ids([was, *imports]), [one.id for one in imports]
        )
        self._delete(intent, intent.object_ids, force)
        return view_disk(row, was)

    @change
    def resize_disk(self, vm: str, disk: str, size_bytes: int, force_shrink: bool = False) -> Disk:
        """Grow a disk (attached clients see it when they attach again), or shrink it when told twice.

        InvalidArgument: shrinking without `force_shrink`; Busy: shrinking while attached.
        """
        row = self._lookup.vm(vm)
        self._refuse_received(row)
        was = self._lookup.disk(row, disk)
        check_size(f"disk {disk}", size_bytes)
        object_id = present(was, f"disk {vm}/{disk}")
        if size_bytes < was.size_bytes and not force_shrink:
            raise InvalidArgument(
                f"disk {vm}/{disk} has {was.size_bytes} bytes: shrinking it to {size_bytes} loses what is beyond; "
                "take a snapshot first, then say force_shrink, if that is meant"
            )
        if size_bytes != was.size_bytes:
            intent = intents.ResizeDisk(vm, disk, was.id, object_id, size_bytes)
            shrunk = [object_id] if size_bytes < was.size_bytes else []
            with self.offers.letting_go(shrunk, force=False):
                self._journal.run(intent, lambda: self._engine.resize(object_id, size_bytes, force_shrink))
        return view_disk(row, self._lookup.disk(row, disk), self._lookup.clients())

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

