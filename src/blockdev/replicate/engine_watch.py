"""Notices that this home's engine hangs while channels wait for it: whoever sends over them is told, and tries again later.

An engine that is slow is not one that hangs: it says who it is while it works on something, however long that takes.
The thread that waits is left as it is: what it asked for may be done yet, so its channel keeps the receipt until then (holding.py).
Threads: `working` has its channel's; `look` one for all; `stop` any.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType

from blockdev.clock import monotonic_seconds
from blockdev.errors import BlockdevError, Unavailable

logger = logging.getLogger(__name__)

LOOK_SECONDS = 5.0
WORK_SECONDS = 10.0  # on one message, before the engine is asked anything
ANSWER_SECONDS_MAX = 10.0
HANGS_SECONDS_MAX = 60.0  # without an answer,
QUESTIONS_MIN = 3  # and so many questions, one after the other: all processes may have been stopped meanwhile


class Work:
    """What a channel's thread does: `with` it for each message."""

    def __init__(self, give_up: Callable[[BlockdevError], None], monotonic: Callable[[], float]) -> None:
        """give_up: tells the other end why, and ends the channel; it must not wait."""
        self.give_up = give_up
        self._monotonic = monotonic
        self.since: float | None = None  # None: it waits for the other end

    def __enter__(self) -> None:
        self.since = self._monotonic()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.since = None


class EngineWatch:
    """One home's."""

    def __init__(self, answers: Callable[[float], bool], monotonic: Callable[[], float] = monotonic_seconds) -> None:
        """answers: EngineClient.answers."""
        self._answers = answers
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._works: set[Work] = set()  # that were not given up
        self._silent_since: float | None = None  # the first question that had no answer, since the last one that had
        self._questions = 0  # without an answer
        self._stopping = threading.Event()

    def start(self) -> None:
        threading.Thread(target=self._run, name="engine watch", daemon=True).start()

    def stop(self) -> None:
        """Nobody waits for it."""
        self._stopping.set()

    @contextmanager
    def working(self, give_up: Callable[[BlockdevError], None]) -> Iterator[Work]:
        """A channel, as long as it has a thread."""
        work = Work(give_up, self._monotonic)
        with self._lock:
            self._works.add(work)
        try:
            yield work
        finally:
            with self._lock:
                self._works.discard(work)

    def look(self) -> None:
        """Ask the engine, if somebody has waited for it; give up whom it has kept waiting for too long."""
        now = self._monotonic()
        if not self._waiting(now - WORK_SECONDS) or self._answers(ANSWER_SECONDS_MAX):
            self._silent_since, self._questions = None, 0
            return
        self._questions += 1
        if self._silent_since is None:
            self._silent_since = now
        then = self._monotonic()
        seconds = then - self._silent_since
        if self._questions < QUESTIONS_MIN or seconds < HANGS_SECONDS_MAX:
            return
        error = Unavailable(f"the engine there has not answered for {seconds:.0f} s: it is tried again; see whether it hangs")
        for work in self._waiting(then - HANGS_SECONDS_MAX):
            logger.warning("a peer's channel is given up: the engine has not answered for %.0f s", seconds)
            with self._lock:
                self._works.discard(work)
            work.give_up(error)

    def _waiting(self, before: float) -> list[Work]:
        """Those that began to work on a message before that."""
        with self._lock:
            return [one for one in self._works if (since := one.since) is not None and since < before]

    def _run(self) -> None:
        while not self._stopping.wait(LOOK_SECONDS):
            try:
                self.look()
            except Exception:
                logger.exception("whether the engine hangs could not be found out; it is tried again")
