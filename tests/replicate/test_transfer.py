"""A snapshot goes from one pool to another: all of it, no block twice, on from where it was, and never when it is not whole."""

from __future__ import annotations

import random
import tracemalloc
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest

from blockdev import Pool, VDisk
from blockdev.errors import Corrupt, InvalidArgument, NotAllowed, NotFound, PoolFull, UnknownFormat
from blockdev.replicate import control, messages
from blockdev.replicate.control import DiskState, State
from blockdev.replicate.frames import LENGTH_BYTES, ProtocolError
from blockdev.replicate.messages import DATA_BLOCKS_MAX, OFFER, Kind
from blockdev.replicate.negotiation import own_hello
from blockdev.replicate.receiver import SAVE_BYTES, Receiver
from blockdev.replicate.sender import BaseLost, Requester, Sender
from tests.replicate.pools import BLOCK, FIRST, MEBIBYTE, Link, PoolSource, PoolStore, T, a_begin


class Clock:
    """Stands still unless told."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


def disk_of(pool: Pool, content: bytes, size_bytes: int | None = None) -> VDisk:
    disk = pool.create_vdisk(len(content) if size_bytes is None else size_bytes)
    disk.write(0, content)
    return disk


def link_of(
    source: PoolSource, store: PoolStore, ancestors: list[str] | None = None, clock: Clock | None = None
) -> Link:
    clock = clock or Clock()
    begin = a_begin([one.size_bytes for one in source.snapshots], ancestors)
    return Link(Sender(begin, source, 3, clock), Receiver(store, clock))


def kinds(said: list[bytes]) -> Counter[str]:
    return Counter(Kind(message[0]).name for message in said)


def check_whole(link: Link, source: PoolSource, store: PoolStore) -> None:
    assert link.sender.is_done and link.receiver.is_done and link.receiver.is_closed
    assert store.finished == [source.digest(number) for number in range(len(source.snapshots))]
    for snapshot, disk in zip(source.snapshots, store.disks, strict=True):
        assert disk.read(0, disk.size_bytes) == snapshot.read(0, snapshot.size_bytes)


def test_disks_of_any_content_arrive_bit_by_bit(pool: Pool, other: Pool, seed: int) -> None:
    choice = random.Random(seed)
    sizes = [3 * MEBIBYTE + 512, 40 * MEBIBYTE, 512, BLOCK]
    disks = [pool.create_vdisk(size) for size in sizes]
    disks[0].write(0, choice.randbytes(sizes[0]))
    disks[1].write(5 * BLOCK, b"text " * 307_200)
    for _ in range(300):
        disks[1].write(choice.randrange(sizes[1] // 512) * 512, choice.randbytes(512))
    disks[2].write(0, b"a" * 512)
    source = PoolSource(pool.snapshot(disks))
    store = PoolStore(other, [other.create_vdisk(size) for size in sizes])
    link = link_of(source, store)
    link.run()
    check_whole(link, source, store)
    assert sum(len(message) for message in link.there) < sum(sizes) // 3


def test_only_what_changed_since_the_base_is_offered_and_what_was_discarded_becomes_holes(
    pool: Pool, other: Pool, seed: int
) -> None:
    choice = random.Random(seed)
    content = choice.randbytes(6 * MEBIBYTE + 1536)
    disk, target = disk_of(pool, content), disk_of(other, content)
    [base] = pool.snapshot([disk])
    disk.write(100 * BLOCK, choice.randbytes(3 * BLOCK))
    disk.discard(0, 2 * MEBIBYTE)
    disk.discard(1535 * BLOCK, BLOCK + 1536)  # with the part of a block at the end
    [newer] = pool.snapshot([disk])
    source, store = PoolSource([newer], {FIRST: [base]}), PoolStore(other, [target], FIRST)
    link = link_of(source, store, [FIRST])
    link.run()
    check_whole(link, source, store)
    assert link.sender.progress.data_bytes == 0 or source.fetched == 0 or link.sent_bytes < 4 * BLOCK + 2000
    assert target.extents(0, target.size_bytes) == newer.extents(0, newer.size_bytes)


def test_nothing_travels_for_a_snapshot_without_changes(pool: Pool, other: Pool) -> None:
    content = random.Random(1).randbytes(MEBIBYTE)
    disk, target = disk_of(pool, content), disk_of(other, content)
    base, newer = pool.snapshot([disk]) + pool.snapshot([disk])
    source, store = PoolSource([newer], {FIRST: [base]}), PoolStore(other, [target], FIRST)
    link = link_of(source, store, [FIRST])
    link.run()
    check_whole(link, source, store)
    assert kinds(link.there) == Counter(HELLO=1, BEGIN=1, END=1) and link.sent_bytes < 1000


def test_what_the_other_pool_has_anywhere_is_proved_and_does_not_travel(pool: Pool, other: Pool) -> None:
    content = random.Random(2).randbytes(20 * MEBIBYTE)
    disk_of(other, content[MEBIBYTE:])
    source = PoolSource(pool.snapshot([disk_of(pool, content)]))
    store = PoolStore(other, [other.create_vdisk(len(content))])
    link = link_of(source, store)
    link.run()
    check_whole(link, source, store)
    assert source.fetched == 256 and link.sender.progress.known_bytes == 19 * MEBIBYTE
    assert link.sent_bytes < MEBIBYTE + 20 * MEBIBYTE // 50


def test_a_block_that_is_there_many_times_travels_once(pool: Pool, other: Pool) -> None:
    """In one batch, in batches that are under way together, and in batches long after; on one disk and on another."""
    choice = random.Random(3)
    few = [choice.randbytes(BLOCK) for _ in range(50)]
    content = b"".join(choice.choice(few) for _ in range(6000))
    source = PoolSource(pool.snapshot([disk_of(pool, content), disk_of(pool, content[::-1][::-1][BLOCK:])]))
    store = PoolStore(other, [other.create_vdisk(len(content)), other.create_vdisk(len(content) - BLOCK)])
    link = link_of(source, store)
    link.run()
    check_whole(link, source, store)
    assert source.fetched == 50


def test_a_pool_that_keeps_no_index_gets_all_of_it_in_the_end(pool: Pool, other: Pool) -> None:
    content = random.Random(4).randbytes(BLOCK) * 3000
    source = PoolSource(pool.snapshot([disk_of(pool, content)]))
    store = PoolStore(other, [other.create_vdisk(len(content))])
    store.known = lambda disk, offers: b"\1" * (len(offers) // 24)  # type: ignore[method-assign]
    store.take = lambda disk, offers, proofs: b"\0" * (len(offers) // 24)  # type: ignore[method-assign]
    link = link_of(source, store)
    link.run()
    check_whole(link, source, store)
    assert source.fetched == 3000


def test_a_proof_of_other_bytes_takes_nothing(pool: Pool, other: Pool) -> None:
    content = random.Random(5).randbytes(30 * BLOCK)
    disk_of(other, content)
    source = PoolSource(pool.snapshot([disk_of(pool, content)]))
    source.prove = lambda disk, blocks: bytes(len(blocks) * 4)  # type: ignore[method-assign]
    store = PoolStore(other, [other.create_vdisk(len(content))])
    link = link_of(source, store)
    link.run()
    check_whole(link, source, store)
    assert source.fetched == 30


@pytest.mark.parametrize("cut_after", range(2, 29, 3))
def test_a_cut_after_any_message_goes_on_from_what_was_saved(pool: Pool, other: Pool, cut_after: int) -> None:
    content = random.Random(6).randbytes(20 * MEBIBYTE)
    source = PoolSource(pool.snapshot([disk_of(pool, content), disk_of(pool, content[: 5 * MEBIBYTE])]))
    store = PoolStore(other, [other.create_vdisk(len(content)), other.create_vdisk(5 * MEBIBYTE)])
    link = link_of(source, store)
    passed = iter(range(1000))
    link.run(lambda message: message if next(passed) < cut_after else None)
    saved = store.saved
    assert link.receiver.is_closed and store.finished is None
    again = link_of(source, store)
    again.run()
    check_whole(again, source, store)
    assert source.fetched <= 20 * 256 + 256  # and the message that was cut off
    assert again.sender.progress.skipped_bytes == sum(saved) * BLOCK
    assert cut_after < 14 or sum(saved) >= 2048


def test_positions_are_those_before_which_all_is_here(pool: Pool, other: Pool) -> None:
    """A later batch may be complete before an earlier one: then only what is before the earlier one is told."""
    content = random.Random(7).randbytes(24 * MEBIBYTE)
    source = PoolSource(pool.snapshot([disk_of(pool, content)]))
    store = PoolStore(other, [other.create_vdisk(len(content))])
    link = link_of(source, store)
    received = 0

    def alter(message: bytes) -> bytes | None:
        nonlocal received
        received += message[0] == Kind.DATA
        return message if received < 12 else None

    link.run(alter)
    assert store.saved == [2048] and store.disks[0].read(0, 8 * MEBIBYTE) == content[: 8 * MEBIBYTE]


def test_positions_are_saved_after_so_many_bytes_or_so_much_time(pool: Pool, other: Pool) -> None:
    content = random.Random(8).randbytes(SAVE_BYTES + 9 * MEBIBYTE)
    source = PoolSource(pool.snapshot([disk_of(pool, content)]))
    clock = Clock()
    store = PoolStore(other, [other.create_vdisk(len(content))])
    link = link_of(source, store, clock=clock)
    link.run()
    assert len(store.saves) == 1 and link.sender.progress.saved_bytes >= SAVE_BYTES
    store = PoolStore(other, [other.create_vdisk(len(content))])
    link = link_of(source, store, clock=clock)

    def tick(message: bytes) -> bytes:
        clock.seconds += 0.4
        return message

    link.run(tick)
    assert len(store.saves) >= 3


def test_what_is_different_at_the_end_is_dropped_and_begun_anew_without_that_base(pool: Pool, other: Pool) -> None:
    content = random.Random(9).randbytes(MEBIBYTE)
    disk = disk_of(pool, content)
    [base] = pool.snapshot([disk])
    disk.write(0, b"news" * 1024)
    [newer] = pool.snapshot([disk])
    source = PoolSource([newer], {FIRST: [base]})
    wrong = PoolStore(other, [disk_of(other, b"x" * BLOCK + content[BLOCK:-BLOCK] + b"y" * BLOCK)], FIRST)
    link = link_of(source, wrong, [FIRST])
    with pytest.raises(Corrupt, match="disk0 is not what it is at the sender"):
        link.run()
    assert wrong.is_dropped and wrong.finished is None and link.receiver.is_closed
    assert isinstance(link.receiver.error, Corrupt) and isinstance(link.sender.refusal, Corrupt)
    again = link.sender.retry()
    assert again is not None
    store = PoolStore(other, [other.create_vdisk(MEBIBYTE)])
    second = Link(again, Receiver(store))
    second.run()
    check_whole(second, source, store)
    [begun] = [control.decode_begin(memoryview(one)[1:]) for one in second.there if one[0] == Kind.BEGIN]
    assert begun.ancestors == []


def test_what_differs_again_and_again_ends_after_a_full_comparison(pool: Pool, other: Pool) -> None:
    """The base it used, then all bases, then it has failed."""
    third = "33333333-2222-4333-8444-555555555555"
    disk = disk_of(pool, b"a" * MEBIBYTE)
    [base] = pool.snapshot([disk])
    source = PoolSource(pool.snapshot([disk]), {FIRST: [base], third: [base]})
    sender: Sender | None = Sender(a_begin([MEBIBYTE], [third, FIRST]), source)
    tried = []
    while sender is not None:
        ancestors = sender._begin.ancestors
        tried.append(ancestors)
        store = PoolStore(other, [other.create_vdisk(MEBIBYTE)], ancestors[0] if ancestors else None)
        store.digests = lambda: [bytes(16)]  # type: ignore[method-assign]
        with pytest.raises(Corrupt):
            Link(sender, Receiver(store)).run()
        sender = sender.retry()
    assert tried == [[third, FIRST], [FIRST], []]


def test_a_base_that_is_deleted_meanwhile_is_left_out_of_the_next_try(pool: Pool, other: Pool) -> None:
    source = PoolSource(pool.snapshot([disk_of(pool, b"a" * MEBIBYTE)]))

    def lost(*_arguments: object) -> tuple[bytes, int | None]:
        raise BaseLost("gone")

    source.bases, source.offers = {FIRST: source.snapshots}, lost  # type: ignore[method-assign]
    link = link_of(source, PoolStore(other, [other.create_vdisk(MEBIBYTE)], FIRST), [FIRST])
    with pytest.raises(BaseLost):
        link.run()
    again = link.sender.retry()
    assert again is not None and again._begin.ancestors == []


def test_a_snapshot_that_is_deleted_meanwhile_is_not_tried_again(pool: Pool, other: Pool) -> None:
    source = PoolSource(pool.snapshot([disk_of(pool, b"a" * MEBIBYTE)]))

    def gone(*_arguments: object) -> bytes:
        raise NotFound("gone")

    source.fetch = gone  # type: ignore[method-assign]
    link = link_of(source, PoolStore(other, [other.create_vdisk(MEBIBYTE)]))
    with pytest.raises(NotFound):
        link.run()
    assert link.sender.retry() is None


def test_a_full_pool_keeps_what_is_whole_and_goes_on_from_there(pool: Pool, other: Pool) -> None:
    content = random.Random(10).randbytes(20 * MEBIBYTE)
    source = PoolSource(pool.snapshot([disk_of(pool, content)]))
    store = PoolStore(other, [other.create_vdisk(len(content))])
    put, room = store.put, 9 * 256

    def put_or_refuse(disk: int, offers: bytes, data: bytes | memoryview) -> None:
        nonlocal room
        room -= len(offers) // 24
        if room < 0:
            raise PoolFull("the pool has no room")
        put(disk, offers, data)

    store.put = put_or_refuse  # type: ignore[method-assign]
    link = link_of(source, store)
    with pytest.raises(PoolFull, match="no room"):
        link.run()
    assert store.saved == [2048] and link.receiver.is_closed and not store.is_dropped
    assert link.sender.retry() is None
    store.put = put  # type: ignore[method-assign]
    again = link_of(source, store)
    again.run()
    check_whole(again, source, store)


def test_what_is_there_already_ends_at_once(pool: Pool, other: Pool) -> None:
    source = PoolSource(pool.snapshot([disk_of(pool, b"a" * MEBIBYTE)]))
    store = PoolStore(other, [])
    store.is_present = True
    link = link_of(source, store)
    link.run()
    assert link.sender.is_done and link.sender.progress.was_present and link.receiver.is_closed


def test_a_refusal_is_raised_at_the_sender_in_the_words_of_the_receiver(pool: Pool, other: Pool) -> None:
    source = PoolSource(pool.snapshot([disk_of(pool, b"a" * MEBIBYTE)]))
    store = PoolStore(other, [])

    def refuse(_begin: control.Begin) -> control.State:
        raise NotAllowed("this peer may not send VM web\n\x1b[31m")

    store.begin = refuse  # type: ignore[method-assign]
    link = link_of(source, store)
    with pytest.raises(NotAllowed) as caught:
        link.run()
    assert str(caught.value) == "this peer may not send VM web  [31m" and link.sender.refusal is caught.value


def test_a_request_is_answered_over_a_channel_of_its_own(other: Pool) -> None:
    requester = Requester("status", {"vm": "web", "count": 3})
    link = Link(requester, Receiver(PoolStore(other, [])))
    link.run()
    assert requester.is_done and requester.answer == {"what": "status", "vm": "web", "count": 3}
    assert requester.software.startswith("blockdev ") and link.receiver.is_closed


def test_ends_of_no_common_version_say_so(pool: Pool, other: Pool) -> None:
    hello = control.encode_hello(control.Hello([7, 9], ["later"], "blockdev 9"))[LENGTH_BYTES:]
    receiver = Receiver(PoolStore(other, []))
    [answer] = receiver.handle(hello)
    assert isinstance(receiver.error, UnknownFormat) and receiver.is_closed
    assert isinstance(control.decode_refuse(messages.body_of(answer[LENGTH_BYTES:])), UnknownFormat)
    sender = Sender(a_begin([BLOCK]), PoolSource([]))
    sender.start()
    with pytest.raises(UnknownFormat, match="speaks versions 7, 9"):
        sender.handle(hello)


def test_a_newer_end_speaks_the_version_that_both_know(other: Pool) -> None:
    receiver = Receiver(PoolStore(other, []))
    hello = control.encode_hello(control.Hello([1, 2], ["later"], "blockdev 2"))[LENGTH_BYTES:]
    [answer] = receiver.handle(hello)
    assert control.decode_hello(messages.body_of(answer[LENGTH_BYTES:])).versions == [1]


def test_bytes_that_are_not_what_was_offered_end_the_channel_and_are_not_written(pool: Pool, other: Pool) -> None:
    content = random.Random(11).randbytes(300 * BLOCK)
    source = PoolSource(pool.snapshot([disk_of(pool, content)]))
    store = PoolStore(other, [other.create_vdisk(len(content))])
    link = link_of(source, store)

    def alter(message: bytes) -> bytes:
        return bytes(message[:-1]) + bytes([message[-1] ^ 1]) if message[0] == Kind.DATA else message

    with pytest.raises(InvalidArgument, match="other blocks than it offered"):
        link.run(alter)
    assert isinstance(link.receiver.error, ProtocolError) and store.saved == [0]
    last = DATA_BLOCKS_MAX * BLOCK - BLOCK
    assert not any(store.disks[0].read(last, BLOCK))


def test_the_memory_of_a_sender_does_not_grow_with_the_disk() -> None:
    """A million blocks, one in two a hole, each 16th wanted."""

    class Endless(PoolSource):
        def set_base(self, base_uuid: str | None, is_based: list[bool]) -> int:
            return 0

        def offers(self, disk: int, first_block: int, count: int) -> tuple[bytes, int | None]:
            made = np.zeros(count, OFFER)
            made["block"] = first_block + np.arange(count)
            made["low"][::2] = made["block"][::2] + 1
            return made.tobytes(), first_block + count if first_block < 1_000_000 else None

        def fetch(self, disk: int, blocks: bytes, use: Callable[[memoryview], T]) -> T:
            return use(memoryview(bytes(len(blocks) // 8 * BLOCK)))

        def prove(self, disk: int, blocks: bytes) -> bytes:
            return bytes(len(blocks) * 4)

        def digest(self, disk: int) -> bytes:
            return bytes(16)

    sender = Sender(a_begin([1 << 40]), Endless([]), 0)
    sender.start()
    for answer in (control.encode_hello(own_hello()), control.encode_state(State(False, None, [DiskState(0, False)]))):
        sender.next()
        sender.handle(answer[LENGTH_BYTES:])
    handled, levels = 0, []
    tracemalloc.start()
    while (made := sender.next()) is not None and made[LENGTH_BYTES] != Kind.END:
        kind, body = Kind(made[LENGTH_BYTES]), memoryview(made)[LENGTH_BYTES + 1 :]
        if kind is Kind.OFFER:
            offer = messages.decode_offer(body)
            answer = messages.encode_marks(Kind.WANT, offer.batch, np.arange(len(offer.data)) % 16 == 0)
            levels.append(tracemalloc.get_traced_memory()[0])
        elif kind is Kind.PROOFS:
            proofs = messages.decode_proofs(body)
            none = np.zeros(len(proofs.proofs) // 32, bool)
            answer = messages.encode_marks(Kind.MISSING, proofs.batch, none)
        else:
            handled += len(messages.decode_data(body).stored)
            answer = messages.encode_ack(handled)
        sender.handle(answer[LENGTH_BYTES:])
    tracemalloc.stop()
    assert len(levels) > 200 and max(levels[100:]) < max(levels[:100]) + 200_000
