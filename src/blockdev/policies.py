"""How a pool's data is kept: whether and when it is compressed, whether equal blocks are stored once, how fast the pool's own
rounds read.  A disk may differ from its pool in the first two."""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

from blockdev.errors import InvalidArgument

Compression = Literal["cold", "inline", "off"]
Dedup = Literal["on", "off"]
COMPRESSIONS: tuple[Compression, ...] = get_args(Compression)  # by their codes in the pool's files, 0 being none of them
DEDUPS: tuple[Dedup, ...] = get_args(Dedup)
LEVELS = range(1, 20)  # of zstd
LEVEL = 3
RATE_BYTES_MIN = 1 << 20  # with less a round would hardly come to its end
DEDUP_SHIFT = 2  # of its code in a disk's policy


class PoolPolicy(NamedTuple):
    """What holds for all disks that say nothing else."""

    compression: Compression = "cold"  # once it has proved to be cold; inline: soon after it was written; off: never
    compression_level: int = LEVEL
    dedup: Dedup = "on"
    compaction_rate_bytes: int = 0  # that the pool's own rounds read in a second; 0: the pool's choice


class DiskPolicy(NamedTuple):
    """What holds for one vdisk; None: as its pool's."""

    compression: Compression | None = None
    dedup: Dedup | None = None


AS_POOL = DiskPolicy()


def check_pool_policy(policy: PoolPolicy) -> None:
    """InvalidArgument when it says what cannot be."""
    if policy.compression not in COMPRESSIONS or policy.dedup not in DEDUPS:
        raise InvalidArgument(f"a pool has compression {', '.join(COMPRESSIONS)} and dedup {' or '.join(DEDUPS)}")
    if policy.compression_level not in LEVELS:
        raise InvalidArgument(f"a compression level is {LEVELS[0]} to {LEVELS[-1]}, not {policy.compression_level}")
    rate_bytes = policy.compaction_rate_bytes
    if rate_bytes and not RATE_BYTES_MIN <= rate_bytes < 1 << 62:
        raise InvalidArgument(f"{rate_bytes} bytes a second is no rate for compaction: say at least {RATE_BYTES_MIN}, or 0")


def check_disk_policy(policy: DiskPolicy) -> None:
    """InvalidArgument when it says what cannot be."""
    if policy.compression is not None and policy.compression not in COMPRESSIONS:
        raise InvalidArgument(f"compression is {', '.join(COMPRESSIONS)}, not {policy.compression!r}")
    if policy.dedup is not None and policy.dedup not in DEDUPS:
        raise InvalidArgument(f"dedup is {' or '.join(DEDUPS)}, not {policy.dedup!r}")


def encode_compression(compression: Compression | None) -> int:
    return 0 if compression is None else COMPRESSIONS.index(compression) + 1


def encode_dedup(dedup: Dedup | None) -> int:
    return 0 if dedup is None else DEDUPS.index(dedup) + 1


def is_disk_code(code: int) -> bool:
    """Whether a disk's policy can be written so."""
    return code >> 4 == 0 and code >> DEDUP_SHIFT <= len(DEDUPS)


def encode_disk_policy(policy: DiskPolicy) -> int:
    """As logs and checkpoints hold it."""
    return encode_compression(policy.compression) | encode_dedup(policy.dedup) << DEDUP_SHIFT


def decode_disk_policy(code: int) -> DiskPolicy:
    """The policy that a code means, which is_disk_code holds of."""
    compression, dedup = code & (1 << DEDUP_SHIFT) - 1, code >> DEDUP_SHIFT
    return DiskPolicy(
        COMPRESSIONS[compression - 1] if compression else None,
        DEDUPS[dedup - 1] if dedup else None,
    )
