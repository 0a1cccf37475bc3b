"""Makes the bytes of blocks fewer before they travel, where that is worth its time."""

from __future__ import annotations

import zstandard

from blockdev.replicate.messages import RAW, ZSTD

GAIN = 16  # a message is sent as it is unless it becomes smaller by one part in so many
TRIES = 4  # messages in a row that do not become smaller,
PASSES_MAX = 32  # then this many at the most go as they are before the next is tried: half as many the first time, and so on


class Packer:
    """Compresses the messages of one transfer at a level of zstd; 0: none of them.  One thread at a time."""

    def __init__(self, level: int) -> None:
        self._compressor = zstandard.ZstdCompressor(level=level) if level else None
        self._failures = 0
        self._passes = 0  # to be sent without a try

    def pack(self, data: bytes) -> tuple[int, bytes]:
        """The codec, and what is to be sent."""
        if self._compressor is None:
            return RAW, data
        if self._passes:
            self._passes -= 1
            return RAW, data
        stored = self._compressor.compress(data)
        if len(stored) <= len(data) - len(data) // GAIN:
            self._failures = 0
            return ZSTD, stored
        self._failures += 1
        if self._failures >= TRIES:
            self._passes = min(1 << (self._failures - TRIES + 2), PASSES_MAX)
        return RAW, data
