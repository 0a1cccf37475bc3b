"""What a pool does by itself: make idle writes durable, take checkpoints, free memory and space, load the dedup index.

One thread a pool.  It holds only a weak reference between rounds, so that a pool nobody uses can be closed.
"""

from __future__ import annotations

import threading
import weakref
from typing import TYPE_CHECKING

from blockdev import diagnostics
from blockdev._compact import index_segment
from blockdev.clock import monotonic_seconds
from blockdev.errors import BlockdevError

if TYPE_CHECKING:
    from blockdev.pool import Pool

ROUND_SECONDS = 0.5
INDEXED_AT_ONCE = 8  # segments a round, after a start that had to replay: 1 GiB of data a second
FLUSH_SECONDS = 2.0  # writes that no guest flushes become durable after about this long
CHECKPOINT_SECONDS = 120.0
CHECKPOINT_LOG_BYTES = 1 << 30  # bounds what a start replays


class Maintenance:
    def __init__(self, pool: Pool) -> None:
        self._pool = weakref.ref(pool)
        self._stopping = threading.Event()
        self._to_index = range(0)
        self._flushed = self._checkpointed = monotonic_seconds()
        self._thread = threading.Thread(target=self._run, name="blockdev-maintenance", daemon=True)
        self._thread.start()
        pool.core.reclaims(True)

    def stop(self) -> None:
        """End the thread and wait for it, unless it is the caller's own."""
        self._stopping.set()
        pool = self._pool()
        if pool is not None:
            pool.core.reclaims(False)
        if self._thread is not threading.current_thread():
            self._thread.join()

    def _run(self) -> None:
        pool = self._pool()
        if pool is not None:
            pool.load_dedup()
            self._to_index = pool.segments_to_index()
        del pool
        while not self._stopping.wait(ROUND_SECONDS):
            pool = self._pool()
            if pool is None:
                return
            try:
                self._round(pool)
            except (BlockdevError, OSError, MemoryError) as failure:
                diagnostics.report(str(failure))
                if self._stopping.wait(10):
                    return
            del pool

    def _round(self, pool: Pool) -> None:
        now = monotonic_seconds()
        stats = pool.stats()
        if stats["poisoned"]:
            return
        pool.tend_memory()
        pool.keep_spare()
        for id in self._to_index[:INDEXED_AT_ONCE]:
            index_segment(pool.core, id)
        self._to_index = self._to_index[INDEXED_AT_ONCE:]
        pool.compactor.tend(stats)
        if now - self._flushed >= FLUSH_SECONDS:
            self._flushed = now
            if stats["durable_lsn"] < stats["next_lsn"]:
                pool.flush()
        log_bytes = stats["log_bytes_since_checkpoint"]
        if (
            log_bytes >= CHECKPOINT_LOG_BYTES
            or stats["nodes_dirty"] >= pool.nodes_dirty_max()
            or (log_bytes and now - self._checkpointed >= CHECKPOINT_SECONDS)
        ):
            self._checkpointed = now
            pool.checkpoint()
