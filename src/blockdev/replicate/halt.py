"""What ends a transfer, or keeps it from beginning, beside its two ends: somebody who stops it, the way between them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from blockdev.errors import NotAllowed, Unavailable


class Unreached(Unavailable):
    """The other end of a path could not be reached: that is the same for all that go over it."""


class Rejected(NotAllowed):
    """The other end of a path is not whom it should be, or does not know this home: likewise."""


class Halted(Exception):
    """The transfer was told to stop: it is paused or not wanted any more, or the process ends."""


class Halt:
    """Tells a transfer to stop, from any thread, while it waits for something else; said once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._said = threading.Event()
        self._wakers: list[Callable[[], object]] = []

    def say(self) -> None:
        with self._lock:
            self._said.set()
            wakers, self._wakers = self._wakers, []
        for wake in wakers:
            wake()

    def is_said(self) -> bool:
        return self._said.is_set()

    def wait(self, seconds: float) -> bool:
        """Whether it is said by then."""
        return self._said.wait(seconds)

    @contextmanager
    def waking(self, wake: Callable[[], object]) -> Iterator[None]:
        """Have `wake` called when it is said inside, in that thread; at once if it was said.  It must not wait or raise.

        It is kept no longer: a copy that is cut again and again for days has one halt, and a channel for each attempt.
        """
        with self._lock:
            is_said = self._said.is_set()
            if not is_said:
                self._wakers.append(wake)
        if is_said:
            wake()
        try:
            yield
        finally:
            with self._lock, suppress(ValueError):  # said meanwhile
                self._wakers.remove(wake)

    def check(self) -> None:
        """Halted."""
        if self._said.is_set():
            raise Halted
