"""The bytes of a stream file (docs/format/stream.md): one snapshot, whole or as what changed since another.

Pure functions.  What is given to a `decode_` comes from anywhere: every field is checked before it is used, and what is
wrong raises Malformed with why; never another exception.
"""

from __future__ import annotations

import json
import struct
import threading
from collections.abc import Mapping
from typing import Any, NamedTuple

import xxhash
import zstandard

from blockdev.constants import BLOCK_BYTES
from blockdev.errors import InvalidArgument
from blockdev.vmmap.copies import CopiedDisk, SnapshotCopy
from blockdev.vmmap.copy_fields import check_uuid, copy_of, snapshot_fields, vm_fields
from blockdev.vmmap.names import check_name, check_size

MAGIC = b"BDSTREAM"
VERSION = 1
HEADER = struct.Struct("<8sQIIQQ24s")  # magic, check, version, reserved, incompatible, compatible features, reserved
HEADER_BYTES = HEADER.size
CHECKED_FROM = 16  # bytes of the header before what its check covers
HEAD = struct.Struct("<BBHIQQQ16s")  # type, codec, disk, stored bytes, offset, length, check, digest
HEAD_BYTES = HEAD.size
CHECK_AT, DIGEST_AT = 24, 32  # of a head

METADATA, DATA, HOLE, TRAILER = 1, 2, 3, 4  # types of records
RAW, ZSTD = 0, 1  # codecs
DATA_BYTES_MAX = 1 << 20  # of one record, plain
METADATA_BYTES_MAX = 8 << 20
LEVELS = range(20)  # of zstd; 0: not compressed


class Malformed(Exception):
    """Bytes that are no stream of this version; says why."""


class OtherVersion(Malformed):
    """They are a stream of a version, or with a feature, that this build does not read."""


class NoStream(Malformed):
    """They are something else."""


class Head(NamedTuple):
    """What a record begins with."""

    type: int
    codec: int
    disk: int  # its index in the metadata
    stored_bytes: int  # that follow the head
    offset: int  # bytes of the disk; in a trailer: how many data and hole records there are
    length: int  # bytes of the disk; in a trailer: of all data records
    digest: bytes  # XXH3-128 of the plain bytes; in a trailer: of all before it


class Packed(NamedTuple):
    """The bytes of one data record."""

    codec: int
    stored: bytes
    length: int  # plain
    digest: bytes  # of the plain bytes


def digest_of(data: bytes) -> bytes:
    return xxhash.xxh3_128_digest(data)


# --- header and heads ---


def encode_header() -> bytes:
    rest = HEADER.pack(MAGIC, 0, VERSION, 0, 0, 0, bytes(24))[CHECKED_FROM:]
    return MAGIC + xxhash.xxh3_64_intdigest(rest).to_bytes(8, "little") + rest


def check_magic(data: bytes) -> None:
    """NoStream: what begins with `data`, which may be cut short, is something else."""
    if data[: len(MAGIC)] != MAGIC[: len(data)]:
        raise NoStream(f"it does not begin with {MAGIC.decode()}")


def decode_header(data: bytes) -> None:
    """Malformed, OtherVersion: unless it is the header of a stream that this build reads."""
    _magic, check, version, zero, incompatible, _compatible, zeros = HEADER.unpack(data)
    if check != xxhash.xxh3_64_intdigest(data[CHECKED_FROM:]):
        raise Malformed("the header does not verify")
    if version != VERSION:
        raise OtherVersion(f"it is a stream of version {version}; this build reads {VERSION}: import it with the build that wrote it")
    if incompatible:
        raise OtherVersion(f"it needs features {incompatible:#x}, which this build does not know: import it with a later one")
    if zero or any(zeros):
        raise Malformed("a reserved field of the header is not zero")


def encode_head(head: Head) -> bytes:
    fields = HEAD.pack(*head[:6], 0, head.digest)
    check = xxhash.xxh3_64_intdigest(fields[:CHECK_AT] + head.digest)
    return fields[:CHECK_AT] + check.to_bytes(8, "little") + head.digest


def decode_head(data: bytes) -> Head:
    """A head whose fields are each of a kind that its type may have.  Malformed."""
    type, codec, disk, stored_bytes, offset, length, check, digest = HEAD.unpack(data)
    if check != xxhash.xxh3_64_intdigest(data[:CHECK_AT] + digest):
        raise Malformed("the head of a record does not verify")
    head = Head(type, codec, disk, stored_bytes, offset, length, digest)
    if not _is_head(head):
        raise Malformed(f"there can be no record of type {head.type}, codec {head.codec}, {head.stored_bytes} bytes stored of {head.length}")
    return head


def _is_head(head: Head) -> bool:
    if head.type == DATA:
        is_sized = 0 < head.stored_bytes <= head.length <= DATA_BYTES_MAX
        return is_sized and head.codec in (RAW, ZSTD) and (head.codec == ZSTD or head.stored_bytes == head.length)
    if head.codec != RAW:
        return False
    if head.type == METADATA:
        return 0 < head.stored_bytes == head.length <= METADATA_BYTES_MAX and not head.disk and not head.offset
    if head.type == HOLE:
        return head.stored_bytes == 0 < head.length and not any(head.digest)
    return head.type == TRAILER and head.stored_bytes == 0 and not head.disk


def check_place(head: Head, end: int, disk: CopiedDisk) -> None:
    """Malformed unless a data or hole record lies in its disk, behind `end`, in whole blocks.  A sum may exceed 64 bits."""
    head_end = head.offset + head.length
    if head.offset % BLOCK_BYTES or (head_end % BLOCK_BYTES and head_end != disk.size_bytes):
        raise Malformed(f"a record of disk {disk.name} is not of whole blocks")
    if head.offset < end:
        raise Malformed(f"a record of disk {disk.name} at {head.offset} is not behind the one before it")
    if head_end > disk.size_bytes:
        raise Malformed(f"a record of disk {disk.name} ends at {head_end}, behind the disk's end at {disk.size_bytes}")
    if head.type == HOLE and not disk.is_based:
        raise Malformed(f"disk {disk.name} builds on nothing, and there is a hole in it")


# --- data ---


class _Compressors(threading.local):
    """One for each level and thread: a new one takes 9 us to compress 4 KiB with, and 0.5 ms of a MiB of text, more."""

    def __init__(self) -> None:
        self._of_level: dict[int, zstandard.ZstdCompressor] = {}

    def of(self, level: int) -> zstandard.ZstdCompressor:
        if level not in self._of_level:
            self._of_level[level] = zstandard.ZstdCompressor(level=level)
        return self._of_level[level]


_compressors = _Compressors()


def pack(data: bytes, level: int) -> Packed:
    """The bytes of a data record, compressed where that makes them fewer."""
    digest = digest_of(data)
    if level:
        stored = _compressors.of(level).compress(data)
        if len(stored) < len(data):
            return Packed(ZSTD, stored, len(data), digest)
    return Packed(RAW, data, len(data), digest)


def unpack(packed: Packed) -> bytes:
    """The plain bytes.  Malformed when they are not those that were packed."""
    plain = packed.stored
    if packed.codec == ZSTD:
        try:  # the frame says how much memory it wants: look before
            if zstandard.frame_content_size(packed.stored) != packed.length:
                raise Malformed("a record holds another length than it says")
            plain = zstandard.ZstdDecompressor().decompress(packed.stored, allow_extra_data=False)
        except (zstandard.ZstdError, ValueError) as error:
            raise Malformed(f"a record does not decompress: {error}") from None
    if len(plain) != packed.length or digest_of(plain) != packed.digest:
        raise Malformed("the data of a record does not verify")
    return plain


# --- metadata ---


def encode_metadata(copy: SnapshotCopy) -> bytes:
    base = None if copy.base_uuid is None else {"uuid": copy.base_uuid, "name": copy.base_name}
    document = {
        "vm": vm_fields(copy),
        "snapshot": snapshot_fields(copy),
        "base": base,
        "config": copy.config,
        "disks": [{"name": disk.name, "size_bytes": disk.size_bytes, "based": disk.is_based} for disk in copy.disks],
    }
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()


def decode_metadata(data: bytes) -> SnapshotCopy:
    """What is not known is passed over: a later build may say more.  Malformed."""
    try:
        return _copy_of(json.loads(data.decode()))
    except (InvalidArgument, ValueError, TypeError, KeyError, RecursionError, OverflowError) as error:
        raise Malformed(f"the metadata is none: {type(error).__name__}: {error}") from None


def _copy_of(document: Mapping[str, Any]) -> SnapshotCopy:
    base = document["base"]
    copy = copy_of(document, "import", [_disk_of(one, base is not None) for one in document["disks"]])
    if base is None:
        return copy
    return copy._replace(base_uuid=check_uuid(base["uuid"]), base_name=check_name("snapshot", base["name"]))


def _disk_of(row: Mapping[str, Any], has_base: bool) -> CopiedDisk:
    is_based = row["based"]
    if not isinstance(is_based, bool) or (is_based and not has_base):
        raise ValueError("a disk that builds on nothing")
    name = check_name("disk", row["name"])
    return CopiedDisk(name, check_size(f"disk {name}", row["size_bytes"]), is_based)
