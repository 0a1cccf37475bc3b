"""Which byte of a pool's files is what, read from the files by docs/format/pool.md alone."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

from tests.torture.specimens import Tree

SLOT = 4096
NODE = 4608
SEGMENT_HEADER = 72
COMPACTED_HEADER = 80
DATA, REFERENCE, _HOLE, RECORD = 1, 2, 3, 4


class Region(NamedTuple):
    """A run of bytes of one meaning."""

    file: str
    offset: int
    length: int
    kind: str
    lsn: int = -1  # of its batch, when that is in the log behind the checkpoint that is current
    address: int = 0  # of the block
    last: bool = False  # nothing in the log tells that its batch was durable

    @property
    def end(self) -> int:
        return self.offset + self.length


def regions(tree: Tree) -> list[Region]:
    """All bytes of all files, in order."""
    found: list[Region] = []
    start = _log_start(tree)
    for file, content in tree.items():
        if file.startswith("segments/") and content:
            found += _segment(file, content, start)
        elif file.startswith("map/nodes"):
            found += _nodes(file, content, tree)
        else:
            found += _pieces(file, content, file.rpartition("/")[2].rstrip("-0123456789"))
    return _last_told(found, tree)


def _pieces(file: str, content: bytes, kind: str) -> Iterator[Region]:
    if content:
        yield Region(file, 0, len(content), kind)


def _current(tree: Tree) -> bytes:
    """The newer superblock."""
    return max(tree["superblock-0"], tree["superblock-1"], key=lambda block: struct.unpack_from("<Q", block, 48)[0])


def table(tree: Tree) -> bytes:
    """The checkpoint table that is current."""
    return tree[f"map/checkpoint-{struct.unpack_from('<Q', _current(tree), 56)[0]}"]


def _log_start(tree: Tree) -> tuple[int, int]:
    """(segment, slot) where replay begins."""
    segment, slot = struct.unpack_from("<II", table(tree), 24)
    return segment, slot


def live_nodes(tree: Tree) -> set[int]:
    """Ids that the current checkpoint reaches."""
    content, found = table(tree), set()
    place = struct.calcsize("<8sQQIIQQIIQQ")
    (object_count,) = struct.unpack_from("<I", content, 52)
    for _ in range(object_count):
        fields = struct.unpack_from("<IBBHHHIIQQQ", content, place)
        name_length = 0 if fields[3] == 0xFFFF else fields[3]
        place += struct.calcsize("<IBBHHHIIQQQ") + name_length + fields[4]
        _reach(tree["map/nodes"], fields[9], fields[2] - 1, found)
    return found


def _reach(nodes: bytes, id: int, level: int, found: set[int]) -> None:
    if id == 0 or id in found:
        return
    found.add(id)
    if level:
        for child in struct.unpack_from("<512Q", nodes, id * NODE + 512):
            _reach(nodes, child, level - 1, found)


def _nodes(file: str, content: bytes, tree: Tree) -> Iterator[Region]:
    live = live_nodes(tree)
    for id in range(-(-len(content) // NODE)):
        kind = "live node" if id in live else "dead node"
        yield Region(file, id * NODE, min(NODE, len(content) - id * NODE), kind)


def _segment(file: str, content: bytes, start: tuple[int, int]) -> Iterator[Region]:
    if content.startswith(b"BLDCLD1\0"):
        yield from _compacted(file, content)
        return
    segment = int(file.split("/")[1].split(".")[0], 16)
    yield from _described(file, 0, "segment header")
    place = SLOT
    while content[place : place + 8] == b"BLDBAT1\0":
        after = (segment, place // SLOT) >= start
        yield from _batch(file, content, place, segment, struct.unpack_from("<Q", content, place + 40)[0] if after else -1)
        place += (2 + struct.unpack_from("<H", content, place + 58)[0]) * SLOT
    if place == len(content):
        return
    if content[-SLOT : -SLOT + 8] == b"BLDEND1\0":
        yield Region(file, place, len(content) - SLOT - place, "index")
        yield from _described(file, len(content) - SLOT, "trailer")
    else:
        assert not any(content[place:]), f"{file} is cut short"
        yield Region(file, place, len(content) - place, "filled ahead")


def _compacted(file: str, content: bytes) -> Iterator[Region]:
    """A frame that is compressed is a region for each of its blocks: one wrong byte may cost them all."""
    segment = int(file.split("/")[1].split(".")[0], 16)
    blocks, index, pages = (*struct.unpack_from("<I", content, 44), *struct.unpack_from("<QI", content, 64))
    place = SLOT
    yield Region(file, 0, COMPACTED_HEADER, "compacted header")
    yield Region(file, COMPACTED_HEADER, SLOT - COMPACTED_HEADER, "padding")
    for first in range(0, blocks, 8):
        page = index + first // 192 * SLOT
        (frame,) = struct.unpack_from("<Q", content, page + 64 + first % 192)
        stored, raw = frame >> 40 & 0xFFFF, frame >> 56 == 0
        assert frame & 0xFFFFFFFFFF == place
        for i in range(min(8, blocks - first)):
            (slot,) = struct.unpack_from("<I", content, page + 256 + (first % 192 + i) * 4)
            at, length = (place + i * SLOT, SLOT) if raw else (place, stored)
            yield Region(file, at, length, "block", address=segment << 32 | slot)
        place += stored
    if place < index:
        yield Region(file, place, index - place, "padding")
    for number in range(2 * pages):
        yield Region(file, index + number * SLOT, SLOT, "index page")
    yield Region(file, len(content) - SLOT, COMPACTED_HEADER, "compacted header")
    yield Region(file, len(content) - SLOT + COMPACTED_HEADER, SLOT - COMPACTED_HEADER, "padding")


def _described(file: str, place: int, kind: str) -> Iterator[Region]:
    yield Region(file, place, SEGMENT_HEADER, kind)
    yield Region(file, place + SEGMENT_HEADER, SLOT - SEGMENT_HEADER, "padding")


def _batch(file: str, content: bytes, place: int, segment: int, lsn: int) -> Iterator[Region]:
    entries, payload = struct.unpack_from("<HH", content, place + 56)
    yield Region(file, place, SLOT, "batch header", lsn)
    used = 1
    for i in range(entries):
        _a, _b, _block, slots, kind = struct.unpack_from("<QQQIB", content, place + 128 + 32 * i)
        if kind == DATA:
            yield Region(file, place + used * SLOT, SLOT, "block", lsn, segment << 32 | place // SLOT + used)
            used += 1
        elif kind == RECORD:
            yield Region(file, place + used * SLOT, slots * SLOT, "record", lsn)
            used += slots
    assert used == 1 + payload
    yield Region(file, place + used * SLOT, SLOT, "second batch header", lsn)


def _last_told(found: list[Region], tree: Tree) -> list[Region]:
    """Mark the batches of which no other tells that they were durable."""
    durable_lsn, ends = 0, {}
    for region in found:
        if region.kind == "batch header":
            first_lsn, durable = struct.unpack_from("<QQ", tree[region.file], region.offset + 40)
            ends[first_lsn] = first_lsn + struct.unpack_from("<I", tree[region.file], region.offset + 60)[0]
            durable_lsn = max(durable_lsn, durable)
    return [
        region._replace(last=True) if region.lsn >= 0 and ends[region.lsn] > durable_lsn else region for region in found
    ]
