"""A pool read from its files by docs/format/pool.md alone: an oracle that shares no code with the engine.

Slow and strict: every checksum, magic number and count is asserted.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import xxhash
import zstandard

SLOT = 4096


@dataclass
class Object:
    id: int
    kind: int
    height: int
    name: str | None
    tag: bytes
    epoch: int
    origin: int
    size: int
    root: int
    lsn: int


@dataclass
class PoolFiles:
    """What the files of a cleanly closed pool say."""

    path: Path
    superblock: dict = field(default_factory=dict)
    objects: dict[int, Object] = field(default_factory=dict)
    log_position: tuple[int, int, int] = (0, 0, 0)  # segment, slot, LSN
    next_object_id: int = 0
    shares: dict[int, dict[int, int]] = field(default_factory=dict)  # by segment and slot: bytes that a block takes

    def __post_init__(self) -> None:
        blocks = [self._read_superblock(which) for which in (0, 1)]
        self.superblock = max(blocks, key=lambda block: block["sequence"])
        self._read_table()

    def _read_superblock(self, which: int) -> dict:
        content = (self.path / f"superblock-{which}").read_bytes()
        assert len(content) == 4096
        assert content[:8] == b"BLOCKDEV"
        assert struct.unpack_from("<Q", content, 8)[0] == xxhash.xxh3_64_intdigest(content[16:])
        names = ["version", "incompatible", "compatible", "block_bytes"]
        values = dict(zip(names, struct.unpack_from("<4I", content, 16), strict=True))
        assert values.pop("incompatible") in (0, 1, 2, 3)
        assert values == {"version": 2, "compatible": 0, "block_bytes": 4096}
        values["uuid"] = content[32:48]
        for name, offset in {
            "sequence": 48,
            "checkpoint": 56,
            "table_bytes": 64,
            "table_sum": 72,
            "capacity": 88,
        }.items():
            values[name] = struct.unpack_from("<Q", content, offset)[0]
        values["segment_slots"] = struct.unpack_from("<I", content, 80)[0]
        assert values["sequence"] % 2 == which
        return values

    def _read_table(self) -> None:
        content = (self.path / "map" / f"checkpoint-{self.superblock['checkpoint']}").read_bytes()
        assert len(content) == self.superblock["table_bytes"]
        assert xxhash.xxh3_64_intdigest(content) == self.superblock["table_sum"]
        head = struct.unpack_from("<8sQQIIQQIIQQ", content)
        assert head[0] == b"BLDCKPT1" and head[1] == self.superblock["checkpoint"]
        self.log_position = (head[3], head[4], head[2])
        self.next_object_id = head[7]
        place = struct.calcsize("<8sQQIIQQIIQQ")
        for _ in range(head[8]):
            fields = struct.unpack_from("<IBBHHHIIQQQ", content, place)
            place += struct.calcsize("<IBBHHHIIQQQ")
            object_id, kind, height, name_length, tag_length, policy, epoch, origin, size, root, lsn = fields
            assert policy < 12 and (policy == 0 or kind == 1)
            assert kind in (1, 2) and 1 <= height <= 4
            name = None
            if name_length != 0xFFFF:
                name = content[place : place + name_length].decode()
                place += name_length
            tag = content[place : place + tag_length]
            place += tag_length
            self.objects[object_id] = Object(
                object_id, kind, height, name, tag, epoch, origin, size, root, lsn
            )
        assert place + head[9] * 8 + head[10] * 16 == len(content)

    def node(self, node_id: int, level: int) -> tuple[int, ...]:
        record, copy = (self._record(name, node_id) for name in ("nodes", "nodes-mirror"))
        assert record == copy
        assert len(record) == 4608
        magic, checksum, uuid, found_id, _owner, _generation, found_level = struct.unpack_from(
            "<8sQ16sQQQI", record
        )
        assert magic == b"BDNODE1\0" and uuid == self.superblock["uuid"]
        assert (found_id, found_level) == (node_id, level)
        assert checksum == xxhash.xxh3_64_intdigest(record[16:])
        assert not any(record[60:512])
        return struct.unpack_from("<512Q", record, 512)

    def _record(self, name: str, node_id: int) -> bytes:
        with open(self.path / "map" / name, "rb") as file:
            file.seek(node_id * 4608)
            return file.read(4608)

    def node_ids(self, things: Iterable[Object] | None = None) -> set[int]:
        """Of all nodes that a map reaches, of these or of all objects."""
        found: set[int] = set()

        def walk(node_id: int, level: int) -> None:
            if node_id not in found:
                found.add(node_id)
                for entry in self.node(node_id, level) if level else ():
                    if entry:
                        walk(entry, level - 1)

        for thing in self.objects.values() if things is None else things:
            if thing.root:
                walk(thing.root, thing.height - 1)
        return found

    def addresses(self, thing: Object) -> dict[int, int]:
        """Block number -> block address of all that is mapped."""
        found: dict[int, int] = {}

        def walk(node_id: int, level: int, base: int) -> None:
            for i, entry in enumerate(self.node(node_id, level)):
                if entry and level:
                    walk(entry, level - 1, base + (i << (9 * level)))
                elif entry:
                    found[base + i] = entry

        if thing.root:
            walk(thing.root, thing.height - 1, 0)
        return found

    def content(self, thing: Object) -> bytes:
        content = bytearray(-(-thing.size // SLOT) * SLOT)
        segments: dict[int, dict[int, bytes]] = {}
        for block, address in self.addresses(thing).items():
            segment, index = address >> 32, address & 0xFFFFFFFF
            if segment not in segments:
                segments[segment] = self.blocks(segment)
            content[block * SLOT : (block + 1) * SLOT] = segments[segment][index]
        return bytes(content[: thing.size])

    def generations(self) -> dict[int, int]:
        """Segment id -> generation of its file."""
        names = [name.name.split(".") for name in (self.path / "segments").glob("*.*")]
        found = {int(id, 16): int(generation) for id, generation in names}
        assert len(found) == len(names), "a segment is there twice"
        return found

    def blocks(self, segment_id: int) -> dict[int, bytes]:
        """Slot -> block of all blocks that a segment's file holds, each verified."""
        generation = self.generations()[segment_id]
        if generation:
            return self.compacted(segment_id, generation)
        raw, fingerprints = self.segment(segment_id)
        blocks = {i: raw[i * SLOT : (i + 1) * SLOT] for i, known in enumerate(fingerprints) if any(known)}
        self.shares[segment_id] = dict.fromkeys(blocks, SLOT)
        for index, data in blocks.items():
            assert fingerprint(data) == fingerprints[index], f"segment {segment_id:08x} slot {index}"
        return blocks

    def stored_bytes(self) -> dict[int, int]:
        """Block address -> bytes that the block takes, of all blocks in all segments."""
        for segment_id in self.generations():
            self.blocks(segment_id)
        return {
            segment_id << 32 | slot: share
            for segment_id, shares in self.shares.items()
            for slot, share in shares.items()
        }

    def compacted(self, segment_id: int, generation: int) -> dict[int, bytes]:
        raw = (self.path / "segments" / f"{segment_id:08x}.{generation}").read_bytes()
        header = raw[:SLOT]
        assert header == raw[-SLOT:] and not any(header[80:])
        magic, checksum, uuid, id, found, slots, blocks, _first_lsn, _end_lsn, index, pages, zero = struct.unpack_from(
            "<8sQ16sIIIIQQQII", header
        )
        assert magic == b"BLDCLD1\0" and checksum == xxhash.xxh3_64_intdigest(header[16:80])
        assert (uuid, id, found, zero) == (self.superblock["uuid"], segment_id, generation, 0)
        assert pages == -(-blocks // 192) and len(raw) == index + (2 * pages + 1) * SLOT
        place = SLOT
        read: dict[int, bytes] = {}
        shares = self.shares[segment_id] = {}
        for number in range(pages):
            page = raw[index + number * SLOT :][:SLOT]
            assert page == raw[index + (pages + number) * SLOT :][:SLOT]
            count = self._check_page(page, segment_id, generation, number)
            assert count == min(192, blocks - number * 192)
            for first in range(0, count, 8):
                some = min(8, count - first)
                frame = struct.unpack_from("<Q", page, 64 + first)[0]
                offset, stored, codec = frame & 0xFFFFFFFFFF, frame >> 40 & 0xFFFF, frame >> 56
                assert offset == place and offset + stored <= index and codec in (0, 1, 2)
                plain = raw[offset : offset + stored]
                plain = zstandard.decompress(plain, some * SLOT) if codec == 1 else plain
                assert len(plain) == some * SLOT
                place += stored
                for i in range(some):
                    slot = struct.unpack_from("<I", page, 256 + 4 * (first + i))[0]
                    assert slot < slots and all(slot > before for before in list(read)[-1:])
                    read[slot] = plain[i * SLOT : (i + 1) * SLOT]
                    assert fingerprint(read[slot]) == page[1024 + 16 * (first + i) :][:16]
                    shares[slot] = stored * (i + 1) // some - stored * i // some
        assert len(read) == blocks and index == -(-place // SLOT) * SLOT
        return read

    def _check_page(self, page: bytes, segment_id: int, generation: int, number: int) -> int:
        magic, checksum, uuid, *rest = struct.unpack_from("<8sQ16sIIII16s", page)
        assert magic == b"BLDIDX1\0" and checksum == xxhash.xxh3_64_intdigest(page[16:])
        assert uuid == self.superblock["uuid"] and rest[:3] == [segment_id, generation, number]
        return int(rest[3])

    def live_bytes(self) -> int:
        """In the blocks that any disk or snapshot reaches, each once."""
        reached = {address for thing in self.objects.values() for address in self.addresses(thing).values()}
        return len(reached) * SLOT

    def segment(self, segment_id: int) -> tuple[bytes, list[bytes]]:
        """Bytes of a sealed segment, and the fingerprint of each slot by its index; the batch headers must agree."""
        raw = (self.path / "segments" / f"{segment_id:08x}.0").read_bytes()
        assert raw[:8] == b"BLDSEG1\0"
        trailer = raw[-SLOT:]
        assert trailer[:8] == b"BLDEND1\0"
        for header in (raw, trailer):
            assert struct.unpack_from("<Q", header, 8)[0] == xxhash.xxh3_64_intdigest(header[16:72])
            assert header[16:32] == self.superblock["uuid"]
            assert struct.unpack_from("<II", header, 32) == (segment_id, 0)
        slots, _zero, first_lsn, end_lsn, index_sum = struct.unpack_from("<IIQQQ", trailer, 40)
        index = raw[slots * SLOT : -SLOT]
        assert len(index) == -(-slots * 16 // SLOT) * SLOT
        assert xxhash.xxh3_64_intdigest(index) == index_sum
        fingerprints = [index[i * 16 : i * 16 + 16] for i in range(slots)]
        told: list[bytes] = [bytes(16)] * slots
        lsn = first_lsn
        place = 1
        while place < slots:
            place, lsn = self._read_batch(raw, segment_id, place, lsn, told)
        assert (place, lsn) == (slots, end_lsn)
        assert told == fingerprints
        return raw, fingerprints

    def _read_batch(
        self, raw: bytes, segment_id: int, place: int, lsn: int, told: list[bytes]
    ) -> tuple[int, int]:
        header = raw[place * SLOT : (place + 1) * SLOT]
        magic, checksum, uuid, in_segment, index, first_lsn, durable_lsn, entries, payload = (
            struct.unpack_from("<8sQ16sIIQQHH", header)
        )
        assert magic == b"BLDBAT1\0" and uuid == self.superblock["uuid"]
        assert checksum == xxhash.xxh3_64_intdigest(header[16:])
        assert (in_segment, index, first_lsn) == (segment_id, place, lsn)
        assert durable_lsn <= first_lsn and 1 <= entries <= 124 and payload <= 124
        used = place + 1
        lsn_count = 0
        for i in range(entries):
            a, b, block, thing, kind = struct.unpack_from("<QQQIB", header, 128 + 32 * i)
            if kind == 1:
                told[used] = struct.pack("<QQ", a, b)
                used += 1
            elif kind == 4:
                assert xxhash.xxh3_64_intdigest(raw[used * SLOT :][:block]) == a
                used += thing
            elif kind == 2:
                assert b >= 1
            else:
                assert kind == 3 and b == 0
            lsn_count += b if kind == 2 else 1
        assert used == place + 1 + payload
        assert not any(header[128 + 32 * entries :])
        assert struct.unpack_from("<I", header, 60)[0] == lsn_count
        assert raw[used * SLOT : (used + 1) * SLOT] == header
        return used + 1, lsn + lsn_count


def fingerprint(block: bytes) -> bytes:
    """XXH3-128, low half first."""
    value = xxhash.xxh3_128_intdigest(block)
    return struct.pack("<QQ", value & 0xFFFFFFFFFFFFFFFF, value >> 64)
