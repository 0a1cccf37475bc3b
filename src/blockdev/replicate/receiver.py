"""The receiving end of one channel: a state machine without I/O, threads and clock of its own (docs/format/replication.md).

`handle` eats one message of another home and gives the frames that answer it.  One thread at a time.
Invariants: nothing of the other end is believed: each field was checked by its decoder, each place is checked here, bytes
are fingerprinted and proofs verified by the engine.  Positions are saved only after what is before them was flushed.
The snapshot is made only when the digest of every disk is the sender's.  Memory: that of BATCHES_MAX batches of offers.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from blockdev.clock import monotonic_seconds
from blockdev.constants import BLOCK_BYTES
from blockdev.errors import BlockdevError, Corrupt
from blockdev.replicate import control, messages
from blockdev.replicate.control import Begin, End, State
from blockdev.replicate.frames import Frame, Message, ProtocolError
from blockdev.replicate.messages import (
    BATCHES_MAX,
    PROOF_BYTES,
    Data,
    Kind,
    Mask,
    Offer,
    Offers,
    Proofs,
    Runs,
    Saved,
)
from blockdev.replicate.negotiation import common_version, own_hello
from blockdev.replicate.sender import block_count

SAVE_BYTES = 32 << 20  # of data, stored, between two saves,
SAVE_SECONDS = 1.0  # and of time
COMING_SLOTS = 1 << 16  # 256 MiB of blocks
COMING_MASK = np.uint64(COMING_SLOTS - 1)
Lows = NDArray[Any]  # uint64


class Store(Protocol):
    """What a Receiver needs of its home; its calls block.  `disk`: the number of a disk in Begin."""

    def begin(self, begin: Begin) -> State:
        """Whatever refuses the transfer is raised.  To be called once."""

    def known(self, disk: int, offers: bytes) -> bytes:
        """As EngineClient.known."""

    def take(self, disk: int, offers: bytes, proofs: bytes) -> bytes:
        """As EngineClient.take."""

    def put(self, disk: int, offers: bytes, data: bytes | memoryview) -> None:
        """As EngineClient.put.  PoolFull also when the peer may not take more."""

    def clear(self, disk: int, runs: Runs) -> None:
        """Make runs of blocks holes."""

    def begin_save(self, next_blocks: tuple[int, ...], data_bytes: int) -> None:
        """Begin to make durable what was put, taken and cleared so far, and then keep that it reaches to next_blocks of the disks.

        data_bytes: of this channel.  Not while another goes on.
        """

    def end_save(self, wait: bool) -> Saved | None:
        """What the save has kept, once; None: none was begun, or it goes on, which it never does after a wait.

        Unavailable: some of it may be lost, nothing was kept; what else kept it from being kept.
        """

    def digests(self) -> list[bytes]:
        """The content digest of each disk as it is now, durable.  Unavailable: as `end_save`, and whatever a save does that goes on."""

    def finish(self, digests: list[bytes]) -> None:
        """Make the snapshot."""

    def drop(self) -> None:
        """What was received is of no use."""

    def release(self) -> None:
        """The channel ends; what was saved stays for the next one.  Never raises."""

    def answer(self, what: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """The answer to a request that is no transfer."""


class Coming:
    """Low halves of the fingerprints of blocks that were asked for and have not come: what is asked for twice travels twice.

    A table with one place for each slot: of two that fall on one, the later is remembered.
    """

    def __init__(self) -> None:
        self._table = np.zeros(COMING_SLOTS, np.uint64)

    def choose(self, lows: Lows) -> Mask:
        """Which of them to ask for: each once, and none that comes already."""
        chosen = np.zeros(len(lows), np.bool_)
        chosen[np.unique(lows, return_index=True)[1]] = True
        return chosen & (self._table[lows & COMING_MASK] != lows)

    def add(self, lows: Lows) -> None:
        self._table[lows & COMING_MASK] = lows

    def remove(self, lows: Lows) -> None:
        slots = lows & COMING_MASK
        self._table[slots[self._table[slots] == lows]] = 0


class _Batch:
    """Blocks that were offered, until they are here."""

    def __init__(self, offer: Offer, wanted: Mask) -> None:
        self.disk = offer.disk
        self.next_block = offer.next_block
        self.block_count = len(offer.data) + int(offer.holes["count"].sum(dtype=np.uint64))
        self.wanted: Offers = offer.data[wanted]  # in the order of asking
        self.proved: Offers = offer.data[~wanted]
        self.received = 0  # of wanted
        self.awaits_proofs = len(self.proved) > 0

    @property
    def is_complete(self) -> bool:
        return not self.awaits_proofs and self.received == len(self.wanted)


class Receiver:
    """Receives over one channel.  Never raises what is wrong with the other end or this home: it refuses and closes."""

    def __init__(self, store: Store, monotonic: Callable[[], float] = monotonic_seconds) -> None:
        self.is_closed = False  # nothing more is read: write what was returned, then close the channel
        self.is_done = False  # the snapshot is here, or the request was answered
        self.error: BlockdevError | None = None  # that it was refused with
        self.begin: Begin | None = None
        self.data_bytes = 0  # of DATA, stored
        self.logical_bytes = 0  # of blocks and holes of complete batches
        self.network_bytes = 0  # of all messages
        self._store = store
        self._monotonic = monotonic
        self._has_hello = False
        self._next_blocks: list[int] = []  # for each disk: what is before is here
        self._batches: dict[int, _Batch] = {}  # in order; of the complete ones only those behind one that is not
        self._number = 0  # of the next batch
        self._disk = 0  # of the latest batch,
        self._place = 0  # and what the next one on it begins with at the least
        self._coming = Coming()
        self._unsaved_bytes = 0
        self._has_unsaved = False
        self._is_saving = False
        self._saved_at = monotonic()

    # what the driver calls

    def handle(self, message: Message) -> list[Frame]:
        """The frames that answer a message."""
        if self.is_closed:
            return []
        self.network_bytes += len(message)
        try:
            kind, body = messages.kind_of(message), messages.body_of(message)
            answers = self._handle(kind, body)
            answers += self._look_after_saves()
        except BlockdevError as error:
            return [self._refuse(error)]
        return answers

    def save(self) -> None:
        """Make durable what is here, and keep how far it is.  BlockdevError."""
        if not self.is_closed:
            self._end_save(wait=True)
            if self._has_unsaved:
                self._begin_save()
                self._end_save(wait=True)

    def close(self) -> None:
        """The channel is gone: save if that can be done, and let go."""
        if not self.is_closed:
            with suppress(BlockdevError):
                self.save()
            self._close()

    # the course of a channel

    def _close(self) -> None:
        self.is_closed = True
        self._batches.clear()
        self._store.release()

    def _refuse(self, error: BlockdevError) -> Frame:
        self.error = error
        self.close()  # what is whole is saved: a full pool goes on from here once it has room
        return control.encode_refuse(error)

    def _handle(self, kind: Kind, body: memoryview) -> list[Frame]:
        if not self._has_hello:
            return [self._greeted(kind, body)]
        if self.begin is None:
            return [self._begun(kind, body)]
        if kind is Kind.OFFER:
            return [self._offered(messages.decode_offer(body))]
        if kind is Kind.DATA:
            return [self._received(messages.decode_data(body))]
        if kind is Kind.PROOFS:
            return [self._proved(messages.decode_proofs(body))]
        if kind is Kind.END:
            return [self._ended(control.decode_end(body))]
        raise ProtocolError(f"the sender sent {kind.name}, which has no place here")

    def _greeted(self, kind: Kind, body: memoryview) -> Frame:
        if kind is not Kind.HELLO:
            raise ProtocolError(f"the sender begins with {kind.name}, not with HELLO")
        common_version(control.decode_hello(body))
        self._has_hello = True
        return control.encode_hello(own_hello())

    def _begun(self, kind: Kind, body: memoryview) -> Frame:
        if kind is Kind.REQUEST:
            what, arguments = control.decode_request(body)
            answer = control.encode_answer(self._store.answer(what, arguments))
            self.is_done = True
            self._close()
            return answer
        if kind is not Kind.BEGIN:
            raise ProtocolError(f"the sender sent {kind.name} where BEGIN belongs")
        begin = control.decode_begin(body)
        state = self._store.begin(begin)
        self.begin = begin
        if state.is_present:
            self.is_done = True
            self._close()
        self._next_blocks = [one.next_block for one in state.disks]
        self._place = self._next_blocks[0] if self._next_blocks else 0
        return control.encode_state(state)

    # batches

    def _offered(self, offer: Offer) -> Frame:
        self._check_place(offer)
        if len(offer.holes):
            self._store.clear(offer.disk, offer.holes)
        wanted = self._choose(offer)
        batch = _Batch(offer, wanted)
        self._batches[offer.batch] = batch
        self._number += 1
        self._coming.add(batch.wanted["low"])
        self._has_unsaved = True
        self._advance()
        return messages.encode_marks(Kind.WANT, offer.batch, wanted)

    def _check_place(self, offer: Offer) -> None:
        oldest = next(iter(self._batches), self._number)
        if offer.batch != self._number or offer.batch - oldest >= BATCHES_MAX:
            raise ProtocolError(f"the sender offers batch {offer.batch} where {self._number} belongs")
        disks = self._disks()
        if not self._disk <= offer.disk < len(disks):
            raise ProtocolError(f"the sender offers blocks of disk {offer.disk}, after disk {self._disk}")
        if offer.disk != self._disk:
            self._disk, self._place = offer.disk, self._next_blocks[offer.disk]
        first = min([*offer.data["block"][:1].tolist(), *offer.holes["block"][:1].tolist()], default=None)
        if first is None or first < self._place or offer.next_block > block_count(disks[offer.disk].size_bytes):
            raise ProtocolError(f"the sender offers blocks of disk {offer.disk} where it has been, or where there are none")
        self._place = offer.next_block

    def _disks(self) -> list[Any]:
        assert self.begin is not None
        return self.begin.snapshot.disks

    def _choose(self, offer: Offer) -> Mask:
        """Which bytes must come: of blocks that are not here, and do not come already for another block."""
        known = self._store.known(offer.disk, offer.data.tobytes()) if len(offer.data) else b""
        wanted = np.frombuffer(known, np.uint8) == 0
        wanted[wanted] = self._coming.choose(offer.data["low"][wanted])
        return wanted

    def _open_batch(self, number: int) -> _Batch:
        batch = self._batches.get(number)
        if batch is None or batch.is_complete:
            raise ProtocolError(f"the sender goes on with batch {number}, which is not under way")
        return batch

    def _received(self, data: Data) -> Frame:
        batch = self._open_batch(data.batch)
        if data.first != batch.received or data.first + data.length > len(batch.wanted):
            raise ProtocolError(f"the sender sends block {data.first} of batch {data.batch} where {batch.received} belongs")
        offers = batch.wanted[data.first : data.first + data.length]
        try:
            self._store.put(batch.disk, offers.tobytes(), messages.plain_of(data))
        except Corrupt as error:
            raise ProtocolError(f"the sender sent other blocks than it offered: {error}") from error
        batch.received += data.length
        self._coming.remove(offers["low"])
        self.data_bytes += len(data.stored)
        self._unsaved_bytes += len(data.stored)
        self._has_unsaved = True
        self._advance()
        return messages.encode_ack(self.data_bytes)

    def _proved(self, proofs: Proofs) -> Frame:
        batch = self._open_batch(proofs.batch)
        if not batch.awaits_proofs or len(proofs.proofs) != len(batch.proved) * PROOF_BYTES:
            raise ProtocolError(f"the sender proves blocks of batch {proofs.batch} that it was not asked to prove")
        taken = self._store.take(batch.disk, batch.proved.tobytes(), bytes(proofs.proofs))
        missing = np.frombuffer(taken, np.uint8) == 0
        batch.wanted = np.concatenate((batch.wanted, batch.proved[missing]))
        batch.proved = batch.proved[:0]
        batch.awaits_proofs = False
        self._has_unsaved = True
        self._advance()
        return messages.encode_marks(Kind.MISSING, proofs.batch, missing)

    def _advance(self) -> None:
        """Complete batches before which none is incomplete are behind us."""
        for number, batch in list(self._batches.items()):
            if not batch.is_complete:
                break
            self._next_blocks[batch.disk] = batch.next_block
            self.logical_bytes += batch.block_count * BLOCK_BYTES
            del self._batches[number]

    # saves and the end

    def _look_after_saves(self) -> list[Frame]:
        if self.is_closed:
            return []
        saved = self._end_save(wait=False)
        if self._is_save_due():
            self._begin_save()
        return saved

    def _is_save_due(self) -> bool:
        if not self._has_unsaved or self._is_saving:
            return False
        return self._unsaved_bytes >= SAVE_BYTES or self._monotonic() - self._saved_at >= SAVE_SECONDS

    def _begin_save(self) -> None:
        self._store.begin_save(tuple(self._next_blocks), self.data_bytes)  # as of now: what comes meanwhile is not saved by it
        self._is_saving = True
        self._unsaved_bytes = 0
        self._has_unsaved = False
        self._saved_at = self._monotonic()

    def _end_save(self, wait: bool) -> list[Frame]:
        """What is to be told of a save that has ended."""
        try:
            saved = self._store.end_save(wait) if self._is_saving else None
        except BlockdevError:
            self._is_saving, self._has_unsaved = False, True
            raise
        if saved is None:
            return []
        self._is_saving = False
        return [messages.encode_saved(*saved)]

    def _ended(self, end: End) -> Frame:
        disks = self._disks()
        if self._batches:
            raise ProtocolError("the sender ends before all that it offered is here")
        if end.sizes != [disk.size_bytes for disk in disks]:
            raise ProtocolError("the sender ends with disks of other sizes than it began with")
        digests = self._store.digests()
        wrong = [disk.name for disk, own, other in zip(disks, digests, end.digests, strict=True) if own != other]
        if wrong:
            self._has_unsaved = False
            self._store.drop()
            raise Corrupt(f"disk {wrong[0]} is not what it is at the sender: what was received was dropped, begin anew")
        self._store.finish(digests)
        self._has_unsaved = False
        self.is_done = True
        self._close()
        assert self.begin is not None
        return control.encode_committed(self.begin.snapshot.uuid)
