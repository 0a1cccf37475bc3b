"""What a job makes that nobody may keep unless the job ends well: marked in the catalog itself, by its description.

A VM whose images are being imported, and a snapshot that is there for a running export only.  When the control plane
dies under such a job, `sweep` removes what carries the mark at the next start: no user was told that it exists.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from blockdev.errors import BlockdevError, InvalidArgument, NotFound
from blockdev.policies import AS_POOL, DiskPolicy
from blockdev.vmmap.model import VM, Snapshot
from blockdev.vmmap.names import UNFINISHED, is_unfinished
from blockdev.vmmap.service import VMs

VM_MARK = f"{UNFINISHED}: its images are being imported"
SNAPSHOT_MARK = f"{UNFINISHED}: taken for a running export"


def check_description(description: str) -> str:
    """Nobody but us may write the mark."""
    if is_unfinished(description):
        raise InvalidArgument(f"a description cannot begin with {UNFINISHED}: take other words")
    return description


class Unfinished:
    """The marked things of running jobs, which a sweep leaves alone."""

    def __init__(self, vms: VMs) -> None:
        self._vms = vms
        self._lock = threading.Lock()
        self._live: set[str] = set()  # VM, VM@SNAPSHOT
        self.sweep_due = threading.Event()
        self.sweep_due.set()  # for what an earlier control plane left

    @contextmanager
    def vm(
        self,
        name: str,
        empty_disks: list[tuple[str, int]],
        config: str,
        description: str,
        policy: DiskPolicy = AS_POOL,
    ) -> Iterator[VM]:
        """A new VM; kept, with `description`, if what is done inside succeeds."""
        with self._alive(name):
            made = self._vms.create_vm(name, empty_disks, config, VM_MARK, policy)
            try:
                yield made
                self._require(made)
                self._vms.set_description(name, description)
            except BaseException:
                with self.removing():
                    self._require(made)
                    self._vms.delete_vm(name, force=True)
                raise

    @contextmanager
    def snapshot(self, vm: str, name: str) -> Iterator[Snapshot]:
        """A snapshot of this instant, for as long as something is done inside."""
        self._vms.refresh_config(vm)
        with self._alive(f"{vm}@{name}"):
            taken = self._vms.create_snapshot(vm, name, SNAPSHOT_MARK)
            try:
                yield taken
            finally:
                with self.removing():
                    self._vms.delete_snapshot(vm, name, force=True)

    def sweep(self) -> None:
        """Remove what the death of an earlier control plane left.  Raises Unavailable."""
        for vm in self._vms.list_vms():
            if vm.description == VM_MARK and self._is_dead(vm.name):
                with suppress(NotFound):
                    self._vms.delete_vm(vm.name, force=True)
            elif vm.snapshot_count:
                self._sweep_snapshots(vm.name)

    def _sweep_snapshots(self, vm: str) -> None:
        with suppress(NotFound):
            for snapshot in self._vms.list_snapshots(vm):
                if snapshot.description == SNAPSHOT_MARK and self._is_dead(f"{vm}@{snapshot.name}"):
                    self._vms.delete_snapshot(vm, snapshot.name, force=True)

    def _is_dead(self, thing: str) -> bool:
        with self._lock:
            return thing not in self._live

    def _require(self, made: VM) -> None:
        """NotFound if it was deleted meanwhile, also when another of its name has been made since."""
        if self._vms.show_vm(made.name).uuid != made.uuid:
            raise NotFound(f"VM {made.name} was deleted while its images were being imported")

    @contextmanager
    def removing(self) -> Iterator[None]:
        """What cannot be removed now, a later sweep removes."""
        try:
            yield
        except NotFound:
            pass
        except BlockdevError:
            self.sweep_due.set()

    @contextmanager
    def _alive(self, thing: str) -> Iterator[None]:
        with self._lock:
            self._live.add(thing)
        try:
            yield
        finally:
            with self._lock:
                self._live.discard(thing)
