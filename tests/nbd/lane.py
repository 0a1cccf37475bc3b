"""One connection that writes to a range of a disk, several requests in flight, and reads back what it was told is there.

Its writes go into the disk's ledger.  The range belongs to this lane alone, and no two of its requests in flight overlap, so
that the order of its writes is known; ranges of two lanes may meet inside a block.
"""

from __future__ import annotations

import errno
import random
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np

import nbd
from tests.engine.model import SECTOR
from tests.nbd.ledger import Ledger, Write, moment, stamp_value, value_bytes, values_of

DEPTH = 8
WRITE_SECTORS = (1, 1, 3, 7, 8, 8, 8, 8, 9, 16, 40, 120, 256)
KINDS = {"write": 60, "repeat": 6, "zero": 4, "trim": 4, "read": 20, "flush": 6}
KINDS_WHEN_FULL = {"write": 3, "read": 92, "flush": 5}  # like a guest that waits for space and still reads
PAUSE_SECONDS_WHEN_FULL = 0.005
CHANGES_WITHOUT_DATA = ("zero", "trim")
REPEATS_FROM = 64  # how far back a write may be that is sent once more, for dedup to find
FUA_SHARE = 0.03
LOST = errno.ENOTCONN  # what libnbd answers to requests whose connection died


class Lane:
    """What it was told: `errors` by errno; `done`, by kind, the requests that succeeded; writes `refused` for want of space
    since the last one that was not."""

    def __init__(
        self, uri: str, ledger: Ledger, number: int, first: int, count: int, seed: int, kept: bool = False
    ) -> None:
        """`number` is the writer in its stamps; its range is `count` sectors from `first` on.

        kept: by its URI its writes survive the engine's death, which is the only crash that the ledger will see.
        """
        self.uri, self.ledger, self.number, self.kept = uri, ledger, number, kept
        self.first, self.count = first, count
        self.errors: Counter[int] = Counter()
        self.done: Counter[str] = Counter()
        self.refused = 0
        self._random = random.Random(f"{seed}/{number}")
        self._expected = ledger.base[first : first + count].copy()
        self._known = np.ones(count, dtype=bool)  # False: it may hold something else
        self._busy: set[range] = set()
        self._written: list[Write] = []
        self._failure: BaseException | None = None
        self._handle = nbd.NBD()

    def know_nothing(self) -> None:
        """The ledger does not tell what the disk holds at first."""
        self._known[:] = False

    def run(self, stopped: threading.Event) -> None:
        """Until `stopped`, then until all requests are replied to; or until the connection dies."""
        try:
            self._handle.connect_uri(self.uri)
            while not stopped.is_set():
                while self._handle.aio_in_flight() < DEPTH:
                    self._send()
                self._poll()
                if self.refused:  # others need the processor more
                    stopped.wait(PAUSE_SECONDS_WHEN_FULL)
            while self._handle.aio_in_flight():
                self._poll()
            self._handle.shutdown()
        except nbd.Error:
            if not (self._handle.aio_is_dead() or self._handle.aio_is_closed()):
                raise
            self.errors[LOST] += 1
        if self._failure is not None:
            raise self._failure

    def _poll(self) -> None:
        self._handle.poll(-1)
        if self._failure is not None:
            raise self._failure

    def _send(self) -> None:
        shares = KINDS_WHEN_FULL if self.refused else KINDS
        (kind,) = self._random.choices(list(shares), list(shares.values()))
        if kind == "flush":
            self._flush()
        elif kind == "repeat" and self._written:
            old = self._random.choice(self._written[-REPEATS_FROM:])
            self._change("repeat", old.first, old.end, old.value)
        else:
            sectors = min(self._random.choice(WRITE_SECTORS), self.count)
            first = self.first + self._random.randrange(self.count - sectors + 1)
            if kind == "read":
                self._read(first, first + sectors)
            else:
                self._change(kind, first, first + sectors)

    def _is_free(self, first: int, end: int) -> bool:
        return not any(first < other.stop and other.start < end for other in self._busy)

    def _change(self, kind: str, first: int, end: int, value: int | None = None) -> None:
        """`value` is that of a new write when it is not given."""
        if not self._is_free(first, end):
            return
        now = moment()
        if value is None:
            value = 0 if kind in CHANGES_WITHOUT_DATA else stamp_value(self.number, now)
        write = self.ledger.issue(first, end, value, now)
        fua = self._random.random() < FUA_SHARE
        mine = slice(first - self.first, end - self.first)

        def finished(error: int) -> None:
            self._known[mine] = error == 0
            self.refused += error == errno.ENOSPC
            if error == 0:
                self.refused = 0 if kind == "write" else self.refused
                self._expected[mine] = value
                write.replied, write.durable = moment(), fua or self.kept

        self._submit(kind, write, fua, self._completion(kind, range(first, end), finished))

    def _submit(self, kind: str, write: Write, fua: bool, completion: Callable[[Any], int]) -> None:
        offset, length = write.first * SECTOR, (write.end - write.first) * SECTOR
        flags = nbd.CMD_FLAG_FUA if fua else 0
        if kind == "trim":
            self._handle.aio_trim(length, offset, completion=completion, flags=flags)
        elif kind == "zero":
            self._handle.aio_zero(length, offset, completion=completion, flags=flags)
        else:
            self._written.append(write)
            data = bytearray(value_bytes(write.value, write.first, write.end - write.first))
            self._handle.aio_pwrite(
                nbd.Buffer.from_bytearray(data), offset, completion=completion, flags=flags
            )

    def _read(self, first: int, end: int) -> None:
        if not self._is_free(first, end):
            return
        buffer = nbd.Buffer((end - first) * SECTOR)
        mine = slice(first - self.first, end - self.first)

        def finished(error: int) -> None:
            if error == 0:
                wrong = (values_of(buffer.to_bytearray(), first) != self._expected[mine]) & self._known[mine]
                assert not wrong.any(), f"{self.uri}: sector {first + int(np.argmax(wrong))} reads wrong"

        self._handle.aio_pread(
            buffer, first * SECTOR, completion=self._completion("read", range(first, end), finished)
        )

    def _flush(self) -> None:
        now = moment()

        def finished(error: int) -> None:
            if error == 0:
                self.ledger.flushed = max(self.ledger.flushed, now)

        self._handle.aio_flush(completion=self._completion("flush", None, finished))

    def _completion(
        self, kind: str, where: range | None, finished: Callable[[int], None]
    ) -> Callable[[Any], int]:
        """Counts a request, and keeps what `finished` raises: libnbd would only print it."""
        if where is not None:
            self._busy.add(where)

        def complete(error: Any) -> int:
            if where is not None:
                self._busy.discard(where)
            if error.value == 0:
                self.done[kind] += 1
            else:
                self.errors[error.value] += 1
            try:
                finished(error.value)
            except BaseException as failure:
                self._failure = failure
            return 1  # libnbd may forget the request

        return complete
