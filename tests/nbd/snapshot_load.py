"""Snapshots, clones and deletes of one VM through the REST API while its disks are written to, until the engine dies.

What was acknowledged is told apart from what was only asked for.
"""

from __future__ import annotations

import random
import threading
from dataclasses import dataclass, field
from typing import Any

import httpx

from tests.nbd.ledger import NEVER, moment

KEPT_MAX = 3
UNAVAILABLE = 503


@dataclass
class Taken:
    """A snapshot that was asked for after the moment `before`, and was there before the moment `after`."""

    name: str
    before: int
    after: int = NEVER

    @property
    def acknowledged(self) -> bool:
        return self.after != NEVER


@dataclass
class Clone:
    name: str
    snapshot: Taken
    acknowledged: bool = False


@dataclass
class SnapshotLoad:
    """What one thread asked for.  A name is in one of `taken`, `deleted` and `deleting` only."""

    rest: httpx.Client
    vm: str
    seed: int
    taken: dict[str, Taken] = field(default_factory=dict)
    clones: dict[str, Clone] = field(default_factory=dict)
    deleted: set[str] = field(default_factory=set)
    deleting: dict[str, Taken] = field(default_factory=dict)  # a delete that was not answered
    cloned: threading.Event = field(default_factory=threading.Event)

    def run(self, stopped: threading.Event) -> None:
        chosen = random.Random(f"{self.seed}/snapshots")
        while not stopped.is_set():
            name = f"s{moment()}"
            taken = self.taken[name] = Taken(name, before=moment())
            if not self._ask("POST", f"/vms/{self.vm}/snapshots", {"name": name}):
                return
            taken.after = moment()
            if chosen.random() < 0.4 and not self._clone(taken):
                return
            plain = sorted(self.taken.keys() - {clone.snapshot.name for clone in self.clones.values()})
            if len(plain) > KEPT_MAX and not self._delete(chosen.choice(plain)):
                return

    def _clone(self, taken: Taken) -> bool:
        clone = Clone(f"c{moment()}", taken)
        self.clones[clone.name] = clone
        body = {"name": clone.name, "snapshot": taken.name}
        clone.acknowledged = self._ask("POST", f"/vms/{self.vm}/clones", body)
        if clone.acknowledged:
            self.cloned.set()
        return clone.acknowledged

    def _delete(self, name: str) -> bool:
        self.deleting[name] = self.taken.pop(name)
        if not self._ask("DELETE", f"/vms/{self.vm}/snapshots/{name}"):
            return False
        del self.deleting[name]
        self.deleted.add(name)
        return True

    def _ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> bool:
        """False: the engine is away, so it may have been done or not."""
        answer = self.rest.request(method, path, json=body)
        if answer.status_code == UNAVAILABLE:
            return False
        assert answer.is_success, f"{method} {path}: {answer.status_code} {answer.text}"
        return True
