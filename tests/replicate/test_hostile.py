"""The other end means harm, or is broken: it gets an error and a closed channel, and nothing of it is left or seen."""

from __future__ import annotations

import random
import struct
import tracemalloc
from collections.abc import Iterator

import numpy as np
import pytest

from blockdev import Pool
from blockdev.errors import BlockdevError
from blockdev.replicate import control, messages
from blockdev.replicate.frames import LENGTH_BYTES, ProtocolError
from blockdev.replicate.messages import BATCHES_MAX, OFFER, RUN, Kind
from blockdev.replicate.negotiation import own_hello
from blockdev.replicate.receiver import Receiver
from blockdev.replicate.sender import Sender
from tests.replicate.pools import BLOCK, FIRST, MEBIBYTE, Link, PoolSource, PoolStore, a_begin

TRIES = 400
NO_HOLES = np.empty(0, RUN)


@pytest.fixture
def recorded(pool: Pool, other: Pool) -> Iterator[tuple[PoolSource, Link]]:
    """A transfer with all kinds of messages, as it should be."""
    choice = random.Random(1)
    content = choice.randbytes(50 * BLOCK) + b"text" * BLOCK + choice.randbytes(200 * BLOCK)
    disk, target = pool.create_vdisk(MEBIBYTE + 512), other.create_vdisk(MEBIBYTE + 512)
    disk.write(0, content[:MEBIBYTE])
    [base] = pool.snapshot([disk])
    target.write(0, content[:MEBIBYTE])
    other.create_vdisk(MEBIBYTE).write(0, content[-20 * BLOCK :])
    disk.write(30 * BLOCK, content[-30 * BLOCK :])
    disk.discard(10 * BLOCK, 5 * BLOCK)
    source = PoolSource(pool.snapshot([disk]), {FIRST: [base]})
    link = Link(Sender(a_begin([disk.size_bytes], [FIRST]), source), Receiver(PoolStore(other, [target], FIRST)))
    link.run()
    assert link.sender.is_done
    yield source, link


def altered(recording: list[bytes], choice: random.Random) -> list[bytes]:
    """The recording with something wrong in it."""
    made = [bytearray(message) for message in recording]
    for _ in range(choice.choice([1, 1, 2, 5])):
        place = choice.randrange(len(made))
        kind = choice.randrange(6)
        if kind == 0 and made[place]:
            made[place][choice.randrange(len(made[place]))] ^= 1 << choice.randrange(8)
        elif kind == 1:
            del made[place][choice.randrange(len(made[place]) + 1) :]
        elif kind == 2:
            made.insert(choice.randrange(len(made) + 1), bytearray(choice.choice(made)))
        elif kind == 3 and len(made) > 1:
            del made[place]
        elif kind == 4:
            other = choice.randrange(len(made))
            made[place], made[other] = made[other], made[place]
        elif len(made[place]) > 4:
            at = choice.randrange(len(made[place]) - 3)
            made[place][at : at + 4] = struct.pack("<I", choice.choice([0, 1, 0xFFFFFFFF, 1 << 31, choice.randrange(1 << 32)]))
    return [bytes(message) for message in made]


def test_a_receiver_refuses_or_gets_the_snapshot_whatever_is_sent(
    recorded: tuple[PoolSource, Link], other: Pool, seed: int
) -> None:
    source, link = recorded
    choice = random.Random(seed)
    content = source.compared[0]
    assert content is not None
    for _ in range(TRIES):
        target = other.create_vdisk(content.size_bytes)
        target.write(0, content.read(0, content.size_bytes))
        store = PoolStore(other, [target], FIRST)
        receiver = Receiver(store)
        for message in altered(link.there, choice):
            for answer in receiver.handle(message):
                assert len(answer) < 300_000
        receiver.close()
        assert receiver.is_closed and (receiver.error is None or isinstance(receiver.error, BlockdevError))
        if store.finished is not None:
            wanted = source.snapshots[0]
            assert target.read(0, target.size_bytes) == wanted.read(0, wanted.size_bytes)
        other.delete([target])


def test_a_sender_ends_with_an_error_or_well_whatever_is_answered(recorded: tuple[PoolSource, Link], seed: int) -> None:
    source, link = recorded
    choice = random.Random(seed)
    for _ in range(TRIES):
        sender = Sender(a_begin([source.snapshots[0].size_bytes], [FIRST]), source)
        sender.start()
        try:
            for answer in altered(link.back, choice):
                for _ in range(choice.randrange(1, 6)):
                    sender.next()
                sender.handle(answer)
        except BlockdevError:
            pass


def begun(store: PoolStore, size_bytes: int) -> Receiver:
    receiver = Receiver(store)
    receiver.handle(control.encode_hello(own_hello())[LENGTH_BYTES:])
    receiver.handle(control.encode_begin(a_begin([size_bytes, size_bytes]))[LENGTH_BYTES:])
    assert not receiver.is_closed
    return receiver


def an_offer(batch: int, first: int, count: int = 1, disk: int = 0, next_block: int | None = None) -> bytes:
    data = np.zeros(count, OFFER)
    data["block"] = first + np.arange(count)
    data["low"], data["high"] = 1 + batch * 10_000 + np.arange(count), 7
    end = first + count if next_block is None else next_block
    return messages.encode_offer(batch, disk, end, data, NO_HOLES)[LENGTH_BYTES:]


def raw(kind: Kind, *parts: bytes) -> bytes:
    return bytes([kind]) + b"".join(parts)


DATA = messages.encode_data(0, 0, 1, 0, bytes(BLOCK))[LENGTH_BYTES:]
OUT_OF_PLACE: dict[str, list[bytes]] = {
    "data before any offer": [DATA],
    "proofs before any offer": [messages.encode_proofs(0, bytes(32))[LENGTH_BYTES:]],
    "another hello": [control.encode_hello(own_hello())[LENGTH_BYTES:]],
    "a second beginning": [control.encode_begin(a_begin([MEBIBYTE]))[LENGTH_BYTES:]],
    "a request in a transfer": [control.encode_request("test", {})[LENGTH_BYTES:]],
    "a receiver's message": [messages.encode_ack(0)[LENGTH_BYTES:]],
    "no such kind": [b"\x63"],
    "nothing": [b""],
    "a batch that is not the next": [an_offer(1, 0)],
    "a batch twice": [an_offer(0, 0), an_offer(0, 1)],
    "blocks where it has been": [an_offer(0, 5), an_offer(1, 5)],
    "blocks before the place that was told": [an_offer(0, 5, next_block=50), an_offer(1, 49)],
    "blocks behind the end of the disk": [an_offer(0, 256)],
    "a place behind the end of the disk": [an_offer(0, 255, next_block=257)],
    "no such disk": [an_offer(0, 0, disk=2)],
    "an earlier disk": [an_offer(0, 0, disk=1), an_offer(1, 9, disk=0)],
    "an empty batch": [messages.encode_offer(0, 0, 5, np.empty(0, OFFER), NO_HOLES)[LENGTH_BYTES:]],
    "proofs that nobody asked for": [an_offer(0, 0), messages.encode_proofs(0, bytes(32))[LENGTH_BYTES:]],
    "data that skips a block": [an_offer(0, 0, 2), messages.encode_data(0, 1, 1, 0, bytes(BLOCK))[LENGTH_BYTES:]],
    "more data than was asked for": [an_offer(0, 0), messages.encode_data(0, 0, 2, 0, bytes(2 * BLOCK))[LENGTH_BYTES:]],
    "bytes that were not offered": [an_offer(0, 0), DATA],
    "an end before all is here": [an_offer(0, 0), control.encode_end(control.End([bytes(16)] * 2, [MEBIBYTE] * 2))[LENGTH_BYTES:]],
    "an end of other disks": [control.encode_end(control.End([bytes(16)], [MEBIBYTE]))[LENGTH_BYTES:]],
    "an end of disks of other sizes": [control.encode_end(control.End([bytes(16)] * 2, [512, 512]))[LENGTH_BYTES:]],
    "a hole behind the end": [messages.encode_offer(0, 0, 257, np.empty(0, OFFER), np.array([(256, 1)], RUN))[LENGTH_BYTES:]],
}


@pytest.mark.parametrize("what", OUT_OF_PLACE)
def test_what_is_out_of_place_closes_the_channel(other: Pool, what: str) -> None:
    store = PoolStore(other, [other.create_vdisk(MEBIBYTE), other.create_vdisk(MEBIBYTE)])
    receiver = begun(store, MEBIBYTE)
    *before, last = OUT_OF_PLACE[what]
    for message in before:
        receiver.handle(message)
        assert receiver.error is None
    [answer] = receiver.handle(last)
    assert isinstance(receiver.error, ProtocolError) and receiver.is_closed and answer[LENGTH_BYTES] == Kind.REFUSE
    assert store.finished is None and not any(disk.extents(0, MEBIBYTE)[0].state == "data" for disk in store.disks)
    assert receiver.handle(last) == []


def test_a_receiver_speaks_to_nobody_who_does_not_begin_with_hello(other: Pool) -> None:
    for message in (DATA, control.encode_begin(a_begin([MEBIBYTE]))[LENGTH_BYTES:], raw(Kind.END, b"x"), b""):
        receiver = Receiver(PoolStore(other, []))
        [answer] = receiver.handle(message)
        assert answer[LENGTH_BYTES] == Kind.REFUSE and isinstance(receiver.error, ProtocolError)


def test_batches_that_are_never_completed_end_at_their_number_and_take_little_memory(other: Pool) -> None:
    size_bytes = 1 << 40
    store = PoolStore(other, [other.create_vdisk(size_bytes), other.create_vdisk(size_bytes)])
    store.known = lambda disk, offers: bytes(len(offers) // 24)  # type: ignore[method-assign]
    receiver = begun(store, size_bytes)
    tracemalloc.start()
    taken = 0
    for batch in range(10 * BATCHES_MAX):
        receiver.handle(an_offer(batch, batch * 2048, 2048))
        if receiver.is_closed:
            break
        taken += 1
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert taken == BATCHES_MAX and isinstance(receiver.error, ProtocolError)
    assert peak < 32 << 20


def test_memory_does_not_grow_with_the_disk(other: Pool) -> None:
    """A million blocks that the pool says it has: nothing of them stays."""
    size_bytes = 1 << 40
    store = PoolStore(other, [other.create_vdisk(size_bytes), other.create_vdisk(size_bytes)])
    store.known = lambda disk, offers: b"\1" * (len(offers) // 24)  # type: ignore[method-assign]
    store.take = store.known  # type: ignore[assignment, method-assign]
    store.take = lambda disk, offers, proofs: b"\1" * (len(offers) // 24)  # type: ignore[method-assign]
    receiver = begun(store, size_bytes)
    proofs, peaks = bytes(32 * 2048), []
    tracemalloc.start()
    for batch in range(500):
        receiver.handle(an_offer(batch, batch * 2048, 2048))
        receiver.handle(messages.encode_proofs(batch, proofs)[LENGTH_BYTES:])
        peaks.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    assert receiver.error is None and max(peaks[100:]) < max(peaks[:100]) + 100_000


@pytest.mark.parametrize(
    "answers",
    [
        [messages.encode_ack(0)],
        [control.encode_state(control.State(False, FIRST, [control.DiskState(0, True)] * 2))],
        [control.encode_state(control.State(False, str(FIRST)[:-1] + "7", [control.DiskState(0, True)]))],
        [control.encode_state(control.State(False, None, [control.DiskState(257, False)]))],
        [control.encode_state(control.State(False, None, [control.DiskState(0, False)])), messages.encode_ack(1)],
        [control.encode_state(control.State(False, None, [control.DiskState(0, False)])), control.encode_committed(FIRST)],
        [
            control.encode_state(control.State(False, None, [control.DiskState(0, False)])),
            messages.encode_marks(Kind.WANT, 0, np.ones(2048, bool)),
        ],
        [
            control.encode_state(control.State(False, None, [control.DiskState(0, False)])),
            messages.encode_marks(Kind.MISSING, 0, np.ones(256, bool)),
        ],
        [
            control.encode_state(control.State(False, None, [control.DiskState(0, False)])),
            *[messages.encode_marks(Kind.WANT, 0, np.ones(256, bool))] * 2,
        ],
    ],
)
def test_a_sender_believes_no_answer_that_cannot_be(pool: Pool, answers: list[bytes]) -> None:
    disk = pool.create_vdisk(MEBIBYTE)
    disk.write(0, random.Random(3).randbytes(MEBIBYTE))
    snapshots = pool.snapshot([disk])
    sender = Sender(a_begin([MEBIBYTE], [FIRST]), PoolSource(snapshots, {FIRST: snapshots}))
    sender.start()
    sender.next()
    sender.handle(control.encode_hello(own_hello())[LENGTH_BYTES:])
    sender.next()
    with pytest.raises(ProtocolError):
        for answer in answers:
            sender.handle(answer[LENGTH_BYTES:])
            sender.next()
    assert not sender.is_done
