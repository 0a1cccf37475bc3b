"""`blockdevctl serve`: the engine and the control plane of one home, in the foreground.

One supervisor per home, by a flock on run/serve.lock.  The control plane may die without the engine noticing; it is
started again for ever.  The engine is started again too, because guests reconnect, until it dies too often.  SIGTERM,
SIGINT and SIGHUP stop the control plane, then the engine; the second one stops waiting for them.
"""

from __future__ import annotations

import fcntl
import logging
import os
import selectors
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from blockdev.api.children import WINDOW_SECONDS, Child, Plan
from blockdev.clock import monotonic_seconds
from blockdev.errors import Busy, Unavailable
from blockdev.home import Home

logger = logging.getLogger(__name__)
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
LOCK_SECONDS = 1.0  # a client that looks whether we serve holds the lock for a moment
CONTROL_STOP_SECONDS = 15.0
ENGINE_STOP_SECONDS = 120.0  # it writes a checkpoint


class Supervisor:
    """Runs two children until told to stop."""

    def __init__(self, engine: Plan, control: Plan, announce: Callable[[], None]) -> None:
        """`announce` is called once, when both serve."""
        self._engine = Child(engine)
        self._control = Child(control)
        self._announce: Callable[[], None] | None = announce
        self._stops = 0
        self._wake_reader, self._wake_writer = os.pipe()

    def run(self) -> None:
        """Returns when told to stop.  Raises what kept one from starting, or Unavailable when the engine is hopeless."""
        with self._signals():
            try:
                self._engine.start()
                while not self._stops:
                    self._listen(self._next_due())
                    self._look_after(self._engine)
                    self._look_after(self._control)
                    self._go_on()
            finally:
                self._stop(self._control, CONTROL_STOP_SECONDS)
                self._stop(self._engine, ENGINE_STOP_SECONDS)

    def _go_on(self) -> None:
        """At the beginning: the control plane follows the engine, and then people are told."""
        if self._announce is None:
            return
        if self._engine.serving and self._control.pid is None:
            self._control.start()
        elif self._engine.serving and self._control.serving:
            self._announce()
            self._announce = None

    def _look_after(self, child: Child) -> None:
        name = child.plan.name
        if child.bury():
            assert child.failure is not None
            if self._announce is not None:
                raise child.failure
            if child.is_hopeless():
                raise Unavailable(
                    f"the {name} died {child.recent_deaths()} times in {WINDOW_SECONDS:.0f} s and is not started again; "
                    f"the last time: {child.failure.message}"
                )
            logger.warning("%s; it is started again", child.failure.message)
        elif child.due_at is not None and monotonic_seconds() >= child.due_at:
            child.start()
            logger.warning("started the %s again, pid %s", name, child.pid)

    def _next_due(self) -> float | None:
        due = [child.due_at for child in (self._engine, self._control) if child.due_at is not None]
        return max(0.0, min(due) - monotonic_seconds()) if due else None

    def _listen(self, timeout_s: float | None) -> None:
        """Wait for a signal, a word from a starting child, or the time."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._wake_reader, selectors.EVENT_READ)
            for child in (self._engine, self._control):
                if child.ready_pipe is not None:
                    selector.register(child.ready_pipe, selectors.EVENT_READ, child)
            for key, _ in selector.select(timeout_s):
                if key.data is None:
                    numbers = os.read(self._wake_reader, 4096)
                    self._stops += sum(1 for number in numbers if number in STOP_SIGNALS)
                else:
                    key.data.hear()

    def _stop(self, child: Child, patience_s: float) -> None:
        child.send(signal.SIGTERM)
        deadline = monotonic_seconds() + patience_s
        stops = self._stops
        while child.is_alive():
            remaining = deadline - monotonic_seconds()
            if remaining <= 0 or self._stops > max(stops, 1):
                logger.warning("the %s does not end: killing it", child.plan.name)
                child.send(signal.SIGKILL)
                deadline, stops = monotonic_seconds() + patience_s, self._stops
                continue
            self._listen(remaining)

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Signals become bytes in our pipe; the children's deaths, too."""
        os.set_blocking(self._wake_writer, False)
        numbers = (*STOP_SIGNALS, signal.SIGCHLD)
        before = {number: signal.signal(number, lambda *_: None) for number in numbers}
        signal.set_wakeup_fd(self._wake_writer, warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(-1)
            for number, handler in before.items():
                signal.signal(number, handler)


@contextmanager
def sole_supervisor(home: Home) -> Iterator[None]:
    """Holds the home's serve lock.  Raises Busy when another process does."""
    with open(home.serve_lock, "a+") as lock:
        if not _locked(lock.fileno()):
            lock.seek(0)
            raise Busy(f"{home.path} is being served already by pid {lock.read().strip() or 'unknown'}: stop it first")
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        yield


def _locked(descriptor: int) -> bool:
    deadline = monotonic_seconds() + LOCK_SECONDS
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if monotonic_seconds() >= deadline:
                return False
        time.sleep(0.02)
