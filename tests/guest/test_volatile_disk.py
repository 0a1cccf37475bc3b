"""The disk whose cache is volatile keeps what was flushed and loses, keeps or tears the rest: the instrument of test_power_cut."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import nbd
from tests.engine.content import read_stamps, stamped
from tests.engine.model import SECTOR
from tests.guest.power_cut_machine import VolatileDisk

BLOCK = 64 * SECTOR
SEEDS = 12
FLUSHED, CERTAIN, CACHED = (at * BLOCK for at in range(3))  # where the test writes


@pytest.fixture
def disk(tmp_path: Path) -> VolatileDisk:
    return VolatileDisk(tmp_path, "ext4")


def connect(disk: VolatileDisk) -> nbd.NBD:
    client = nbd.NBD()
    client.connect_uri(disk.uri)
    return client


def write(client: nbd.NBD, number: int, at: int, flags: int = 0) -> None:
    client.pwrite(stamped(1, number, at, BLOCK), at, flags)


def numbers(disk: VolatileDisk, at: int) -> list[int]:
    """Of the writes that the sectors of a block hold."""
    with open(disk.image, "rb") as image:
        image.seek(at)
        return [number for _, number in read_stamps(image.read(BLOCK), at)]


def use(disk: VolatileDisk, seed: int, rest: Callable[[nbd.NBD], None], keep: float | None = None) -> None:
    with disk.powered(seed, keep):
        client = connect(disk)
        for at in (FLUSHED, CERTAIN, CACHED):
            write(client, 1, at)
        client.flush()
        rest(client)
        del client  # its end closes the connection, and nbdkit does not end before


def test_only_what_was_not_flushed_is_lost_kept_or_torn(disk: VolatileDisk) -> None:
    def rest(client: nbd.NBD) -> None:
        write(client, 2, CERTAIN)
        write(client, 3, CERTAIN, nbd.CMD_FLAG_FUA)
        write(client, 4, CACHED)
        assert client.pread(BLOCK, CACHED) == stamped(1, 4, CACHED, BLOCK)

    outcomes = set()
    for seed in range(SEEDS):
        use(disk, seed, rest)
        assert set(numbers(disk, FLUSHED)) == {1}
        assert set(numbers(disk, CERTAIN)) == {3}
        outcomes.add(frozenset(numbers(disk, CACHED)))
    assert outcomes == {frozenset({1}), frozenset({4}), frozenset({1, 4})}


def test_the_same_seed_loses_the_same(disk: VolatileDisk) -> None:
    def rest(client: nbd.NBD) -> None:
        for number in range(2, 40):
            write(client, number, CACHED)

    found = []
    for _ in range(2):
        use(disk, 7, rest)
        found.append(numbers(disk, CACHED))
    assert found[0] == found[1]


def test_a_flush_is_not_answered_by_a_disk_whose_power_fails(disk: VolatileDisk) -> None:
    def rest(client: nbd.NBD) -> None:
        write(client, 2, CACHED)
        flush = client.aio_flush()
        disk.freeze(at_flush=True)
        client.poll(0)
        assert not client.aio_command_completed(flush)

    use(disk, 1, rest, keep=0.0)
    assert set(numbers(disk, CACHED)) == {1}


def test_a_disk_that_lies_loses_what_it_acknowledged(disk: VolatileDisk) -> None:
    def rest(client: nbd.NBD) -> None:
        disk.swallow_flushes()
        write(client, 2, CACHED, nbd.CMD_FLAG_FUA)
        client.flush()

    use(disk, 1, rest, keep=0.0)
    assert set(numbers(disk, CACHED)) == {1}
