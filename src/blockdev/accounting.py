"""What takes a pool's space: how much disks and snapshots hold, share, and would give back.

A block belongs to the narrowest of these that has all references to it: the disks of a group, one of its snapshots, all its
snapshots, the group, the pool.  So all numbers come from one walk over the maps, in which a node is met at most once for each
of these five, and they add up: see docs/space.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from blockdev._accounting import Accountant
from blockdev.constants import BLOCK_BYTES
from blockdev.errors import Gone, InvalidArgument
from blockdev.records import KIND_VDISK, MAP_HEIGHT_MAX, Table
from blockdev.recovery import list_segments

if TYPE_CHECKING:
    from blockdev.pool import Pool

STEP_NODES = 4096  # between two looks at whether the pool was closed
OWNERS_BYTES_MAX = 256 << 20  # for the owners of blocks at once: of 256 GiB of data
NODE_BYTES = 2 * 4608  # in both node files
POOL_OWNER = 1


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
    unique_maps_bytes: int  # of maps that nothing else has: what says where its blocks are
    snapshots: list[SnapshotUsage]  # in the order asked for


class Usage(NamedTuple):
    pool: PoolUsage
    groups: list[GroupUsage]  # in the order asked for


class _GroupOwners(NamedTuple):
    """Owners of one group's parts."""

    all: int
    disks: int
    snapshots: int
    each_snapshot: list[int]

    def of_snapshots(self) -> list[int]:
        return [self.snapshots, *self.each_snapshot]

    def of_all(self) -> list[int]:
        return [self.all, self.disks, *self.of_snapshots()]


class Accounting:
    """One count of what a checkpoint's maps hold.  What was written since is in no number but used_bytes."""

    def __init__(self, pool: Pool, table: Table, groups: Sequence[Group]) -> None:
        """InvalidArgument: an object is in two groups, or twice in one."""
        self._pool = pool
        self._table = table
        self._groups = groups
        self._maps = {thing.id: (thing.root, thing.height) for thing in table.objects}
        self._stats = pool.stats()
        self._parents = [0]  # of each owner from 1 on
        self._owners: dict[int, int] = {}  # by object id
        self._of_groups = [self._add_group(group) for group in groups]
        for thing in table.objects:
            if thing.id not in self._owners:
                self._owners[thing.id] = self._add_owner(POOL_OWNER)
        self._accountant = Accountant(pool.core, table.next_node_id, self._parents)

    def run(self) -> Usage:
        """Gone when the pool is closed meanwhile; Corrupt when a map node cannot be read."""
        for thing in self._table.objects:
            self._accountant.add_map(thing.root, thing.height, self._owners[thing.id], thing.kind == KIND_VDISK)
        self._repeat(lambda: self._accountant.own_nodes(STEP_NODES))
        self._accountant.count_nodes()
        for segments in self._ranges():
            self._count_blocks(segments)
        for level in range(1, MAP_HEIGHT_MAX):
            self._repeat(lambda level=level: self._accountant.sum_nodes(level, STEP_NODES))  # type: ignore[misc]
        groups = [self._usage_of(group, owners) for group, owners in zip(self._groups, self._of_groups, strict=True)]
        return Usage(self._usage_of_pool(), groups)

    def _repeat(self, step: Callable[[], bool]) -> None:
        self._check_open()
        while step():
            self._check_open()

    def _check_open(self) -> None:
        if self._pool.core.closed:
            raise Gone("the pool was closed while its space was counted")

    def _add_owner(self, parent: int) -> int:
        self._parents.append(parent)
        return len(self._parents)

    def _add_group(self, group: Group) -> _GroupOwners:
        all = self._add_owner(POOL_OWNER)
        disks, snapshots = self._add_owner(all), self._add_owner(all)
        each = [self._add_owner(snapshots) for _snapshot in group.snapshots]
        for vdisk_id in group.vdisk_ids:
            self._give(vdisk_id, disks)
        for owner, snapshot in zip(each, group.snapshots, strict=True):
            for id, _before in snapshot:
                self._give(id, owner)
        return _GroupOwners(all, disks, snapshots, each)

    def _give(self, id: int, owner: int) -> None:
        if id in self._owners:
            raise InvalidArgument(f"object {id} is to be counted twice")
        self._owners[id] = owner

    def _ranges(self) -> Iterator[range]:
        """Segments up to the cut, as many at once as there is room for their blocks' owners."""
        ids = [id for id, _generation, _size in list_segments(f"{self._pool.path}/segments") if id <= self._table.segment_id]
        step = max(1, OWNERS_BYTES_MAX // 4 // (self._stats["segment_slots"]))
        for first in range(0, len(ids), step):
            some = ids[first : first + step]
            yield range(some[0], some[-1] + 1)

    def _count_blocks(self, segments: range) -> None:
        self._accountant.begin_segments(segments.start, segments.stop)
        self._repeat(lambda: self._accountant.own_leaves(STEP_NODES))
        self._repeat(lambda: self._accountant.share_leaves(STEP_NODES))
        for id in segments:
            last = id == self._table.segment_id
            self._accountant.sum_segment(id, self._table.slot_index if last else self._stats["segment_slots"])
            self._check_open()

    def _sums(self, owners: Sequence[int]) -> tuple[int, int, int, int]:
        """(blocks, those of them that a disk reaches, stored bytes, nodes)."""
        blocks, disk_blocks, stored_bytes, nodes = zip(*map(self._accountant.of_owner, owners), strict=True)
        return sum(blocks), sum(disk_blocks), sum(stored_bytes), sum(nodes)

    def _mapped(self, kinds: tuple[int, ...] | None = None) -> int:
        """Blocks that the maps of these kinds of objects map, in all."""
        return sum(
            self._accountant.of_map(thing.root)[0]
            for thing in self._table.objects
            if kinds is None or thing.kind in kinds
        )

    def _usage_of_pool(self) -> PoolUsage:
        blocks, disk_blocks, stored_bytes, _nodes = self._sums(range(POOL_OWNER, len(self._parents) + 1))
        used_bytes = self._stats["used_bytes"]
        dead_nodes = self._stats["map_bytes"] // NODE_BYTES - 1 - self._accountant.node_count()  # slot 0 is no node's
        reclaimable_bytes = self._accountant.dead_bytes() + max(dead_nodes, 0) * NODE_BYTES
        reclaimable_bytes = min(reclaimable_bytes, max(used_bytes - stored_bytes, 0))  # a compaction may be at it
        return PoolUsage(
            capacity_bytes=self._pool.capacity_bytes,
            used_bytes=used_bytes,
            metadata_bytes=used_bytes - stored_bytes - reclaimable_bytes,
            stored_bytes=stored_bytes,
            reclaimable_bytes=reclaimable_bytes,
            logical_bytes=self._mapped((KIND_VDISK,)) * BLOCK_BYTES,
            referenced_bytes=self._mapped() * BLOCK_BYTES,
            disk_distinct_bytes=disk_blocks * BLOCK_BYTES,
            distinct_bytes=blocks * BLOCK_BYTES,
        )

    def _usage_of(self, group: Group, owners: _GroupOwners) -> GroupUsage:
        maps = [self._accountant.of_map(self._maps[id][0]) for id in group.vdisk_ids if id in self._maps]
        _blocks, _disk_blocks, stored_bytes, nodes = self._sums(owners.of_all())
        return GroupUsage(
            data_bytes=sum(mapped for mapped, _shared in maps) * BLOCK_BYTES,
            shared_bytes=sum(shared for _mapped, shared in maps) * BLOCK_BYTES,
            unique_stored_bytes=stored_bytes,
            snapshots_stored_bytes=self._sums(owners.of_snapshots())[2],
            unique_maps_bytes=nodes * NODE_BYTES,
            snapshots=[
                SnapshotUsage(self._changed_bytes(snapshot), self._sums([owner])[2])
                for snapshot, owner in zip(group.snapshots, owners.each_snapshot, strict=True)
            ],
        )

    def _changed_bytes(self, snapshot: Sequence[tuple[int, int | None]]) -> int:
        """0 for what is not there."""
        changed = 0
        for id, before in snapshot:
            if id not in self._maps or (before is not None and before not in self._maps):
                continue
            root, height = self._maps[id]
            if before is None:
                changed += self._accountant.of_map(root)[0]
                continue
            self._accountant.begin_difference(*self._maps[before], root, height)
            self._repeat(lambda: self._accountant.compare(STEP_NODES))
            changed += self._accountant.different
        return changed * BLOCK_BYTES
