"""What is measured: the workloads, which peers run each, and the ratios that are read first.

A workload's `state` says what the disk holds when it begins: `fresh` was never written, `filled` holds distinct
incompressible data all over, `cold` is a filled disk of which the page cache holds nothing.  `snapshots` were taken of
it after that, the last one a moment ago, with a few blocks overwritten between each and the next.  Workloads of one
`group` run in turns with each other, round by round, so that ratios between them compare like with like.

Not every peer runs every workload: `peers` names the cells that say something.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30

State = Literal["fresh", "filled", "cold"]
Unit = Literal["IOPS", "MB/s"]
Value = Literal["speed", "p99", "p99.9"]
Meanwhile = Literal["checkpoints", "compactions"]

NATIVE = "blockdev-native"
PYTHON = "blockdev-python"
UNCHECKED = "blockdev-unchecked"
UNCOUNTED = "blockdev-uncounted"
MEMORY = "nbdkit-memory"
FILE = "nbdkit-file"
REFLINK = "nbdkit-file-reflink"
QCOW2 = "qemu-nbd-qcow2"
QCOW2_SNAPSHOTS = "qemu-nbd-qcow2-20-snapshots"
STORAGE_DAEMON = "qemu-storage-daemon-qcow2"

# fio's default buffers repeat themselves, which flatters dedup and compression; these do not.
DISTINCT_DATA = ("--refill_buffers", "--buffer_compress_percentage=0", "--dedupe_percentage=0")
# A chunk as large as the block: each block has its own half of zeros.
HALF_COMPRESSIBLE = (
    "--refill_buffers",
    "--buffer_compress_percentage=50",
    "--buffer_compress_chunk=4096",
    "--dedupe_percentage=0",
)
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
    peers: tuple[str, ...]
    request_bytes: int = 4 * KIB
    depth: int = 32  # of each connection
    connections: int = 1  # each in a part of the disk of its own
    unit: Unit = "IOPS"
    options: tuple[str, ...] = ()
    snapshots: int = 0
    clones: int = 0  # of the filled disk, read at once by one connection each; 0: the disk itself
    meanwhile: Meanwhile | None = None  # what the server is made to do, one after the other
    sustained: bool = False  # the whole of the largest disk, however long it takes, with the speed over time

    @property
    def reads_only(self) -> bool:
        return self.pattern in ("read", "randread")


@dataclass(frozen=True)
class Ratio:
    """`peer` on `workload`, over `other_peer` on `other_workload`.

    `bar` is what is asked of it: at least that, of a latency at most that; None asks nothing.
    """

    workload: str
    peer: str
    other_workload: str
    other_peer: str
    bar: float | None = None
    value: Value = "speed"
    other_value: Value = "speed"


def _at(workload: Workload, peers: tuple[str, ...], depth: int = 32, connections: int = 1) -> Workload:
    """The same at another queue depth or with more connections."""
    name, title = workload.name, workload.title
    if depth != workload.depth:
        name, title = f"{name}-depth{depth}", f"{title}, depth {depth}"
    if connections != workload.connections:
        name, title = f"{name}-connections{connections}", f"{title}, {connections} connections"
    return replace(workload, name=name, title=title, depth=depth, connections=connections, peers=peers)


def _snapshots_deep(workload: Workload, snapshots: int, peers: tuple[str, ...]) -> Workload:
    return replace(
        workload,
        name=f"{workload.name}-{snapshots}",
        title=f"{workload.title}, {snapshots:,} snapshots deep",
        snapshots=snapshots,
        peers=peers,
    )


RANDOM_READ = Workload(
    "random-read",
    "4 KiB random read, cached",
    "read",
    "filled",
    "randread",
    (MEMORY, FILE, REFLINK, QCOW2, QCOW2_SNAPSHOTS, STORAGE_DAEMON, NATIVE, PYTHON, UNCHECKED, UNCOUNTED),
)
READ_1_MIB = Workload(
    "sequential-read",
    "1 MiB sequential read, cached",
    "sequential read",
    "filled",
    "read",
    (MEMORY, FILE, QCOW2, STORAGE_DAEMON, NATIVE, PYTHON),
    request_bytes=MIB,
    unit="MB/s",
)
READ_64_KIB = replace(
    READ_1_MIB,
    name="sequential-read-64k",
    title="64 KiB sequential read, cached",
    request_bytes=64 * KIB,
    peers=(MEMORY, FILE, QCOW2, NATIVE),
)
COLD_READ = Workload(
    "cold-read",
    "4 KiB random read, nothing in the page cache",
    "cold read",
    "cold",
    "randread",
    (FILE, QCOW2, NATIVE),
)
RANDOM_WRITE = Workload(
    "random-write",
    "4 KiB random write of distinct data, fresh disk",
    "write",
    "fresh",
    "randwrite",
    (MEMORY, FILE, QCOW2, STORAGE_DAEMON, NATIVE, PYTHON, UNCHECKED, UNCOUNTED),
    options=DISTINCT_DATA,
)
COMPRESSIBLE_WRITE = replace(
    RANDOM_WRITE,
    name="random-write-compressible",
    title="4 KiB random write of 2:1 compressible data, fresh disk",
    options=HALF_COMPRESSIBLE,
    peers=(MEMORY, FILE, QCOW2, NATIVE),
)
DUPLICATE_WRITE = replace(
    RANDOM_WRITE,
    name="random-write-duplicates",
    title="4 KiB random write, half of it duplicates, fresh disk",
    options=HALF_DUPLICATES,
    peers=(MEMORY, FILE, QCOW2, NATIVE),
)
SUSTAINED_WRITE = replace(
    RANDOM_WRITE,
    name="sustained-write",
    title="4 KiB random write of distinct data, each block of the disk once",
    group="sustained",
    peers=(MEMORY, FILE, QCOW2, NATIVE),
    sustained=True,
)
OVERWRITE = Workload(
    "overwrite",
    "4 KiB random write of distinct data, filled disk",
    "overwrite",
    "filled",
    "randwrite",
    (MEMORY, FILE, REFLINK, QCOW2, QCOW2_SNAPSHOTS, STORAGE_DAEMON, NATIVE),
    options=DISTINCT_DATA,
)
OVERWRITE_AFTER_SNAPSHOT = replace(
    OVERWRITE,
    name="overwrite-after-snapshot",
    title="4 KiB random write right after a snapshot",
    snapshots=1,
    peers=(REFLINK, QCOW2, STORAGE_DAEMON, NATIVE, PYTHON),
)
OVERWRITE_CHECKPOINTS = replace(
    OVERWRITE,
    name="overwrite-checkpoints",
    title="4 KiB random write while checkpoints are written",
    meanwhile="checkpoints",
    peers=(NATIVE,),
)
OVERWRITE_COMPACTION = replace(
    OVERWRITE,
    name="overwrite-compaction",
    title="4 KiB random write while the pool is compacted",
    meanwhile="compactions",
    peers=(NATIVE,),
)
MIXED = Workload(
    "mixed",
    "4 KiB random, 70 % reads, 30 % writes of distinct data, filled disk",
    "mixed",
    "filled",
    "randrw",
    (MEMORY, FILE, QCOW2, STORAGE_DAEMON, NATIVE, PYTHON),
    options=("--rwmixread=70", *DISTINCT_DATA),
)
COMMIT = Workload(
    "commit",
    "4 KiB random write + flush each, one after the other, filled disk",
    "commit",
    "filled",
    "randwrite",
    (FILE, REFLINK, QCOW2, STORAGE_DAEMON, NATIVE, PYTHON),
    depth=1,
    options=(*DISTINCT_DATA, "--fsync=1"),
)
WRITE_1_MIB = Workload(
    "sequential-write",
    "1 MiB sequential write of distinct data, fresh disk",
    "sequential write",
    "fresh",
    "write",
    (MEMORY, FILE, QCOW2, STORAGE_DAEMON, NATIVE, PYTHON),
    request_bytes=MIB,
    unit="MB/s",
    options=DISTINCT_DATA,
)
WRITE_64_KIB = replace(
    WRITE_1_MIB,
    name="sequential-write-64k",
    title="64 KiB sequential write of distinct data, fresh disk",
    request_bytes=64 * KIB,
    peers=(MEMORY, FILE, QCOW2, NATIVE),
)
BOOT_STORM = Workload(
    "boot-storm",
    "64 clones of one filled disk, 16 KiB random reads of all at once, depth 4 each",
    "boot storm",
    "filled",
    "randread",
    (MEMORY, FILE, REFLINK, STORAGE_DAEMON, NATIVE),
    request_bytes=16 * KIB,
    depth=4,
    unit="MB/s",
    clones=64,
)
DEEP_READ = replace(
    RANDOM_READ, name="read-deep", title="4 KiB random read", group="snapshots deep, read"
)
DEEP_WRITE = replace(
    OVERWRITE, name="write-deep", title="4 KiB random write", group="snapshots deep, write"
)

WORKLOADS = (
    RANDOM_READ,
    _at(RANDOM_READ, (MEMORY, FILE, QCOW2, NATIVE, PYTHON), depth=1),
    _at(RANDOM_READ, (MEMORY, FILE, QCOW2, NATIVE, PYTHON), connections=4),
    _at(RANDOM_READ, (MEMORY, FILE, NATIVE), depth=1, connections=4),
    READ_1_MIB,
    _at(READ_1_MIB, (MEMORY, FILE, NATIVE), depth=1),
    _at(READ_1_MIB, (MEMORY, FILE, NATIVE), connections=4),
    READ_64_KIB,
    _at(READ_64_KIB, (MEMORY, FILE, NATIVE), depth=1),
    COLD_READ,
    _at(COLD_READ, (FILE, QCOW2, NATIVE), depth=1),
    RANDOM_WRITE,
    COMPRESSIBLE_WRITE,
    DUPLICATE_WRITE,
    _at(RANDOM_WRITE, (MEMORY, FILE, QCOW2, NATIVE), depth=1),
    _at(RANDOM_WRITE, (MEMORY, FILE, QCOW2, NATIVE), connections=4),
    _at(RANDOM_WRITE, (MEMORY, FILE, NATIVE), depth=1, connections=4),
    SUSTAINED_WRITE,
    OVERWRITE,
    OVERWRITE_AFTER_SNAPSHOT,
    OVERWRITE_CHECKPOINTS,
    OVERWRITE_COMPACTION,
    _at(OVERWRITE, (MEMORY, FILE, NATIVE), connections=4),
    MIXED,
    _at(MIXED, (MEMORY, FILE, NATIVE), connections=4),
    COMMIT,
    _at(COMMIT, (FILE, QCOW2, NATIVE), depth=1, connections=4),
    WRITE_1_MIB,
    _at(WRITE_1_MIB, (MEMORY, FILE, NATIVE), depth=1),
    _at(WRITE_1_MIB, (MEMORY, FILE, NATIVE), connections=4),
    WRITE_64_KIB,
    _at(WRITE_64_KIB, (MEMORY, FILE, NATIVE), depth=1),
    BOOT_STORM,
    # qcow2's internal snapshots need the server stopped for each: a thousand would take longer than they tell.
    _snapshots_deep(DEEP_READ, 0, (QCOW2, NATIVE)),
    _snapshots_deep(DEEP_READ, 1, (QCOW2, NATIVE)),
    _snapshots_deep(DEEP_READ, 10, (QCOW2, NATIVE)),
    _snapshots_deep(DEEP_READ, 100, (QCOW2, NATIVE)),
    _snapshots_deep(DEEP_READ, 1000, (NATIVE,)),
    _snapshots_deep(DEEP_WRITE, 0, (QCOW2, NATIVE)),
    _snapshots_deep(DEEP_WRITE, 1, (QCOW2, NATIVE)),
    _snapshots_deep(DEEP_WRITE, 10, (QCOW2, NATIVE)),
    _snapshots_deep(DEEP_WRITE, 100, (NATIVE,)),
    _snapshots_deep(DEEP_WRITE, 1000, (NATIVE,)),
)

RATIOS = (
    Ratio("random-read", NATIVE, "random-read", MEMORY, bar=0.90),
    Ratio("random-read", NATIVE, "random-read", FILE),
    Ratio("random-read", NATIVE, "random-read", QCOW2),
    Ratio("random-read", NATIVE, "random-read", UNCHECKED, bar=0.97),
    Ratio("random-read", NATIVE, "random-read", UNCOUNTED, bar=0.98),
    Ratio("random-read", PYTHON, "random-read", NATIVE),
    Ratio("random-read-connections4", NATIVE, "random-read-connections4", MEMORY),
    Ratio("random-read-depth1", NATIVE, "random-read-depth1", MEMORY),
    Ratio("cold-read", NATIVE, "cold-read", FILE),
    Ratio("cold-read", NATIVE, "cold-read", QCOW2),
    Ratio("sustained-write", NATIVE, "sustained-write", FILE, bar=3.0),
    Ratio("sustained-write", NATIVE, "sustained-write", QCOW2, bar=3.0),
    Ratio("sustained-write", NATIVE, "sustained-write", MEMORY, bar=0.6),
    Ratio("sustained-write", NATIVE, "sustained-write", NATIVE, value="p99.9", other_value="p99"),
    Ratio("random-write", NATIVE, "random-write", FILE),
    Ratio("random-write", NATIVE, "random-write", QCOW2),
    Ratio("random-write", NATIVE, "random-write", MEMORY),
    Ratio("random-write", NATIVE, "random-write", UNCHECKED, bar=0.97),
    Ratio("random-write", NATIVE, "random-write", UNCOUNTED),
    Ratio("random-write", PYTHON, "random-write", NATIVE),
    Ratio("random-write-duplicates", NATIVE, "random-write", NATIVE, bar=1.0),
    Ratio("random-write-compressible", NATIVE, "random-write", NATIVE),
    Ratio("random-write-connections4", NATIVE, "random-write-connections4", MEMORY),
    Ratio("overwrite", NATIVE, "overwrite", FILE),
    Ratio("overwrite", NATIVE, "overwrite", QCOW2),
    Ratio("overwrite", NATIVE, "overwrite", MEMORY),
    Ratio("overwrite-after-snapshot", NATIVE, "overwrite", NATIVE, bar=0.9),
    Ratio("overwrite-after-snapshot", NATIVE, "overwrite-after-snapshot", QCOW2, bar=20.0),
    Ratio("overwrite-after-snapshot", NATIVE, "overwrite-after-snapshot", REFLINK),
    Ratio("overwrite-checkpoints", NATIVE, "overwrite", NATIVE, bar=5.0, value="p99.9", other_value="p99"),
    Ratio("overwrite-compaction", NATIVE, "overwrite", NATIVE, bar=0.7),
    Ratio("overwrite-compaction", NATIVE, "overwrite", NATIVE, bar=3.0, value="p99", other_value="p99"),
    Ratio("mixed", NATIVE, "mixed", MEMORY),
    Ratio("mixed", NATIVE, "mixed", FILE),
    Ratio("mixed", NATIVE, "mixed", QCOW2),
    Ratio("commit", NATIVE, "commit", FILE, bar=0.9),
    Ratio("commit", NATIVE, "commit", QCOW2),
    Ratio("commit-connections4", NATIVE, "commit-connections4", FILE),
    Ratio("sequential-write", NATIVE, "sequential-write", FILE, bar=0.8),
    Ratio("sequential-write", NATIVE, "sequential-write", QCOW2),
    Ratio("sequential-read", NATIVE, "sequential-read", FILE, bar=0.9),
    Ratio("sequential-read", NATIVE, "sequential-read", QCOW2),
    Ratio("read-deep-1000", NATIVE, "read-deep-0", NATIVE, bar=0.97),
    Ratio("write-deep-1000", NATIVE, "write-deep-1", NATIVE),
    Ratio("boot-storm", NATIVE, "boot-storm", MEMORY, bar=0.9),
    Ratio("boot-storm", NATIVE, "boot-storm", STORAGE_DAEMON),
    Ratio("boot-storm", NATIVE, "boot-storm", REFLINK),
)


def for_the_bars() -> set[tuple[str, str]]:
    """The (workload, peer) that the ratios with a bar are made of: what a quick run measures."""
    asked = [ratio for ratio in RATIOS if ratio.bar is not None]
    return {(ratio.workload, ratio.peer) for ratio in asked} | {
        (ratio.other_workload, ratio.other_peer) for ratio in asked
    } | {("boot-storm", STORAGE_DAEMON)}  # "qcow2 overlays beside it"
