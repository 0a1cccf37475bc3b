"""How the replication of each VM is, and how it was."""

from __future__ import annotations

from blockdev.replicate.model import Replicated, Sample, Transfer
from blockdev.replicate.parts import Parts


class StatusOperations(Parts):
    """The operations that tell."""

    def status(self, vm: str | None = None) -> list[Replicated]:
        """One for each VM and path, or peer, by VM and way.  Of one VM: also `not configured`.  NotFound."""
        raise NotImplementedError

    def history(self, vm: str | None = None, before: int | None = None, count: int = 100) -> list[Transfer]:
        """Transfers that ended, newest first, those with an id below `before`; of one VM, or all.  NotFound."""
        with self._catalog.transaction():
            uuid = None if vm is None else self._vm(vm).uuid
            return [Transfer(*row) for row in self._catalog.transfers(uuid, before, count)]

    def samples(self, vm: str, since: str) -> list[Sample]:
        """What it did minute by minute since a time (ISO 8601 UTC), oldest first.  NotFound."""
        with self._catalog.transaction():
            rows = self._catalog.samples(self._vm(vm).uuid, since)
        return [
            Sample(row.time, row.direction, row.way, row.logical_bytes, row.network_bytes, row.remaining_bytes, row.lag_seconds)
            for row in rows
        ]
