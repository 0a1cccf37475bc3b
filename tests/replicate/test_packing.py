"""What is compressed before it travels, and what goes as it is."""

from __future__ import annotations

import random

import pytest
import zstandard

from blockdev.replicate.messages import RAW, ZSTD
from blockdev.replicate.packing import Packer

MEBIBYTE = 1 << 20
TEXT = b"GET /index.html HTTP/1.1 200 ok\n" * (MEBIBYTE // 32)


@pytest.fixture
def noise() -> bytes:
    return random.Random(1).randbytes(MEBIBYTE)


def test_text_is_compressed_and_noise_goes_as_it_is(noise: bytes) -> None:
    packer = Packer(3)
    codec, stored = packer.pack(TEXT)
    assert codec == ZSTD and len(stored) < MEBIBYTE // 10
    assert zstandard.ZstdDecompressor().decompress(stored) == TEXT
    assert packer.pack(noise) == (RAW, noise)


def test_text_behind_much_noise_is_compressed_at_once(noise: bytes) -> None:
    packer = Packer(3)
    assert {packer.pack(noise)[0] for _ in range(40)} == {RAW}
    assert packer.pack(TEXT)[0] == ZSTD


def test_level_0_compresses_nothing() -> None:
    assert Packer(0).pack(TEXT) == (RAW, TEXT)


@pytest.mark.parametrize("block_count", [1, 2, 17])
def test_short_messages_are_judged_too(block_count: int, noise: bytes) -> None:
    assert Packer(3).pack(TEXT[: block_count * 4096])[0] == ZSTD
    assert Packer(3).pack(noise[: block_count * 4096])[0] == RAW


def test_what_would_become_larger_goes_as_it_is(noise: bytes) -> None:
    # The sample is text, all the rest is noise.
    data = b"".join((TEXT[:4096] if at % 16 == 0 else noise[at * 4096 : (at + 1) * 4096]) for at in range(256))
    codec, stored = Packer(3).pack(data)
    assert len(stored) <= len(data) and codec in (RAW, ZSTD)
