"""The bytes of the messages (docs/format/replication.md): they stay what they are, and what is none is refused."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from contextlib import suppress
from typing import Any
from uuid import UUID

import msgpack
import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from blockdev.errors import BlockdevError, Corrupt, PoolFull
from blockdev.replicate import control, messages
from blockdev.replicate.control import DiskState, End, Hello, State
from blockdev.replicate.frames import LENGTH_BYTES, MESSAGE_BYTES_MAX, Frames, ProtocolError, frame
from blockdev.replicate.messages import OFFER, RUN, Kind
from blockdev.vmmap.copy_fields import DISKS_MAX
from tests.replicate.pools import BLOCK, FIRST, a_begin

DATA = np.array([(3, 1, 2), (4, 3, 4), (9, 5, 6)], OFFER)
HOLES = np.array([(5, 2), (8, 1)], RUN)

GOLDEN: dict[str, tuple[bytes, str]] = {
    "hello": (
        control.encode_hello(Hello([1], [], "blockdev 0.1.0")),
        "2f000000 01 83 a876657273696f6e73 9101 a86665617475726573 90 a8736f667477617265 ae626c6f636b64657620302e312e30",
    ),
    "state": (
        control.encode_state(State(False, FIRST, [DiskState(2048, True)])),
        "42000000 03 83 a770726573656e74 c2 a462617365"
        " d92430303030303030302d303030302d303030302d303030302d303030303030303030303031 a56469736b73 9192cd0800c3",
    ),
    "offer": (
        messages.encode_offer(7, 1, 10, DATA, HOLES),
        "75000000 04 07000000 0100 0a00000000000000 0200 0200 0300"
        " 030000000000000002000000 090000000000000001000000 050000000000000002000000 080000000000000001000000"
        " 01000000000000000200000000000000 03000000000000000400000000000000 05000000000000000600000000000000",
    ),
    "want": (messages.encode_marks(Kind.WANT, 7, np.array([1, 0, 1], bool)), "08000000 05 07000000 0300 05"),
    "data": (messages.encode_data(7, 2, 1, 0, b"ab"), "0c000000 06 07000000 0200 0100 00 6162"),
    "missing": (messages.encode_marks(Kind.MISSING, 7, np.array([0] * 8 + [1], bool)), "09000000 07 07000000 0900 0001"),
    "proofs": (messages.encode_proofs(7, b"p" * 32), "25000000 08 07000000 " + "70" * 32),
    "ack": (messages.encode_ack(1 << 40), "09000000 09 0000000000010000"),
    "end": (
        control.encode_end(End([b"d" * 16], [512])),
        "26000000 0a 82 a764696765737473 c410" + "64" * 16 + " a573697a6573 91cd0200",
    ),
    "saved": (messages.encode_saved(5, [2048, 0]), "1b000000 0b 0500000000000000 0200 0008000000000000 0000000000000000"),
    "request": (
        control.encode_request("test", {"a": 1}),
        "1a000000 0c 82 a477686174 a474657374 a9617267756d656e7473 81a16101",
    ),
    "committed": (
        control.encode_committed(FIRST),
        "31000000 0d 81 a8736e617073686f74 d92430303030303030302d303030302d303030302d303030302d303030303030303030303031",
    ),
    "refuse": (
        control.encode_refuse(PoolFull("no room")),
        "21000000 0f 82 a4636f6465 a9706f6f6c5f66756c6c a76d657373616765 a76e6f20726f6f6d",
    ),
    "answer": (control.encode_answer({}), "0a000000 11 81 a6616e73776572 80"),
}


def body(frame_bytes: bytes) -> memoryview:
    return memoryview(frame_bytes)[LENGTH_BYTES + 1 :]


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_bytes(name: str) -> None:
    made, wanted = GOLDEN[name]
    assert made.hex() == wanted.replace(" ", "")


def test_each_kind_has_its_number_for_ever() -> None:
    wanted = "HELLO 1 BEGIN 2 STATE 3 OFFER 4 WANT 5 DATA 6 MISSING 7 PROOFS 8 ACK 9 END 10 SAVED 11 REQUEST 12 COMMITTED 13 REFUSE 15 ANSWER 17"
    assert " ".join(f"{kind.name} {kind.value}" for kind in Kind) == wanted


def test_begin_says_all_fields_and_no_other() -> None:
    fields = msgpack.unpackb(body(control.encode_begin(a_begin([BLOCK, 512], [FIRST]))))
    assert fields == {
        "purpose": "protect",
        "snapshot": {
            "uuid": str(UUID(int=2)),
            "name": "s2",
            "description": "the second",
            "created": "2026-11-22T12:00:00.000Z",
            "lsn": 77,
            "consistency": "vm",
            "asked": "vm",
            "frozen_ms": 12,
        },
        "vm": {"uuid": str(UUID(int=9)), "name": "web"},
        "config": "<web/>",
        "disks": [["disk0", BLOCK], ["disk1", 512]],
        "ancestors": UUID(int=1).bytes,
        "keep_seconds": 3600,
        "rpo_seconds": 60,
        "vm_name": None,
    }


def test_what_was_encoded_is_decoded_as_it_was() -> None:
    begin = a_begin([BLOCK, 512], [FIRST])
    assert control.decode_begin(body(control.encode_begin(begin))) == begin
    offer = messages.decode_offer(body(GOLDEN["offer"][0]))
    assert (offer.batch, offer.disk, offer.next_block) == (7, 1, 10)
    assert offer.data.tolist() == DATA.tolist() and offer.holes.tolist() == HOLES.tolist()
    state = State(False, FIRST, [DiskState(2048, True), DiskState(0, False)])
    assert control.decode_state(body(control.encode_state(state))) == state
    marks = messages.decode_marks(body(GOLDEN["missing"][0]))
    assert marks.batch == 7 and marks.mask.tolist() == [False] * 8 + [True]
    assert messages.decode_saved(body(GOLDEN["saved"][0])) == messages.Saved(5, (2048, 0))
    refused = control.decode_refuse(body(control.encode_refuse(Corrupt("a\nb"))))
    assert type(refused) is Corrupt and str(refused) == "a b"
    assert control.decode_end(body(GOLDEN["end"][0])) == End([b"d" * 16], [512])


def test_the_largest_messages_that_there_can_be_fit() -> None:
    copy = a_begin([BLOCK]).snapshot
    disks = [copy.disks[0]._replace(name=f"{number:063}", size_bytes=(1 << 46) - 512) for number in range(DISKS_MAX)]
    full = copy._replace(disks=disks, config="c" * (1 << 20), description="d" * 4096)
    begin = a_begin([BLOCK])._replace(snapshot=full, ancestors=[str(UUID(int=one)) for one in range(control.ANCESTORS_MAX + 9)])
    assert len(control.decode_begin(body(control.encode_begin(begin))).ancestors) == control.ANCESTORS_MAX
    data = np.zeros(messages.OFFERS_MAX, OFFER)
    data["block"], data["low"] = np.arange(messages.OFFERS_MAX) * 2, 1
    holes = np.zeros(messages.RUNS_MAX, RUN)
    holes["block"], holes["count"] = 5000 + np.arange(messages.RUNS_MAX) * 2, 1
    made = messages.encode_offer(0, 0, 1 << 34, data, holes)
    assert len(messages.decode_offer(body(made)).data) == messages.OFFERS_MAX and len(made) < MESSAGE_BYTES_MAX


def test_fields_of_a_later_version_are_passed_over() -> None:
    for name, decode in (("state", control.decode_state), ("hello", control.decode_hello), ("end", control.decode_end)):
        fields = {**msgpack.unpackb(body(GOLDEN[name][0])), "later": [1, {"x": None}]}
        later: Callable[[memoryview], Any] = decode
        assert later(memoryview(msgpack.packb(fields))) == later(body(GOLDEN[name][0]))


@pytest.mark.parametrize(
    "field, value",
    [
        ("purpose", "steal"), ("config", "c" * ((1 << 20) + 1)), ("config", b"c"), ("disks", []), ("disks", [["a", 512], ["a", 512]]),
        ("disks", [["a/b", 512]]), ("disks", [["a", 513]]), ("disks", [["a", 1 << 47]]), ("disks", [["a"]]), ("disks", {"a": 512}),
        ("disks", [[f"d{n}", 512] for n in range(4097)]), ("ancestors", b"x" * 15), ("ancestors", b"x" * 160_016), ("ancestors", []),
        ("keep_seconds", -1), ("keep_seconds", True), ("rpo_seconds", 1 << 50), ("rpo_seconds", 1.5), ("vm_name", "../x"),
        ("vm", {"uuid": "no", "name": "web"}), ("vm", {"uuid": str(UUID(int=9)), "name": "a@b"}), ("vm", None), ("snapshot", 3),
    ],
)  # fmt: skip
def test_a_begin_that_says_what_cannot_be_is_refused(field: str, value: Any) -> None:
    fields = msgpack.unpackb(body(control.encode_begin(a_begin([BLOCK]))))
    with pytest.raises(ProtocolError, match="the beginning of a transfer is none"):
        control.decode_begin(memoryview(msgpack.packb({**fields, field: value})))
    del fields[field]
    with pytest.raises(ProtocolError):
        control.decode_begin(memoryview(msgpack.packb(fields)))


def offer_body(runs: list[tuple[int, int]], holes: list[tuple[int, int]], count: int, next_block: int = 100) -> memoryview:
    packed = b"".join(struct.pack("<QI", *run) for run in [*runs, *holes])
    head = struct.pack("<IHQHHH", 0, 0, next_block, len(runs), len(holes), count)
    return memoryview(head + packed + b"\1" * 16 * count)


@pytest.mark.parametrize(
    "made",
    [
        offer_body([(1, 2)], [], 3), offer_body([(1, 2)], [], 1), offer_body([(5, 1), (1, 1)], [], 2), offer_body([(1, 2), (2, 1)], [], 3),
        offer_body([(1, 1), (2, 1)], [], 2), offer_body([(1, 0)], [], 1), offer_body([(99, 2)], [], 2), offer_body([(1 << 63, 1)], [], 1),
        offer_body([((1 << 64) - 1, 1)], [], 1), offer_body([], [((1 << 64) - 1, 2)], 0), offer_body([], [(3, 0)], 0),
        offer_body([(3, 2)], [(4, 3)], 2), offer_body([(4, 1)], [(2, 9)], 1), offer_body([], [(2, (1 << 32) - 1)], 0),
        offer_body([(1, 1)], [], 1, (1 << 34) + 1), offer_body([(n * 2, 1) for n in range(2049)], [], 2049, 10_000),
        offer_body([], [(n * 2, 1) for n in range(8193)], 0, 20_000), memoryview(bytes(offer_body([(1, 2)], [], 2)) + b"x"),
        offer_body([(1, 2)], [], 2)[:-1], offer_body([(1, 2)], [], 2)[:30], memoryview(b""),
        memoryview(bytes(offer_body([(1, 2)], [], 2))[:-16] + bytes(16)),
    ],
)  # fmt: skip
def test_an_offer_that_cannot_be_is_refused(made: memoryview) -> None:
    with pytest.raises(ProtocolError):
        messages.decode_offer(made)


def test_data_that_would_take_other_memory_than_it_says_is_refused() -> None:
    def data(stored: bytes, count: int = 1) -> messages.Data:
        return messages.decode_data(body(messages.encode_data(0, 0, count, messages.ZSTD, stored)))

    bomb = zstandard.ZstdCompressor(level=19).compress(bytes(1 << 28))
    unsized = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(BLOCK))
    for stored in (bomb[:BLOCK], unsized, b"noise", zstandard.compress(bytes(BLOCK)) + b"x", b""):
        with pytest.raises(ProtocolError):
            messages.plain_of(data(stored))
    good = random.Random(1).randbytes(200 * BLOCK) + bytes(56 * BLOCK)
    for level in (1, 3, 19, 22):
        assert messages.plain_of(data(zstandard.compress(good, level), 256)) == good


@pytest.mark.parametrize("length", [0, MESSAGE_BYTES_MAX + 1, (1 << 32) - 1])
def test_a_length_that_no_message_has_ends_the_channel_before_anything_is_read(length: int) -> None:
    with pytest.raises(ProtocolError):
        Frames().feed(struct.pack("<I", length))


def test_messages_are_cut_out_of_any_pieces(seed: int) -> None:
    choice = random.Random(seed)
    made = [frame(choice.randrange(1, 9), choice.randbytes(choice.choice([0, 1, 5, 3000]))) for _ in range(200)]
    stream, frames, found = b"".join(made), Frames(), []
    while stream:
        count = choice.randrange(1, 4000)
        found += frames.feed(stream[:count])
        stream = stream[count:]
    assert found == [one[LENGTH_BYTES:] for one in made] and frames.is_between


def test_what_is_made_in_place_is_cut_like_what_is_fed_and_messages_stay_what_they_were(seed: int) -> None:
    """As packets come: opened in place behind a head, for this channel or for another one, or copied."""
    choice = random.Random(seed)
    sizes = [0, 1, 5, 3000, 70_000, 1 << 20, MESSAGE_BYTES_MAX - 1]
    made = [frame(choice.randrange(1, 9), choice.randbytes(choice.choice(sizes))) for _ in range(60)]
    stream, frames, found = memoryview(b"".join(made)), Frames(), []
    while len(stream):
        piece = stream[: choice.choice([1, 3, 9, 4000, 100_000, 1 << 19])]
        padding = choice.randrange(4, 20)
        way = choice.choice(["copied", "in place", "for another"])
        if way != "copied":
            opened = frames.room(10, 10 + len(piece) + padding)
            opened[:] = choice.randbytes(10) + bytes(piece) + choice.randbytes(padding)
            frames.uncover()
            if way == "for another":
                continue
            piece = opened[10 : 10 + len(piece)]
            frames.made(piece)
        found += frames.feed(piece)
        stream = stream[len(piece) :]
    assert found == [one[LENGTH_BYTES:] for one in made] and frames.is_between


DECODERS: list[Callable[[memoryview], Any]] = [
    control.decode_hello, control.decode_begin, control.decode_state, control.decode_end, control.decode_committed,
    control.decode_refuse, control.decode_request, control.decode_answer, messages.decode_offer, messages.decode_marks,
    messages.decode_proofs, messages.decode_ack, messages.decode_saved,
    lambda given_body: messages.plain_of(messages.decode_data(given_body)),
]  # fmt: skip
SAMPLES = [bytes(body(made)) for made, _ in GOLDEN.values()] + [bytes(body(control.encode_begin(a_begin([BLOCK, 512], [FIRST]))))]
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 64) - 1) | st.floats() | st.text(max_size=20) | st.binary(max_size=40),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@given(st.sampled_from(SAMPLES), st.lists(st.tuples(st.integers(0, 400), st.binary(max_size=6)), max_size=4), st.integers(0, 9))
def test_whatever_comes_is_decoded_or_refused(sample: bytes, edits: list[tuple[int, bytes]], cut: int) -> None:
    made = bytearray(sample[: len(sample) - cut])
    for place, data in edits:
        made[place : place + len(data)] = data
    for decode in DECODERS:
        with suppress(ProtocolError):
            decode(memoryview(bytes(made)))


@given(st.sampled_from([one for one in SAMPLES if one[:1] >= b"\x80" and one[0] < 0x90]), PLAIN, st.integers(0, 20))
def test_whatever_a_field_says_is_decoded_or_refused(sample: bytes, value: Any, number: int) -> None:
    fields = msgpack.unpackb(sample)
    fields[sorted(fields)[number % len(fields)]] = value
    for decode in DECODERS[:8]:
        try:
            decode(memoryview(msgpack.packb(fields)))
        except BlockdevError as error:
            assert isinstance(error, ProtocolError)
