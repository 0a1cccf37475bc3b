"""How many bytes the sender has out that the receiver has not handled: enough for a full link, few enough to lose at a cut.

Twice what the link carries in one round trip, both being measured from the acknowledgements; and besides, as the least round
trip is that of a message that met no other and tells nothing of how many the stations on the way could work at together
(2 MiB: 109 MB/s on a loaded machine, 16 MiB: 256), a part of what this channel has carried: so a cut costs at most that part.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

WINDOW_BYTES_MIN, WINDOW_BYTES_MAX = 2 << 20, 64 << 20
CARRIED_SHARE = 32  # of what the channel has carried, one part in so many may be in flight,
CARRIED_BYTES_MAX = 16 << 20  # up to this
RATE_SECONDS = 0.25  # over which the rate is measured
RATE_DECAY = 0.9  # of the highest rate, for each time that it is measured: so that a pause does not forget it at once


class Window:
    """Bytes in flight on one channel; `monotonic` gives seconds."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._out: deque[tuple[int, float]] = deque()  # bytes sent by then, and when
        self.sent_bytes = 0
        self.acknowledged_bytes = 0
        self.rate_bytes = 0.0  # in a second
        self._round_trip: float | None = None  # the shortest
        self._measured = (0, monotonic())

    @property
    def in_flight_bytes(self) -> int:
        return self.sent_bytes - self.acknowledged_bytes

    @property
    def bytes_max(self) -> int:
        carried = min(self.acknowledged_bytes // CARRIED_SHARE, CARRIED_BYTES_MAX)
        wanted = max(2 * self.rate_bytes * (self._round_trip or 0.0), carried)
        return int(min(max(wanted, WINDOW_BYTES_MIN), WINDOW_BYTES_MAX))

    def has_room(self, byte_count: int) -> bool:
        """Always for one message, however large."""
        return not self.in_flight_bytes or self.in_flight_bytes + byte_count <= self.bytes_max

    def sent(self, byte_count: int) -> None:
        if not self.in_flight_bytes:  # nothing was asked of the link before
            self._measured = (self.acknowledged_bytes, self._monotonic())
        self.sent_bytes += byte_count
        self._out.append((self.sent_bytes, self._monotonic()))

    def acknowledged(self, byte_count: int) -> bool:
        """The receiver has handled so many in all.  False: it cannot have."""
        if not self.acknowledged_bytes <= byte_count <= self.sent_bytes:
            return False
        now = self._monotonic()
        self.acknowledged_bytes = byte_count
        while self._out and self._out[0][0] <= byte_count:
            trip = max(now - self._out.popleft()[1], 0.0)
            self._round_trip = trip if self._round_trip is None else min(self._round_trip, trip)
        before, since = self._measured
        if now - since >= RATE_SECONDS:
            self.rate_bytes = max((byte_count - before) / (now - since), self.rate_bytes * RATE_DECAY)
            self._measured = (byte_count, now)
        return True
