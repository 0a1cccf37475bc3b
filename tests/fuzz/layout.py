"""Where the structures of a pool lie in its files, and how each is signed again (docs/format/pool.md)."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import xxhash

from tests.fuzz.base_pools import Files

SLOT = 4096
SUPERBLOCK_FIELDS_BYTES = 104
SEGMENT_HEADER_BYTES = 72
COMPACTED_HEADER_BYTES = 80
BATCH_HEADER_BYTES = 128
ENTRY = struct.Struct("<QQQIB3x")
TABLE_HEAD_BYTES = 72
TABLE_OBJECT = struct.Struct("<IBBHHHIIQQQ")
NO_NAME = 0xFFFF
NODE_BYTES = 4608
NODE_HEADER_BYTES = 512
CHUNK_HEAD_BYTES = 24
DATA, RECORD = 1, 4

Sign = Callable[[Files], None]


class Place(NamedTuple):
    """A range of a file that is one thing."""

    kind: str
    path: str
    offset: int
    length: int
    sign: tuple[Sign, ...]  # to be called in this order when it was changed


def places(files: Files) -> list[Place]:
    """All there is, in the order of the files."""
    found: list[Place] = []
    for path, content in files.items():
        found.append(Place("file", path, 0, len(content), ()))
        if path.startswith("superblock"):
            found.append(
                Place("superblock", path, 0, SUPERBLOCK_FIELDS_BYTES, (partial(_sign, path, 0, SLOT),))
            )
        elif path.startswith("map/checkpoint"):
            found += _of_table(path, content)
        elif path.startswith("map/nodes"):
            found += _of_nodes(path, content)
        elif path.startswith("segments/") and content[:7] == b"BLDCLD1":
            found += _of_compacted(path, content)
        elif path.startswith("segments/"):
            found += _of_segment(path, content)
        elif path == "dedup":
            found += _of_dedup(path, content)
        elif path == "findings":
            start = content.index(b"\n") + 1
            found.append(Place("findings", path, start, len(content) - start, (partial(_sign_findings, path, start),)))
    return found


def _sign(path: str, offset: int, length: int, files: Files) -> None:
    """Most structures: magic, XXH3-64 of all from byte 16 on."""
    content = files[path]
    if offset + length <= len(content):
        checksum = xxhash.xxh3_64_intdigest(bytes(content[offset + 16 : offset + length]))
        struct.pack_into("<Q", content, offset + 8, checksum)


# --- checkpoint tables ---


def _of_table(path: str, content: bytearray) -> Iterator[Place]:
    sign = (partial(_sign_table, path),)
    yield Place("table-head", path, 0, TABLE_HEAD_BYTES, sign)
    place = TABLE_HEAD_BYTES
    for _ in range(struct.unpack_from("<I", content, 52)[0]):
        fields = TABLE_OBJECT.unpack_from(content, place)
        yield Place("table-object", path, place, TABLE_OBJECT.size, sign)
        place += TABLE_OBJECT.size + (0 if fields[3] == NO_NAME else fields[3]) + fields[4]
    yield Place("table-lists", path, place, len(content) - place, sign)


def _sign_table(path: str, files: Files) -> None:
    """In the superblocks that name it."""
    number = int(path.rpartition("-")[2])
    table = bytes(files[path])
    for which in (0, 1):
        block = files.get(f"superblock-{which}", bytearray())
        if len(block) == SLOT and struct.unpack_from("<Q", block, 56)[0] == number:
            struct.pack_into("<QQ", block, 64, len(table), xxhash.xxh3_64_intdigest(table))
            _sign(f"superblock-{which}", 0, SLOT, files)


# --- map nodes ---


def _of_nodes(path: str, content: bytearray) -> Iterator[Place]:
    for offset in range(0, len(content) - NODE_BYTES + 1, NODE_BYTES):
        if content[offset : offset + 7] == b"BDNODE1":
            sign = (partial(_sign, path, offset, NODE_BYTES),)
            yield Place("node-head", path, offset, 64, sign)
            yield Place("node-entries", path, offset + NODE_HEADER_BYTES, NODE_BYTES - NODE_HEADER_BYTES, sign)


# --- segments ---


def _of_segment(path: str, content: bytearray) -> Iterator[Place]:
    yield Place("segment-head", path, 0, SEGMENT_HEADER_BYTES, (partial(_sign, path, 0, SEGMENT_HEADER_BYTES),))
    for offset in range(SLOT, len(content) - SLOT + 1, SLOT):
        magic = content[offset : offset + 7]
        if magic == b"BLDBAT1":
            yield from _of_batch(path, content, offset)
        elif magic == b"BLDEND1":
            sign = (partial(_sign_trailer, path, offset),)
            index = struct.unpack_from("<I", content, offset + 40)[0] * SLOT
            yield Place("trailer", path, offset, SEGMENT_HEADER_BYTES, sign)
            yield Place("index", path, index, offset - index, sign)


def _of_compacted(path: str, content: bytearray) -> Iterator[Place]:
    index, pages = struct.unpack_from("<QI", content, 64)
    sign = (partial(_sign, path, 0, COMPACTED_HEADER_BYTES), partial(_repeat, path, 0, len(content) - SLOT))
    yield Place("compacted-head", path, 0, COMPACTED_HEADER_BYTES, sign)
    for number in range(pages):
        page = index + number * SLOT
        sign = (partial(_sign, path, page, SLOT), partial(_repeat, path, page, page + pages * SLOT))
        yield Place("index-page", path, page, SLOT, sign)
    yield Place("frames", path, SLOT, index - SLOT, ())


def _repeat(path: str, offset: int, copy: int, files: Files) -> None:
    """In the second copy of a slot."""
    content = files[path]
    if copy + SLOT <= len(content):
        content[copy : copy + SLOT] = content[offset : offset + SLOT]


def _of_batch(path: str, content: bytearray, offset: int) -> Iterator[Place]:
    """Of one copy of the header; its payload too when it is the first copy."""
    sign = partial(_sign, path, offset, SLOT)
    yield Place("batch-head", path, offset, BATCH_HEADER_BYTES, (sign,))
    first = struct.unpack_from("<I", content, offset + 36)[0] * SLOT == offset
    payload = offset + SLOT
    for number in range(struct.unpack_from("<H", content, offset + 56)[0]):
        entry = offset + BATCH_HEADER_BYTES + number * ENTRY.size
        yield Place("batch-entry", path, entry, ENTRY.size, (sign,))
        _a, _b, block, slots, kind = ENTRY.unpack_from(content, entry)
        if kind == DATA:
            length, step = SLOT, SLOT
        elif kind == RECORD:
            length, step = block, slots * SLOT
        else:
            continue
        if first:
            name = "payload" if kind == DATA else "record"
            yield Place(name, path, payload, length, (partial(_sign_payload, path, entry, payload), sign))
        payload += step


def _sign_payload(path: str, entry: int, payload: int, files: Files) -> None:
    """In its entry: the fingerprint of a block, the checksum of as many bytes of a record as the entry says by now."""
    content = files[path]
    if entry + ENTRY.size > len(content):
        return
    _a, _b, length, _slots, kind = ENTRY.unpack_from(content, entry)
    if kind == RECORD:
        checksum = xxhash.xxh3_64_intdigest(bytes(content[payload : payload + min(length, len(content))]))
        struct.pack_into("<Q", content, entry, checksum)
    elif kind == DATA:
        fingerprint = xxhash.xxh3_128_intdigest(bytes(content[payload : payload + SLOT]))
        content[entry : entry + 16] = fingerprint.to_bytes(16, "little")


def _sign_trailer(path: str, offset: int, files: Files) -> None:
    content = files[path]
    if offset + SLOT > len(content):
        return
    start = struct.unpack_from("<I", content, offset + 40)[0] * SLOT
    if start <= offset:
        checksum = xxhash.xxh3_64_intdigest(bytes(content[start:offset]))
        struct.pack_into("<Q", content, offset + 64, checksum)
    _sign(path, offset, SEGMENT_HEADER_BYTES, files)


def _sign_findings(path: str, start: int, files: Files) -> None:
    """In its first line, which ends with 16 hex digits."""
    content = files[path]
    content[start - 17 : start - 1] = xxhash.xxh3_64_hexdigest(bytes(content[start:])).encode()


# --- the saved dedup index ---


def _of_dedup(path: str, content: bytearray) -> Iterator[Place]:
    place = 0
    while place + CHUNK_HEAD_BYTES <= len(content):
        count = struct.unpack_from("<Q", content, place + 8)[0]
        sign = (partial(_sign_chunk, path, place),)
        yield Place("dedup-head", path, place, CHUNK_HEAD_BYTES, sign)
        yield Place("dedup-entries", path, place + CHUNK_HEAD_BYTES, count, sign)
        place += CHUNK_HEAD_BYTES + count


def _sign_chunk(path: str, offset: int, files: Files) -> None:
    content = files[path]
    if offset + CHUNK_HEAD_BYTES > len(content):
        return
    count = struct.unpack_from("<Q", content, offset + 8)[0]
    start = offset + CHUNK_HEAD_BYTES
    checksum = xxhash.xxh3_64_intdigest(bytes(content[start : min(start + count, len(content))]))
    struct.pack_into("<Q", content, offset + 16, checksum)
