"""Long work on an open pool, one at a time: paced, watched, cancelled.  Inspections and compactions are such work."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Generic, Literal, NamedTuple, Protocol, TypeVar

from blockdev import diagnostics
from blockdev.clock import monotonic_seconds, now_seconds
from blockdev.errors import BlockdevError, Busy, Gone, NotFound
from blockdev.priority import give_way_to_guests

if TYPE_CHECKING:
    from blockdev._pool import Core
    from blockdev.pool import Pool

WAIT_SECONDS_MAX = 0.2  # between two looks at the rate
OUTCOMES_KEPT = 8  # for whoever follows work that another came after
R = TypeVar("R")  # what the work comes to
R_co = TypeVar("R_co", covariant=True)


class Cancelled(Exception):
    """The work was told to end."""


class Pace:
    """Counts bytes, waits so that they stay below a rate, and notices that the work is to end."""

    def __init__(
        self,
        rate_bytes: int | None,
        wait: Callable[[float], bool],
        now: Callable[[], float] = monotonic_seconds,
    ) -> None:
        """rate_bytes: a second, None: no limit; wait(seconds): True when the work is to end."""
        self.done_bytes = 0
        self._rate_bytes = rate_bytes
        self._wait = wait
        self._now = now
        self._started = now()

    def hurry(self) -> None:
        """No limit from now on: somebody waits."""
        self._rate_bytes = None

    def spend(self, byte_count: int) -> None:
        """Cancelled."""
        self.done_bytes += byte_count
        ahead_s = self._ahead_s()
        while True:
            if self._wait(min(ahead_s, WAIT_SECONDS_MAX)):
                raise Cancelled
            ahead_s = self._ahead_s()
            if ahead_s == 0.0:
                return

    def _ahead_s(self) -> float:
        """How long to wait for the rate; it may be lifted meanwhile."""
        rate_bytes = self._rate_bytes
        return max(self.done_bytes / rate_bytes - (self._now() - self._started), 0.0) if rate_bytes else 0.0


class Work(Protocol[R_co]):
    @property
    def kind(self) -> str: ...
    @property
    def done_bytes(self) -> int:
        """At most total_bytes."""

    @property
    def total_bytes(self) -> int: ...
    def run(self) -> R_co: ...


class Progress(NamedTuple):
    """How far the work is."""

    run: int  # counted from the start of the engine
    kind: str
    started: float  # seconds since 1970
    done_bytes: int
    total_bytes: int


State = Literal["running", "done", "cancelled", "failed"]


class Outcome(NamedTuple, Generic[R]):
    """How the latest work stands."""

    progress: Progress
    state: State
    report: R | None = None
    error: BlockdevError | None = None


class Runner(Generic[R]):
    """Begins work, keeps how the latest stands.  Methods may be called from any thread; nothing blocks under `_lock`."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._cancelled = threading.Event()
        self._work: Work[R] | None = None  # that runs
        self._pace: Pace | None = None  # of the latest
        self._outcomes: dict[int, Outcome[R]] = {}  # of the latest that are over, by their numbers
        self._run = 0
        self._started = 0.0
        self._closed = False

    def _make(self, pool: Pool, kind: str, pace: Pace) -> Work[R]:
        raise NotImplementedError

    def _gives_way(self, running: str, to: str) -> bool:
        """Whether work of the kind `running` ends when work of the kind `to` is asked for."""
        return False

    def _keep(self, report: R) -> R:
        """What of a report is told, and remembered."""
        return report

    def run(self, kind: str) -> R:
        """Do it in this thread, after the work that may be running.  Gone when the pool is closed."""
        with self._lock:
            self._let_go_first(kind)
            while self._work is not None:
                self._changed.wait()
            work = self._begin(kind, None)
        outcome = self._finish(work)
        if outcome.report is None:
            raise outcome.error or Gone(f"the pool was closed during the {kind}")
        return outcome.report

    def start(self, kind: str, rate_bytes: int | None) -> int:
        """Do it in a thread, or join work of this kind that runs.  Returns its number.

        rate_bytes: how much to go through in a second, at the most.  Busy: work of another kind runs.
        """
        with self._lock:
            self._let_go_first(kind)
            running = self._work
            if running is not None and running.kind == kind:
                return self._run
            if running is not None:
                raise Busy(f"a {running.kind} of the pool is running: wait for it, or cancel it")
            work = self._begin(kind, rate_bytes)
            number = self._run
        thread = threading.Thread(target=self._finish_behind_guests, args=(work,), name=f"blockdev-{kind}", daemon=True)
        try:
            thread.start()
        except RuntimeError as failure:  # the machine has no room for one more thread
            self._over(work, "failed", None, BlockdevError(f"the {kind} cannot begin: {failure}"))
        return number

    def _let_go_first(self, kind: str) -> None:
        """Caller holds the lock."""
        while self._work is not None and self._gives_way(self._work.kind, kind):
            self._cancelled.set()
            self._changed.wait()

    def outcome(self, run: int, wait_s: float) -> Outcome[R]:
        """How the work of number `run` stands; waits so long for its end.  NotFound: long over, or never begun."""
        with self._lock:
            if run == self._run and self._work is not None:
                self._changed.wait(wait_s)
            if run == self._run and self._work is not None:
                return Outcome(self._progress(self._work), "running")
            if run not in self._outcomes:
                raise NotFound("that is long over, or was not begun since the engine was started")
            return self._outcomes[run]

    def progress(self) -> Progress | None:
        """Of the work that runs."""
        with self._lock:
            return self._progress(self._work) if self._work is not None else None

    def cancel(self, run: int) -> None:
        """Let the work of number `run` end at its next step; what is over stays as it is."""
        with self._lock:
            if run == self._run:
                self._cancelled.set()

    def hurry(self) -> None:
        """Let what runs go on without a limit: somebody waits for it."""
        with self._lock:
            if self._pace is not None:
                self._pace.hurry()

    def close(self) -> None:
        """Begin no more, and wait until what runs has ended."""
        with self._lock:
            self._closed = True
            self._cancelled.set()
            while self._work is not None:
                self._changed.wait()

    def _begin(self, kind: str, rate_bytes: int | None) -> Work[R]:
        """Caller holds the lock."""
        pool = self._core.pool()
        if self._closed or self._core.closed or pool is None:
            raise Gone("the pool is closed")
        self._cancelled.clear()
        self._run += 1
        self._started = now_seconds()
        self._pace = Pace(rate_bytes, self._cancelled.wait)
        self._work = self._make(pool, kind, self._pace)
        return self._work

    def _progress(self, work: Work[R]) -> Progress:
        return Progress(self._run, work.kind, self._started, work.done_bytes, work.total_bytes)

    def _finish_behind_guests(self, work: Work[R]) -> None:
        give_way_to_guests()
        self._finish(work)

    def _finish(self, work: Work[R]) -> Outcome[R]:
        """Run it, keep what it came to, and say so."""
        state: State = "failed"
        report, error = None, None
        try:
            report = self._keep(work.run())
            state = "done"
        except Cancelled:
            state = "cancelled"
        except BlockdevError as failure:
            error = failure
        except Exception as failure:  # a bug, or no memory: whoever waits must be told
            diagnostics.report_bug(failure)
            error = BlockdevError(f"the {work.kind} failed: {type(failure).__name__}: {failure}")
        return self._over(work, state, report, error)

    def _over(self, work: Work[R], state: State, report: R | None, error: BlockdevError | None) -> Outcome[R]:
        self._before_over(work, state)
        with self._lock:
            outcome = self._outcomes[self._run] = Outcome(self._progress(work), state, report, error)
            self._outcomes.pop(self._run - OUTCOMES_KEPT, None)
            self._work = None
            self._changed.notify_all()
            return outcome

    def _before_over(self, work: Work[R], state: State) -> None:
        """What the end of work means; a close still waits for it."""
