"""Long operations: each runs in a thread of its own pool, tells its progress, and can be cancelled.

The FINISHED_MAX newest finished ones stay in memory with their whole results; what is kept of all of them is the Keeper's to say
(history.py).  When the control plane dies, the agreement rule of vmmap takes back what an unfinished one had begun.  A lock in
each job guards its fields.
"""

from __future__ import annotations

import logging
import secrets
import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from blockdev.aside import Aside
from blockdev.clock import now_seconds
from blockdev.errors import BlockdevError, Unavailable
from blockdev.watching import Cancelled

logger = logging.getLogger(__name__)

JobState = Literal["queued", "running", "done", "failed", "cancelled", "interrupted"]  # the last: its control plane died
FINISHED: tuple[JobState, ...] = ("done", "failed", "cancelled", "interrupted")
RUNNING_MAX = 4
FINISHED_MAX = 100
OWNER = "owner"  # of the home: who asks over its Unix socket
CALLER: ContextVar[Callable[[], str]] = ContextVar("caller", default=lambda: OWNER)  # of the request that is being answered

Work = Callable[["Job"], Any]


@dataclass
class Job:
    """One long operation.  Its work calls `advance` and looks at `is_cancelled` (watching.Watcher)."""

    kind: str  # noun.verb, as on the command line: "disk.import", "pool.check"
    subject: str  # what it works on, in the person's words: "web/root"
    id: str = field(default_factory=lambda: secrets.token_hex(8))
    state: JobState = "queued"
    total_bytes: int = 0  # 0: not known
    done_bytes: int = 0
    fraction: float = 0.0  # 0..1
    result: Any = None
    error: dict[str, str] | None = None
    created_at: float = field(default_factory=now_seconds)  # seconds since 1970
    finished_at: float | None = None
    version: int = 0  # +1 at each change
    caller: str = field(default_factory=lambda: CALLER.get()())
    cancelled: threading.Event = field(default_factory=threading.Event)
    lock: threading.RLock = field(default_factory=threading.RLock)

    def is_cancelled(self) -> bool:
        return self.cancelled.is_set()

    def expect(self, total_bytes: int) -> None:
        """How much there is to do, for `done_bytes`."""
        with self.lock:
            self.total_bytes = total_bytes
            self.version += 1

    def advance(self, fraction: float) -> None:
        with self.lock:
            self.fraction = max(self.fraction, fraction)
            self.done_bytes = int(self.total_bytes * self.fraction)
            self.version += 1

    def begin(self) -> bool:
        """False if it was cancelled while it waited for its turn."""
        with self.lock:
            if self.cancelled.is_set():
                self._finish("cancelled")
                return False
            self.state = "running"
            self.version += 1
            return True

    def cancel(self) -> None:
        with self.lock:
            self.cancelled.set()
            if self.state == "queued":
                self._finish("cancelled")

    def finish(self, state: JobState, result: Any = None, error: dict[str, str] | None = None) -> None:
        with self.lock:
            self._finish(state, result, error)

    def _finish(self, state: JobState, result: Any = None, error: dict[str, str] | None = None) -> None:
        if self.state in FINISHED:
            return
        if state == "done":
            self.fraction = 1.0
            self.done_bytes = self.total_bytes
        self.state, self.result, self.error = state, result, error
        self.finished_at = now_seconds()
        self.version += 1


class Part:
    """A share of a job's progress: the work between `start` and `end` of the whole, as a Watcher of its own."""

    def __init__(self, job: Job, start: float, end: float) -> None:
        self._job, self._start, self._end = job, start, end

    def advance(self, fraction: float) -> None:
        self._job.advance(self._start + (self._end - self._start) * fraction)

    def is_cancelled(self) -> bool:
        return self._job.is_cancelled()


class Keeper(Protocol):
    """Who is told of jobs, in their threads."""

    def began(self, job: Job) -> None: ...

    def ended(self, job: Job) -> None: ...


class Jobs:
    """All long jobs of one control plane."""

    def __init__(self, keeper: Keeper | None = None) -> None:
        self._keeper = keeper
        self._jobs: dict[str, Job] = {}
        self._lock = threading.RLock()  # a signal handler cancels, in the thread that may hold it
        self._threads = Aside(RUNNING_MAX, "job")
        self._unfinished: set[Future[None]] = set()
        self._is_closed = False

    def start(self, kind: str, subject: str, work: Work) -> Job:
        """Queue `work(job)`; what it returns becomes the result.  Unavailable: after `close`."""
        job = Job(kind, subject)
        with self._lock:
            if self._is_closed:
                raise Unavailable("blockdevd is being stopped: ask again when it serves")
            self._jobs[job.id] = job
            self._forget_oldest()
        if self._keeper is not None:
            self._keeper.began(job)
        with self._lock:
            future = self._threads.submit(self._run, job, work)
            self._unfinished.add(future)
        future.add_done_callback(self._over)
        return job

    def find(self, id: str) -> Job | None:
        """One that runs, or is among the latest that ended."""
        with self._lock:
            return self._jobs.get(id)

    def all(self) -> list[Job]:
        """Oldest first."""
        with self._lock:
            return list(self._jobs.values())

    def cancel_all(self) -> None:
        for job in self.all():
            job.cancel()

    def close(self, seconds: float) -> bool:
        """Cancel everything, take no more, and wait so long until it was taken back; whether it was."""
        with self._lock:
            self._is_closed = True
            unfinished = set(self._unfinished)
        self.cancel_all()
        return not wait(unfinished, seconds).not_done

    def _over(self, future: Future[None]) -> None:
        with self._lock:
            self._unfinished.discard(future)

    def _run(self, job: Job, work: Work) -> None:
        try:
            if not job.begin():
                return
            job.finish("done", work(job))
        except Cancelled:
            job.finish("cancelled")
        except BlockdevError as error:
            logger.warning("%s of %s failed: %s", job.kind, job.subject, error.message)
            job.finish("failed", error={"code": error.code, "message": error.message})
        except Exception as error:  # a bug: its trace belongs in the log, the person still gets an answer
            logger.exception("%s of %s failed", job.kind, job.subject)
            message = f"internal error: {type(error).__name__}: {error}; see the log of blockdevd"
            job.finish("failed", error={"code": BlockdevError.code, "message": message})
        finally:
            if self._keeper is not None:
                self._keeper.ended(job)

    def _forget_oldest(self) -> None:
        finished = [id for id, job in self._jobs.items() if job.state in FINISHED]
        for id in finished[: max(0, len(finished) - FINISHED_MAX)]:
            del self._jobs[id]
