"""A reader of stream files that was written from docs/format/stream.md alone: what a stranger makes of a file.

Nothing of blockdev is used.  It looks at less than what is refused there, and holds whole disks in memory.
"""

from __future__ import annotations

import json
import struct
from typing import Any, BinaryIO

import xxhash
import zstandard

Disks = dict[str, bytearray]


class File:
    """Counts and digests what is taken from it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.digest = xxhash.xxh3_128()

    def take(self, byte_count: int) -> bytes:
        data = self._file.read(byte_count)
        assert len(data) == byte_count, "cut off"
        self.digest.update(data)
        return data

    def is_at_end(self) -> bool:
        return not self._file.read(1)


def read_stream(path: str, base: Disks) -> tuple[dict[str, Any], Disks]:
    """The metadata, and what the disks hold; `base`: what those of the snapshot hold that it builds on."""
    with open(path, "rb") as opened:
        file = File(opened)
        header = file.take(64)
        magic, check, version, _, incompatible = struct.unpack_from("<8sQIIQ", header)
        assert (magic, check, version, incompatible) == (b"BDSTREAM", xxhash.xxh3_64_intdigest(header[16:]), 1, 0)
        metadata: dict[str, Any] = {}
        disks: list[bytearray] = []
        record_count = data_bytes = 0
        while True:
            before = file.digest.digest()
            head = file.take(48)
            kind, codec, disk, stored_bytes, offset, length, check, digest = struct.unpack("<BBHIQQQ16s", head)
            assert check == xxhash.xxh3_64_intdigest(head[:24] + head[32:]), "a head that does not verify"
            stored = file.take(stored_bytes)
            if kind == 4:
                assert (offset, length, digest) == (record_count, data_bytes, before) and file.is_at_end()
                return metadata, {row["name"]: content for row, content in zip(metadata["disks"], disks, strict=True)}
            if kind == 1:
                assert digest == xxhash.xxh3_128_digest(stored) and not metadata
                metadata = json.loads(stored)
                disks = [_beginning(row, base) for row in metadata["disks"]]
                continue
            plain = bytes(length) if kind == 3 else stored if codec == 0 else zstandard.ZstdDecompressor().decompress(stored)
            assert kind == 3 or (len(plain) == length and digest == xxhash.xxh3_128_digest(plain)), "data that does not verify"
            disks[disk][offset : offset + length] = plain
            record_count, data_bytes = record_count + 1, data_bytes + length * (kind == 2)


def _beginning(row: dict[str, Any], base: Disks) -> bytearray:
    """A disk before its first record."""
    content = base[row["name"]] if row["based"] else b""
    return bytearray(content[: row["size_bytes"]].ljust(row["size_bytes"], b"\0"))
