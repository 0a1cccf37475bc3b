"""The bytes of a stream file: golden, and refused whatever byte of it is missing or another."""

from __future__ import annotations

import io
import struct
import tracemalloc

import pytest
import xxhash
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from blockdev.errors import Corrupt, InvalidArgument, UnknownFormat
from blockdev.transfer import stream_format as format
from blockdev.transfer.stream_file import StreamEncoder, StreamReader
from blockdev.transfer.stream_format import Head, Malformed, Packed, pack, unpack
from blockdev.vmmap.copies import CopiedDisk, SnapshotCopy
from blockdev.vmmap.copy_fields import DISKS_MAX
from blockdev.vmmap.model import Terms

BLOCK = 4096
COPY = SnapshotCopy(
    uuid="8d0c6b9a-3c11-5c4e-9a39-0b6f6d2f3b11",
    name="two",
    description="é",
    created="2026-11-22T15:19:26.123Z",
    lsn=77,
    terms=Terms("import", "crash", "vm", None),
    config="<web/>",
    disks=[CopiedDisk("root", 8 * BLOCK, True), CopiedDisk("data", BLOCK + 512, False)],
    vm_uuid="2b1d5a0c-7c44-4c3e-9d5e-0f6a3b1c2d4e",
    vm_name="web",
    base_uuid="1f0c6b9a-3c11-5c4e-9a39-0b6f6d2f3b11",
    base_name="one",
)
Found = list[tuple[int, int, int, bytes | None]]  # disk, offset, length, plain bytes or a hole
CONTENT: Found = [
    (0, 0, BLOCK, b"a" * BLOCK),
    (0, 2 * BLOCK, 3 * BLOCK, None),
    (0, 5 * BLOCK, 2 * BLOCK, bytes(range(256)) * 32),
    (1, BLOCK, 512, b"end!" * 128),
]


def encoded(content: Found = CONTENT, copy: SnapshotCopy = COPY, level: int = 3) -> bytes:
    encoder = StreamEncoder(copy)
    parts = encoder.begin()
    for disk, offset, length, plain in content:
        parts += encoder.hole(disk, offset, length) if plain is None else encoder.data(disk, offset, pack(plain, level))
    return b"".join(parts + encoder.end())


def read(data: bytes) -> tuple[SnapshotCopy, Found]:
    reader = StreamReader(io.BytesIO(data), "FILE")
    found: Found = [
        (one.disk, one.offset, one.length, bytes(reader.plain(one)) if one.packed else None) for one in reader.records()
    ]
    return reader.copy, found


def refusal(data: bytes) -> str:
    with pytest.raises((Corrupt, UnknownFormat)) as refused:
        read(data)
    return refused.value.message


def test_golden_bytes() -> None:
    """As docs/format/stream.md has them; every field at its place."""
    data = encoded(level=0)
    assert data[:64].hex() == (
        "424453545245414d" "377c56d460586f07" "01000000" "00000000" "0000000000000000" "0000000000000000" + "00" * 24
    )
    metadata_bytes = struct.unpack_from("<I", data, 64 + 4)[0]
    metadata = data[112 : 112 + metadata_bytes]
    assert metadata.decode() == (
        '{"vm":{"uuid":"2b1d5a0c-7c44-4c3e-9d5e-0f6a3b1c2d4e","name":"web"},'
        '"snapshot":{"uuid":"8d0c6b9a-3c11-5c4e-9a39-0b6f6d2f3b11","name":"two","description":"é",'
        '"created":"2026-11-22T15:19:26.123Z","lsn":77,"consistency":"crash","asked":"vm","frozen_ms":null},'
        '"base":{"uuid":"1f0c6b9a-3c11-5c4e-9a39-0b6f6d2f3b11","name":"one"},"config":"<web/>",'
        '"disks":[{"name":"root","size_bytes":32768,"based":true},{"name":"data","size_bytes":4608,"based":false}]}'
    )
    first = 112 + metadata_bytes
    assert data[first : first + 24].hex() == "02" "00" "0000" "00100000" "0000000000000000" "0010000000000000"
    assert data[first + 32 : first + 48] == xxhash.xxh3_128_digest(b"a" * BLOCK)
    assert data[first + 24 : first + 32] == xxhash.xxh3_64_intdigest(
        data[first : first + 24] + data[first + 32 : first + 48]
    ).to_bytes(8, "little")
    trailer = data[-48:]
    assert trailer[:24].hex() == "04" "00" "0000" "00000000" "0400000000000000" "0032000000000000"
    assert trailer[32:] == xxhash.xxh3_128_digest(data[:-48])
    assert (format.HEADER_BYTES, format.HEAD_BYTES, format.DATA_BYTES_MAX) == (64, 48, 1 << 20)


def test_what_was_written_is_read() -> None:
    for level in (0, 1, 19):
        assert read(encoded(level=level)) == (COPY, CONTENT)
    whole = COPY._replace(base_uuid=None, base_name="", disks=[CopiedDisk("root", 512, False)])
    assert read(encoded([], whole)) == (whole, [])


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.booleans(), st.binary(min_size=1, max_size=40)), max_size=8), st.integers(0, 3))
def test_any_content_is_read_as_it_was_written(rows: list[tuple[bool, bool, bytes]], level: int) -> None:
    content = [
        (0, number * BLOCK, BLOCK, None if is_hole else (bytes(1) if is_plain else text) * BLOCK)
        for number, (is_hole, is_plain, text) in enumerate(rows)
    ]
    content = [(disk, offset, length, plain and plain[:BLOCK]) for disk, offset, length, plain in content]
    assert read(encoded(content, level=level)) == (COPY, content)


def test_a_file_that_is_cut_off_anywhere_is_refused() -> None:
    data = encoded()
    for length in range(len(data)):
        assert f"cut off at byte {length}" in refusal(data[:length])


@pytest.mark.parametrize("data", [b"x", b"BDSTREAX", b"BDSTR\n", b"QFI\xfb" + bytes(500), b"C" + encoded()[1:]])
def test_a_file_that_begins_otherwise_is_said_to_be_no_stream(data: bytes) -> None:
    with pytest.raises(InvalidArgument, match="FILE is no stream file: it does not begin with BDSTREAM; name one that"):
        read(data)


def test_a_file_in_which_any_bit_is_another_is_refused() -> None:
    data = encoded()
    for at in range(len(format.MAGIC), len(data)):
        for bit in (1, 128):
            changed = bytearray(data)
            changed[at] ^= bit
            message = refusal(bytes(changed))
            assert "FILE is damaged at byte" in message or "FILE is cut off" in message, message
    assert "behind the end" in refusal(data + b"\0")


def test_another_version_or_feature_is_refused_with_what_to_do() -> None:
    data = encoded()
    for at, value, words in ((16, 2, "of version 2; this build reads 1"), (24, 4, "features 0x4"), (20, 1, "reserved"), (60, 1, "reserved")):
        header = bytearray(data[:64])
        header[at] = value
        header[8:16] = xxhash.xxh3_64_intdigest(bytes(header[16:])).to_bytes(8, "little")
        assert words in refusal(bytes(header) + data[64:])
    later = bytearray(data[:64])
    later[32] = 1  # a compatible feature: it can be read all the same
    later[8:16] = xxhash.xxh3_64_intdigest(bytes(later[16:])).to_bytes(8, "little")
    format.decode_header(bytes(later))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([(1, 0, BLOCK, b"x" * BLOCK), (0, 0, BLOCK, b"x" * BLOCK)], "out of its order"),
        ([(2, 0, BLOCK, b"x" * BLOCK)], "out of its order"),
        ([(0, BLOCK, BLOCK, b"x" * BLOCK), (0, 0, BLOCK, b"x" * BLOCK)], "not behind"),
        ([(0, 0, 2 * BLOCK, b"x" * 2 * BLOCK), (0, BLOCK, BLOCK, None)], "not behind"),
        ([(0, 7 * BLOCK, 2 * BLOCK, None)], "behind the disk's end"),
        ([(0, (1 << 64) - BLOCK, BLOCK, None)], "behind the disk's end"),
        ([(0, 0, (1 << 64) - BLOCK, None)], "behind the disk's end"),
        ([(0, 512, BLOCK, b"x" * BLOCK)], "whole blocks"),
        ([(0, 0, 512, b"x" * 512)], "whole blocks"),
        ([(1, 0, BLOCK, None)], "builds on nothing"),
    ],
)
def test_records_that_cannot_be_are_refused(content: Found, words: str) -> None:
    assert words in refusal(encoded(content))


@pytest.mark.parametrize(
    "head",
    [
        Head(format.METADATA, 0, 0, 0, 0, 0, bytes(16)),
        Head(format.METADATA, 0, 0, format.METADATA_BYTES_MAX + 1, 0, format.METADATA_BYTES_MAX + 1, bytes(16)),
        Head(format.DATA, 0, 0, BLOCK, 0, 2 * BLOCK, bytes(16)),
        Head(format.DATA, 1, 0, BLOCK + 1, 0, BLOCK, bytes(16)),
        Head(format.DATA, 1, 0, BLOCK, 0, format.DATA_BYTES_MAX + 1, bytes(16)),
        Head(format.DATA, 2, 0, BLOCK, 0, BLOCK, bytes(16)),
        Head(format.DATA, 1, 0, 0, 0, BLOCK, bytes(16)),
        Head(format.HOLE, 0, 0, 0, 0, 0, bytes(16)),
        Head(format.HOLE, 0, 0, 0, 0, BLOCK, b"x" * 16),
        Head(format.HOLE, 1, 0, 0, 0, BLOCK, bytes(16)),
        Head(format.TRAILER, 0, 0, 1, 0, 0, bytes(16)),
        Head(5, 0, 0, 0, 0, 0, bytes(16)),
    ],
)
def test_heads_that_cannot_be_are_refused(head: Head) -> None:
    with pytest.raises(Malformed, match="there can be no record"):
        format.decode_head(format.encode_head(head))


@pytest.mark.parametrize(
    "changed",
    [
        b"",
        b"[]",
        b"null",
        b"\xff",
        b'"' * 100,
        b"[" * 100_000,
        format.encode_metadata(COPY).replace(b'"root"', b'"a/b"'),
        format.encode_metadata(COPY).replace(b'"data"', b'"root"'),
        format.encode_metadata(COPY).replace(b"32768", b"1"),
        format.encode_metadata(COPY).replace(b"32768", b"true"),
        format.encode_metadata(COPY).replace(b"32768", b"1e5"),
        format.encode_metadata(COPY).replace(b'"crash"', b'"best"'),
        format.encode_metadata(COPY).replace(b"26.123Z", b"26.1234Z"),
        format.encode_metadata(COPY).replace(b"26.123Z", b"26.123"),
        format.encode_metadata(COPY).replace(b"8d0c6b9a-", b"8D0C6B9A-"),
        format.encode_metadata(COPY).replace(b"<web/>", b"\\ud800"),
        format.encode_metadata(COPY).replace(b'"lsn":77', b'"lsn":-1'),
        format.encode_metadata(COPY).replace(b'"frozen_ms":null', b'"frozen_ms":true'),
        format.encode_metadata(COPY._replace(base_uuid=None)),
        format.encode_metadata(COPY._replace(disks=[])),
        format.encode_metadata(COPY._replace(disks=[CopiedDisk(f"d{n}", 512, False) for n in range(DISKS_MAX + 1)])),
    ],
)
def test_metadata_that_cannot_be_is_refused(changed: bytes) -> None:
    with pytest.raises(Malformed):
        format.decode_metadata(changed)


def test_metadata_may_say_more_than_this_build_knows() -> None:
    more = format.encode_metadata(COPY).replace(b'{"vm":{', b'{"later":[1],"vm":{"more":{},')
    assert format.decode_metadata(more) == COPY


def test_a_frame_that_wants_more_memory_than_its_record_says_is_refused() -> None:
    bomb = zstandard.ZstdCompressor(level=1).compress(bytes(256 << 20))
    tracemalloc.start()
    with pytest.raises(Malformed):
        unpack(Packed(format.ZSTD, bomb, format.DATA_BYTES_MAX, bytes(16)))
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()
    unsized = zstandard.ZstdCompressor(write_content_size=False).compress(b"x" * BLOCK)
    for stored in (unsized, pack(b"x" * BLOCK, 3).stored + b"more", b"\x28\xb5\x2f\xfd", b"nothing"):
        with pytest.raises(Malformed):
            unpack(Packed(format.ZSTD, stored, BLOCK, format.digest_of(b"x" * BLOCK)))
