"""Who waits for long work, and how it ends early: what jobs, transfers of images and replication have in common."""

from __future__ import annotations

from typing import Protocol


class Cancelled(Exception):
    """The job was cancelled by its user or by the end of the process."""


class Watcher(Protocol):
    """What a running transfer tells, and is told by, whoever wants it."""

    def advance(self, fraction: float) -> None: ...

    def is_cancelled(self) -> bool: ...
