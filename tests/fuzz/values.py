"""Targets that are pure functions of bytes: superblock, checkpoint table, log record, tag, names.

Beyond the errors that are allowed: whatever decodes, encodes to something that decodes to the same.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable

import xxhash

from blockdev import records, superblock
from blockdev.addresses import Address
from blockdev.engine import process
from blockdev.errors import BlockdevError, Corrupt, InvalidArgument, UnknownFormat
from blockdev.vmmap import names, tags
from tests.fuzz.harness import Harness

TEXT_BYTES_MAX = 200
INTERESTING = (0, 1, 2, 511, 512, 4095, 4096, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 1 << 48, (1 << 62) - 1, (1 << 64) - 1)


class Values(Harness):
    def __init__(self, check: Callable[[bytes], None], seeds: Callable[[], dict[str, bytes]]) -> None:
        self.one_input = check  # type: ignore[method-assign]
        self.seeds = seeds  # type: ignore[method-assign]

    def mutate(self, data: bytes, chance: random.Random) -> bytes | None:
        """A number of some width becomes one at a limit."""
        width = chance.choice((1, 2, 4, 8))
        if len(data) < width:
            return None
        at = chance.randrange(len(data) - width + 1)
        if chance.random() < 0.5:
            at -= at % width  # where fields are
        value = chance.choice(INTERESTING) + chance.choice((-1, 0, 0, 1))
        return data[:at] + (value % (1 << 8 * width)).to_bytes(width, "little") + data[at + width :]


def make(name: str) -> Harness:
    check, seeds = {
        "superblock": (check_superblock, superblocks),
        "table": (check_table, tables),
        "record": (check_record, log_records),
        "tag": (check_tag, object_tags),
        "name": (check_name, object_names),
    }[name]
    return Values(check, seeds)


# --- superblock ---


def check_superblock(data: bytes) -> None:
    padded = bytearray(data[: superblock.SUPERBLOCK_BYTES].ljust(superblock.SUPERBLOCK_BYTES, b"\0"))
    struct.pack_into("<8sQ", padded, 0, superblock.MAGIC, xxhash.xxh3_64_intdigest(bytes(padded[16:])))
    for content in (data, bytes(padded)):
        superblock.version_of(content)
        try:
            found = superblock.decode(content)
        except (Corrupt, UnknownFormat):
            continue
        assert superblock.decode(superblock.encode(found)) == found
        # what a pool writes after its next checkpoint
        following = found._replace(sequence=found.sequence + 1, checkpoint_number=found.checkpoint_number + 1)
        assert len(superblock.encode(following)) == superblock.SUPERBLOCK_BYTES


def superblocks() -> dict[str, bytes]:
    block = superblock.Superblock(bytes(range(16)), 7, 3, 400, 0x1122334455667788, 1024, 1 << 40, 1795348800)
    return {
        "plain": superblock.encode(block).rstrip(b"\0"),
        "features": superblock.encode(block._replace(incompatible=1, compatible=2)).rstrip(b"\0"),
    }


# --- the checkpoint table, and records of the log ---


def check_table(data: bytes) -> None:
    try:
        table = records.decode_table(data)
    except Corrupt:
        return
    assert records.decode_table(records.encode_table(table)) == table


def tables() -> dict[str, bytes]:
    objects = [
        records.ObjectState(1, records.KIND_VDISK, 8 << 20, 5, 2, 2, 0, 0, "web/root", b"tag"),
        records.ObjectState(2, records.KIND_SNAPSHOT, 8 << 20, 4, 2, 0, 90, 1, "web/root@s", b""),
        records.ObjectState(4, records.KIND_VDISK, 512, 0, 1, 1, 0, 2, None, b""),
    ]
    table = records.Table(3, 100, 2, 17, 9, 8, 5, objects, struct.pack("<2Q", 1, 2), struct.pack("<2Q", 3, 8))
    return {
        "three": records.encode_table(table),
        "empty": records.encode_table(records.Table(1, 0, 1, 1, 0, 1, 1, [], b"", b"")),
    }


def check_record(data: bytes) -> None:
    try:
        record_type, items = records.decode_record(data)
    except Corrupt:
        return
    assert records.decode_record(records.encode_record(record_type, items)) == (record_type, items)


def log_records() -> dict[str, bytes]:
    items = [records.Item(3, 1, 1 << 20, "web/root", b"tag"), records.Item(4, 2, 512, None, b"")]
    return {f"type-{kind}": records.encode_record(kind, items) for kind in range(1, 8)}


# --- tags and names ---


def check_tag(data: bytes) -> None:
    tag = tags.decode_tag(data)
    if tag is not None:
        assert tags.decode_tag(tags.encode_tag(tag)) == tag
    assert isinstance(process.tag_fields(data), dict)


def object_tags() -> dict[str, bytes]:
    tag = tags.Tag("2b1d5a0c-7c44-4c3e-9d5e-0f6a3b1c2d4e", "2026-11-22T12:00:00.123Z")
    return {
        "vdisk": tags.encode_tag(tag),
        "snapshot": tags.encode_tag(tag._replace(origin="restore", temporary=True)),
        "json": b'{"created": "2026-11-22T12:00:00Z", "temporary": true}',
    }


def check_name(data: bytes) -> None:
    """An export name as a plugin gets it from a client, and as text that a person types."""
    text = data.decode(errors="replace")
    parts = names.parse_object_name(text)
    if parts is not None:
        assert names.object_name(*parts) == text and all(names.is_name(part) for part in parts if part)
    for check in (
        lambda: names.check_name("VM", text),
        lambda: names.check_text("the configuration", text, TEXT_BYTES_MAX),
        lambda: Address.parse(text),
    ):
        try:
            check()
        except InvalidArgument as error:
            assert error.message.encode()
    if text.isascii() and text.isdigit():
        process.size_text(int(text[:30]))
    parameters = {"home": "/nowhere", "map_cache_bytes": text}
    try:
        process.EngineProcess(parameters, "none")
    except BlockdevError as error:
        assert isinstance(error, InvalidArgument)


def object_names() -> dict[str, bytes]:
    return {
        "disk": b"web/root",
        "snapshot": b"web-2/root.1@before_upgrade",
        "address": b"127.0.0.1:10809",
        "address6": b"[::1]:10809",
        "number": b"1048576",
        "nul": b"a\0b",
        "invalid": b"\xff\xfe/\xed\xa0\x80",
    }
