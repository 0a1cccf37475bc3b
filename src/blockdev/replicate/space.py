"""How much a peer may put into this home's pool.

Counting takes a walk over all maps, so it is counted seldom, and what was put since is added as if none of it became
smaller: before somebody is refused, it is counted again.  Threads: any.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from blockdev.clock import monotonic_seconds
from blockdev.errors import PoolFull
from blockdev.vmmap.catalog_replication import PeerRow

COUNT_SECONDS_MIN = 60.0  # between two counts of one peer, also of one that tries again and again


class PeerSpace:
    """What each peer takes; `count` of a peer's id counts it."""

    def __init__(self, count: Callable[[int], int], monotonic: Callable[[], float] = monotonic_seconds) -> None:
        self._count = count
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._known: dict[int, tuple[float, int]] = {}  # peer id -> when it was counted, and bytes by now

    def take(self, peer: PeerRow, byte_count: int) -> None:
        """Note that a peer puts so many bytes.  PoolFull: it may not."""
        if peer.space_bytes is None:
            return
        with self._lock:
            counted_at, used = self._known.get(peer.id, (float("-inf"), 0))
            if used + byte_count > peer.space_bytes or counted_at == float("-inf"):
                if self._monotonic() - counted_at >= COUNT_SECONDS_MIN:
                    counted_at, used = self._monotonic(), self._count(peer.id)
                if used + byte_count > peer.space_bytes:
                    self._known[peer.id] = counted_at, used
                    raise PoolFull(
                        f"what this peer has sent takes {used} bytes, and it may take {peer.space_bytes}: "
                        f"let snapshots go there, or give it more with blockdevctl replicate peer change {peer.name} --space"
                    )
            self._known[peer.id] = counted_at, used + byte_count
