"""The sending end of one transfer: a state machine without I/O, threads and clock of its own (docs/format/replication.md).

`handle` eats the receiver's messages, `next` makes the frames that are to be written; between them one thread at a time.
Invariants: a block's bytes are made only when the receiver asked for them; at most BATCHES_MAX batches are known, and
bytes are in flight as the window says, so memory does not grow with the VM.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np

from blockdev.clock import monotonic_seconds
from blockdev.constants import BLOCK_BYTES
from blockdev.errors import BlockdevError, Corrupt, NotFound
from blockdev.replicate import control, messages
from blockdev.replicate.control import Begin, End, State
from blockdev.replicate.frames import Frame, Message, ProtocolError
from blockdev.replicate.messages import (
    BATCHES_MAX,
    DATA_BLOCKS_MAX,
    OFFER,
    OFFERS_MAX,
    RUNS_MAX,
    Kind,
    Marks,
    Offers,
)
from blockdev.replicate.negotiation import common_features, common_version, own_hello
from blockdev.replicate.packing import Packer
from blockdev.replicate.window import Window

UNANSWERED_MAX = 4  # offers that were sent and not answered
BATCH_BYTES = OFFERS_MAX * BLOCK_BYTES
LEVEL = 3  # of zstd, unless the path says another
T = TypeVar("T")


class BaseLost(NotFound):
    """The snapshot that the transfer builds on was deleted meanwhile."""


class Source(Protocol):
    """What a Sender needs of its home; its calls block.  `disk`: the number of a disk in Begin."""

    def set_base(self, base_uuid: str | None, is_based: list[bool]) -> int:
        """Compare with this snapshot's disks of the same names, where is_based says so; the bytes that differ in all.

        BaseLost.
        """

    def offers(self, disk: int, first_block: int, count: int) -> tuple[bytes, int | None]:
        """As EngineClient.offers.  BaseLost; NotFound: the snapshot itself is gone."""

    def fetch(self, disk: int, blocks: bytes, use: Callable[[memoryview], T]) -> T:
        """As EngineClient.fetch."""

    def prove(self, disk: int, blocks: bytes) -> bytes:
        """As EngineClient.prove."""

    def digest(self, disk: int) -> bytes:
        """The content digest of the snapshot's disk."""


@dataclass
class Progress:
    """How far a transfer is, to be read from any thread."""

    base_uuid: str | None = None
    was_present: bool = False  # the receiver had the snapshot already
    total_bytes: int | None = None  # that differ from the base
    logical_bytes: int = 0  # of these, at the receiver; what is there of an earlier connection is estimated
    skipped_bytes: int = 0  # of logical_bytes: of an earlier connection
    known_bytes: int = 0  # that the receiver's pool had
    data_bytes: int = 0  # of what was sent of blocks, as it was sent
    sent_bytes: int = 0  # of blocks, plain
    network_bytes: int = 0  # of all frames
    saved_bytes: int = 0  # of data, durable at the receiver, of all connections


class _Work(NamedTuple):
    """One message to be made of a batch."""

    batch: _Batch
    kind: Kind  # DATA or PROOFS
    first: int = 0  # among what is wanted
    length: int = 0


class _Batch:
    """Blocks that were offered, until the receiver has them."""

    def __init__(self, number: int, disk: int, blocks: Any, hole_count: int) -> None:
        self.number = number
        self.disk = disk
        self.blocks = blocks  # numbers of those with data
        self.hole_count = hole_count
        self.is_answered = False
        self.wanted = blocks[:0]  # numbers of blocks, in the order of the receiver's asking
        self.proved = blocks[:0]
        self.unmade = 0  # messages
        self.awaits_missing = False

    @property
    def is_complete(self) -> bool:
        return self.is_answered and not self.unmade and not self.awaits_missing


class Sender:
    """Sends one snapshot over one channel.  BlockdevError from any method: it has failed; see `retry`."""

    def __init__(
        self,
        begin: Begin,
        source: Source,
        level: int = LEVEL,
        monotonic: Callable[[], float] = monotonic_seconds,
    ) -> None:
        self.progress = Progress()
        self.refusal: BlockdevError | None = None  # what the receiver said
        self.is_done = False  # the receiver has the snapshot
        self._begin = begin
        self._source = source
        self._level = level
        self._monotonic = monotonic
        self._packer = Packer(level)
        self._window = Window(monotonic)
        self._control: deque[Frame] = deque()  # frames that wait for nothing
        self._expects: Kind | None = Kind.HELLO  # None: the messages of a transfer under way
        self._lost_base = False
        self._batches: dict[int, _Batch] = {}  # in order
        self._work: deque[_Work] = deque()
        self._queued_blocks = 0  # wanted, and not made yet
        self._number = 0  # of the next batch
        self._unanswered = 0
        self._disk = 0  # that is being walked,
        self._place: int | None = 0  # from this block on; None: all of it was
        self._pending: Offers = np.empty(0, OFFER)  # offers that are in no batch yet
        self._states: list[control.DiskState] = []
        self._is_ended = False
        self._differed = False  # an earlier try ended with other content at the receiver

    # what the driver calls

    def start(self) -> None:
        """Once, before all else."""
        self._control.append(control.encode_hello(own_hello()))

    def next(self) -> Frame | None:
        """The next frame; None: there is none before the receiver says something."""
        try:
            made = self._next()
        except BaseLost:
            self._lost_base = True
            raise
        if made is not None:
            self.progress.network_bytes += len(made)
        return made

    def handle(self, message: Message) -> None:
        """One message of the receiver.  Raises what the receiver refuses with; ProtocolError: it is out of place."""
        kind, body = messages.kind_of(message), messages.body_of(message)
        if kind is Kind.REFUSE:
            self.refusal = control.decode_refuse(body)
            raise self.refusal
        try:
            self._handle(kind, body)
        except BaseLost:
            self._lost_base = True
            raise

    def retry(self) -> Sender | None:
        """After a failure that another base may mend: who is to try, over another channel; None: nobody.

        What the receiver got is not lost: it is found there by its fingerprints.
        """
        used = self.progress.base_uuid
        has_differed = isinstance(self.refusal, Corrupt)
        if used is None or not (self._lost_base or has_differed):
            return None
        ancestors = [one for one in self._begin.ancestors if one != used]
        if has_differed and self._differed:
            ancestors = []
        again = Sender(self._begin._replace(ancestors=ancestors), self._source, self._level, self._monotonic)
        again._differed = self._differed or has_differed
        return again

    # messages of the receiver

    def _handle(self, kind: Kind, body: memoryview) -> None:
        if self._expects is not None:
            if kind is not self._expects:
                raise ProtocolError(f"the receiver sent {kind.name} where {self._expects.name} belongs")
            self._answered(kind, body)
        elif kind is Kind.ACK:
            self._acknowledged(messages.decode_ack(body))
        elif kind is Kind.WANT:
            self._wanted(messages.decode_marks(body))
        elif kind is Kind.MISSING:
            self._missing(messages.decode_marks(body))
        elif kind is Kind.SAVED:
            self.progress.saved_bytes = messages.decode_saved(body).data_bytes
        elif kind is Kind.COMMITTED and self._is_ended:
            self._committed(control.decode_committed(body))
        else:
            raise ProtocolError(f"the receiver sent {kind.name}, which has no place here")

    def _answered(self, kind: Kind, body: memoryview) -> None:
        if kind is Kind.HELLO:
            hello = control.decode_hello(body)
            common_version(hello)
            self._control.append(control.encode_begin(self._begin))
            self._expects = Kind.STATE
        else:
            self._started(control.decode_state(body))
            self._expects = None

    def _started(self, state: State) -> None:
        if state.is_present:
            self.progress.was_present = True
            self.is_done = True
            return
        disks = self._begin.snapshot.disks
        if len(state.disks) != len(disks):
            raise ProtocolError("the receiver tells of another number of disks")
        if state.base_uuid is not None and state.base_uuid not in self._begin.ancestors:
            raise ProtocolError("the receiver builds on a snapshot that was not named")
        for one, disk in zip(state.disks, disks, strict=True):
            if one.next_block > block_count(disk.size_bytes):
                raise ProtocolError(f"the receiver has more of disk {disk.name} than there is")
        self.progress.base_uuid = state.base_uuid
        total = self._source.set_base(state.base_uuid, [one.is_based for one in state.disks])
        self._states = state.disks
        self._place = state.disks[0].next_block
        self._estimate(total)

    def _estimate(self, total: int) -> None:
        """What is there already is not looked at: it is taken to be spread evenly."""
        blocks = [block_count(disk.size_bytes) for disk in self._begin.snapshot.disks]
        skipped = sum(one.next_block for one in self._states) / max(sum(blocks), 1)
        self.progress.total_bytes = total
        self.progress.logical_bytes = self.progress.skipped_bytes = int(total * skipped)

    def _batch(self, number: int) -> _Batch:
        if number not in self._batches:
            raise ProtocolError(f"the receiver tells of batch {number}, which is not under way")
        return self._batches[number]

    def _wanted(self, marks: Marks) -> None:
        batch = self._batch(marks.batch)
        if batch.is_answered or len(marks.mask) != len(batch.blocks):
            raise ProtocolError("the receiver answers an offer twice, or another one")
        batch.is_answered = True
        self._unanswered -= 1
        batch.proved = batch.blocks[~marks.mask]
        self._queue_data(batch, batch.blocks[marks.mask])
        if len(batch.proved):
            batch.awaits_missing = True
            batch.unmade += 1
            self._work.append(_Work(batch, Kind.PROOFS))
        self._finish(batch)

    def _missing(self, marks: Marks) -> None:
        batch = self._batch(marks.batch)
        if not batch.awaits_missing or batch.unmade or len(marks.mask) != len(batch.proved):
            raise ProtocolError("the receiver misses what was not proved")
        batch.awaits_missing = False
        lacking = batch.proved[marks.mask]
        self.progress.known_bytes += (len(batch.proved) - len(lacking)) * BLOCK_BYTES
        self._queue_data(batch, lacking)
        self._finish(batch)

    def _queue_data(self, batch: _Batch, blocks: Any) -> None:
        first = len(batch.wanted)
        batch.wanted = np.concatenate((batch.wanted, blocks))
        for place in range(first, len(batch.wanted), DATA_BLOCKS_MAX):
            count = min(DATA_BLOCKS_MAX, len(batch.wanted) - place)
            self._work.append(_Work(batch, Kind.DATA, place, count))
            batch.unmade += 1
        self._queued_blocks += len(blocks)

    def _finish(self, batch: _Batch) -> None:
        if batch.is_complete:
            del self._batches[batch.number]
            self.progress.logical_bytes += (len(batch.blocks) + batch.hole_count) * BLOCK_BYTES

    def _acknowledged(self, data_bytes: int) -> None:
        if not self._window.acknowledged(data_bytes):
            raise ProtocolError("the receiver acknowledges what was not sent")

    def _committed(self, snapshot_uuid: str) -> None:
        if snapshot_uuid != self._begin.snapshot.uuid:
            raise ProtocolError("the receiver has another snapshot than it was sent")
        self.is_done = True

    # frames

    def _next(self) -> Frame | None:
        if self._control:
            return self._control.popleft()
        if self._expects is not None or self.is_done or self._is_ended:
            return None
        made = self._next_offer() if self._may_offer() else None
        if made is None and self._work:
            made = self._next_work()
        if made is None and not self._batches and not self._has_more():
            made = self._next_end()
        return made

    def _may_offer(self) -> bool:
        queued_max = max(self._window.bytes_max, BATCH_BYTES)
        oldest = next(iter(self._batches), self._number)
        return (
            self._unanswered < UNANSWERED_MAX
            and self._number - oldest < BATCHES_MAX
            and self._queued_blocks * BLOCK_BYTES < queued_max
        )

    def _has_more(self) -> bool:
        return len(self._pending) > 0 or self._disk < len(self._states)

    def _next_offer(self) -> Frame | None:
        """The next batch; None: all were offered."""
        while not len(self._pending) and self._disk < len(self._states):
            if self._place is None or self._place >= self._disk_blocks():
                self._disk += 1
                self._place = self._states[self._disk].next_block if self._disk < len(self._states) else None
                continue
            offers, self._place = self._source.offers(self._disk, self._place, RUNS_MAX)
            self._pending = np.frombuffer(offers, OFFER)
        if not len(self._pending):
            return None
        has_data = (self._pending["low"] != 0) | (self._pending["high"] != 0)
        count = int(np.searchsorted(np.cumsum(has_data), OFFERS_MAX, "right"))
        taken, has_data, self._pending = self._pending[:count], has_data[:count], self._pending[count:]
        if len(self._pending):
            next_block = int(self._pending["block"][0])
        else:
            next_block = self._disk_blocks() if self._place is None else self._place
        data, holes = taken[has_data], taken[~has_data]
        batch = _Batch(self._number, self._disk, data["block"], len(holes))
        self._batches[batch.number] = batch
        self._number += 1
        self._unanswered += 1
        return messages.encode_offer(batch.number, batch.disk, next_block, data, messages.runs_of(holes["block"]))

    def _disk_blocks(self) -> int:
        return block_count(self._begin.snapshot.disks[self._disk].size_bytes)

    def _next_work(self) -> Frame | None:
        work = self._work[0]
        batch = work.batch
        if work.kind is Kind.PROOFS:
            proofs = self._source.prove(batch.disk, batch.proved.tobytes())
            made = messages.encode_proofs(batch.number, proofs)
        else:
            if not self._window.has_room(work.length * BLOCK_BYTES):
                return None
            made = self._make_data(work)
        self._work.popleft()
        batch.unmade -= 1
        self._finish(batch)
        return made

    def _make_data(self, work: _Work) -> Frame:
        batch = work.batch
        blocks = batch.wanted[work.first : work.first + work.length]

        def make(plain: memoryview) -> tuple[int, Frame]:
            codec, stored = self._packer.pack(plain)
            return len(stored), messages.encode_data(batch.number, work.first, work.length, codec, stored)

        stored_bytes, made = self._source.fetch(batch.disk, blocks.tobytes(), make)
        self._queued_blocks -= work.length
        self._window.sent(stored_bytes)
        self.progress.data_bytes += stored_bytes
        self.progress.sent_bytes += work.length * BLOCK_BYTES
        return made

    def _next_end(self) -> Frame:
        disks = self._begin.snapshot.disks
        digests = [self._source.digest(number) for number in range(len(disks))]
        self._is_ended = True
        return control.encode_end(End(digests, [disk.size_bytes for disk in disks]))


class Requester:
    """Asks the other end something that is no transfer; the same face as a Sender's."""

    def __init__(self, what: str, arguments: dict[str, Any]) -> None:
        self.answer: dict[str, Any] = {}
        self.refusal: BlockdevError | None = None
        self.is_done = False
        self.software = ""  # of the other end
        self.version = 0  # of the protocol, that both ends speak
        self.features: list[str] = []  # that both have
        self._frames: deque[Frame] = deque()
        self._request = control.encode_request(what, arguments)
        self._expects = Kind.HELLO

    def start(self) -> None:
        self._frames.append(control.encode_hello(own_hello()))

    def next(self) -> Frame | None:
        return self._frames.popleft() if self._frames else None

    def handle(self, message: Message) -> None:
        """As Sender.handle."""
        kind, body = messages.kind_of(message), messages.body_of(message)
        if kind is Kind.REFUSE:
            self.refusal = control.decode_refuse(body)
            raise self.refusal
        if kind is not self._expects or self.is_done:
            raise ProtocolError(f"the other end sent {kind.name} where {self._expects.name} belongs")
        if kind is Kind.HELLO:
            hello = control.decode_hello(body)
            self.version, self.features = common_version(hello), sorted(common_features(hello))
            self.software = hello.software
            self._frames.append(self._request)
            self._expects = Kind.ANSWER
        else:
            self.answer = control.decode_answer(body)
            self.is_done = True


def block_count(size_bytes: int) -> int:
    """How many blocks a disk has."""
    return (size_bytes + BLOCK_BYTES - 1) // BLOCK_BYTES
