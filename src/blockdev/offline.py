"""Check and scrub of a pool that no engine has open: for a person without a server, or before one is started.

Only reads: the newest sound checkpoint, and the log behind it applied in memory; nothing is settled, healed or kept.  The
one thing written is our process id in LOCK, which keeps engines away meanwhile.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

from blockdev import superblock
from blockdev.directory import take_lock
from blockdev.errors import NotFound
from blockdev.findings import InspectionKind
from blockdev.inspection import Inspection, Report, Subject
from blockdev.recovery import list_segments, read_back
from blockdev.runner import Pace

DEDUP_BYTES = 1 << 20  # nothing is looked up
MAP_CACHE_BYTES = 256 << 20


def inspect(
    path: str | os.PathLike[str],
    kind: InspectionKind,
    rate_bytes: int | None = None,
    watch: Callable[[int, int], None] = lambda _done_bytes, _total_bytes: None,
) -> Report:
    """NotFound, Busy when an engine has it, Corrupt when it cannot be opened; what else is wrong is in the report.

    A copy that does not verify is a finding here.  rate_bytes: to read in a second, at the most.  watch: called at each
    step; what it raises ends the inspection.
    """
    path = os.path.abspath(os.fspath(path))
    if not superblock.is_there(path):
        raise NotFound(f"{path} is not a pool: it has no superblock")
    lock_file = take_lock(path)
    try:
        read = read_back(path, MAP_CACHE_BYTES, DEDUP_BYTES, read_only=True)
        last = max((id for id, _generation, _size in list_segments(f"{path}/segments")), default=0)
        read.core.start_log(max(last, read.table.segment_id) + 1, read.replay.end()[2])  # in memory only
        subject = Subject(
            path,
            read.core,
            lambda: list(read.objects.values()),
            lambda: read.core.tend_memory(read.resident_nodes_max),
            None,
            read.table.segment_id,
        )
        never = threading.Event()

        def wait(seconds: float) -> bool:
            watch(inspection.done_bytes, inspection.total_bytes)
            return never.wait(seconds)

        inspection = Inspection(subject, kind, Pace(rate_bytes, wait))
        return inspection.run()
    finally:
        os.close(lock_file)
