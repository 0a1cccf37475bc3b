"""Looks after the engine and its pool, and notes what somebody should know: that it went away, came back, was restarted or refuses
writes, and how full the pool is.

Invariant: a trouble is noted when it begins and when it ends, also over restarts of the control plane: what was noted last is a
setting of the catalog (`watched`), written behind the event.  A pool that goes to and fro between two levels is noted as the fuller
one until it has kept to the other for SETTLE_SECONDS.  Threads: one looks; nothing waits for it.
"""

from __future__ import annotations

import json
import logging
import threading
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

from blockdev.engine.client import EngineClient
from blockdev.errors import BlockdevError
from blockdev.vmmap.catalog import Catalog
from blockdev.vmmap.clock import Clock
from blockdev.vmmap.events import Events, Kind, Level
from blockdev.vmmap.recorder import Recorder

logger = logging.getLogger(__name__)

LOOK_SECONDS = 5.0
SETTLE_SECONDS = 600.0
STOP_SECONDS_MAX = 1.0
SETTING = "watched"
LEVELS: dict[str, Level] = {"ok": "info", "warning": "warning", "critical": "error"}  # the fullest last
WORDS = {"ok": "has room again", "warning": "is filling up", "critical": "is critically full"}


@dataclass(frozen=True)
class Watched:
    """What was noted last."""

    pid: int = 0  # of the engine; 0: this control plane has not seen it yet
    away_since: float | None = None  # seconds since 1970
    refuses_since: float | None = None
    level: str = "ok"  # how full the pool is: a word of the engine's status
    better_since: float | None = None  # than `level` says
    damaged: bool = False  # blocks did not verify since the last scrub, or since the engine was started


class Told(NamedTuple):
    """An event to note."""

    level: Level
    kind: Kind
    message: str


class Watch:
    """Of one engine."""

    def __init__(self, catalog: Catalog, engine: EngineClient, recorder: Recorder, events: Events, clock: Clock) -> None:
        self._engine = engine
        self._recorder = recorder
        self._events = events
        self._clock = clock
        self._known = _load(catalog.setting(SETTING))
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """An engine that hangs is not waited for."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(STOP_SECONDS_MAX)

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self.look()
            except Exception:  # a bug must not end the watch
                logger.exception("the engine could not be looked after")
            self._stopping.wait(LOOK_SECONDS)

    def look(self) -> None:
        """Once: note what changed."""
        try:
            status: dict[str, Any] | None = self._engine.status()
            reason = ""
        except BlockdevError as error:
            status, reason = None, error.message
        if self._stopping.is_set():  # it may have taken long, and nobody waited
            return
        known, told = compare(self._known, status, reason, self._clock())
        self._known = known
        if not told:
            return
        text = json.dumps(asdict(known))
        for one in told:
            self._events.note(one.level, one.kind, None, one.message)
        self._recorder.put(lambda catalog: catalog.set_setting(SETTING, text))


def _load(text: str | None) -> Watched:
    """What an earlier control plane noted; nothing of another build's that has other fields."""
    try:
        return replace(Watched(**json.loads(text or "{}")), pid=0)
    except (ValueError, TypeError):
        return Watched()


def compare(known: Watched, status: dict[str, Any] | None, reason: str, now: float) -> tuple[Watched, list[Told]]:
    """What is known then, and what is to be told.  status: None: the engine does not answer, for that reason."""
    if status is None:
        if known.away_since is not None or known.pid == 0:
            return known, []
        return replace(known, away_since=now), [Told("error", "engine", f"the engine does not answer: {reason}")]
    told = []
    if known.away_since is not None:
        told.append(Told("info", "engine", f"the engine answers again after {_span(now - known.away_since)}"))
    stats, pid = status.get("stats", {}), int(status.get("pid", 0))
    if known.pid not in (0, pid):
        message = "the engine was restarted: clients that were attached lost what they had not flushed"
        told.append(Told("warning", "engine", message))
        known = replace(known, damaged=False)
    now_known = replace(known, pid=pid, away_since=None)
    now_known = _compare_writes(now_known, bool(stats.get("poisoned")), now, told)
    now_known = _compare_level(now_known, str(stats.get("level", "ok")), int(stats.get("available_bytes", 0)), now, told)
    damaged = int(stats.get("checksum_errors_since_scrub", 0)) > 0
    if damaged and not known.damaged:
        told.append(Told("error", "pool", "blocks that were read did not verify: run blockdevctl pool scrub to learn whose they are"))
    return replace(now_known, damaged=damaged), told


def _compare_writes(known: Watched, refuses: bool, now: float, told: list[Told]) -> Watched:
    if refuses and known.refuses_since is None:
        told.append(Told("error", "engine", "the engine refuses writes, as one to its log failed: start serve again"))
        return replace(known, refuses_since=now)
    if not refuses and known.refuses_since is not None:
        told.append(Told("info", "engine", f"the engine takes writes again after {_span(now - known.refuses_since)}"))
        return replace(known, refuses_since=None)
    return known


def _compare_level(known: Watched, level: str, available_bytes: int, now: float, told: list[Told]) -> Watched:
    if level == known.level:
        return replace(known, better_since=None)
    ranks = list(LEVELS)
    since = now if known.better_since is None else known.better_since
    if ranks.index(level) < ranks.index(known.level) and now - since < SETTLE_SECONDS:
        return replace(known, better_since=since)
    left = f"{available_bytes / (1 << 30):.1f} GiB left for guests' data"
    told.append(Told(LEVELS[level], "pool", f"the pool {WORDS[level]}: {left}"))
    return replace(known, level=level, better_since=None)


def _span(seconds: float) -> str:
    """How long, as a person says it; the clock may have been set back."""
    whole = max(round(seconds), 0)
    return f"{whole} s" if whole < 120 else f"{whole // 60} min" if whole < 7200 else f"{whole // 3600} h"
