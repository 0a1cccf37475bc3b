"""Writes to the catalog what nobody waits for, events and history: several at once, behind the operations that they tell of.

Best effort: what cannot be written is lost, and the log says so once; no operation fails for it.  What grows the catalog leaves its
reserve alone, which is for what frees space.
Threads: `put` from any, also under other locks, as it waits for nothing once the recorder was started; one thread writes.  Before
`start` and after `close` the caller's own thread writes, at once.  Durable: LINGER_SECONDS after `put`, or what was put before a `flush`.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import NamedTuple

from blockdev.errors import BlockdevError
from blockdev.vmmap.catalog import Catalog

logger = logging.getLogger(__name__)

LINGER_SECONDS = 0.25  # for what comes with the next operations: each transaction is one sync that they share
PENDING_MAX = 10_000
FLUSH_SECONDS_MAX = 5.0

Write = Callable[[Catalog], None]


class Pending(NamedTuple):
    """Something to write; `grows`: it gives way when there is no room."""

    write: Write
    grows: bool


class Recorder:
    """One catalog's."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._changed = threading.Condition()  # guards what follows
        self._pending: list[Pending] = []
        self._put_count = self._done_count = 0
        self._hurried = self._stopping = False
        self._lost_count = 0
        self._thread: threading.Thread | None = None

    @property
    def done_count(self) -> int:
        """Rises when something was written: whoever waits for news looks again then."""
        return self._done_count

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="recorder", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Write what was put, and end."""
        with self._changed:  # nothing is put into a queue that its thread has left
            thread, self._thread = self._thread, None
            self._stopping = True
            self._changed.notify_all()
        if thread is not None:
            thread.join()

    def put(self, write: Write, grows: bool = True, at_once: bool = False) -> None:
        """Have `write` called in a transaction, that of the write which it comes from.  at_once: without lingering for more."""
        if self._thread is threading.current_thread():
            write(self._catalog)
            return
        one = Pending(write, grows)
        with self._changed:
            is_written_behind = self._thread is not None
            if is_written_behind and grows and len(self._pending) >= PENDING_MAX:
                self._lost_count += 1
                return
            self._put_count += 1
            if is_written_behind:
                self._pending.append(one)
                self._hurried |= at_once
                self._changed.notify_all()
        if not is_written_behind:
            self._write([one])

    def flush(self) -> None:
        """Wait until what was put is written or lost; a medium that hangs is waited for FLUSH_SECONDS_MAX."""
        with self._changed:
            if self._thread is None:
                return
            wanted = self._put_count
            self._hurried |= self._done_count < wanted
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._done_count >= wanted, FLUSH_SECONDS_MAX)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._pending or self._stopping)
                self._changed.wait_for(lambda: self._hurried or self._stopping, LINGER_SECONDS)
                batch, self._pending = self._pending, []
                self._hurried = False
                if not batch:
                    return
            self._write(batch)

    def _write(self, batch: list[Pending]) -> None:
        try:
            self._try(batch)
        finally:
            with self._changed:
                self._done_count += len(batch)
                self._changed.notify_all()

    def _try(self, batch: list[Pending]) -> None:
        """All of it; if there is no room, what does not grow."""
        steadfast = [one for one in batch if not one.grows]
        for part in (batch, steadfast):
            if not part:
                continue
            try:
                with self._catalog.transaction(grows=any(one.grows for one in part)):
                    for one in part:
                        one.write(self._catalog)
            except BlockdevError as error:
                self._lose(len(part), error.message)
            except Exception:  # a bug: its trace belongs in the log, those who work have nothing to do with it
                logger.exception("events and history could not be written")
            else:
                self._recover()
                return

    def _lose(self, count: int, reason: str) -> None:
        if not self._lost_count:
            logger.warning("events and history are lost from here on: %s", reason)
        self._lost_count += count

    def _recover(self) -> None:
        if self._lost_count:
            logger.warning("events and history are kept again; about %d notes were lost", self._lost_count)
            self._lost_count = 0
