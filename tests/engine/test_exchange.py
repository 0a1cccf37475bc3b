"""Two pools tell each other of blocks: what changed, which of them the other has, and proof that they are the same."""

from __future__ import annotations

import hashlib
import random
import struct
from collections.abc import Iterator

import pytest
import xxhash

from blockdev import Pool, VDisk, VDiskSnapshot
from blockdev._exchange import (
    changed_blocks,
    content_digest,
    fetch_blocks,
    known_blocks,
    prove_blocks,
    put_blocks,
    take_blocks,
)
from blockdev.errors import BlockdevError, Gone, InvalidArgument

BLOCK = 4096
MEBIBYTE = 1 << 20
OFFER = struct.Struct("<Q16s")
HOLE = bytes(16)
Offer = tuple[int, bytes]


@pytest.fixture
def other(tmp_path) -> Iterator[Pool]:
    with Pool.create(str(tmp_path / "other"), 256 * MEBIBYTE, segment_bytes=4 * MEBIBYTE) as opened:
        yield opened


def fingerprint(block: bytes) -> bytes:
    return xxhash.xxh3_128_digest(block)[::-1]  # low half first, little-endian


def offers_of(content: bytes) -> dict[int, bytes]:
    """What a disk of these bytes would offer, computed by others' libraries."""
    content += bytes(-len(content) % BLOCK)
    blocks = {number: content[number * BLOCK : (number + 1) * BLOCK] for number in range(len(content) // BLOCK)}
    return {number: fingerprint(block) for number, block in blocks.items() if any(block)}


def digest_of(content: bytes) -> bytes:
    total = sum(xxhash.xxh3_128_intdigest(OFFER.pack(*offer)) for offer in offers_of(content).items())
    return (total % (1 << 128)).to_bytes(16, "little")


def all_changes(older: VDiskSnapshot | None, newer: VDiskSnapshot, at_once: int = 7) -> list[Offer]:
    found, place = [], 0
    while place is not None:
        offers, place = changed_blocks(older, newer, place, at_once)
        found += list(OFFER.iter_unpack(offers))
    return found


def pack(offers: list[Offer]) -> bytes:
    return b"".join(OFFER.pack(*offer) for offer in offers)


def numbers(offers: list[Offer]) -> bytes:
    return b"".join(struct.pack("<Q", number) for number, _ in offers)


def fetched(disk: VDisk | VDiskSnapshot, blocks: bytes) -> bytes:
    room = bytearray(len(blocks) // 8 * BLOCK)
    fetch_blocks(disk, blocks, room)
    return bytes(room)


def copy_changes(older: VDiskSnapshot | None, newer: VDiskSnapshot, target: VDisk) -> int:
    """Bring `target`, which has what `older` has, to `newer`; how many blocks' bytes were needed."""
    changes = all_changes(older, newer)
    for number, found in changes:
        if found == HOLE:
            target.write_zeroes(number * BLOCK, min(BLOCK, target.size_bytes - number * BLOCK))
    data = [offer for offer in changes if offer[1] != HOLE]
    known = known_blocks(target, pack(data))
    asked = [offer for offer, is_known in zip(data, known, strict=True) if is_known]
    taken = take_blocks(target, pack(asked), prove_blocks(newer, numbers(asked)))
    rest = [offer for offer, is_known in zip(data, known, strict=True) if not is_known]
    rest += [offer for offer, was_taken in zip(asked, taken, strict=True) if not was_taken]
    put_blocks(target, pack(rest), fetched(newer, numbers(rest)))
    return len(rest)


def scribble(disk: VDisk, choice: random.Random) -> None:
    count = disk.size_bytes // 512
    for _ in range(choice.randrange(1, 40)):
        first = choice.randrange(count)
        length = min(choice.choice([512, BLOCK, 9 * BLOCK, 40 * BLOCK]), disk.size_bytes - first * 512)
        if choice.random() < 0.3:
            disk.discard(first * 512, length)
        else:
            disk.write(first * 512, choice.randbytes(length))


def test_a_chain_of_snapshots_is_copied_block_by_block_and_digests_agree(pool: Pool, other: Pool, seed: int) -> None:
    choice = random.Random(seed)
    source, target = pool.create_vdisk(3 * MEBIBYTE + 512), other.create_vdisk(3 * MEBIBYTE + 512)
    older, older_digest = None, b""
    for turn in range(6):
        if turn in (2, 4):  # grown, then cut
            size_bytes = 5 * MEBIBYTE if turn == 2 else MEBIBYTE + 1536
            source.resize(size_bytes)
            target.resize(size_bytes)
        scribble(source, choice)
        if turn == 3:
            pool.compact()
        [newer] = pool.snapshot([source])
        copy_changes(older, newer, target)
        content = newer.read(0, newer.size_bytes)
        assert target.read(0, target.size_bytes) == content
        digest = content_digest(older, older_digest, newer)
        assert digest == content_digest(None, b"", newer) == content_digest(None, b"", target)
        if turn < 4:  # behind a cut, the rest of the last block is kept and counts
            assert dict(all_changes(None, newer)) == offers_of(content)
            assert digest == digest_of(content)
        older, older_digest = newer, digest


def test_the_block_in_which_a_smaller_disk_ended_differs_although_both_have_it(pool: Pool, other: Pool) -> None:
    """Restored after a shrink: what builds on the smaller one and grows has zeros there, not what the larger one holds."""
    content = random.Random(5).randbytes(20 * BLOCK)
    source = pool.create_vdisk(20 * BLOCK)
    source.write(0, content)
    [larger] = pool.snapshot([source])
    source.resize(7 * BLOCK + 512)
    [smaller] = pool.snapshot([source])
    assert [number for number, _ in all_changes(smaller, larger, 3)] == list(range(7, 20))
    assert [tuple(extent) for extent in pool.diff(smaller, larger)] == [(7 * BLOCK, 13 * BLOCK, "data")]
    assert all_changes(larger, smaller) == []
    target = other.create_vdisk(7 * BLOCK + 512)
    copy_changes(None, smaller, target)
    target.resize(20 * BLOCK)
    copy_changes(smaller, larger, target)
    assert target.read(0, 20 * BLOCK) == content
    digest = content_digest(None, b"", smaller)
    assert content_digest(smaller, digest, larger) == content_digest(None, b"", target)


def test_only_what_the_other_pool_has_nowhere_needs_its_bytes(pool: Pool, other: Pool) -> None:
    content = random.Random(1).randbytes(64 * BLOCK)
    source = pool.create_vdisk(MEBIBYTE)
    source.write(0, content)
    source.write(512 * 1024, content[: 8 * BLOCK])
    other.create_vdisk(MEBIBYTE).write(128 * 1024, content[: 32 * BLOCK])
    [snapshot] = pool.snapshot([source])
    target = other.create_vdisk(MEBIBYTE)
    before = other.stats()["segment_bytes_added"]
    assert copy_changes(None, snapshot, target) == 32
    assert target.read(0, MEBIBYTE) == source.read(0, MEBIBYTE)
    assert other.stats()["blocks_deduplicated"] == 40
    other.checkpoint()
    assert other.stats()["segment_bytes_added"] - before < 40 * BLOCK


def test_a_fingerprint_without_the_right_proof_gives_nothing_away(pool: Pool) -> None:
    """A guest elsewhere that knows, or crafts, the fingerprint of a block does not get the block by it."""
    secret = random.Random(2).randbytes(BLOCK)
    pool.create_vdisk(MEBIBYTE).write(0, secret)
    target = pool.create_vdisk(MEBIBYTE)
    offer = pack([(3, fingerprint(secret))])
    assert known_blocks(target, offer) == b"\1"
    assert take_blocks(target, offer, hashlib.sha256(b"another").digest()) == b"\0"
    assert not any(target.read(0, MEBIBYTE))
    assert take_blocks(target, offer, hashlib.sha256(secret).digest()) == b"\1"
    assert target.read(3 * BLOCK, BLOCK) == secret


def test_bytes_that_are_not_what_was_offered_are_refused(pool: Pool) -> None:
    target = pool.create_vdisk(MEBIBYTE)
    good, bad = random.Random(3).randbytes(BLOCK), random.Random(4).randbytes(BLOCK)
    with pytest.raises(BlockdevError):
        put_blocks(target, pack([(0, fingerprint(good))]), bad)
    assert not any(target.read(0, MEBIBYTE))


def test_proofs_are_sha_256_of_the_blocks_in_the_order_asked(pool: Pool) -> None:
    disk = pool.create_vdisk(MEBIBYTE)
    disk.write(0, random.Random(5).randbytes(MEBIBYTE // 2))
    asked = [7, 8, 9, 200, 0, 127, 126, *range(100)]
    packed = struct.pack(f"<{len(asked)}Q", *asked)
    blocks = [disk.read(number * BLOCK, BLOCK) for number in asked]
    assert fetched(disk, packed) == b"".join(blocks)
    assert prove_blocks(disk, packed) == b"".join(hashlib.sha256(block).digest() for block in blocks)


def test_what_cannot_be_is_refused(pool: Pool, other: Pool) -> None:
    disk = pool.create_vdisk(MEBIBYTE)
    beyond = struct.pack("<Q", 256)
    for refused in (
        lambda: fetched(disk, beyond),
        lambda: prove_blocks(disk, beyond),
        lambda: fetched(disk, struct.pack("<Q", 2**64 - 1)),
        lambda: fetched(disk, beyond[:-1]),
        lambda: fetch_blocks(disk, bytes(8), bytearray(BLOCK - 1)),
        lambda: put_blocks(disk, pack([(256, fingerprint(bytes([1]) * BLOCK))]), bytes([1]) * BLOCK),
        lambda: put_blocks(disk, pack([(0, HOLE)]), b""),
        lambda: take_blocks(disk, pack([(0, HOLE)]), b"short"),
        lambda: changed_blocks(None, disk, 0, 0),
        lambda: changed_blocks(other.create_vdisk(MEBIBYTE), disk),
        lambda: content_digest(None, bytes(16), disk),
    ):
        with pytest.raises(InvalidArgument):
            refused()
    pool.delete(disk)
    with pytest.raises(Gone):
        fetched(disk, bytes(8))
