"""The messages of replication: their bytes, and what they may say (docs/format/replication.md).

Pure functions.  A `decode` takes what another home sent: every field and size is checked before it is used, and what is
wrong raises ProtocolError with why; never another exception.  An `encode` makes a whole frame.

Control messages are msgpack maps; a field that is not known is passed over, as a later version may say more.  Messages
of blocks are packed, and numpy reads and makes them: nothing is done here block by block.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from enum import IntEnum
from typing import Any, NamedTuple

import numpy as np
import zstandard
from numpy.typing import NDArray

from blockdev.constants import BLOCK_BYTES, VDISK_BYTES_MAX
from blockdev.replicate.frames import Cursor, Frame, Message, ProtocolError, frame
from blockdev.vmmap.copy_fields import DISKS_MAX

BLOCKS_MAX = VDISK_BYTES_MAX // BLOCK_BYTES  # of a disk
OFFERS_MAX = 2048  # of blocks with data in one batch: 8 MiB
RUNS_MAX = 8192  # of holes in one batch
BATCHES_MAX = 32  # a batch is begun only so many behind the oldest that is not complete
DATA_BLOCKS_MAX = 256  # in one message
PROOF_BYTES = 32  # SHA-256
DIGEST_BYTES = 16
RAW, ZSTD = 0, 1  # codecs
WINDOW_BYTES_MAX = DATA_BLOCKS_MAX * BLOCK_BYTES  # that a frame of zstd may want to be decompressed

OFFER = np.dtype([("block", "<u8"), ("low", "<u8"), ("high", "<u8")])  # as in _exchange.pxd
RUN = np.dtype([("block", "<u8"), ("count", "<u4")])  # on the wire
FINGERPRINT = np.dtype([("low", "<u8"), ("high", "<u8")])
Offers = NDArray[Any]  # of OFFER
Runs = NDArray[Any]  # of RUN
Mask = NDArray[np.bool_]

_OFFER_HEAD = struct.Struct("<IHQHHH")  # batch, disk, next block, runs with data, runs of holes, blocks with data
_MASK_HEAD = struct.Struct("<IH")  # batch, bits
_DATA_HEAD = struct.Struct("<IHHB")  # batch, first, count, codec
_BATCH = struct.Struct("<I")
_COUNT = struct.Struct("<Q")
_SAVED_HEAD = struct.Struct("<QH")  # bytes of data, disks


class Kind(IntEnum):
    """What a message is; the sender's have even numbers, the receiver's odd ones, but for HELLO."""

    HELLO = 1
    BEGIN = 2
    STATE = 3
    OFFER = 4
    WANT = 5
    DATA = 6
    MISSING = 7
    PROOFS = 8
    ACK = 9
    END = 10
    SAVED = 11
    REQUEST = 12
    COMMITTED = 13
    REFUSE = 15
    ANSWER = 17


class Offer(NamedTuple):
    """A batch of blocks that differ from the base."""

    batch: int
    disk: int
    next_block: int  # where what no batch has told of begins
    data: Offers  # in order of their blocks
    holes: Runs  # in order, none touching the next


class Marks(NamedTuple):
    """What the receiver says of some blocks of a batch: WANT, of those with data; MISSING, of those that were proved."""

    batch: int
    mask: Mask  # True: their bytes must come


class Data(NamedTuple):
    """Bytes of blocks that the receiver wants."""

    batch: int
    first: int  # among those of the batch that it wants, in the order in which it said so
    length: int
    codec: int
    stored: memoryview


class Proofs(NamedTuple):
    batch: int
    proofs: memoryview  # PROOF_BYTES each


class Saved(NamedTuple):
    """What is durable at the receiver."""

    data_bytes: int  # of DATA, of all connections
    next_blocks: tuple[int, ...]  # for each disk


def kind_of(message: Message) -> Kind:
    """ProtocolError: there is no such message."""
    try:
        return Kind(message[0])
    except (IndexError, ValueError):
        raise ProtocolError(f"there is no message of kind {message[:1].hex() or 'nothing'}") from None


def body_of(message: Message) -> memoryview:
    return memoryview(message)[1:]


# --- offers ----------------------------------------------------------------------------------------------------------


def runs_of(blocks: NDArray[Any]) -> Runs:
    """The runs of neighbours in ascending numbers of blocks."""
    breaks = np.flatnonzero(np.diff(blocks) != 1) + 1
    starts = np.concatenate(([0], breaks)) if len(blocks) else np.empty(0, np.int64)
    runs = np.empty(len(starts), RUN)
    runs["block"] = blocks[starts]
    runs["count"] = np.diff(np.append(starts, len(blocks)))
    return runs


def blocks_of(runs: Runs) -> NDArray[Any]:
    """The numbers of the blocks of some runs."""
    counts = runs["count"].astype(np.int64)
    behind = np.cumsum(counts)
    within = np.arange(behind[-1] if len(behind) else 0) - np.repeat(behind - counts, counts)
    return np.repeat(runs["block"], counts) + within.astype(np.uint64)


def encode_offer(batch: int, disk: int, next_block: int, data: Offers, holes: Runs) -> Frame:
    runs = runs_of(data["block"])
    head = _OFFER_HEAD.pack(batch, disk, next_block, len(runs), len(holes), len(data))
    fingerprints = np.empty(len(data), FINGERPRINT)
    fingerprints["low"], fingerprints["high"] = data["low"], data["high"]
    return frame(Kind.OFFER, head, runs.tobytes(), holes.tobytes(), fingerprints.tobytes())


def decode_offer(body: memoryview) -> Offer:
    cursor = Cursor(body, "an offer")
    batch, disk, next_block, run_count, hole_count, count = cursor.numbers(_OFFER_HEAD)
    if run_count > count or count > OFFERS_MAX or hole_count > RUNS_MAX or next_block > BLOCKS_MAX:
        raise ProtocolError("an offer is larger than one may be")
    runs = np.frombuffer(cursor.take(run_count * RUN.itemsize), RUN)
    holes = np.frombuffer(cursor.take(hole_count * RUN.itemsize), RUN)
    fingerprints = np.frombuffer(cursor.take(count * FINGERPRINT.itemsize), FINGERPRINT)
    cursor.end()
    _check_runs(runs, next_block)
    _check_runs(holes, next_block)
    if int(runs["count"].sum(dtype=np.uint64)) != count:
        raise ProtocolError("an offer has another number of fingerprints than of blocks")
    if ((fingerprints["low"] == 0) & (fingerprints["high"] == 0)).any():
        raise ProtocolError("an offer has a hole among its data")
    data = np.empty(count, OFFER)
    data["block"], data["low"], data["high"] = blocks_of(runs), fingerprints["low"], fingerprints["high"]
    begins = np.searchsorted(data["block"], holes["block"])
    if (begins != np.searchsorted(data["block"], holes["block"] + holes["count"])).any():
        raise ProtocolError("an offer has a block both as a hole and with data")
    return Offer(batch, disk, next_block, data, holes)


def _check_runs(runs: Runs, next_block: int) -> None:
    """In order, none empty, none touching the next, none reaching beyond `next_block`."""
    if not len(runs):
        return
    if (runs["block"] > next_block).any() or not runs["count"].all():  # before sums, which could overflow
        raise ProtocolError("an offer has a run of blocks where none can be")
    ends = runs["block"] + runs["count"]
    if (ends > next_block).any() or (runs["block"][1:] <= ends[:-1]).any():
        raise ProtocolError("an offer has its runs of blocks out of order")


# --- marks, data, proofs ---------------------------------------------------------------------------------------------


def encode_marks(kind: Kind, batch: int, mask: Mask) -> Frame:
    return frame(kind, _MASK_HEAD.pack(batch, len(mask)), np.packbits(mask, bitorder="little").tobytes())


def decode_marks(body: memoryview) -> Marks:
    cursor = Cursor(body, "a bitmap")
    batch, count = cursor.numbers(_MASK_HEAD)
    if count > OFFERS_MAX:
        raise ProtocolError("a bitmap is larger than one may be")
    packed = np.frombuffer(cursor.take((count + 7) // 8), np.uint8)
    cursor.end()
    bits = np.unpackbits(packed, bitorder="little").astype(np.bool_)
    if bits[count:].any():
        raise ProtocolError("a bitmap has bits behind its end")
    return Marks(batch, bits[:count])


def encode_data(batch: int, first: int, count: int, codec: int, stored: bytes | memoryview) -> Frame:
    return frame(Kind.DATA, _DATA_HEAD.pack(batch, first, count, codec), stored)


def decode_data(body: memoryview) -> Data:
    cursor = Cursor(body, "a message of data")
    batch, first, count, codec = cursor.numbers(_DATA_HEAD)
    stored = cursor.rest()
    if not 0 < count <= DATA_BLOCKS_MAX or codec not in (RAW, ZSTD):
        raise ProtocolError(f"a message of {count} blocks, codec {codec}")
    if len(stored) > count * BLOCK_BYTES or (codec == RAW and len(stored) != count * BLOCK_BYTES):
        raise ProtocolError(f"a message of {count} blocks with {len(stored)} bytes")
    return Data(batch, first, count, codec, stored)


def plain_of(data: Data) -> bytes | memoryview:
    """The bytes of its blocks."""
    if data.codec == RAW:
        return data.stored
    wanted = data.length * BLOCK_BYTES
    try:  # the frame says how much memory it wants: look before
        if zstandard.frame_content_size(data.stored) != wanted:
            raise ProtocolError("a message of data holds another length than it says")
        plain = zstandard.ZstdDecompressor(max_window_size=WINDOW_BYTES_MAX).decompress(data.stored, allow_extra_data=False)
    except (zstandard.ZstdError, ValueError) as error:
        raise ProtocolError(f"a message of data does not decompress: {error}") from None
    if len(plain) != wanted:
        raise ProtocolError("a message of data holds another length than it says")
    return plain


def encode_proofs(batch: int, proofs: bytes) -> Frame:
    return frame(Kind.PROOFS, _BATCH.pack(batch), proofs)


def decode_proofs(body: memoryview) -> Proofs:
    cursor = Cursor(body, "a message of proofs")
    [batch] = cursor.numbers(_BATCH)
    proofs = cursor.rest()
    if not 0 < len(proofs) <= OFFERS_MAX * PROOF_BYTES or len(proofs) % PROOF_BYTES:
        raise ProtocolError(f"{len(proofs)} bytes of proofs")
    return Proofs(batch, proofs)


def encode_ack(data_bytes: int) -> Frame:
    """data_bytes: of the DATA messages that were handled on this channel, stored."""
    return frame(Kind.ACK, _COUNT.pack(data_bytes))


def decode_ack(body: memoryview) -> int:
    cursor = Cursor(body, "an acknowledgement")
    [data_bytes] = cursor.numbers(_COUNT)
    cursor.end()
    return data_bytes


def encode_saved(data_bytes: int, next_blocks: Sequence[int]) -> Frame:
    return frame(Kind.SAVED, _SAVED_HEAD.pack(data_bytes, len(next_blocks)), np.array(next_blocks, "<u8").tobytes())


def decode_saved(body: memoryview) -> Saved:
    cursor = Cursor(body, "a message of what is saved")
    data_bytes, count = cursor.numbers(_SAVED_HEAD)
    if count > DISKS_MAX:
        raise ProtocolError("a message of what is saved tells of too many disks")
    next_blocks = tuple(np.frombuffer(cursor.take(count * 8), "<u8").tolist())
    cursor.end()
    if max(next_blocks, default=0) > BLOCKS_MAX:
        raise ProtocolError("a message of what is saved tells of a place behind every disk's end")
    return Saved(data_bytes, next_blocks)
