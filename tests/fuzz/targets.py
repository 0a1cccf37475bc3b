"""The targets by name, and what a run of each needs.  Imports nothing of blockdev: that is imported under instrumentation."""

from __future__ import annotations

from typing import NamedTuple


class Target(NamedTuple):
    """How one target is run."""

    module: str  # has make(name), which returns a tests.fuzz.harness.Harness
    sanitized: bool = False  # its C code is built with sanitizers and tells of its coverage: slow, and worth it
    bytes_max: int = 4096  # of an input
    seconds_max: int = 120  # for one input, of a machine that may have much else to do: more than a target waits for an answer
    memory_mib_max: int = 2048  # of the process


VALUES = "tests.fuzz.values"
POOLS = "tests.fuzz.pools"
TARGETS = {
    "superblock": Target(VALUES),
    "table": Target(VALUES),
    "record": Target(VALUES),
    "tag": Target(VALUES, bytes_max=512),
    "name": Target(VALUES, bytes_max=512),
    "findings": Target("tests.fuzz.findings"),
    "stream": Target("tests.fuzz.streams"),
    "frame": Target("tests.fuzz.frames"),
    "engine": Target("tests.fuzz.engine"),
    "engine-client": Target("tests.fuzz.engine_client"),
    "rest": Target("tests.fuzz.rest"),
    "catalog": Target("tests.fuzz.catalog"),
    "pool-head": Target(POOLS, sanitized=True, bytes_max=257),
    "pool-log": Target(POOLS, sanitized=True, bytes_max=257),
    "pool-map": Target(POOLS, sanitized=True, bytes_max=257),
    "pool-compacted": Target(POOLS, sanitized=True, bytes_max=257),
    "pool-files": Target(POOLS, sanitized=True, bytes_max=257),
}
CANARY = Target("tests.fuzz.canary", sanitized=True, bytes_max=16)  # found to be broken by test_fuzz.py


def target_of(name: str) -> Target:
    return CANARY if name == "canary" else TARGETS[name]
