"""Both ends of a transfer over two pools of this process, without catalogs: what a Sender and a Receiver need, and a link."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar
from uuid import UUID

import numpy as np

from blockdev import Pool, VDisk, VDiskSnapshot
from blockdev._exchange import (
    changed_blocks,
    content_digest,
    fetch_blocks,
    known_blocks,
    prove_blocks,
    put_blocks,
    take_blocks,
)
from blockdev.engine.exchange import ExchangeOperations
from blockdev.replicate.control import Begin, DiskState, State
from blockdev.replicate.frames import LENGTH_BYTES
from blockdev.replicate.messages import Saved
from blockdev.replicate.receiver import Receiver
from blockdev.replicate.sender import Requester, Sender
from blockdev.vmmap.copies import CopiedDisk, SnapshotCopy
from blockdev.vmmap.model import Terms

BLOCK = 4096
MEBIBYTE = 1 << 20
FIRST, SECOND = str(UUID(int=1)), str(UUID(int=2))
Message = bytes
T = TypeVar("T")


def a_begin(sizes: list[int], ancestors: list[str] | None = None) -> Begin:
    copy = SnapshotCopy(
        uuid=SECOND,
        name="s2",
        description="the second",
        created="2026-11-22T12:00:00.000Z",
        lsn=77,
        terms=Terms("replication", "vm", "vm", 12),
        config="<web/>",
        disks=[CopiedDisk(f"disk{number}", size, False) for number, size in enumerate(sizes)],
        vm_uuid=str(UUID(int=9)),
        vm_name="web",
        base_uuid=None,
        base_name="",
    )
    return Begin("protect", copy, ancestors or [], 3600, 60, None)


class PoolSource:
    """Snapshots of one pool, and those that they may be compared with."""

    def __init__(self, snapshots: list[VDiskSnapshot], bases: dict[str, list[VDiskSnapshot]] | None = None) -> None:
        self.snapshots = snapshots
        self.bases = bases or {}
        self.compared: list[VDiskSnapshot | None] = []
        self.fetched = 0  # blocks

    def set_base(self, base_uuid: str | None, is_based: list[bool]) -> int:
        disks = self.bases[base_uuid] if base_uuid is not None else self.snapshots
        self.compared = [one if based else None for one, based in zip(disks, is_based, strict=True)]
        return sum(one.size_bytes for one in self.snapshots)

    def offers(self, disk: int, first_block: int, count: int) -> tuple[bytes, int | None]:
        return changed_blocks(self.compared[disk], self.snapshots[disk], first_block, count)

    def fetch(self, disk: int, blocks: bytes, use: Callable[[memoryview], T]) -> T:
        self.fetched += len(blocks) // 8
        room = bytearray(len(blocks) // 8 * BLOCK)
        fetch_blocks(self.snapshots[disk], blocks, room)
        with memoryview(room) as view:
            return use(view)

    def prove(self, disk: int, blocks: bytes) -> bytes:
        return prove_blocks(self.snapshots[disk], blocks)

    def digest(self, disk: int) -> bytes:
        return content_digest(None, b"", self.snapshots[disk])


class PoolStore:
    """Vdisks of one pool that are written to, and how far they were saved; what a test changes it changes before it is used."""

    def __init__(self, pool: Pool, disks: list[VDisk], base_uuid: str | None = None) -> None:
        self.pool = pool
        self.disks = disks
        self.base_uuid = base_uuid
        self.saved = [0] * len(disks)
        self.saves: list[list[int]] = []
        self._ended: Saved | None = None
        self.finished: list[bytes] | None = None
        self.is_dropped = False
        self.is_present = False
        self._clear = ExchangeOperations(pool).by_name()["clear"]

    def begin(self, begin: Begin) -> State:
        disks = [DiskState(place, self.base_uuid is not None) for place in self.saved]
        return State(self.is_present, self.base_uuid, [] if self.is_present else disks)

    def known(self, disk: int, offers: bytes) -> bytes:
        return known_blocks(self.disks[disk], offers)

    def take(self, disk: int, offers: bytes, proofs: bytes) -> bytes:
        return take_blocks(self.disks[disk], offers, proofs)

    def put(self, disk: int, offers: bytes, data: bytes | memoryview) -> None:
        put_blocks(self.disks[disk], offers, data)

    def clear(self, disk: int, runs: Any) -> None:
        self._clear(self.disks[disk].id, np.stack((runs["block"], runs["count"].astype("<u8")), axis=1).tobytes())

    def begin_save(self, next_blocks: tuple[int, ...], data_bytes: int) -> None:
        self.pool.flush()
        self.saved = list(next_blocks)
        self.saves.append(self.saved)
        self._ended = Saved(data_bytes, next_blocks)

    def end_save(self, wait: bool) -> Saved | None:
        ended, self._ended = self._ended, None
        return ended

    def digests(self) -> list[bytes]:
        return [content_digest(None, b"", disk) for disk in self.disks]

    def finish(self, digests: list[bytes]) -> None:
        self.finished = digests

    def drop(self) -> None:
        self.is_dropped = True

    def release(self) -> None:
        pass

    def answer(self, what: str, arguments: dict[str, Any]) -> dict[str, Any]:
        return {"what": what, **arguments}


class Link:
    """Moves messages between both ends, and counts what they are."""

    def __init__(self, sender: Sender | Requester, receiver: Receiver) -> None:
        self.sender = sender
        self.receiver = receiver
        self.there: list[Message] = []  # all that the sender said,
        self.back: list[Message] = []  # and the receiver
        self.sent_bytes = 0

    def run(self, alter: Callable[[Message], Message | None] = lambda message: message) -> None:
        """Until nobody has anything to say.  alter: what becomes of a message of the sender's; None: the cable is cut."""
        self.sender.start()
        while (made := self.sender.next()) is not None:
            self.sent_bytes += len(made)
            message = alter(made[LENGTH_BYTES:])
            if message is None:
                self.receiver.close()
                return
            self.there.append(message)
            for answer in self.receiver.handle(message):
                self.back.append(answer[LENGTH_BYTES:])
                self.sender.handle(answer[LENGTH_BYTES:])
