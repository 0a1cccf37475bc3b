"""Where all transfers of a path wait for their turn under its throttle; first come, first served.  In the loop's thread."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from blockdev.clock import monotonic_seconds, now_seconds
from blockdev.replicate.throttle import Bucket, Throttle

UNHELD_BYTES_MAX = 4096  # acknowledgements and the like: counted, never held up
OVERHEAD_BYTES = 120  # of SSH and TCP for a piece: the headers, padding and tag of a packet, and of one that says nothing


class Gate:
    """A path's.  Without a throttle nobody waits."""

    def __init__(self, throttle: Throttle | None = None) -> None:
        self.throttle = throttle or Throttle()
        self._bucket = Bucket(self.throttle, monotonic_seconds, now_seconds)
        self._turn = asyncio.Lock()  # who asks first has it first
        self._is_set = asyncio.Event()

    @property
    def piece_bytes(self) -> int:
        """How much to ask for at the most."""
        return self._bucket.piece_bytes

    def set(self, throttle: Throttle) -> None:
        """From now on; whoever waits looks again."""
        self.throttle = throttle
        self._bucket.set(throttle)
        self._is_set.set()

    async def pass_through(self, byte_count: int, is_small: bool = False) -> None:
        """Until so many bytes may be written; is_small: of a message that is not held up."""
        if is_small:
            self._bucket.take(byte_count + OVERHEAD_BYTES)
            return
        async with self._turn:
            while (seconds := self._bucket.wait_seconds()) > 0:
                self._is_set.clear()
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._is_set.wait(), seconds)
            self._bucket.take(byte_count + OVERHEAD_BYTES)
