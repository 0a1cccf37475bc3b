"""Target `stream`: a stream file, with the checks it has and with those it should have.

Only documented errors; what is read is in order, inside its disks and in bounds, and encodes to what reads the same.
"""

from __future__ import annotations

import io
import random
import struct

import xxhash
import zstandard

from blockdev.errors import Corrupt, InvalidArgument, UnknownFormat
from blockdev.transfer import stream_format as format
from blockdev.transfer.stream_file import Record, StreamEncoder, StreamReader
from blockdev.vmmap.copies import CopiedDisk, SnapshotCopy
from blockdev.vmmap.model import Terms
from tests.fuzz.harness import Harness

BLOCK = 4096
INTERESTING = (0, 1, 2, 3, 4, 511, 512, 4095, 4096, 8192, 0xFFFF, 1 << 20, 8 << 20, 0xFFFFFFFF, 1 << 46, (1 << 64) - 4096, (1 << 64) - 1)
COPY = SnapshotCopy(
    uuid="8d0c6b9a-3c11-5c4e-9a39-0b6f6d2f3b11",
    name="s2",
    description="",
    created="2026-11-22T15:19:26.123Z",
    lsn=7,
    terms=Terms("import"),
    config="<web/>",
    disks=[CopiedDisk("root", 8 * BLOCK, True), CopiedDisk("data", BLOCK + 512, False)],
    vm_uuid="2b1d5a0c-7c44-4c3e-9d5e-0f6a3b1c2d4e",
    vm_name="web",
    base_uuid="1f0c6b9a-3c11-5c4e-9a39-0b6f6d2f3b11",
    base_name="s1",
)


class Streams(Harness):
    def one_input(self, data: bytes) -> None:
        for content in (data, signed(data)):
            try:
                copy, records = read(content)
            except (Corrupt, InvalidArgument, UnknownFormat) as error:
                assert error.message.startswith("FILE ") and error.message.encode()
                continue
            ends = [0] * len(copy.disks)
            for one in records:
                assert ends[one.disk] <= one.offset < one.offset + one.length <= copy.disks[one.disk].size_bytes
                ends[one.disk] = one.offset + one.length
            again = encode(copy, [(one.disk, one.offset, one.length, one.packed) for one in records])
            copy_again, records_again = read(again)
            assert copy_again == copy and [one[1:] for one in records_again] == [one[1:] for one in records]

    def seeds(self) -> dict[str, bytes]:
        data = format.pack(b"a" * BLOCK, 3)
        rows = [(0, 0, BLOCK, data), (0, BLOCK, 2 * BLOCK, None), (1, BLOCK, 512, format.pack(bytes(range(256)) * 2, 0))]
        whole = COPY._replace(base_uuid=None, base_name="", disks=[CopiedDisk("root", 512, False)])
        return {"changed": encode(COPY, rows), "whole": encode(whole, [(0, 0, 512, format.pack(b"x" * 512, 1))]), "empty": encode(whole, [])}

    def mutate(self, data: bytes, chance: random.Random) -> bytes | None:
        """A field of the header or of a record's head becomes a number at a limit; or a record goes, or comes twice."""
        places = [at for at, _ in heads(data)]
        if not places:
            return None
        at = chance.choice(places)
        if chance.random() < 0.2:
            ends = [*places[1:], len(data)]
            part = data[at : ends[places.index(at)]]
            return data[:at] + (part * 2 if chance.random() < 0.5 else b"") + data[at + len(part) :]
        offset, width = chance.choice(((0, 1), (1, 1), (2, 2), (4, 4), (8, 8), (16, 8)))
        value = chance.choice(INTERESTING) + chance.choice((-1, 0, 0, 1))
        at = at + offset if chance.random() < 0.9 else 16 + chance.randrange(6) * 8
        return data[:at] + (value % (1 << 8 * width)).to_bytes(width, "little") + data[at + width :]


def make(name: str) -> Harness:
    return Streams()


def read(data: bytes) -> tuple[SnapshotCopy, list[Record]]:
    """What a stream holds, each record verified."""
    reader = StreamReader(io.BytesIO(data), "FILE")
    records = []
    for one in reader.records():
        if one.packed is not None:
            assert len(reader.plain(one)) == one.length
        records.append(one)
    return reader.copy, records


def encode(copy: SnapshotCopy, rows: list[tuple[int, int, int, format.Packed | None]]) -> bytes:
    encoder = StreamEncoder(copy)
    parts = encoder.begin()
    for disk, offset, length, packed in rows:
        parts += encoder.hole(disk, offset, length) if packed is None else encoder.data(disk, offset, packed)
    return b"".join(parts + encoder.end())


def heads(data: bytes) -> list[tuple[int, int]]:
    """Where records begin, and how many bytes follow each head."""
    found, at = [], format.HEADER_BYTES
    while at + format.HEAD_BYTES <= len(data):
        stored_bytes = struct.unpack_from("<I", data, at + 4)[0]
        found.append((at, stored_bytes))
        at += format.HEAD_BYTES + stored_bytes
    return found


def signed(data: bytes) -> bytes:
    """The same with checks and digests that are right, as far as it has the shape of a stream."""
    content = bytearray(data)
    if len(content) >= format.HEADER_BYTES:
        content[:8] = format.MAGIC
        content[8:16] = xxhash.xxh3_64_intdigest(bytes(content[16:64])).to_bytes(8, "little")
    for at, stored_bytes in heads(content):
        body = bytes(content[at + format.HEAD_BYTES : at + format.HEAD_BYTES + stored_bytes])
        if content[at] == format.TRAILER:
            digest = xxhash.xxh3_128_digest(bytes(content[:at]))
        elif content[at] == format.HOLE:
            digest = bytes(16)
        else:
            digest = format.digest_of(plain_of(body) if content[at + 1] == format.ZSTD else body)
        content[at + 32 : at + 48] = digest
        check = xxhash.xxh3_64_intdigest(bytes(content[at : at + 24]) + digest)
        content[at + 24 : at + 32] = check.to_bytes(8, "little")
    return bytes(content)


def plain_of(body: bytes) -> bytes:
    try:
        if not 0 <= zstandard.frame_content_size(body) <= format.DATA_BYTES_MAX:
            return b""
        return zstandard.ZstdDecompressor().decompress(body)
    except zstandard.ZstdError:
        return b""
