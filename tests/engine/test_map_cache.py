"""Map nodes that come and go under load: a cache far smaller than the maps, emptied all the time."""

from __future__ import annotations

import random
from typing import Any

from blockdev import Pool
from tests.engine.content import distinct_blocks
from tests.engine.load import Crew
from tests.engine.model import BLOCK

LEAF_BYTES = 512 * BLOCK
LEAVES = 600
WRITES = 10_000


class LeafWriter:
    """Writes single blocks all over a vdisk, in a lane of its own, and remembers the last of each."""

    def __init__(self, vdisk: Any, lane: int, seed: int) -> None:
        self.vdisk, self.lane = vdisk, lane
        self.random = random.Random(f"{seed}/{lane}")
        self.written: dict[int, int] = {}

    def run(self) -> None:
        for number in range(WRITES):
            offset = (
                self.random.randrange(LEAVES) * LEAF_BYTES
                + (self.random.randrange(64) * 8 + self.lane) * BLOCK
            )
            content = self.lane << 32 | number
            self.vdisk.write(offset, distinct_blocks(content, 1))
            self.written[offset] = content
            if number % 5 == 0:
                self.check(self.random.choice(list(self.written)))

    def check(self, offset: int) -> None:
        assert self.vdisk.read(offset, BLOCK) == distinct_blocks(self.written[offset], 1), f"byte {offset}"


def test_nodes_evicted_and_read_again_under_load_stay_right(pool_path: str, seed: int) -> None:
    Pool.create(pool_path, 1 << 30, segment_bytes=4 << 20).close()
    pool = Pool.open(pool_path, map_cache_bytes=64 << 10)
    try:
        vdisk = pool.create_vdisk(1 << 40)
        writers = [LeafWriter(vdisk, lane, seed) for lane in range(3)]
        with Crew() as side:
            side.start(pool.tend_memory)
            side.start(pool.checkpoint)
            with Crew() as crew:
                for writer in writers:
                    crew.start(writer.run, repeat=False)
        for writer in writers:
            for offset in writer.written:
                writer.check(offset)
        stats = pool.stats()
        print(
            {name: stats[name] for name in ("nodes_evicted", "nodes_faulted", "nodes_copied", "checkpoints")}
        )
        assert stats["nodes_evicted"] > 100 and stats["nodes_faulted"] > 100
        assert pool.check() == []
    finally:
        pool.close()
