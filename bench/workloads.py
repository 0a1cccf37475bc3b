"""What is measured: the workloads, and the ratios that are read first.

A workload's `state` says what the disk holds when it begins: `fresh` was never written, `filled` holds distinct
incompressible data all over, `snapshot` is a filled disk of which a snapshot was taken a moment ago.  Workloads of one
`group` run in turns with each other, round by round, so that ratios between them compare like with like.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30

State = Literal["fresh", "filled", "snapshot"]
Unit = Literal["IOPS", "MB/s"]

# fio's default buffers repeat themselves, which flatters dedup and compression; these do not.
DISTINCT_DATA = ("--refill_buffers", "--buffer_compress_percentage=0", "--dedupe_percentage=0")
# Half of the writes repeat a block out of a fixed set, written long ago as a rule.  fio's other mode repeats
# the very last block, which is still in flight at queue depth 32 and warm in every cache: too kind.
HALF_DUPLICATES = (
    "--refill_buffers",
    "--buffer_compress_percentage=0",
    "--dedupe_percentage=50",
    "--dedupe_mode=working_set",
    "--dedupe_working_set_percentage=1",
)


@dataclass(frozen=True)
class Workload:
    name: str
    title: str
    group: str
    state: State
    pattern: str  # fio's --rw
    request_bytes: int
    depth: int
    unit: Unit
    options: tuple[str, ...] = ()

    @property
    def reads_only(self) -> bool:
        return self.pattern in ("read", "randread")


@dataclass(frozen=True)
class Ratio:
    """`peer` on `workload`, over `other_peer` on `other_workload`; `bar` is what issue 2 asks, `goal` issue 4."""

    workload: str
    peer: str
    other_workload: str
    other_peer: str
    bar: float | None = None
    goal: float | None = None


WORKLOADS = (
    Workload(
        "random-read",
        "4 KiB random read, depth 32, cached",
        "read",
        "filled",
        "randread",
        4 * KIB,
        32,
        "IOPS",
    ),
    Workload(
        "sequential-read", "1 MiB sequential read, depth 8, cached", "read", "filled", "read", MIB, 8, "MB/s"
    ),
    Workload(
        "random-write",
        "4 KiB random write of distinct data, depth 32, fresh disk",
        "write",
        "fresh",
        "randwrite",
        4 * KIB,
        32,
        "IOPS",
        DISTINCT_DATA,
    ),
    Workload(
        "random-write-duplicates",
        "4 KiB random write, half duplicates, depth 32, fresh disk",
        "write",
        "fresh",
        "randwrite",
        4 * KIB,
        32,
        "IOPS",
        HALF_DUPLICATES,
    ),
    Workload(
        "overwrite",
        "4 KiB random first overwrite of a filled disk, depth 32",
        "overwrite",
        "filled",
        "randwrite",
        4 * KIB,
        32,
        "IOPS",
        DISTINCT_DATA,
    ),
    Workload(
        "overwrite-after-snapshot",
        "the same right after a snapshot",
        "overwrite",
        "snapshot",
        "randwrite",
        4 * KIB,
        32,
        "IOPS",
        DISTINCT_DATA,
    ),
    Workload(
        "commit",
        "4 KiB random write + flush each, depth 1, filled disk",
        "commit",
        "filled",
        "randwrite",
        4 * KIB,
        1,
        "IOPS",
        (*DISTINCT_DATA, "--fsync=1"),
    ),
    Workload(
        "sequential-write",
        "1 MiB sequential write of distinct data, depth 8, fresh disk",
        "stream",
        "fresh",
        "write",
        MIB,
        8,
        "MB/s",
        DISTINCT_DATA,
    ),
)

NATIVE = "blockdev-native"
PYTHON = "blockdev-python"
UNCHECKED = "blockdev-unchecked"
MEMORY = "nbdkit-memory"
FILE = "nbdkit-file"
QCOW2 = "qemu-nbd-qcow2"

RATIOS = (
    Ratio("random-read", NATIVE, "random-read", MEMORY, bar=0.75, goal=0.90),
    Ratio("random-read", NATIVE, "random-read", FILE),
    Ratio("random-read", NATIVE, "random-read", QCOW2),
    Ratio("random-read", NATIVE, "random-read", UNCHECKED, goal=0.97),
    Ratio("random-read", PYTHON, "random-read", NATIVE),
    Ratio("sequential-read", NATIVE, "sequential-read", FILE, goal=0.90),
    Ratio("sequential-read", NATIVE, "sequential-read", QCOW2),
    Ratio("random-write", NATIVE, "random-write", QCOW2, bar=2.0, goal=3.0),
    Ratio("random-write", NATIVE, "random-write", FILE, goal=3.0),
    Ratio("random-write", NATIVE, "random-write", MEMORY, goal=0.6),
    Ratio("random-write", NATIVE, "random-write", UNCHECKED, goal=0.97),
    Ratio("random-write", PYTHON, "random-write", NATIVE),
    Ratio("random-write-duplicates", NATIVE, "random-write", NATIVE, goal=1.0),
    Ratio("overwrite", NATIVE, "overwrite", FILE, goal=3.0),
    Ratio("overwrite", NATIVE, "overwrite", QCOW2, goal=3.0),
    Ratio("overwrite", NATIVE, "overwrite", MEMORY, goal=0.6),
    Ratio("overwrite-after-snapshot", NATIVE, "overwrite", NATIVE, goal=0.9),
    Ratio("overwrite-after-snapshot", NATIVE, "overwrite-after-snapshot", QCOW2, goal=20.0),
    Ratio("commit", NATIVE, "commit", FILE, goal=0.9),
    Ratio("commit", NATIVE, "commit", QCOW2),
    Ratio("sequential-write", NATIVE, "sequential-write", FILE, goal=0.8),
    Ratio("sequential-write", NATIVE, "sequential-write", QCOW2),
)
