"""How much a peer may put into this home's pool.

Counting takes a walk over all maps, so it is counted seldom, and what was put since is added as if none of it became
smaller: before somebody is refused, it is counted again.  Threads: any.  Locks: that of a peer is held while it is counted,
so that nobody else waits for it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from blockdev.clock import monotonic_seconds
from blockdev.errors import PoolFull
from blockdev.vmmap.catalog_replication import PeerRow

COUNT_SECONDS_MIN = 1.0  # from the end of a count to the next one of the same peer,
COUNT_PART = 20  # and so many times what it took: a peer that is at its limit costs a twentieth of one core at the most


class _Taken:
    """Of one peer."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.used_bytes: int | None = None  # by now; None: it was never counted
        self.count_at = float("-inf")  # not again before


class PeerSpace:
    """What each peer takes; `count` of a peer's id counts it."""

    def __init__(self, count: Callable[[int], int], monotonic: Callable[[], float] = monotonic_seconds) -> None:
        self._count = count
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._peers: dict[int, _Taken] = {}

    def take(self, peer: PeerRow, byte_count: int) -> None:
        """Note that a peer puts so many bytes.  PoolFull: it may not."""
        if peer.space_bytes is None:
            return
        with self._lock:
            taken = self._peers.setdefault(peer.id, _Taken())
        with taken.lock:
            if taken.used_bytes is None or taken.used_bytes + byte_count > peer.space_bytes:
                taken.used_bytes = self._counted(peer.id, taken)
            if taken.used_bytes + byte_count > peer.space_bytes:
                raise PoolFull(
                    f"what this peer has sent takes {taken.used_bytes} bytes, and it may take {peer.space_bytes}: "
                    f"let snapshots go there, or give it more with blockdevctl replicate peer change {peer.name} --space"
                )
            taken.used_bytes += byte_count

    def _counted(self, peer_id: int, taken: _Taken) -> int:
        """As it is now, or as it was thought to be when it was counted a moment ago."""
        began = self._monotonic()
        if taken.used_bytes is not None and began < taken.count_at:
            return taken.used_bytes
        used_bytes = self._count(peer_id)
        ended = self._monotonic()
        taken.count_at = ended + max(COUNT_SECONDS_MIN, COUNT_PART * (ended - began))
        return used_bytes
