"""The two superblocks: which checkpoint is current, and what kind of pool this is.

They are written alternately, so a torn write always leaves the older one.  The sound one with the higher sequence is
current.  Layout: docs/format/pool.md.
"""

from __future__ import annotations

import os
import struct
from typing import NamedTuple

import xxhash

from blockdev import _medium
from blockdev._medium import PlantedBug, is_planted
from blockdev.constants import BLOCK_BYTES, FORMAT_VERSION
from blockdev.errors import Corrupt, MediumError, UnknownFormat, medium_failure
from blockdev.policies import COMPRESSIONS, DEDUPS, LEVELS, PoolPolicy, encode_compression, encode_dedup

MAGIC = b"BLOCKDEV"
SUPERBLOCK_BYTES = 4096
HEAD = struct.Struct("<8sQ")  # magic, XXH3-64 of all that follows
BODY = struct.Struct("<IIII16sQQQQIBBBxQQQ")
SEGMENT_SLOTS = range(1 << 8, (1 << 16) + 1)  # of 1 MiB to 256 MiB
COMPACTED = 1  # feature bit: segments may be compacted
POLICIES = 2  # feature bit: the log may have records of disks' policies
KNOWN_INCOMPATIBLE = COMPACTED | POLICIES  # feature bits that a reader must know


class Superblock(NamedTuple):
    uuid: bytes
    sequence: int
    checkpoint_number: int
    checkpoint_bytes: int
    checkpoint_checksum: int  # XXH3-64 of the checkpoint table
    segment_slots: int
    capacity_bytes: int
    created: int  # seconds since 1970
    incompatible: int = 0
    compatible: int = 0
    policy: PoolPolicy = PoolPolicy()


def encode(block: Superblock) -> bytes:
    body = BODY.pack(
        FORMAT_VERSION,
        block.incompatible,
        block.compatible,
        BLOCK_BYTES,
        block.uuid,
        block.sequence,
        block.checkpoint_number,
        block.checkpoint_bytes,
        block.checkpoint_checksum,
        block.segment_slots,
        encode_compression(block.policy.compression),
        encode_dedup(block.policy.dedup),
        block.policy.compression_level,
        block.capacity_bytes,
        block.created,
        block.policy.compaction_rate_bytes,
    ).ljust(SUPERBLOCK_BYTES - HEAD.size, b"\0")
    return HEAD.pack(MAGIC, xxhash.xxh3_64_intdigest(body)) + body


def version_of(content: bytes) -> int | None:
    """The format version that a superblock claims, sound or not; None without the magic number."""
    if len(content) < HEAD.size + 4 or content[:8] != MAGIC:
        return None
    return int(struct.unpack_from("<I", content, HEAD.size)[0])


def decode(content: bytes) -> Superblock:
    """Corrupt when it does not verify, UnknownFormat when it does but is not for this build."""
    if len(content) != SUPERBLOCK_BYTES or content[:8] != MAGIC:
        raise Corrupt("a superblock is truncated or has no magic number")
    _magic, checksum = HEAD.unpack_from(content)
    if xxhash.xxh3_64_intdigest(content[HEAD.size :]) != checksum:
        raise Corrupt("a superblock does not verify")
    (version, incompatible, compatible, block_bytes, uuid, sequence, number, table_bytes, table_checksum,
     segment_slots, compression, dedup, level, capacity, created, rate) = BODY.unpack_from(content, HEAD.size)  # fmt: skip
    if version != FORMAT_VERSION or block_bytes != BLOCK_BYTES:
        raise UnknownFormat(
            f"the pool has format version {version}, this build reads {FORMAT_VERSION}: use the build that made it"
        )
    if incompatible & ~KNOWN_INCOMPATIBLE:
        raise UnknownFormat(f"the pool uses features {incompatible:#x} that this build does not know: use a newer one")
    if segment_slots not in SEGMENT_SLOTS or max(sequence, number) >> 62:
        raise Corrupt(f"a superblock has {segment_slots} slots in a segment, or a number, that cannot be")
    return Superblock(
        *(uuid, sequence, number, table_bytes, table_checksum, segment_slots, capacity, created),
        *(incompatible, compatible, _policy(compression, dedup, level, rate)),
    )


def _policy(compression: int, dedup: int, level: int, rate_bytes: int) -> PoolPolicy:
    """Codes that are none are what older builds wrote, zeros, or newer ones: then it is what a new pool has."""
    usual = PoolPolicy()
    return PoolPolicy(
        COMPRESSIONS[compression - 1] if 1 <= compression <= len(COMPRESSIONS) else usual.compression,
        level if level in LEVELS else usual.compression_level,
        DEDUPS[dedup - 1] if 1 <= dedup <= len(DEDUPS) else usual.dedup,
        rate_bytes if rate_bytes >> 62 == 0 else usual.compaction_rate_bytes,
    )


def path_of(pool_path: str, which: int) -> str:
    return f"{pool_path}/superblock-{which}"


def is_there(pool_path: str) -> bool:
    """Whether this is a pool's directory at all, sound or not.  MediumError: that cannot be seen."""
    for which in (0, 1):
        path = path_of(pool_path, which)
        try:
            os.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as failure:
            raise medium_failure(path, failure.errno or 0) from None
        return True
    return False


def read_both(pool_path: str) -> list[Superblock]:
    """The sound superblocks, newest first.  Corrupt or UnknownFormat when there is none."""
    sound: list[Superblock] = []
    versions = []
    for which in (0, 1):
        try:
            content = _medium.read_file(path_of(pool_path, which), SUPERBLOCK_BYTES)
        except MediumError:
            continue
        try:
            sound.append(decode(content))
        except Corrupt:
            versions.append(version_of(content))
    if not sound and any(v is not None and v != FORMAT_VERSION for v in versions):
        raise UnknownFormat(
            f"{pool_path}: the pool has format version {max(v or 0 for v in versions)}, this build reads "
            f"{FORMAT_VERSION}: use the build that made it"
        )
    if not sound:
        raise Corrupt(f"{pool_path}: both superblocks are lost; restore the pool directory from a copy")
    return sorted(sound, key=lambda block: -block.sequence)


def write(pool_path: str, block: Superblock) -> None:
    """Write over the older superblock, or make it anew if it was lost; durable on return."""
    path = path_of(pool_path, 0 if is_planted(PlantedBug.BUG_ONE_SUPERBLOCK) else block.sequence % 2)
    lost = not os.path.exists(path)
    _medium.write_file(path, [encode(block)], create=lost, durable=True)
    if lost:
        _medium.sync_directory(pool_path)
