"""Map nodes that do not verify: what they map is an error, and nothing that guests do there harms the rest."""

from __future__ import annotations

import shutil
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from blockdev import Pool, errors
from tests.engine.content import distinct_blocks

BLOCK = 4096
NODE = 4608
LEAF = 512 * BLOCK
LEAVES = 3
DAMAGED = 1  # the leaf


@pytest.fixture
def hurt(pool_path: str) -> Iterator[Any]:
    """An open pool with a vdisk of three leaves of data; neither copy of the middle leaf's node verifies."""
    Pool.create(pool_path, 256 << 20, segment_bytes=4 << 20).close()
    pool = Pool.open(pool_path, background=False)
    pool.create_vdisk(LEAVES * LEAF, "a").write(0, distinct_blocks(0, LEAVES * 512))
    pool.close()
    damage_leaf(pool_path, "nodes")
    damage_leaf(pool_path, "nodes-mirror")
    pool = Pool.open(pool_path, background=False)
    yield pool
    pool.close()


def damage_leaf(pool_path: str, name: str) -> None:
    nodes = Path(pool_path, "map", name)
    content = bytearray(nodes.read_bytes())
    address = struct.unpack_from("<512Q", content, leaf_ids(content)[DAMAGED] * NODE + 512)[0]
    assert address
    content[leaf_ids(content)[DAMAGED] * NODE + 600] ^= 1
    nodes.write_bytes(content)


def leaf_ids(nodes: bytes) -> list[int]:
    """Ids of the leaves, in the order of the disk: the root's entries."""
    for place in range(0, len(nodes), NODE):
        if struct.unpack_from("<8s48xI", nodes, place) == (b"BDNODE1\0", 1):
            return [entry for entry in struct.unpack_from("<512Q", nodes, place + 512) if entry]
    raise AssertionError("there is no root")


def killed(pool: Any) -> Any:
    pool.flush()
    copy = f"{pool.path}-killed"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(pool.path, copy)
    return Pool.open(copy, background=False)


def check_others(pool: Any) -> None:
    vdisk = pool.find("a")
    with pytest.raises(errors.Corrupt):
        vdisk.read(DAMAGED * LEAF, BLOCK)
    for leaf in (0, 2):
        assert vdisk.read(leaf * LEAF, LEAF) == distinct_blocks(leaf * 512, 512)


@pytest.mark.parametrize(
    "act",
    [
        lambda pool, vdisk: vdisk.write(DAMAGED * LEAF + 5 * BLOCK, distinct_blocks(9000, 3)),
        lambda pool, vdisk: vdisk.write(DAMAGED * LEAF + 512, b"\x01" * 512),
        lambda pool, vdisk: vdisk.write(DAMAGED * LEAF, bytes(BLOCK)),
        lambda pool, vdisk: vdisk.write(DAMAGED * LEAF, distinct_blocks(0, 1)),
        lambda pool, vdisk: vdisk.write((DAMAGED + 1) * LEAF - BLOCK, distinct_blocks(DAMAGED * 1024 - 1, 2)),
        lambda pool, vdisk: vdisk.discard(DAMAGED * LEAF, 8 * BLOCK),
        lambda pool, vdisk: vdisk.discard(LEAF // 2, LEAF),
        lambda pool, vdisk: pool.resize(vdisk, DAMAGED * LEAF + BLOCK),
    ],
    ids=["write", "part", "zeros", "known", "across", "discard", "discard across", "shrink"],
)
def test_a_change_under_a_damaged_node_fails_and_the_next_start_replays_the_log(hurt: Any, act: Any) -> None:
    vdisk = hurt.find("a")
    with pytest.raises((errors.Corrupt, errors.MediumError)):
        act(hurt, vdisk)
    check_others(hurt)
    assert hurt.stats()["poisoned"] == 0
    hurt.create_vdisk(LEAF, "b").write(0, distinct_blocks(5000, 1))
    after = killed(hurt)
    check_others(after)
    assert after.find("b").read(0, BLOCK) == distinct_blocks(5000, 1)
    after.close()


def test_a_hole_of_all_that_a_damaged_node_maps_heals_the_disk(hurt: Any) -> None:
    vdisk = hurt.find("a")
    vdisk.discard(DAMAGED * LEAF, LEAF)
    assert vdisk.read(DAMAGED * LEAF, LEAF) == bytes(LEAF)
    vdisk.write(DAMAGED * LEAF, distinct_blocks(7000, 4))
    after = killed(hurt)
    for pool in (hurt, after):
        vdisk = pool.find("a")
        assert vdisk.read(DAMAGED * LEAF, 4 * BLOCK) == distinct_blocks(7000, 4)
        assert vdisk.read(2 * LEAF, LEAF) == distinct_blocks(1024, 512)
        assert pool.scrub() == []
    after.close()
