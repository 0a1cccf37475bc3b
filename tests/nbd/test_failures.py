"""What clients get when the pool is full or its bytes went bad: the right errno, and never wrong data."""

from __future__ import annotations

import errno
import random
from pathlib import Path

import pytest

import nbd
from tests.nbd.conftest import DISK_BYTES, MEBIBYTE, Server

BLOCK = 4096
CHUNK = 256 * 1024


def fill(handle: nbd.NBD, source: random.Random) -> tuple[dict[int, bytes], int]:
    """Writes noise until the pool is full; what was accepted, and where it stopped."""
    accepted: dict[int, bytes] = {}
    for offset in range(0, handle.get_size(), CHUNK):
        data = source.randbytes(CHUNK)
        try:
            handle.pwrite(data, offset)
        except nbd.Error as error:
            assert error.errnum == errno.ENOSPC
            return accepted, offset
        accepted[offset] = data
    raise AssertionError("the pool took more than its capacity")


def test_a_full_pool_is_enospc_and_reads_discards_and_flushes_go_on(idle_server: Server, seed: int) -> None:
    idle_server.create(capacity_bytes=64 * MEBIBYTE, root=256 * MEBIBYTE)
    idle_server.start()
    handle = idle_server.connect()
    accepted, stopped = fill(handle, random.Random(seed))
    assert len(accepted) * CHUNK > 16 * MEBIBYTE
    for offset, data in accepted.items():
        assert handle.pread(CHUNK, offset) == data
    handle.flush()
    handle.trim(CHUNK, 0)
    handle.zero(CHUNK, CHUNK)
    assert handle.pread(2 * CHUNK, 0) == bytes(2 * CHUNK)
    assert "demo/root" in idle_server.log()
    assert idle_server.stop() == 0
    idle_server.start()
    again = idle_server.connect()
    assert again.pread(2 * CHUNK, 0) == bytes(2 * CHUNK)
    for offset in list(accepted)[2:]:
        assert again.pread(CHUNK, offset) == accepted[offset]


def flip_byte_of(pool: Path, block: bytes) -> None:
    """Changes one byte of the only copy of `block` in the pool's segments."""
    for segment in sorted((pool / "segments").glob("*.0")):
        data = bytearray(segment.read_bytes())
        at = data.find(block)
        if at >= 0:
            with segment.open("r+b") as file:
                file.seek(at + len(block) // 2)
                file.write(bytes([data[at + len(block) // 2] ^ 0x10]))
            return
    raise AssertionError("the block is in no segment")


def test_a_flipped_byte_is_eio_and_its_neighbours_are_read(server: Server, seed: int) -> None:
    data = random.Random(seed).randbytes(64 * BLOCK)
    handle = server.connect()
    handle.pwrite(data, MEBIBYTE)
    handle.flush()
    assert server.stop() == 0
    flip_byte_of(server.home.pool, data[7 * BLOCK : 8 * BLOCK])
    server.start()
    handle = server.connect()
    for count, offset in ((BLOCK, 7 * BLOCK), (512, 7 * BLOCK), (512, 8 * BLOCK - 512), (64 * BLOCK, 0)):
        with pytest.raises(nbd.Error) as caught:
            handle.pread(count, MEBIBYTE + offset)
        assert caught.value.errnum == errno.EIO
    assert handle.pread(7 * BLOCK, MEBIBYTE) == data[: 7 * BLOCK]
    assert handle.pread(56 * BLOCK, MEBIBYTE + 8 * BLOCK) == data[8 * BLOCK :]
    assert "demo/root" in server.log()


def test_a_bad_block_can_be_written_over_whole_but_not_in_part(server: Server, seed: int) -> None:
    """Half of a bad block cannot be merged with new bytes: that would make the other half good again."""
    data = random.Random(seed).randbytes(BLOCK)
    handle = server.connect()
    handle.pwrite(data, 0)
    handle.flush()
    assert server.stop() == 0
    flip_byte_of(server.home.pool, data)
    server.start()
    handle = server.connect()
    with pytest.raises(nbd.Error) as caught:
        handle.pwrite(b"n" * 512, 0)
    assert caught.value.errnum == errno.EIO
    handle.pwrite(b"n" * BLOCK, 0)
    assert handle.pread(BLOCK, 0) == b"n" * BLOCK


def test_a_write_of_the_same_bytes_as_a_bad_block_is_not_joined_to_it(server: Server, seed: int) -> None:
    """Dedup compares bytes: a stored block that went bad must not swallow a good copy."""
    data = random.Random(seed).randbytes(BLOCK)
    handle = server.connect()
    handle.pwrite(data, 0)
    handle.flush()
    assert server.stop() == 0
    flip_byte_of(server.home.pool, data)
    server.start()
    handle = server.connect()
    handle.pwrite(data, DISK_BYTES - BLOCK)
    assert handle.pread(BLOCK, DISK_BYTES - BLOCK) == data
