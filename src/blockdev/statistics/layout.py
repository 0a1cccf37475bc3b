"""The bytes of a VM's file of history: docs/format/statistics.md.

A file is a header and three rings of slots.  A slot's place follows from its time, and says by its lap and its checksum whether
it is that time's: what was never written, is older by a lap, or was damaged is a gap.  So no order of writes matters, and no
write can make a file unreadable; the header is written once, before the file has its name.
"""

from __future__ import annotations

import struct
from typing import Any, NamedTuple

import numpy as np
import xxhash
from numpy.typing import NDArray

from blockdev.statistics import coding
from blockdev.statistics.figures import CAUSES, GAUGE_OF, GAUGES, KINDS, OF, QUANTILES, SPACE, Span, unknown

MAGIC = b"BDSTATS1"
VERSION = 2
HEADER_BYTES = 4096
HEADER = struct.Struct("<8sII16s")  # magic, version, header bytes, VM's UUID
RING = struct.Struct("<IIIIQ")  # seconds of a slot, slots, bytes of a slot, reserved, offset
CHECKSUM = struct.Struct("<Q")  # XXH3-64 of the header's bytes before it; the header's last 8 bytes

COVERED_FULL = 3600  # what of a slot was observed is told in parts of it: of an hour in seconds
CHECK_OF_ZEROS = 0x5A
LAPS = 1 << 12  # laps are told apart so far: 11 years of the shortest ring
_SHORT_CODES = tuple(f"{name}_p99" for name in QUANTILES)
_CODES = (
    *(f"{cause}_us" for cause in CAUSES),
    *("appended_bytes", "remaining_bytes", "logical_bytes", "network_bytes", "lag_seconds"),
)
_HEAD = [("lap_covered", "<u2"), ("covered_low", "u1"), ("check", "u1")]
_COUNTS = [
    *(("reads", "<u4"), ("writes", "<u4"), ("flushes", "<u4")),
    *(("read_bytes_low", "<u4"), ("written_bytes_low", "<u4"), ("read_bytes_high", "<u2"), ("written_bytes_high", "<u2")),
]
_TIMES = [*((f"{kind}_us", "<u2") for kind in KINDS), *((name, "u1") for name in _SHORT_CODES)]
SHORT = np.dtype([*_HEAD, *_COUNTS, *_TIMES, *((name, "<u2") for name in _CODES)])
LONG = np.dtype([*SHORT.descr, *((name, "<u2") for name in SPACE)])
_OFFSETS = {name: int(offset) for name, (_type, offset, *_title) in (LONG.fields or {}).items()}
_PLACES = {name: offset // 2 for name, offset in _OFFSETS.items()}  # of codes, as if a slot were numbers of 16 bits
_SHORT_CODES_AT = _OFFSETS[_SHORT_CODES[0]]
Slots = NDArray[Any]  # of SHORT or LONG


class Ring(NamedTuple):
    """Slots of one length."""

    seconds: int  # of a slot
    slot_count: int
    slot: np.dtype[Any]
    offset: int  # in the file

    @property
    def span_seconds(self) -> int:
        return self.seconds * self.slot_count

    @property
    def byte_count(self) -> int:
        return self.slot_count * self.slot.itemsize


def _rings() -> tuple[Ring, ...]:
    offset, rings = HEADER_BYTES, []
    for seconds, days, slot in ((10, 1, SHORT), (300, 31, LONG), (3600, 730, LONG)):
        rings.append(Ring(seconds, days * 86400 // seconds, slot, offset))
        offset += rings[-1].byte_count
    return tuple(rings)


RINGS = _rings()  # the finest first; each one's slots are made of those of the one before
FILE_BYTES = RINGS[-1].offset + RINGS[-1].byte_count


def header(uuid: bytes, version: int = VERSION) -> bytes:
    """Of a file of the VM of this UUID, 16 bytes."""
    parts = [HEADER.pack(MAGIC, version, HEADER_BYTES, uuid)]
    parts += [RING.pack(ring.seconds, ring.slot_count, ring.slot.itemsize, 0, ring.offset) for ring in RINGS]
    body = b"".join(parts).ljust(HEADER_BYTES - CHECKSUM.size, b"\0")
    return body + CHECKSUM.pack(xxhash.xxh3_64_intdigest(body))


def place(ring: Ring, number: int) -> tuple[int, int]:
    """(offset in the file, lap) of the slot that begins at `number` times the ring's seconds since 1970."""
    lap, index = divmod(number, ring.slot_count)
    return ring.offset + index * ring.slot.itemsize, lap % LAPS


def encode(ring: Ring, number: int, span: Span) -> Slots:
    """The slots of this number, one for each row of the span."""
    slots = np.zeros(len(span.seconds), ring.slot)
    covered = np.clip(np.rint(span.seconds * (COVERED_FULL / ring.seconds)), 1, COVERED_FULL).astype(np.uint16)
    slots["lap_covered"] = place(ring, number)[1] | (covered >> 8 << 12)
    slots["covered_low"] = covered & 0xFF
    for name in ("reads", "writes", "flushes"):
        slots[name] = np.minimum(span.sums[:, OF[name]], 0xFFFFFFFF)
    for name in ("read_bytes", "written_bytes"):
        whole = np.minimum(span.sums[:, OF[name]], 2**48 - 1).astype(np.uint64)
        slots[f"{name}_low"], slots[f"{name}_high"] = whole & 0xFFFFFFFF, whole >> 32
    for name in (*KINDS, *CAUSES):
        slots[f"{name}_us"] = coding.encode(span.sums[:, OF[f"{name}_ns"]] / 1000)
    for column, name in enumerate(_SHORT_CODES):
        slots[name] = coding.encode_short(span.p99_ns[:, column])
    for name in ("appended_bytes", "logical_bytes", "network_bytes"):
        slots[name] = coding.encode(span.sums[:, OF[name]])
    for name in GAUGES:
        if name in (ring.slot.names or ()):
            slots[name] = coding.encode(span.gauges[:, GAUGE_OF[name]])
    slots["check"] = check(slots)
    return slots


def decode(ring: Ring, number: int, slots: Slots) -> Span:
    """Slots of this number and of those that follow it."""
    numbers = np.arange(number, number + len(slots))
    covered = (slots["lap_covered"] >> 12).astype(np.int64) << 8 | slots["covered_low"]
    good = (slots["lap_covered"] % LAPS == numbers // ring.slot_count % LAPS) & (covered > 0) & (slots["check"] == check(slots))
    span = unknown(len(slots))
    span.seconds[:] = np.where(good, np.minimum(covered, COVERED_FULL) * (ring.seconds / COVERED_FULL), 0)
    sums, gauges, p99 = span.sums, span.gauges, span.p99_ns
    for name in ("reads", "writes", "flushes"):
        sums[:, OF[name]] = slots[name]
    for name in ("read_bytes", "written_bytes"):
        sums[:, OF[name]] = slots[f"{name}_low"] + slots[f"{name}_high"] * 2.0**32
    octets = np.ascontiguousarray(slots).view(np.uint8).reshape(len(slots), ring.slot.itemsize)
    codes = coding.decode(octets.view("<u2"))  # all at once: a call for each column takes longer than what it does
    sums[:, [OF[f"{name}_ns"] for name in (*KINDS, *CAUSES)]] = codes[:, [_PLACES[f"{name}_us"] for name in (*KINDS, *CAUSES)]] * 1000
    coded = ("appended_bytes", "logical_bytes", "network_bytes")
    sums[:, [OF[name] for name in coded]] = codes[:, [_PLACES[name] for name in coded]]
    kept = [name for name in GAUGES if name in (ring.slot.names or ())]
    gauges[:, [GAUGE_OF[name] for name in kept]] = codes[:, [_PLACES[name] for name in kept]]
    p99[:] = coding.decode_short(octets[:, _SHORT_CODES_AT : _SHORT_CODES_AT + len(_SHORT_CODES)])
    for part in (sums, gauges, p99):
        part[~good] = np.nan
    return span


def check(slots: Slots) -> NDArray[np.uint8]:
    """Of all bytes of a slot but its `check`.  Weights are odd: no change of one byte leaves it.  No slot of zeros has it."""
    size = slots.dtype.itemsize
    octets = np.ascontiguousarray(slots).view(np.uint8).reshape(len(slots), size)
    weights = np.arange(size, dtype=np.uint32) * 14 + 3
    weights[3] = 0  # where `check` is
    return (CHECK_OF_ZEROS + octets.astype(np.uint32) @ weights).astype(np.uint8)
