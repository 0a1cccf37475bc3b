"""`blockdevctl serve`: the engine and the control plane of one home, in the foreground.

One supervisor per home, by a flock on run/serve.lock.  The control plane may die without the engine noticing; it is
started again for ever.  The engine is started again too, because guests reconnect, until it dies too often.  SIGTERM,
SIGINT and SIGHUP stop the control plane, then the engine; the second one stops waiting for them.  In between we wait for processes
that the control plane left: they thaw guests (quiesce/watchdog.py), which may need their disks, and systemd kills what is there behind us.
"""

from __future__ import annotations

import fcntl
import logging
import os
import select
import signal
import subprocess
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from blockdev.clock import monotonic_seconds
from blockdev.errors import BlockdevError, Busy, Unavailable
from blockdev.home import Home

logger = logging.getLogger(__name__)
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
LOCK_SECONDS = 1.0  # a client that looks whether we serve holds the lock for a moment
CONTROL_STOP_SECONDS = 20.0
CHILDREN_LOOK_SECONDS = 0.2
LEFT_SECONDS = 125.0  # a freeze and its thaw: a minute each at the most.  With the others it is less than systemd's TimeoutStopSec
ENGINE_STOP_SECONDS = 120.0  # it writes a checkpoint
BACKOFF_SECONDS = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0)  # after one death, two, ... in WINDOW_SECONDS
WINDOW_SECONDS = 60.0
ENGINE_DEATHS_MAX = 5  # in WINDOW_SECONDS

Start = Callable[[], "subprocess.Popen[bytes]"]


class _Stopped(Exception):
    """A stop signal came while a child was being started."""


class _Hopeless(Exception):
    """A child dies too often to be started again."""


class Child:
    """A process that is to be there: the one that runs, or when the next one is to be started."""

    def __init__(self, name: str, start: Start, deaths_max: int | None = None) -> None:
        """`start` returns when the process serves, and raises why it does not."""
        self.name = name
        self.process: subprocess.Popen[bytes] | None = None
        self.due_at: float | None = None
        self.last_words = ""  # why it died, or did not start
        self._start = start
        self._deaths_max = deaths_max
        self._deaths: deque[float] = deque(maxlen=100)

    def start(self) -> None:
        self.due_at = None
        self.process = self._start()

    def start_again(self) -> None:
        """A failure counts as another death."""
        try:
            self.start()
        except BlockdevError as error:
            self._mourn(error.message)
        else:
            assert self.process is not None
            logger.warning("started the %s again, pid %s", self.name, self.process.pid)

    def look(self) -> None:
        """Notice its death."""
        if self.process is not None and (status := self.process.poll()) is not None:
            self.process = None
            self._mourn(f"it {_manner(status)}")

    def _mourn(self, words: str) -> None:
        self.last_words = words
        self._deaths.append(monotonic_seconds())
        logger.warning("the %s is gone: %s", self.name, words)
        if self._deaths_max is not None and self._recent_deaths() >= self._deaths_max:
            raise _Hopeless(
                f"the {self.name} died {self._recent_deaths()} times in {WINDOW_SECONDS:.0f} s and is not started "
                f"again; the last time {words}"
            )
        pause = BACKOFF_SECONDS[min(self._recent_deaths(), len(BACKOFF_SECONDS)) - 1]
        self.due_at = monotonic_seconds() + pause

    def _recent_deaths(self) -> int:
        return sum(1 for death in self._deaths if death > monotonic_seconds() - WINDOW_SECONDS)


def _children_of(pid: int) -> set[int]:
    found: set[int] = set()
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):  # the thread has ended
            found.update(map(int, path.read_text().split()))
    return found


def _manner(status: int) -> str:
    if status >= 0:
        return f"ended with status {status}"
    return f"was killed by {signal.Signals(-status).name}"


class Supervisor:
    """Runs the engine and the control plane until told to stop."""

    def __init__(
        self,
        start_engine: Start,
        start_control: Callable[[Callable[[], None]], subprocess.Popen[bytes]],
        announce: Callable[[], None],
    ) -> None:
        """`announce` is called once, when both serve; start_control calls what it is given until the control plane does."""
        self._engine = Child("engine", start_engine, ENGINE_DEATHS_MAX)
        self._control = Child("control plane", lambda: start_control(lambda: self._look_after(self._engine)))
        self._announce = announce
        self._stops = 0
        self._starting = False
        self._left: dict[int, int] = {}  # processes of the control plane that is being stopped: pid -> pidfd
        self._wake_reader, self._wake_writer = os.pipe()

    def run(self) -> None:
        """Returns when told to stop.  Raises what kept one from starting, or Unavailable when the engine is hopeless."""
        with self._signals():
            try:
                self._first_start()
                while not self._stops:
                    self._wait(self._next_due())
                    for child in (self._engine, self._control):
                        with self._interruptible():
                            self._look_after(child)
            except _Stopped:
                pass
            except _Hopeless as error:
                raise Unavailable(str(error)) from None
            finally:
                self._stop(self._control, CONTROL_STOP_SECONDS)
                self._await_left()
                self._stop(self._engine, ENGINE_STOP_SECONDS)

    def _first_start(self) -> None:
        with self._interruptible():
            self._engine.start()
            self._control.start()
        self._announce()

    def _look_after(self, child: Child) -> None:
        child.look()
        if child.due_at is not None and monotonic_seconds() >= child.due_at:
            child.start_again()

    def _next_due(self) -> float | None:
        due = [child.due_at for child in (self._engine, self._control) if child.due_at is not None]
        return max(0.0, min(due) - monotonic_seconds()) if due else None

    def _wait(self, timeout_s: float | None) -> None:
        """For a signal, which the death of a child is too, or for the time."""
        if select.select([self._wake_reader], [], [], timeout_s)[0]:
            os.read(self._wake_reader, 4096)

    def _stop(self, child: Child, patience_s: float) -> None:
        if child.process is None:
            return
        if child is self._control:
            self._note_children(child.process.pid)
        if child.process.poll() is None:
            child.process.send_signal(signal.SIGTERM)
        stops_before = max(self._stops, 1)
        deadline = monotonic_seconds() + patience_s
        while child.process.poll() is None:
            if child is self._control:
                self._note_children(child.process.pid)
            if self._stops > stops_before or monotonic_seconds() >= deadline:
                logger.warning("not waiting for the %s any longer: killing it", child.name)
                child.process.kill()
                child.process.wait()
                return
            self._wait(min(deadline - monotonic_seconds(), CHILDREN_LOOK_SECONDS))

    def _note_children(self, pid: int) -> None:
        for child in _children_of(pid) - self._left.keys():
            with suppress(OSError):  # it has ended
                self._left[child] = os.pidfd_open(child)

    def _await_left(self) -> None:
        stops_before, deadline = max(self._stops, 1), monotonic_seconds() + LEFT_SECONDS
        while ended := select.select([*self._left.values()], [], [], 0)[0]:
            self._forget_left(ended)
        if self._left:
            logger.warning("waiting until guests are thawed")
        while self._left and self._stops <= stops_before and monotonic_seconds() < deadline:
            ready = select.select([self._wake_reader, *self._left.values()], [], [], deadline - monotonic_seconds())[0]
            if self._wake_reader in ready:
                self._wait(0)
            self._forget_left(ready)
        if self._left:
            logger.warning("not waiting any longer for pids %s: guests may be frozen", ", ".join(map(str, self._left)))
        self._forget_left([*self._left.values()])

    def _forget_left(self, ended: list[int]) -> None:
        for pid, descriptor in list(self._left.items()):
            if descriptor in ended:
                os.close(self._left.pop(pid))

    @contextmanager
    def _interruptible(self) -> Iterator[None]:
        """A stop signal ends what is inside by _Stopped."""
        self._starting = True
        try:
            if self._stops:
                raise _Stopped
            yield
        finally:
            self._starting = False

    def _on_stop(self, _number: int, _frame: FrameType | None) -> None:
        self._stops += 1
        if self._starting:
            self._starting = False
            raise _Stopped

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Signals become bytes in our pipe, so that waiting for them misses none."""
        os.set_blocking(self._wake_writer, False)
        before = {number: signal.signal(number, self._on_stop) for number in STOP_SIGNALS}
        before[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, lambda *_: None)
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
    with open(home.serve_lock, "ab+", buffering=0) as lock:
        if not _locked(lock.fileno()):
            lock.seek(0)
            holder = lock.read().decode(errors="replace").strip() or "unknown"
            raise Busy(f"{home.path} is being served already by pid {holder}: stop it first")
        with suppress(OSError):  # it is for a message only; the file system may be full
            lock.truncate(0)
            lock.write(f"{os.getpid()}\n".encode())
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
