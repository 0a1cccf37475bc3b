"""What changed on a VM between two of its snapshots: all of it page by page, how much of it, and the two objects to compare.

Nothing is changed, and nothing waits.  Memory: that of one page.
"""

from __future__ import annotations

from typing import NamedTuple

from blockdev.constants import BLOCK_BYTES, CHUNK_EXTENTS_MAX, VDISK_BYTES_MAX
from blockdev.errors import InvalidArgument
from blockdev.types import Extent
from blockdev.vmmap.lookup import present
from blockdev.vmmap.model import Diff, DiskDiff, DiskRestore, RestorePreview
from blockdev.vmmap.names import object_name
from blockdev.vmmap.operation import Operations


class DiskPair(NamedTuple):
    """One disk of a snapshot, and the same disk in an older one."""

    disk: str
    older_id: int | None  # None: it has no such disk, or there is none
    newer_id: int
    size_bytes: int  # of the newer one


class DiffOperations(Operations):
    """The operations that compare snapshots."""

    def diff(
        self,
        vm: str,
        older: str | None,
        newer: str,
        disk: str | None = None,
        count: int = CHUNK_EXTENTS_MAX,
        after: str | None = None,
    ) -> Diff:
        """What changed from `older` (None: from nothing) to `newer`, on all disks of `newer` or on one.

        count: of extents on this page; 0: how much there is, alone.  after: `next` of the page before.  InvalidArgument.
        """
        pairs, offset = self.disk_pairs(vm, older, newer, disk), 0
        if after is not None:
            pairs, offset = _from_place(pairs, after)
            pages, rest = self._page(pairs, offset, count)
            return Diff(vm, older, newer, None, [DiskDiff(name, None, None, page) for name, page in pages.items()], rest)
        totals = {pair.disk: self._engine.count_changes(pair.older_id, pair.newer_id) for pair in pairs}
        pages, rest = self._page(pairs, offset, count)
        disks = [DiskDiff(name, *total, pages.get(name, [])) for name, total in totals.items()]
        return Diff(vm, older, newer, sum(changed for changed, _ in totals.values()), disks, rest)

    def preview_restore(self, vm: str, snapshot: str, disk: str | None = None) -> RestorePreview:
        """What restoring the snapshot, or one disk of it, would change.  Guests go on writing meanwhile.  NotFound."""
        clients = self._lookup.clients() or {}
        with self._catalog.transaction():
            row = self._lookup.vm(vm)
            wanted = self._lookup.snapshot(row, snapshot)
            then = self._lookup.snapshot_disks(row, snapshot, disk)
            now = {one.name: one for one in self._catalog.disks(row.id)}
            newer_count = self._catalog.snapshot_count_after(row.id, wanted.lsn)
        disks = []
        for one in then:
            there = now.get(one.name)
            then_id = present(one, object_name(vm, one.name, snapshot))
            now_id = None if there is None else there.object_id
            # from the snapshot to the disk as it is: what would go
            changed, extents = self._engine.count_changes(*((None, then_id) if now_id is None else (then_id, now_id)))
            attached = [] if now_id is None else clients.get(now_id, [])
            disks.append(DiskRestore(one.name, one.size_bytes, there and there.size_bytes, changed, extents, attached))
        kept = [] if disk is not None else sorted(set(now) - {one.name for one in then})
        return RestorePreview(
            *(vm, snapshot, wanted.created, sum(one.changed_bytes for one in disks), disks, kept),
            *(disk is None and wanted.config_id != row.config_id, newer_count),
        )

    def disk_pairs(self, vm: str, older: str | None, newer: str, disk: str | None = None) -> list[DiskPair]:
        """What is to be compared for it.  NotFound, also for what the pool lacks."""
        with self._catalog.transaction():
            row = self._lookup.vm(vm)
            after = self._lookup.snapshot_disks(row, newer, disk)
            before = {} if older is None else {one.name: one for one in self._lookup.snapshot_disks(row, older)}
        pairs = []
        for one in after:
            old = before.get(one.name)
            old_id = None if old is None else present(old, object_name(vm, one.name, older))
            pairs.append(DiskPair(one.name, old_id, present(one, object_name(vm, one.name, newer)), one.size_bytes))
        return pairs

    def _page(self, pairs: list[DiskPair], offset: int, count: int) -> tuple[dict[str, list[Extent]], str | None]:
        """At most `count` extents by disk, and where the rest begins."""
        pages: dict[str, list[Extent]] = {}
        for pair in pairs:
            if count == 0:
                return pages, f"{pair.disk}:{offset}"
            extents, rest = self._engine.changes(pair.older_id, pair.newer_id, offset, count)
            if extents:
                pages[pair.disk] = extents
            if rest is not None:
                return pages, f"{pair.disk}:{rest}"
            count -= len(extents)
            offset = 0
        return pages, None


def _from_place(pairs: list[DiskPair], place: str) -> tuple[list[DiskPair], int]:
    """The disks from that of a `next` on, and its offset.  InvalidArgument."""
    disk, _, text = place.partition(":")
    names = [pair.disk for pair in pairs]
    is_offset = text.isascii() and text.isdigit() and len(text) < 20
    if disk not in names or not is_offset or int(text) % BLOCK_BYTES or int(text) > VDISK_BYTES_MAX:
        raise InvalidArgument(f"{place!r} is no place in this diff: give `next` of the page before")
    return pairs[names.index(disk) :], int(text)
