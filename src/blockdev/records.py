"""Log records of the pool itself, and the checkpoint's table of objects: bytes to values and back.

Layouts are in docs/format/pool.md.  All numbers are little-endian; every length is checked against what is there.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from blockdev.constants import BLOCK_BYTES, SECTOR_BYTES, VDISK_BYTES_MAX
from blockdev.errors import Corrupt
from blockdev.policies import is_disk_code

RECORD_HEAD = struct.Struct("<BBHI")  # type, version, reserved, item count
RECORD_ITEM = struct.Struct("<IIQHH")  # object id, source id, size in bytes, name length, tag length
RECORD_VERSION = 1
NO_NAME = 0xFFFF

TABLE_MAGIC = b"BLDCKPT1"
TABLE_HEAD = struct.Struct("<8sQQIIQQIIQQ")
TABLE_OBJECT = struct.Struct("<IBBHHHIIQQQ")  # id, kind, height, name length, tag length, policy, epoch, origin,
# size in bytes, root node id, lsn
KIND_VDISK = 1
KIND_SNAPSHOT = 2
MAP_HEIGHT_MAX = 4
NODE_IDS_MAX = 1 << 32
SEGMENT_IDS_END = 1 << 22
OBJECT_IDS_END = (1 << 32) - 1  # the next id has 32 bits, too


class Item(NamedTuple):
    """One object that a record is about; what `source` and `size_bytes` mean depends on the record's type."""

    id: int
    source: int = 0
    size_bytes: int = 0
    name: str | None = None
    tag: bytes = b""


class ObjectState(NamedTuple):
    """One vdisk or snapshot as a checkpoint holds it."""

    id: int
    kind: int
    size_bytes: int
    root: int
    height: int
    epoch: int
    lsn: int
    origin_id: int
    name: str | None
    tag: bytes
    policy: int = 0  # of a vdisk, the code of policies.py


class Table(NamedTuple):
    """A checkpoint: all that is needed to go on from its LSN."""

    number: int
    lsn: int
    segment_id: int  # where replay begins
    slot_index: int
    generation: int
    next_node_id: int
    next_object_id: int
    objects: list[ObjectState]
    free_ids: bytes  # u64 each
    retired: bytes  # (u64 id, u64 generation) each


def _pack_text(name: str | None, tag: bytes) -> tuple[int, bytes]:
    encoded = b"" if name is None else name.encode()
    return (NO_NAME if name is None else len(encoded)), encoded + tag


class _Cursor:
    """Bounds-checked reading from bytes that may be damaged."""

    def __init__(self, content: bytes, what: str) -> None:
        self.content = content
        self.what = what
        self.place = 0

    def take(self, count: int) -> bytes:
        taken = self.content[self.place : self.place + count]
        if len(taken) != count:
            raise Corrupt(f"{self.what} is too short")
        self.place += count
        return taken

    def unpack(self, layout: struct.Struct) -> tuple:
        return layout.unpack(self.take(layout.size))

    def text(self, name_length: int, tag_length: int) -> tuple[str | None, bytes]:
        try:
            name = None if name_length == NO_NAME else self.take(name_length).decode()
        except UnicodeDecodeError:
            raise Corrupt(f"{self.what} has a name that is not UTF-8") from None
        return name, self.take(tag_length)


def encode_record(record_type: int, items: list[Item]) -> bytes:
    parts = [RECORD_HEAD.pack(record_type, RECORD_VERSION, 0, len(items))]
    for item in items:
        name_length, text = _pack_text(item.name, item.tag)
        parts.append(RECORD_ITEM.pack(item.id, item.source, item.size_bytes, name_length, len(item.tag)))
        parts.append(text)
    return b"".join(parts)


def decode_record(content: bytes) -> tuple[int, list[Item]]:
    cursor = _Cursor(content, "a log record")
    record_type, version, _reserved, count = cursor.unpack(RECORD_HEAD)
    if version != RECORD_VERSION:
        raise Corrupt(f"a log record has version {version}, which this build does not read")
    items = []
    for _ in range(count):
        object_id, source, size_bytes, name_length, tag_length = cursor.unpack(RECORD_ITEM)
        name, tag = cursor.text(name_length, tag_length)
        items.append(Item(object_id, source, size_bytes, name, tag))
    return record_type, items


def encode_table(table: Table) -> bytes:
    parts = [
        TABLE_HEAD.pack(
            TABLE_MAGIC,
            table.number,
            table.lsn,
            table.segment_id,
            table.slot_index,
            table.generation,
            table.next_node_id,
            table.next_object_id,
            len(table.objects),
            len(table.free_ids) // 8,
            len(table.retired) // 16,
        )
    ]
    for o in table.objects:
        name_length, text = _pack_text(o.name, o.tag)
        parts.append(
            TABLE_OBJECT.pack(
                *(o.id, o.kind, o.height, name_length, len(o.tag), o.policy),
                *(o.epoch, o.origin_id, o.size_bytes, o.root, o.lsn),
            )
        )
        parts.append(text)
    return b"".join([*parts, table.free_ids, table.retired])


def decode_table(content: bytes) -> Table:
    cursor = _Cursor(content, "a checkpoint table")
    (magic, number, lsn, segment_id, index, generation, next_node_id, next_object_id, object_count, free_count,
     retired_count) = cursor.unpack(TABLE_HEAD)  # fmt: skip
    if magic != TABLE_MAGIC:
        raise Corrupt("a checkpoint table has no magic number")
    objects = []
    for _ in range(object_count):
        (object_id, kind, height, name_length, tag_length, policy, epoch, origin_id, size_bytes, root,
         object_lsn) = cursor.unpack(TABLE_OBJECT)  # fmt: skip
        name, tag = cursor.text(name_length, tag_length)
        objects.append(
            ObjectState(object_id, kind, size_bytes, root, height, epoch, object_lsn, origin_id, name, tag, policy)
        )
    free_ids = cursor.take(free_count * 8)
    retired = cursor.take(retired_count * 16)
    table = Table(
        number, lsn, segment_id, index, generation, next_node_id, next_object_id, objects, free_ids, retired
    )
    _check_table(table)
    return table


def is_size(size_bytes: int) -> bool:
    """Whether a vdisk can have that many bytes."""
    return 0 < size_bytes <= VDISK_BYTES_MAX and size_bytes % SECTOR_BYTES == 0


def _check_table(table: Table) -> None:
    """Corrupt when a table has numbers that the code behind it cannot hold."""
    if not (0 < table.segment_id < SEGMENT_IDS_END and table.slot_index and 0 < table.next_node_id <= NODE_IDS_MAX):
        raise Corrupt("a checkpoint table has a position or a node id that cannot be")
    if max(table.number, table.lsn, table.generation) >> 62:
        raise Corrupt("a checkpoint table has a number that nobody counts to")
    if len({o.id for o in table.objects}) != len(table.objects):
        raise Corrupt("a checkpoint table has an object twice")
    for o in table.objects:
        if not (
            0 < o.id < table.next_object_id
            and o.kind in (KIND_VDISK, KIND_SNAPSHOT)
            and 1 <= o.height <= MAP_HEIGHT_MAX
            and o.root < table.next_node_id
            and is_size(o.size_bytes)
            and o.size_bytes <= BLOCK_BYTES << 9 * o.height
            and is_disk_code(o.policy)
        ):
            raise Corrupt(f"a checkpoint table says of object {o.id} what cannot be")
