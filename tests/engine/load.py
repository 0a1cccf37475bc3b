"""Threads that load a pool and remember what they were told.

Writers stamp every sector with (writer, sequence, sector number); the sequence grows with each write of that writer.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from typing import Any

from tests.engine.content import read_stamps, stamped
from tests.engine.model import SECTOR

JOIN_SECONDS_MAX = 400  # under the thread sanitizer all is ten times slower
WRITE_SECTORS = (1, 1, 3, 7, 8, 8, 8, 9, 16, 40, 120)


class Crew:
    """Threads that run until `stop`; the first exception of any of them is raised by `join`."""

    def __init__(self) -> None:
        self.stopped = threading.Event()
        self.threads: list[threading.Thread] = []
        self.failures: list[BaseException] = []

    def start(self, task: Callable[[], Any], repeat: bool = True) -> None:
        thread = threading.Thread(target=self._run, args=(task, repeat), daemon=True)
        self.threads.append(thread)
        thread.start()

    def _run(self, task: Callable[[], Any], repeat: bool) -> None:
        try:
            task()
            while repeat and not self.stopped.is_set():
                task()
        except BaseException as error:
            self.failures.append(error)
            self.stopped.set()

    def stop(self) -> None:
        self.stopped.set()
        self.join()

    def join(self) -> None:
        for thread in self.threads:
            thread.join(JOIN_SECONDS_MAX)
            assert not thread.is_alive(), "a thread hangs"
        if self.failures:
            raise self.failures[0]

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, *error: object) -> None:
        self.stopped.set()
        if error[0] is None:
            self.join()
        else:
            for thread in self.threads:
                thread.join(60)


class Writer:
    """One client that writes to a range of a vdisk; `submitted` and `replied` are its last sequence numbers."""

    def __init__(self, vdisk: Any, number: int, seed: int, first: int = 0, length: int | None = None) -> None:
        self.vdisk, self.number = vdisk, number
        self.random = random.Random(f"{seed}/{number}")
        self.first = first // SECTOR
        self.count = (vdisk.size_bytes - first if length is None else length) // SECTOR
        self.submitted = self.replied = 0
        self.last_of_sector: dict[int, int] = {}  # the newest write of this writer to that sector

    def write(self) -> None:
        sectors = min(self.random.choice(WRITE_SECTORS), self.count)
        first = self.first + self.random.randrange(self.count - sectors + 1)
        sequence = self.submitted + 1
        data = stamped(self.number, sequence, first * SECTOR, sectors * SECTOR)
        self.submitted = sequence
        self.vdisk.write(first * SECTOR, data, fua=self.random.random() < 0.01)
        self.last_of_sector.update(dict.fromkeys(range(first, first + sectors), sequence))
        self.replied = sequence
        if self.random.random() < 0.02:
            self.vdisk.flush()


class Reader:
    """Reads anywhere; asserts that no sector is torn, misplaced, or older than what its only writer was told."""

    def __init__(self, vdisk: Any, seed: int) -> None:
        self.vdisk = vdisk
        self.random = random.Random(f"{seed}/reader")
        self.count = 0

    def read(self) -> None:
        total = self.vdisk.size_bytes // SECTOR
        sectors = min(self.random.choice(WRITE_SECTORS), total)
        first = self.random.randrange(total - sectors + 1)
        read_stamps(self.vdisk.read(first * SECTOR, sectors * SECTOR), first * SECTOR)
        self.count += 1


def assert_last_writes_won(vdisk: Any, writers: list[Writer]) -> None:
    """When all is quiet a sector holds the last write of one of its writers, and no other's."""
    found = read_stamps(vdisk.read(0, vdisk.size_bytes), 0)
    for sector, (number, sequence) in enumerate(found):
        finals = {
            writer.number: writer.last_of_sector[sector]
            for writer in writers
            if sector in writer.last_of_sector
        }
        if finals:
            assert finals.get(number) == sequence, (
                f"sector {sector}: {number}/{sequence}, last writes {finals}"
            )
        else:
            assert (number, sequence) == (0, 0), f"sector {sector} was never written"
