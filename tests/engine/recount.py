"""What takes a pool's space, counted from its files block by block, with sets: what Pool.account must say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from blockdev.accounting import Group, GroupUsage, PoolUsage, SnapshotUsage, Usage
from blockdev.constants import BLOCK_BYTES
from tests.engine.format_reader import PoolFiles


class Counted:
    """A group as a test knows it: names of disks, and of the disk snapshots of each point in time."""

    def __init__(self, disks: list[str], points: list[list[str]]) -> None:
        self.disks, self.points = disks, points

    def before(self, point: int, name: str) -> str | None:
        """The snapshot of the same disk at the point before."""
        disk = name.split("@")[0]
        found = [other for other in self.points[point - 1] if other.split("@")[0] == disk] if point else []
        return found[0] if found else None

    def group(self, pool: Any) -> Group:
        points = []
        for number, point in enumerate(self.points):
            pairs = [(name, self.before(number, name)) for name in point]
            points.append([(pool.find(name).id, before and pool.find(before).id) for name, before in pairs])
        return Group([pool.find(name).id for name in self.disks], points)


def recount(path: str, counted: list[Counted], capacity_bytes: int) -> Usage:
    """The same from the files of a closed pool."""
    files = PoolFiles(Path(path))
    stored = files.stored_bytes()
    maps = {thing.name or str(thing.id): files.addresses(thing) for thing in files.objects.values()}
    reached = {name: set(found.values()) for name, found in maps.items()}
    disks = [thing.name or str(thing.id) for thing in files.objects.values() if thing.kind == 1]

    def union(names: Any) -> set[int]:
        return set().union(*(reached[name] for name in names))

    def bytes_of(addresses: set[int]) -> int:
        return sum(stored[address] for address in addresses)

    def only(names: list[str]) -> set[int]:
        """What these reach and nothing else does."""
        return union(names) - union(name for name in maps if name not in names)

    def nodes_only(names: list[str]) -> int:
        """Nodes of maps that these reach and nothing else does."""
        theirs, others = [], []
        for thing in files.objects.values():
            (theirs if (thing.name or str(thing.id)) in names else others).append(thing)
        return len(files.node_ids(theirs) - files.node_ids(others))

    def changed(name: str, before: str | None) -> int:
        old = {} if before is None else maps[before]
        return sum(old.get(block) != maps[name].get(block) for block in old.keys() | maps[name].keys())

    groups = []
    for one in counted:
        snapshots = [name for point in one.points for name in point]
        others = union(name for name in maps if name not in one.disks + snapshots)
        entries = [address for name in one.disks for address in maps[name].values()]
        groups.append(
            GroupUsage(
                len(entries) * BLOCK_BYTES,
                sum(address in others for address in entries) * BLOCK_BYTES,
                bytes_of(only(one.disks + snapshots)),
                bytes_of(only(snapshots)),
                nodes_only(one.disks + snapshots) * 2 * 4608,
                [
                    SnapshotUsage(
                        sum(changed(name, one.before(number, name)) for name in point) * BLOCK_BYTES,
                        bytes_of(only(point)),
                    )
                    for number, point in enumerate(one.points)
                ],
            )
        )
    live = union(maps)
    segments = sum(file.stat().st_size for file in (Path(path) / "segments").glob("*.*"))
    nodes = max((Path(path) / "map" / "nodes").stat().st_size, 4608) * 2  # slot 0 counts if it was never written, too
    reclaimable = bytes_of(stored.keys() - live) + nodes - (len(files.node_ids()) + 1) * 2 * 4608
    used = segments + nodes
    pool = PoolUsage(
        capacity_bytes,
        used,
        used - bytes_of(live) - reclaimable,
        bytes_of(live),
        reclaimable,
        sum(len(maps[name]) for name in disks) * BLOCK_BYTES,
        sum(len(found) for found in maps.values()) * BLOCK_BYTES,
        len(union(disks)) * BLOCK_BYTES,
        len(live) * BLOCK_BYTES,
    )
    return Usage(pool, groups)
