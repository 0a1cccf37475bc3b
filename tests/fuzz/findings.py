"""Target `findings`: the file that keeps what checks and scrubs found, with the checksum it should have and with the one it has.

It is loaded into an open pool, its findings are looked up in the maps and among the blocks, and it is saved again.
"""

from __future__ import annotations

import json
import random
import tempfile
from pathlib import Path

import xxhash

from blockdev import Pool, findings
from blockdev.findings import Finding, Known, Ran
from tests.fuzz import base_pools, messages
from tests.fuzz.base_pools import SMALL
from tests.fuzz.harness import Harness


class Findings(Harness):
    def __init__(self) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="findings-")
        self._path = Path(self._directory.name, "pool")
        base_pools.write(base_pools.make()["closed"], self._path)
        self._pool = Pool.open(self._path, **SMALL)

    def one_input(self, data: bytes) -> None:
        signed = f"{findings.MAGIC} {xxhash.xxh3_64_hexdigest(data)}\n".encode() + data
        for content in (data, signed):
            Path(findings.path_of(str(self._path))).write_bytes(content)
            known = findings.load(str(self._path))
            objects = {thing.id: thing for thing in self._pool.things()}
            left = findings.still_there(known.findings, objects)
            for finding in findings.still_damaged(left, objects):
                assert isinstance(finding.line(), str)
            findings.save(str(self._path), known)
            again = findings.load(str(self._path))
            assert len(again.findings) == len(known.findings) and again.dropped == known.dropped

    def seeds(self) -> dict[str, bytes]:
        found = (
            Finding("block", "BAD_BLOCK", "segment 00000001 slot 3 does not verify", True, 1, "web/root", 0, 8192, 1 << 32 | 3),
            Finding("node", "NODE_LOST", "a map node does not verify", False, 1, "web/root", 0, 2 << 20, 5, 0),
            Finding("map", "", "a map that does not fit", False, 3, "web/wide"),
            Finding("rest", "", "2 more", True, 1, "web/root"),
            Finding("pool", "", "something of the pool"),
        )
        ran = Ran(1795348800.0, 1 << 20, 5, 0)
        made = {}
        for name, known in {"none": Known(), "all": Known(ran, ran, found, 1), "one": Known(None, ran, found[:1], 0)}.items():
            findings.save(str(self._path), known)
            made[name] = Path(findings.path_of(str(self._path))).read_bytes().split(b"\n", 1)[1]
        return made

    def mutate(self, data: bytes, chance: random.Random) -> bytes | None:
        try:
            return json.dumps(messages.change(json.loads(data), chance, with_bytes=False)).encode()
        except (ValueError, RecursionError):
            return None

    def close(self) -> None:
        self._pool.close()
        self._directory.cleanup()


def make(name: str) -> Harness:
    return Findings()
