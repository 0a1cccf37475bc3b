"""What a Sender sends: a snapshot of a VM of this home, compared with an older one of the same VM.

Nothing is held: a snapshot that is deleted meanwhile ends the transfer with NotFound, its base with BaseLost, after which
the sender begins again with an older one.  Threads: one at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from blockdev.engine.client import EngineClient
from blockdev.errors import Gone, NotFound
from blockdev.replicate.control import Begin
from blockdev.replicate.sender import BaseLost
from blockdev.vmmap.catalog_replication import Purpose
from blockdev.vmmap.sending import SentSnapshot
from blockdev.vmmap.service import VMs

T = TypeVar("T")


class SnapshotSource:
    """One snapshot; see sender.Source for what its methods mean."""

    def __init__(self, vms: VMs, engine: EngineClient, vm_id: int, snapshot_uuid: str) -> None:
        """NotFound: it was deleted, or the pool lacks a disk of it."""
        self._vms = vms
        self._engine = engine
        self._vm_id = vm_id
        self._sent: SentSnapshot = vms.sent_snapshot(vm_id, snapshot_uuid)
        self._base_ids: list[int | None] = [None] * len(self._sent.object_ids)

    def begin(
        self,
        purpose: Purpose,
        keep_seconds: int | None,
        rpo_seconds: int | None,
        vm_name: str | None = None,
    ) -> Begin:
        """What the receiver is told first.  vm_name: of a copy."""
        return Begin(purpose, self._sent.copy, list(self._sent.ancestors), keep_seconds, rpo_seconds, vm_name)

    def set_base(self, base_uuid: str | None, is_based: list[bool]) -> int:
        names = [disk.name for disk in self._sent.copy.disks]
        try:
            base = {} if base_uuid is None else self._vms.snapshot_objects(self._vm_id, base_uuid)
            self._base_ids = [base[name] if based else None for name, based in zip(names, is_based, strict=True)]
        except (NotFound, KeyError):
            raise _base_lost() from None
        changed = 0
        for disk, newer in enumerate(self._sent.object_ids):
            try:
                changed += self._engine.count_changes(self._base_ids[disk], newer)[0]
            except (NotFound, Gone) as error:
                raise self._lost(disk, error) from error
        return changed

    def offers(self, disk: int, first_block: int, count: int) -> tuple[bytes, int | None]:
        try:
            return self._engine.offers(self._base_ids[disk], self._sent.object_ids[disk], first_block, count)
        except (NotFound, Gone) as error:
            raise self._lost(disk, error) from error

    def fetch(self, disk: int, blocks: bytes, use: Callable[[memoryview], T]) -> T:
        return self._engine.fetch(self._sent.object_ids[disk], blocks, use)

    def prove(self, disk: int, blocks: bytes) -> bytes:
        return self._engine.prove(self._sent.object_ids[disk], blocks)

    def digest(self, disk: int) -> bytes:
        return self._vms.snapshot_digests(self._sent.snapshot_id)[disk]

    def _lost(self, disk: int, error: Exception) -> Exception:
        """Which of the two is gone."""
        if self._base_ids[disk] is None:
            return error
        try:
            self._engine.get(self._sent.object_ids[disk])
        except NotFound:
            return error
        return _base_lost()


def _base_lost() -> BaseLost:
    return BaseLost("the snapshot that was built on was deleted while another was being sent: it begins again with an older one")
