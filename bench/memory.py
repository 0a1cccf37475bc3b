"""`python -m bench.memory`: how much memory maps and the dedup index take.

In process, without a server: a vdisk of 1 TiB is mapped with one block over and over, which the pool keeps as references, so
that maps as large as those of a large disk cost little to make.  What the process grew by, over the bytes that were mapped,
is what a mapped TiB would take; that maps may be evicted, and that the index keeps to its budget, is seen with small budgets.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Any

from bench import machine
from bench.disks import BLOCK_BYTES
from bench.server import usage_of
from bench.workloads import GIB, MIB
from blockdev import Pool

TIB = 1 << 40
WARM_BYTES = GIB  # mapped before the count begins: what any pool takes is not of its maps
NODE_BYTES = 4096
NODE_SPAN_BYTES = 512 * BLOCK_BYTES  # that one leaf of a map tells of
DEDUP_ENTRY_BYTES = 16
DEDUP_BUDGET_BYTES = 1 * MIB
SETTLE_SECONDS_MAX = 30.0
GIB_PER_TIB_MAX = 2.2  # the bar of issue 4


def measure_maps(path: Path, mapped_bytes: int, seed: int) -> dict[str, Any]:
    """Map `mapped_bytes` in a new pool at `path`, write a checkpoint, and say what that took."""
    with closing(Pool.create(str(path), TIB)) as pool:
        vdisk = pool.create_vdisk(TIB, name="bench/disk")
        blocks = random.Random(seed).randbytes(BLOCK_BYTES) * (MIB // BLOCK_BYTES)
        resident, nodes = 0, 0
        for offset in range(0, WARM_BYTES + mapped_bytes, MIB):
            if offset == WARM_BYTES:
                resident, nodes = usage_of(os.getpid()).resident_bytes, pool.stats()["nodes_resident"]
            vdisk.write(offset, blocks)
        pool.checkpoint()
        grown = usage_of(os.getpid()).resident_bytes - resident
        gib_per_tib = grown / mapped_bytes * TIB / GIB
        return {
            "mapped_bytes": mapped_bytes,
            "grown_bytes": grown,
            "node_bytes": (pool.stats()["nodes_resident"] - nodes) * NODE_BYTES,
            "gib_per_mapped_tib": gib_per_tib,
            "bar": GIB_PER_TIB_MAX,
            "bar_met": gib_per_tib <= GIB_PER_TIB_MAX,
        }


def measure_eviction(path: Path, mapped_bytes: int) -> dict[str, Any]:
    """Read all over the disk of the pool at `path` with memory for a quarter of its maps."""
    budget = mapped_bytes // NODE_SPAN_BYTES * NODE_BYTES // 4
    with closing(Pool.open(str(path), map_cache_bytes=budget)) as pool:
        (vdisk,) = pool.vdisks()
        for offset in range(0, mapped_bytes, NODE_SPAN_BYTES):
            vdisk.read(offset, BLOCK_BYTES)
        deadline = time.monotonic() + SETTLE_SECONDS_MAX
        while pool.stats()["nodes_resident"] * NODE_BYTES > budget and time.monotonic() < deadline:
            time.sleep(0.1)
        resident = pool.stats()["nodes_resident"] * NODE_BYTES
        return {
            "budget_bytes": budget,
            "node_bytes": resident,
            "nodes_faulted": pool.stats()["nodes_faulted"],
            "within_budget": resident <= budget,
        }


def measure_dedup_index(path: Path, seed: int) -> dict[str, Any]:
    """Write four times as many distinct blocks as the index has room for."""
    blocks = 4 * DEDUP_BUDGET_BYTES // DEDUP_ENTRY_BYTES
    Pool.create(str(path), TIB).close()
    with closing(Pool.open(str(path), dedup_bytes=DEDUP_BUDGET_BYTES)) as pool:
        vdisk = pool.create_vdisk(blocks * BLOCK_BYTES, name="bench/disk")
        chance = random.Random(seed)
        for offset in range(0, blocks * BLOCK_BYTES, MIB):
            vdisk.write(offset, chance.randbytes(MIB))
        used = pool.stats()["dedup_entries"] * DEDUP_ENTRY_BYTES
        return {
            "blocks_written": blocks,
            "budget_bytes": DEDUP_BUDGET_BYTES,
            "entry_bytes": used,
            "within_budget": used <= DEDUP_BUDGET_BYTES,
        }


def measure(scratch: Path, mapped_bytes: int, seed: int) -> dict[str, Any]:
    pool, index_pool = scratch / "maps", scratch / "index"
    maps = measure_maps(pool, mapped_bytes, seed)
    return {
        "machine": machine.describe(scratch),
        "seed": seed,
        "maps": maps,
        "eviction": measure_eviction(pool, mapped_bytes),
        "dedup_index": measure_dedup_index(index_pool, seed),
    }


def text(result: dict[str, Any]) -> str:
    maps, eviction, index = result["maps"], result["eviction"], result["dedup_index"]
    kept = {True: "kept", False: "EXCEEDED"}
    return "\n".join(
        [
            f"maps of {maps['mapped_bytes'] / GIB:.0f} GiB grew the process by {maps['grown_bytes'] / MIB:,.1f} MiB "
            f"({maps['node_bytes'] / MIB:,.1f} MiB of them nodes): {maps['gib_per_mapped_tib']:.2f} GiB per mapped TiB, "
            f"bar <= {maps['bar']:.2f} {'met' if maps['bar_met'] else 'MISSED'}",
            f"the same maps all read with {eviction['budget_bytes'] / MIB:,.1f} MiB for them: "
            f"{eviction['node_bytes'] / MIB:,.1f} MiB of nodes in memory, budget {kept[eviction['within_budget']]}",
            f"dedup index after {index['blocks_written']:,} distinct blocks: {index['entry_bytes'] / MIB:,.2f} of "
            f"{index['budget_bytes'] / MIB:,.2f} MiB, budget {kept[index['within_budget']]}",
        ]
    )


def main(given: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="bench.memory", description="memory of maps and of the dedup index")
    parser.add_argument("--mapped-gib", type=int, default=32, metavar="N")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--scratch", type=Path, default=Path("/dev/shm"), metavar="DIR")
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args(given)
    scratch = Path(tempfile.mkdtemp(prefix="bench-memory-", dir=arguments.scratch))
    try:
        result = measure(scratch, arguments.mapped_gib * GIB, arguments.seed)
    finally:
        shutil.rmtree(scratch)
    print(text(result))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
