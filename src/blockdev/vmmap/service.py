"""The operations on VMs, for the REST layer: checks, then catalog and engine in step.

Threads: every method may be called from any thread.  Operations that change something run one at a time; reads
and diffs wait for no operation.  Durable: whatever a method returned.  Order of steps and what a crash between any
two leaves: docs/agreement.md.
"""

from __future__ import annotations

from collections.abc import Callable

from blockdev.clock import now_seconds
from blockdev.engine.client import EngineClient
from blockdev.vmmap.catalog import Catalog
from blockdev.vmmap.clock import Clock
from blockdev.vmmap.model import VM, Agreement, Diff, Disk, Import, Restored, Snapshot, Status


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

    def reconcile(self) -> Agreement:
        """Bring catalog and engine into agreement; also done by the first change after either was started."""
        raise NotImplementedError

    def status(self) -> Status:
        """Both planes; never raises because the engine is away."""
        raise NotImplementedError

    # VMs

    def create_vm(
        self, name: str, disks: list[tuple[str, int]], config: str = "", description: str = ""
    ) -> VM:
        """A new VM with empty disks of (name, size in bytes); it may have none yet.

        InvalidArgument: name, size or text that cannot be used; AlreadyExists; PoolFull; Unavailable.
        """
        raise NotImplementedError

    def list_vms(self) -> list[VM]:
        """All VMs by name; `clients` of their disks are not asked for."""
        raise NotImplementedError

    def show_vm(self, name: str) -> VM:
        """One VM, with the clients attached to its disks when the engine answers.  NotFound."""
        raise NotImplementedError

    def rename_vm(self, name: str, new_name: str, force: bool = False) -> VM:
        """All exports of the VM are renamed at once.  Busy names the attached clients; forced, they stay attached."""
        raise NotImplementedError

    def delete_vm(self, name: str, force: bool = False) -> VM:
        """Delete the VM with its disks and snapshots; what it was is returned.  Busy; forced, clients are cut off."""
        raise NotImplementedError

    def get_config(self, name: str) -> str:
        """The VM's configuration text.  NotFound."""
        raise NotImplementedError

    def set_config(self, name: str, config: str) -> VM:
        """Replace the VM's configuration text (at most 1 MiB)."""
        raise NotImplementedError

    def set_description(self, name: str, description: str) -> VM:
        """Replace the VM's description (at most 4 KiB)."""
        raise NotImplementedError

    # disks

    def add_disk(self, vm: str, disk: str, size_bytes: int) -> Disk:
        """A new, empty disk.  AlreadyExists, also while a disk of that name is being imported."""
        raise NotImplementedError

    def remove_disk(self, vm: str, disk: str, force: bool = False) -> Disk:
        """Delete a disk; what snapshots hold of it stays.  Busy; forced, clients are cut off."""
        raise NotImplementedError

    def resize_disk(self, vm: str, disk: str, size_bytes: int, force_shrink: bool = False) -> Disk:
        """Grow a disk (attached clients see it when they attach again), or shrink it when told twice.

        InvalidArgument: shrinking without `force_shrink`; Busy: shrinking while attached.
        """
        raise NotImplementedError

    # snapshots

    def create_snapshot(self, vm: str, name: str | None = None, description: str = "") -> Snapshot:
        """All disks of the VM at one LSN, and its configuration.  Without a name, the time is the name."""
        raise NotImplementedError

    def list_snapshots(self, vm: str) -> list[Snapshot]:
        """Oldest first; without configuration texts and clients."""
        raise NotImplementedError

    def show_snapshot(self, vm: str, snapshot: str) -> Snapshot:
        """One snapshot with its configuration text and clients."""
        raise NotImplementedError

    def delete_snapshot(self, vm: str, snapshot: str, force: bool = False) -> Snapshot:
        """Delete a snapshot; clones made of it are not touched.  Busy; forced, clients are cut off."""
        raise NotImplementedError

    def diff(self, vm: str, older: str | None, newer: str, disk: str | None = None) -> Diff:
        """What changed from `older` (None: from nothing) to `newer`, on all disks of `newer` or on one."""
        raise NotImplementedError

    # clones and restores

    def clone(self, vm: str, snapshot: str | None, new_name: str) -> VM:
        """A new VM from a snapshot's disks and configuration; without one, a snapshot is taken first."""
        raise NotImplementedError

    def clone_many(self, vm: str, snapshot: str | None, count: int, prefix: str) -> list[VM]:
        """VMs `PREFIX-1` to `PREFIX-COUNT`, all or none."""
        raise NotImplementedError

    def restore(self, vm: str, snapshot: str, disk: str | None = None, force: bool = False) -> Restored:
        """Put the VM's disks and configuration, or one disk alone, back to a snapshot, all or none.

        The state before is kept in a snapshot of origin `restore`.  Disks that the snapshot lacks stay as they
        are; disks removed since come back.  Busy; forced, attached clients are cut off (errors, not other data
        under a running guest).
        """
        raise NotImplementedError

    # imports

    def begin_import(self, vm: str, disk: str, size_bytes: int, create: bool) -> Import:
        """Make a vdisk of its own for an image's data; the VM's disk changes only by `finish_import`.

        With `create` the disk must not exist yet; without, it must, keeps its size if that is larger, and must
        not be attached.  An import that is not finished when either process ends is dropped.
        """
        raise NotImplementedError

    def finish_import(self, import_id: int, force: bool = False) -> Disk:
        """The imported data becomes the disk, at once.  Busy: the disk to be replaced is attached."""
        raise NotImplementedError

    def abort_import(self, import_id: int) -> None:
        """Drop what was imported; the VM is as before.  An import that is no more is no error."""
        raise NotImplementedError
