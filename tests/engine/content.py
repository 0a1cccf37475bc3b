"""What tests write: zeros, repeats, noise, text, and sectors that say who wrote them."""

from __future__ import annotations

import random
import struct

import numpy as np

from tests.engine.model import BLOCK, SECTOR

KINDS = ("zero", "repeat", "noise", "text", "mixed")
STAMP_BYTES = 16  # writer u32, sequence u32, sector number u64; repeated through the whole sector


def block_data(kind: str, seed: int, length: int) -> bytes:
    """`length` bytes of one kind, always the same for the same seed."""
    source = random.Random(seed)
    if kind == "zero":
        return bytes(length)
    if kind == "noise":
        return source.randbytes(length)
    if kind == "repeat":  # few different blocks, so that dedup hits
        unit = random.Random(seed % 5).randbytes(BLOCK)
        return (unit * (length // BLOCK + 1))[:length]
    if kind == "text":
        words = [b"snapshot ", b"clone ", b"restore ", b"guest ", b"block ", str(seed).encode() + b" "]
        return b"".join(source.choices(words, k=length // 5 + 1))[:length]
    choice = ("zero", "repeat", "noise", "text")
    parts = [
        block_data(source.choice(choice), source.randrange(1 << 30), SECTOR) for _ in range(length // SECTOR)
    ]
    return b"".join(parts)


def stamped(writer: int, sequence: int, offset: int, length: int) -> bytes:
    """Sectors that each hold writer, sequence and their own number, over and over."""
    numbers = np.arange(offset // SECTOR, (offset + length) // SECTOR, dtype=np.uint64)
    fields = np.empty((len(numbers), SECTOR // STAMP_BYTES, 2), dtype=np.uint64)
    fields[:, :, 0] = writer | sequence << 32
    fields[:, :, 1] = numbers[:, None]
    return fields.tobytes()


def read_stamps(data: bytes, offset: int) -> list[tuple[int, int]]:
    """(writer, sequence) of each sector; (0, 0) for one never written.  Asserts that no sector is a mix or misplaced."""
    fields = np.frombuffer(data, dtype=np.uint64).reshape(-1, SECTOR // STAMP_BYTES, 2)
    numbers = np.arange(offset // SECTOR, offset // SECTOR + len(fields), dtype=np.uint64)
    torn = (fields != fields[:, :1, :]).any(axis=(1, 2))
    assert not torn.any(), f"sector {numbers[torn][0]} is a mix: {np.unique(fields[torn][0, :, 0])}"
    written = fields[:, 0, 0] != 0
    misplaced = written & (fields[:, 0, 1] != numbers)
    assert not misplaced.any(), (
        f"sector {numbers[misplaced][0]} holds data of sector {fields[misplaced][0, 0, 1]}"
    )
    return [(int(value) & 0xFFFFFFFF, int(value) >> 32) for value in fields[:, 0, 0]]


def distinct_blocks(first: int, count: int) -> bytes:
    """`count` blocks that differ from each other and from those of other numbers; cheap to make, hard to compress."""
    noise = np.frombuffer(_NOISE, dtype=np.uint64).reshape(1, BLOCK // 8)
    numbers = np.arange(first, first + count, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    return np.bitwise_xor(noise, numbers[:, None]).tobytes()


_NOISE = random.Random(4096).randbytes(BLOCK)


def colliding_blocks(seed: int) -> tuple[bytes, bytes]:
    """Two different blocks of one XXH3-128.

    An accumulator lane adds lo32(word ^ secret) * hi32(word ^ secret) and the word itself to its neighbour.  With
    hi32(word ^ secret) = 0 the product is 0 whatever the low half is, so two words of one lane may trade their low
    halves as long as their sum stays.  The words are those at bytes 0 and 64, the secret is XXH3's default one.
    """
    base = bytearray(random.Random(seed).randbytes(BLOCK))
    secret = struct.unpack("<QQ", bytes.fromhex("b8fe6c3923a44bbe7c01812cf721ad1c"))
    pair = []
    for low_words in ((5, 10), (6, 9)):
        for at, low, key in zip((0, 64), low_words, secret, strict=True):
            base[at : at + 8] = struct.pack("<II", low, key >> 32)
        pair.append(bytes(base))
    return pair[0], pair[1]
