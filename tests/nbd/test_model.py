"""Several connections at once against a bytearray, through the whole of NBD; the engine is restarted now and then.

Each round every connection has several requests in flight; within a round no two requests touch the same sector, but they
share 4 KiB blocks all the time, so that merging of partial blocks is what is tested.  Reads are compared at the
end of their round, the whole disk now and then.
"""

from __future__ import annotations

import random

import nbd
from tests.nbd.conftest import Server

SECTOR = 512
SECTORS = 4096  # 2 MiB: small, so that everything is written over often
CONNECTIONS = 4
IN_FLIGHT = 8
ROUNDS = 120
KINDS = ["write", "write", "write", "fua", "zero", "trim", "read", "read"]


class Round:
    """What one round asks, and what the disk should hold after it."""

    def __init__(self, source: random.Random, model: bytearray) -> None:
        self._source = source
        self._model = model
        self._free = list(range(SECTORS))
        self._taken = [False] * SECTORS
        self._reads: list[tuple[int, bytes, nbd.Buffer]] = []
        self.cookies: list[tuple[nbd.NBD, int]] = []

    def ask(self, handle: nbd.NBD) -> None:
        first, count = self._choose()
        offset, length = first * SECTOR, count * SECTOR
        kind = self._source.choice(KINDS)
        before = bytes(self._model[offset : offset + length])
        if kind == "read":
            buffer = nbd.Buffer(length)
            self._reads.append((offset, before, buffer))
            cookie = handle.aio_pread(buffer, offset)
        elif kind in ("write", "fua"):
            data = self._data(length)
            self._model[offset : offset + length] = data
            flags = nbd.CMD_FLAG_FUA if kind == "fua" else 0
            cookie = handle.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(data)), offset, flags=flags)
        else:
            self._model[offset : offset + length] = bytes(length)
            request = handle.aio_zero if kind == "zero" else handle.aio_trim
            cookie = request(length, offset)
        self.cookies.append((handle, cookie))

    def _choose(self) -> tuple[int, int]:
        """A run of sectors that no other request of this round touches."""
        while True:
            first = self._source.randrange(SECTORS)
            count = min(self._source.choice([1, 1, 2, 3, 5, 8, 8, 13, 40, 64]), SECTORS - first)
            if not any(self._taken[first : first + count]):
                self._taken[first : first + count] = [True] * count
                return first, count

    def _data(self, length: int) -> bytes:
        kind = self._source.randrange(4)
        if kind == 0:
            return bytes(length)
        if kind == 1:  # few different contents, so that dedup hits
            return bytes([self._source.randrange(1, 4)]) * length
        return self._source.randbytes(length)

    def check(self) -> None:
        for offset, expected, buffer in self._reads:
            assert bytes(buffer.to_bytearray()) == expected, f"read at {offset} is wrong"


def complete(handles: list[nbd.NBD], cookies: list[tuple[nbd.NBD, int]]) -> None:
    """Waits for all requests; each must succeed."""
    waiting = list(cookies)
    while waiting:
        for handle in handles:
            if handle.aio_in_flight():
                handle.poll(1)
        waiting = [(handle, cookie) for handle, cookie in waiting if not handle.aio_command_completed(cookie)]


def test_concurrent_connections_agree_with_a_bytearray(idle_server: Server, seed: int) -> None:
    source = random.Random(seed)
    idle_server.create(root=SECTORS * SECTOR)
    model = bytearray(SECTORS * SECTOR)
    idle_server.start()
    handles = [idle_server.connect() for _ in range(CONNECTIONS)]
    for number in range(ROUNDS):
        this_round = Round(source, model)
        for _ in range(IN_FLIGHT):
            for handle in handles:
                this_round.ask(handle)
        complete(handles, this_round.cookies)
        this_round.check()
        if number % 20 == 19:
            assert source.choice(handles).pread(len(model), 0) == model, f"after round {number}"
        if number % 60 == 59:
            source.choice(handles).flush()
            assert idle_server.stop() == 0
            idle_server.start()
            handles = [idle_server.connect() for _ in range(CONNECTIONS)]
    assert handles[0].pread(len(model), 0) == model


def test_overlapping_writes_of_two_connections_leave_whole_sectors(idle_server: Server, seed: int) -> None:
    """Either may win, in each block; no sector is a mix, and both connections see the same."""
    source = random.Random(seed)
    idle_server.create(root=1 << 20)
    idle_server.start()
    handles = [idle_server.connect() for _ in range(CONNECTIONS)]
    for _ in range(40):
        cookies = []
        for writer, handle in enumerate(handles):
            first = source.randrange(8)
            data = bytearray(bytes([writer + 1]) * ((64 - first) * SECTOR))
            cookies.append((handle, handle.aio_pwrite(nbd.Buffer.from_bytearray(data), first * SECTOR)))
        complete(handles, cookies)
        seen = {bytes(handle.pread(64 * SECTOR, 0)) for handle in handles}
        assert len(seen) == 1
        (data,) = seen
        for sector in range(64):
            assert len(set(data[sector * SECTOR : (sector + 1) * SECTOR])) == 1, f"sector {sector} is a mix"
