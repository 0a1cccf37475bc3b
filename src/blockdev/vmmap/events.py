"""Events: what somebody who was not there wants to be told of (docs/jobs.md says which there are).

Best effort: noting one never fails an operation.  A trouble is noted when it begins and when it ends, not each time that it is met.
Threads: any.  Which troubles go on is known in memory only: after a restart one that goes on may be noted again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Literal

from blockdev.vmmap.clock import Clock, to_text
from blockdev.vmmap.recorder import Write

Level = Literal["info", "warning", "error"]
Kind = Literal["agreement", "engine", "hypervisor", "job", "pool", "quiesce", "replication", "schedule", "snapshot", "target", "vm"]

MESSAGE_CHARACTERS_MAX = 1000
NAMED_MAX = 10  # of many things that one event tells of
TROUBLES_MAX = 10_000


class Events:
    """Where events are noted."""

    def __init__(self, put: Callable[[Write], None], clock: Clock) -> None:
        """put: Recorder.put, or `nowhere`."""
        self._put = put
        self._clock = clock
        self._lock = threading.Lock()
        self._troubles: set[tuple[Kind, str]] = set()

    def note(self, level: Level, kind: Kind, vm: str | None, message: str) -> None:
        """vm: its name; None: it is not about one."""
        time, line = to_text(self._clock()), printable(message, MESSAGE_CHARACTERS_MAX)
        self._put(lambda catalog: catalog.add_event(time, level, kind, vm, line))

    def begin(self, level: Level, kind: Kind, vm: str | None, message: str, of: str | None = None) -> None:
        """A trouble: noted unless it goes on already.  of: what has it; else the VM."""
        key = (kind, of or vm or "")
        with self._lock:
            if key in self._troubles or len(self._troubles) >= TROUBLES_MAX:
                return
            self._troubles.add(key)
        self.note(level, kind, vm, message)

    def end(self, kind: Kind, vm: str | None, message: str | None = None, of: str | None = None) -> None:
        """A trouble is over: noted if it went on, and if there is something to say."""
        key = (kind, of or vm or "")
        with self._lock:
            if key not in self._troubles:
                return
            self._troubles.remove(key)
        if message is not None:
            self.note("info", kind, vm, message)


def nowhere(_write: Write) -> None:
    """For those who have nobody to tell."""


def printable(text: str, characters_max: int) -> str:
    """One line of what a terminal shows as it is and SQLite takes; what a client sent may be neither."""
    line = "".join(one if one.isprintable() else "?" for one in " ".join(text.split()))
    return line if len(line) <= characters_max else f"{line[: characters_max - 3]}..."


def enumerate_some(names: Sequence[str]) -> str:
    """a, b and 7 more."""
    more = len(names) - NAMED_MAX
    return ", ".join(names[:NAMED_MAX]) + (f" and {more} more" if more > 0 else "")
