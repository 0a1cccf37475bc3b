"""A save of what a channel brought, beside its going on: the medium would hold it up for a quarter of its time (measured).

Threads: what begins one waits for it; one at a time for each channel.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator

from blockdev.priority import give_way_to_guests
from blockdev.replicate.messages import Saved

RunApart = Callable[[Iterator[None]], Callable[[], None]]  # begins some work; what it returns waits until that is done


def in_a_thread(work: Iterator[None]) -> Callable[[], None]:
    """Of its own, without a stop where the work says that others may go on."""
    thread = threading.Thread(target=_giving_way, args=(work,), name="save", daemon=True)
    thread.start()
    return thread.join


def _giving_way(work: Iterator[None]) -> None:
    give_way_to_guests()
    deque(work, maxlen=0)


class Saving:
    """One save, which has begun."""

    def __init__(self, make_durable: Callable[[], None], keep: Callable[[], Saved], run_apart: RunApart) -> None:
        """make_durable: what is here now.  keep: how far that was; more may come in between."""
        self._make_durable = make_durable
        self._keep = keep
        self._saved: Saved | None = None
        self._error: BaseException | None = None
        self._wait = run_apart(self._run())

    def _run(self) -> Iterator[None]:
        try:
            self._make_durable()
            yield
            self._saved = self._keep()
        except BaseException as error:
            self._error = error

    def result(self, wait: bool) -> Saved | None:
        """What is saved by now; None: it goes on, which it never does after a wait.  Raises why nothing was."""
        if wait:
            self._wait()
        if self._error is not None:
            raise self._error
        return self._saved
