"""One lost sector of metadata costs nothing: map nodes and batch headers are there twice."""

from __future__ import annotations

import random
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest

from blockdev import Pool
from tests.engine.content import distinct_blocks

BLOCK = 4096
NODE = 4608
BLOCKS = 2000


@pytest.fixture
def killed(pool_path: str) -> str:
    """A pool killed with a checkpoint in the middle of its log, and everything after that durable."""
    Pool.create(pool_path, 256 << 20, segment_bytes=4 << 20).close()
    pool = Pool.open(pool_path, background=False)
    vdisk = pool.create_vdisk(BLOCKS * BLOCK, "a")
    vdisk.write(0, distinct_blocks(0, BLOCKS))
    pool.checkpoint()
    for number in range(0, BLOCKS, 40):
        vdisk.write(number * BLOCK, distinct_blocks(5000 + number, 1), fua=True)
    pool.snapshot([vdisk], ["a@1"])
    vdisk.write(0, distinct_blocks(9000, 300))
    pool.flush()
    vdisk.write(0, distinct_blocks(9300, 1), fua=True)  # tells that what is before it is durable
    shutil.copytree(pool_path, pool_path + "-killed")
    pool.close()
    return pool_path + "-killed"


def expected() -> bytes:
    content = bytearray(distinct_blocks(0, BLOCKS))
    for number in range(0, BLOCKS, 40):
        content[number * BLOCK : (number + 1) * BLOCK] = distinct_blocks(5000 + number, 1)
    content[: 300 * BLOCK] = distinct_blocks(9000, 300)
    content[:BLOCK] = distinct_blocks(9300, 1)
    return bytes(content)


def check_whole(path: str) -> Any:
    with Pool.open(path, background=False) as pool:
        assert pool.find("a").read(0, BLOCKS * BLOCK) == expected()
        assert pool.find("a@1").read(40 * BLOCK, BLOCK) == distinct_blocks(5040, 1)
        assert pool.check() == [] and pool.scrub() == []
        return pool.stats()


def headers(segment: Path) -> list[tuple[int, int]]:
    """(index, payload slots) of each batch."""
    raw = segment.read_bytes()
    found, place = [], 1
    while raw[place * BLOCK : place * BLOCK + 8] == b"BLDBAT1\0":
        payload = struct.unpack_from("<H", raw, place * BLOCK + 58)[0]
        found.append((place, payload))
        place += payload + 2
    return found


def overwrite(path: Path, offset: int, data: bytes) -> None:
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(data)


@pytest.mark.parametrize("which", ["first", "second"])
@pytest.mark.parametrize("data", [bytes(512), bytes(4096), b"\xff" * 512], ids=["zero sector", "zero slot", "ones"])
def test_one_copy_of_every_batch_header_may_be_lost(killed: str, which: str, data: bytes) -> None:
    lost = 0
    for segment in sorted(Path(killed, "segments").glob("*.0")):
        for index, payload in headers(segment):
            place = index if which == "first" else index + payload + 1
            overwrite(segment, place * BLOCK, data)
            lost += 1
    assert lost > 60
    check_whole(killed)
    check_whole(killed)


@pytest.mark.parametrize("lost", ["nodes", "nodes-mirror"])
def test_a_lost_copy_of_a_map_node_is_written_anew(killed: str, lost: str, seed: int) -> None:
    check_whole(killed)
    file, other = Path(killed, "map", lost), Path(killed, "map", "nodes" if lost != "nodes" else "nodes-mirror")
    rng = random.Random(seed)
    for place in range(0, file.stat().st_size, NODE):
        overwrite(file, place + rng.randrange(NODE - 512), rng.randbytes(512))
    stats = check_whole(killed)
    assert stats["nodes_healed"] > 0
    reached = [at for at in range(0, file.stat().st_size, NODE) if at]
    same = sum(file.read_bytes()[at : at + NODE] == other.read_bytes()[at : at + NODE] for at in reached)
    assert same >= stats["nodes_healed"]
    check_whole(killed)


@pytest.mark.parametrize("lost", ["nodes", "nodes-mirror"])
def test_a_lost_node_file_costs_nothing(killed: str, lost: str) -> None:
    check_whole(killed)
    Path(killed, "map", lost).unlink()
    check_whole(killed)
    Path(killed, "map", "nodes-mirror" if lost == "nodes" else "nodes").unlink()
    check_whole(killed)
