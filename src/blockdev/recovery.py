"""Opening a pool: the newest sound checkpoint, then the log after it.

Nothing is repaired.  Recovery reads, and makes the end of the log final: it syncs the segments it replayed, cuts what a
power cut tore, and removes segments behind the end.  Interrupted anywhere, the next one finds the same end.
"""

from __future__ import annotations

import contextlib
import os
import re
import resource
from typing import NamedTuple

import xxhash

from blockdev import _medium, _pool, records, superblock
from blockdev._actions import RecordType
from blockdev._medium import PlantedBug, is_planted
from blockdev._pool import VDisk, VDiskSnapshot
from blockdev._replay import Replay
from blockdev.errors import Corrupt, MediumError
from blockdev.policies import is_disk_code
from blockdev.records import KIND_SNAPSHOT, OBJECT_IDS_END, Item, Table
from blockdev.superblock import Superblock

UNBOUNDED = 1 << 62
NODE_BYTES = 4200  # of one resident map node, with what malloc adds
SEGMENT_NAME = re.compile(r"([0-9a-f]{8})\.(0|[1-9][0-9]{0,8})")  # id and generation, as the engine writes them


class Recovered(NamedTuple):
    core: _pool.Core
    superblock: Superblock
    table: Table
    objects: dict[int, VDisk | VDiskSnapshot]
    next_object_id: int
    resident_nodes_max: int
    batch_count: int  # replayed


class _Superblocks:
    """The one that is current."""

    def __init__(self, pool_path: str, block: Superblock) -> None:
        self.current = block
        self._pool_path = pool_path

    def make_newest(self) -> None:
        """Write over the other one if it is newer, or cannot be read: nodes may soon lie where its checkpoint has others.

        What was unreadable once may be readable later; its checkpoint must not be found then.
        """
        found = [sound.sequence for sound in superblock.read_both(self._pool_path)]
        if found != [self.current.sequence, self.current.sequence - 1] and not is_planted(PlantedBug.BUG_NEWER_SUPERBLOCK_KEPT):
            self.current = self.current._replace(sequence=self.current.sequence + 1)
            superblock.write(self._pool_path, self.current)


class ReadBack(NamedTuple):
    """A pool's state in memory: its newest sound checkpoint, and the log behind it."""

    core: _pool.Core
    superblocks: _Superblocks
    table: Table
    objects: dict[int, VDisk | VDiskSnapshot]
    next_object_id: int
    resident_nodes_max: int
    replay: Replay


def read_back(pool_path: str, map_cache_bytes: int, dedup_bytes: int, read_only: bool = False) -> ReadBack:
    """Bring a pool's state into memory.  Corrupt, UnknownFormat or MediumError when that cannot be.

    Written are only map nodes: copies that were bad, and those that the budget has no room for, to slots that were free.
    With `read_only` nothing is, whatever memory that takes.
    """
    block, table = _newest_checkpoint(pool_path)
    superblocks = _Superblocks(pool_path, block)
    core = _pool.Core(
        pool_path,
        block.uuid,
        block.segment_slots,
        table.generation + 1,
        table.next_node_id,
        dedup_bytes,
        _open_files_max(),
        read_only,
    )
    core.add_free_slots(table.free_ids, table.retired)
    for segment_id, generation, size_bytes in list_segments(f"{pool_path}/segments"):
        core.add_segment(segment_id, generation, size_bytes)
    objects = {o.id: _make_object(core, o) for o in table.objects}
    replayed = _RecordReplay(core, objects, table.next_object_id)
    resident_max = max(map_cache_bytes // NODE_BYTES, 64)
    replay = Replay(
        core,
        table.segment_id,
        table.slot_index,
        table.lsn,
        objects,
        resident_max,
        UNBOUNDED if read_only else dirty_nodes_max(resident_max),
        map_cache_bytes // 8,
    )
    replay.find()
    replay.apply(replayed.apply, superblocks.make_newest)
    return ReadBack(core, superblocks, table, objects, replayed.next_object_id, resident_max, replay)


def recover(pool_path: str, map_cache_bytes: int, dedup_bytes: int) -> Recovered:
    """Bring a pool's state into memory, make the end of its log final, and begin to take writes."""
    core, superblocks, table, objects, next_object_id, resident_max, replay = read_back(
        pool_path, map_cache_bytes, dedup_bytes
    )
    segments_path = f"{pool_path}/segments"
    next_segment_id, next_lsn = replay.finish(segments_path)
    _remove_replaced(segments_path)
    _medium.sync_directory(segments_path)
    superblocks.make_newest()
    core.set_segment_bytes(sum(size for _id, _generation, size in list_segments(segments_path)))
    core.start_log(max(next_segment_id, table.segment_id), next_lsn)
    core.keep_spare()
    return Recovered(
        core,
        superblocks.current,
        table,
        objects,
        next_object_id,
        resident_max,
        replay.batch_count,
    )


def dirty_nodes_max(resident_nodes_max: int) -> int:
    """Dirty map nodes cannot leave memory: so many are written out at once, at the latest."""
    return max(256, resident_nodes_max // 4)


def list_segments(segments_path: str) -> list[tuple[int, int, int]]:
    """(id, generation, size in bytes) of each segment, in id order."""
    newest = {id: (id, generation, size) for id, generation, size in _segment_files(segments_path)}
    return list(newest.values())


def _segment_files(segments_path: str) -> list[tuple[int, int, int]]:
    """Like list_segments, with those that compaction replaced and a power cut kept from being removed."""
    found = []
    with os.scandir(segments_path) as entries:
        for entry in entries:
            match = SEGMENT_NAME.fullmatch(entry.name)
            if match:
                with contextlib.suppress(FileNotFoundError):  # compaction may have removed it
                    found.append((int(match[1], 16), int(match[2]), entry.stat().st_size))
    return sorted(found)


def _remove_replaced(segments_path: str) -> None:
    """Remove what a compaction left that did not come to its end."""
    files = _segment_files(segments_path)
    replaced = [one for one, later in zip(files, files[1:], strict=False) if later[0] == one[0]]
    if replaced:
        _medium.sync_directory(segments_path)  # the process alone may have died, before the newer names were durable
    for id, generation, _size in replaced:
        _medium.unlink_file(f"{segments_path}/{id:08x}.{generation}")
    if os.path.exists(f"{segments_path}/rewrite"):
        _medium.unlink_file(f"{segments_path}/rewrite")


def _newest_checkpoint(pool_path: str) -> tuple[Superblock, Table]:
    damage = ""
    for block in superblock.read_both(pool_path):
        path = f"{pool_path}/map/checkpoint-{block.checkpoint_number}"
        try:
            content = _medium.read_file(path, block.checkpoint_bytes)
        except MediumError as failure:
            damage = str(failure)
            continue
        if len(content) == block.checkpoint_bytes and xxhash.xxh3_64_intdigest(content) == block.checkpoint_checksum:
            return block, records.decode_table(content)
        damage = f"{path} does not verify"
    raise Corrupt(f"no checkpoint can be read ({damage}); restore the pool directory from a copy")


def _open_files_max() -> int:
    """Room for segment files, after raising the process's limit as far as it goes."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return max(16, min(hard // 2, 1 << 16))


def _make_object(core: _pool.Core, o: records.ObjectState) -> VDisk | VDiskSnapshot:
    return _pool.make_disk(
        core,
        o.kind == KIND_SNAPSHOT,
        o.id,
        o.size_bytes,
        o.root,
        o.height,
        o.epoch,
        o.lsn,
        o.origin_id,
        o.name,
        o.tag,
        o.policy,
    )


class _RecordReplay:
    """Applies records to the table of objects, in the order of the log."""

    def __init__(self, core: _pool.Core, objects: dict, next_object_id: int) -> None:
        self.core = core
        self.objects = objects
        self.next_object_id = next_object_id

    def apply(self, content: bytes, lsn: int) -> None:
        record_type, items = records.decode_record(content)
        for item in items:
            self._apply_item(record_type, item, lsn)

    def _apply_item(self, record_type: int, item: Item, lsn: int) -> None:
        if record_type in (RecordType.CREATE, RecordType.SNAPSHOT, RecordType.CLONE):
            self._add(record_type, item, lsn)
        elif record_type == RecordType.RESTORE:
            pair = self._get(item.id, VDisk), self._get(item.source, VDiskSnapshot)
            self.core.apply([(record_type, *pair, 0)], lsn)
        elif record_type == RecordType.RESIZE:
            _check_size(item)
            self.core.apply([(record_type, self._get(item.id, VDisk), None, item.size_bytes)], lsn)
        elif record_type == RecordType.RELABEL:
            self._get(item.id).set_label(item.name, item.tag)
        elif record_type == RecordType.POLICY:
            if not is_disk_code(item.source):
                raise Corrupt(f"the log at LSN {lsn} gives object {item.id} a policy that cannot be")
            self.core.apply([(record_type, self._get(item.id, VDisk), None, item.source)], lsn)
        elif record_type == RecordType.DELETE:
            self._get(item.id)
            del self.objects[item.id]
        else:
            raise Corrupt(f"the log at LSN {lsn} has a record of unknown type {record_type}")

    def _add(self, record_type: int, item: Item, lsn: int) -> None:
        if not 0 < item.id < OBJECT_IDS_END or item.id in self.objects:
            raise Corrupt(f"the log at LSN {lsn} makes object {item.id}, which cannot be")
        snapshot = record_type == RecordType.SNAPSHOT
        source = None
        if record_type == RecordType.CREATE:
            _check_size(item)
        else:
            source = self._get(item.source, VDisk if snapshot else VDiskSnapshot)
        size_bytes = item.size_bytes if source is None else source.size_bytes
        new = _pool.make_disk(
            self.core,
            snapshot,
            item.id,
            size_bytes,
            0,
            0,
            0 if snapshot else 1,
            0,
            item.source,
            item.name,
            item.tag,
        )
        self.core.apply([(record_type, new, source, 0)], lsn)
        self.objects[item.id] = new
        self.next_object_id = max(self.next_object_id, item.id + 1)

    def _get(self, object_id: int, kind: type | tuple[type, ...] = (VDisk, VDiskSnapshot)) -> VDisk | VDiskSnapshot:
        found: VDisk | VDiskSnapshot | None = self.objects.get(object_id)
        if found is None or not isinstance(found, kind):
            raise Corrupt(f"the log speaks of object {object_id}, which is not there or of another kind")
        return found


def _check_size(item: Item) -> None:
    if not records.is_size(item.size_bytes):
        raise Corrupt(f"the log gives object {item.id} {item.size_bytes} bytes, which cannot be")
