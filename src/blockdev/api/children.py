"""One supervised process: how it is started, how it says that it serves, and when it is started again after its death."""

from __future__ import annotations

import os
import signal
import subprocess
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from blockdev.clock import monotonic_seconds
from blockdev.errors import BlockdevError, ToolFailed, from_code

BACKOFF_SECONDS = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0)  # after one death, two, ... in WINDOW_SECONDS
WINDOW_SECONDS = 60.0


@dataclass(frozen=True)
class Plan:
    """How a process is started: its arguments, given the descriptor to say ready on."""

    name: str  # in messages: "engine"
    arguments: Callable[[int], Sequence[str]]
    before_start: Callable[[], None] = lambda: None
    deaths_max: int | None = None  # in WINDOW_SECONDS; None: start it again for ever


class Child:
    """A process of a plan, dead or alive.  Not thread-safe: it belongs to the supervisor's loop."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.ready_pipe: int | None = None  # to select on, until it has spoken
        self.serving = False
        self.due_at: float | None = None  # when to start it again
        self.failure: BlockdevError | None = None  # why it did not come to serve, or how it died
        self._process: subprocess.Popen[bytes] | None = None
        self._deaths: deque[float] = deque(maxlen=100)
        self._said = b""

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def start(self) -> None:
        self.due_at, self.failure, self.serving, self._said = None, None, False, b""
        self.plan.before_start()
        reader, writer = os.pipe()
        try:
            # Its own process group: Ctrl-C reaches the supervisor alone, which stops the children in order.
            self._process = subprocess.Popen(
                self.plan.arguments(writer), stdin=subprocess.DEVNULL, pass_fds=[writer], process_group=0
            )
        except OSError as error:
            os.close(reader)
            raise ToolFailed(f"the {self.plan.name} cannot be started: {error}") from None
        finally:
            os.close(writer)
        self.ready_pipe = reader

    def hear(self) -> None:
        """Take what came by the ready pipe; sets `serving` or `failure` when it has spoken."""
        assert self.ready_pipe is not None
        part = os.read(self.ready_pipe, 4096)
        self._said += part
        if part and b"\n" not in self._said:
            return
        os.close(self.ready_pipe)
        self.ready_pipe = None
        word, _, rest = self._said.decode(errors="replace").strip().partition(" ")
        if word == "ready":
            self.serving = True
        elif word == "error":
            code, _, message = rest.partition(" ")
            self.failure = from_code(code, message)

    def bury(self) -> bool:
        """True when it has just been found dead; then `failure` says how and `due_at` when it may live again."""
        if self._process is None or (status := self._process.poll()) is None:
            return False
        while self.ready_pipe is not None:
            self.hear()
        self.failure = self.failure or ToolFailed(f"the {self.plan.name} {_manner(status)}")
        self._process, self.serving = None, False
        now = monotonic_seconds()
        self._deaths.append(now)
        self.due_at = now + BACKOFF_SECONDS[min(self.recent_deaths(), len(BACKOFF_SECONDS)) - 1]
        return True

    def recent_deaths(self) -> int:
        return sum(1 for death in self._deaths if death > monotonic_seconds() - WINDOW_SECONDS)

    def is_hopeless(self) -> bool:
        return self.plan.deaths_max is not None and self.recent_deaths() >= self.plan.deaths_max

    def is_alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def send(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)


def _manner(status: int) -> str:
    if status >= 0:
        return f"ended with status {status}"
    try:
        return f"was killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"was killed by signal {-status}"
