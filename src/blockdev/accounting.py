"""What takes a pool's space: how much disks and snapshots hold, share, and would give back.

A block belongs to the narrowest of these that has all references to it: the disks of a group, one of its snapshots, all its
snapshots, the group, the pool.  So all numbers come from one walk over the maps, in which a node is met at most once for each
of these five, and they add up: see docs/space.md.
"""

from __future__ import annotations

from typing import NamedTuple


class Group(NamedTuple):
    """Disks and snapshots that are counted together: a VM's."""

    vdisk_ids: list[int]
    # each point in time, oldest first: (object id of a disk's snapshot, of the same disk's in the snapshot before, or None)
    snapshots: list[list[tuple[int, int | None]]]


class PoolUsage(NamedTuple):
    """Sizes in bytes; used = metadata + stored + reclaimable."""

    capacity_bytes: int
    used_bytes: int  # by segments and map files
    metadata_bytes: int  # maps, and what describes the blocks in segments
    stored_bytes: int  # by blocks that a disk or snapshot reaches
    reclaimable_bytes: int  # by what none reaches: a compaction gives it back
    logical_bytes: int  # data of all disks as guests see it, each in full
    referenced_bytes: int  # the same, of disks and snapshots
    disk_distinct_bytes: int  # logical_bytes, when what is there more than once counts once
    distinct_bytes: int  # referenced_bytes, likewise


class SnapshotUsage(NamedTuple):
    changed_bytes: int  # since the one before: written or discarded
    frees_bytes: int  # that deleting it alone gives back


class GroupUsage(NamedTuple):
    data_bytes: int  # of its disks as guests see it
    shared_bytes: int  # of these, in blocks that something else has, too
    unique_stored_bytes: int  # that deleting all of it gives back
    snapshots_stored_bytes: int  # that deleting its snapshots gives back
    snapshots: list[SnapshotUsage]  # in the order asked for


class Usage(NamedTuple):
    pool: PoolUsage
    groups: list[GroupUsage]  # in the order asked for
