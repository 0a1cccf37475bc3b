"""Which channel has a receipt: one at a time, the latest that asked for it.

A peer whose connection broke comes back before the old one is known to be dead.  And what a receipt was written to becomes
the disk of a VM when it is finished, of which the old channel must not write another byte.
Threads: any.  Locks: a hold's own is held while the channel works with the receipt, so that it ends between two pieces of
work; the registry's never while another is waited for.
"""

from __future__ import annotations

import threading
from types import TracebackType

from blockdev.errors import Gone


class Hold:
    """A channel's right to a receipt: `with` it for each piece of work.  Gone: it has ended."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._has_ended = False

    def __enter__(self) -> None:
        self._lock.acquire()
        if self._has_ended:
            self._lock.release()
            raise Gone("another connection goes on with this snapshot, or it has ended")

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._lock.release()

    def end(self) -> None:
        """When no work is under way; not from within it."""
        with self._lock:
            self._has_ended = True


class Holds:
    """The holds of one home, by the ids of receipts."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._of: dict[int, Hold] = {}

    def take(self, receipt_id: int) -> Hold:
        """For the caller alone: whoever had it is through with its work, and can begin no other."""
        hold = Hold()
        with self._lock:
            before = self._of.get(receipt_id)
            self._of[receipt_id] = hold
        if before is not None:
            before.end()
        return hold

    def release(self, receipt_id: int, hold: Hold) -> None:
        """The channel has ended."""
        hold.end()
        with self._lock:
            if self._of.get(receipt_id) is hold:
                del self._of[receipt_id]
